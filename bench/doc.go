// Package bench drives a key-value store with the workloads of bench/workload
// and measures what that costs.
//
// A run has three parts: Load stores the records, Run lets the clients work
// for a warm-up and a measured time, Sample reads records back. Clients are
// goroutines. In a closed loop each client sends its next operation when the
// last one was answered, which finds the peak. In an open loop (Config.Rate)
// operations have planned send times that do not wait for answers, and latency
// counts from the planned time, so that a stall of the store is charged to
// every operation it delayed and not only to the one that saw it (Tene, "How
// not to measure latency"). In a pipelined loop (Config.Pipelines), a closed one,
// a goroutine does the work of many clients without waiting for each operation.
//
// What goes in is a Target per node or connection; what comes out is a Second
// for each second and one Result. Only acknowledged operations are counted;
// errors are counted by kind. CPU time, resident memory and bytes written to
// the device of the data directory are read for the whole process and machine
// (machine_linux.go says how), so other work on the machine shows up in them.
//
// Goroutines: Run starts one per client or pipeline, in an open loop one for the arrivals,
// and returns when all of them have ended. Locks: one per shard of the recorder, held for a histogram update.
package bench
