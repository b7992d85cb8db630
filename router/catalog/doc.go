// Package catalog is the table of contents of a cluster: which shards hold
// which ranges, who replicates and who last led them, which nodes there are and
// how to reach them, and the next free ids.
//
// It is ordinary data of keyspace 0, which the meta shard (group 1) holds, so
// it is replicated, durable and readable by any client like every other key.
// This package knows the keys and records (keys.go, records.go), the
// operations on them over a small KV interface (catalog.go), and the plan of a
// new cluster (plan.go, splits.go). It is pure apart from calling that
// interface: no goroutine, lock or clock.
//
// Writers run side by side on all nodes. Each operation reads what it is about
// to change and writes on the condition that nobody changed it since; a loser
// looks again. What may only move forward (a leader's term, a descriptor's
// version) is compared on each look, so that a late writer with old news
// changes nothing.
package catalog
