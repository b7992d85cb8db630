// Package workload generates the six YCSB core workloads (Cooper et al.,
// "Benchmarking Cloud Serving Systems with YCSB", SoCC 2010) without
// allocating per operation.
//
// A Set holds what the clients of one run share: the number of records, the
// pool of random bytes values are cut from, and the counter of inserted
// records. Each client owns one Gen, which draws one operation after the other
// from its own seeded source; two runs with equal seeds and equal timing of
// acknowledgements ask for the same operations.
//
// A record is known by its number. Its key is sixteen hexadecimal digits of a
// 64-bit permutation of that number: unique, of fixed size, and spread evenly
// over the key space, so that ranges of equal width (see Splits) hold equal
// shares of the records.
//
// Popularity follows YCSB: "zipfian" draws a rank from a Zipf law with
// exponent 0.99 over ten billion ranks and hashes it to a record, so that the
// popular records lie scattered over the key space; "latest" prefers the
// youngest record; "uniform" prefers none. Workload F reads a record and writes
// it back, as YCSB defines it.
//
// Nothing here owns a goroutine or a lock, except for the short lock around
// the window of inserts that are still in flight.
package workload
