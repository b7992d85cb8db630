package engine

import "runtime"

// SpaceTerm is one part of what a store takes on its disk besides its data and its logs.
type SpaceTerm struct {
	Name  string
	Bytes int64
	Count string // how Bytes is counted
}

// Options.ManifestBytes where it is not given. Each change of tables is some hundred bytes.
const manifestBytes = 4 << 20

// memTables is how many memtables there may be before writes wait for a flush.
const memTables = 3

// compactions returns how many compactions may run at a time, at most.
func compactions() int {
	if n := runtime.GOMAXPROCS(0); n > 2 {
		return min(4, max(1, n/2))
	}
	return 1
}

// baseBytes is how large the level below level 0 gets before there is one more between
// it and the rest. As much as level 0 holds when it is merged: then a compaction reads
// about as much of either.
func (o *Options) baseBytes() int64 {
	if o.DeferBytes == 0 {
		return 256 << 20
	}
	return min(256<<20, max(16<<20, l0Compaction*o.DeferBytes))
}

// Allowance counts what the files of the store may take besides 1.3 times the data
// and the logs (LogUsage), from the options alone. shard is the size of the largest
// shard, in bytes, and incoming how many snapshots are taken in at a time.
func (e *Engine) Allowance(shard int64, incoming int) []SpaceTerm {
	o := &e.opts
	mem := o.MemTableBytes + o.MemTableBytes/10 // Pebble gives a log file its blocks ahead
	const inUse, kept = memTables + 1, memTables + 1
	flush := max(2*o.DeferBytes, o.MemTableBytes)
	const sublevels = l0Compaction + 4
	level0 := sublevels * max(o.DeferBytes, o.MemTableBytes)
	merged := int64(compactions()) * (level0 + o.baseBytes())
	terms := []SpaceTerm{
		{"write-ahead log files", (inUse + kept) * mem, "(3 memtables and the one that is begun, 4 files kept for reuse) x 1.1 x memtable; what is in use counts in the logs as well"},
		{"level 0", level0, "12 sublevels (merged from 8 on) x what is flushed at a time"},
		{"flush under way", flush, "twice what is applied in memory only, or a memtable"},
		{"compaction scratch", merged, "outputs beside inputs: compactions at a time x (level 0 + the level below it)"},
		{"tables being removed", o.baseBytes(), "removed step by step; beyond this at once"},
		{"staging", int64(incoming) * (shard + shard/10), "snapshots that come in at a time x 1.1 x largest shard"},
		{"lists of tables", 2 * o.ManifestBytes, "the present MANIFEST and the one before"},
		{"small files", 1 << 20, "identity, watermark, options, directories"},
	}
	if e.opts.BallastBytes > 0 {
		s := e.Space()
		terms = append(terms, SpaceTerm{"ballast", e.ballastSize(&s), "Limits.Ballast, at most a hundredth of the capacity"})
	}
	return terms
}
