package engine

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// restEngine has groups whose logs are applied, in tables and cut, as those of replicas that sleep
// are, in a directory of the operating system.
func restEngine(t *testing.T) *Engine {
	e := deferredEngine(t, nil, func(o *Options) {
		o.Dir, o.restBytes = t.TempDir(), 16<<10
		o.MemTableBytes, o.DeferLogBytes = 256<<10, 1<<30
		o.tune = func(p *pebble.Options) { p.DisableAutomaticCompactions = true }
	})
	const groups = 400
	for round := range 6 {
		for s := raft.ShardID(1); s <= groups; s++ {
			b := e.NewBatch()
			if round == 0 {
				d := testDesc(s)
				b.SetDescriptor(&d)
			}
			i := raft.Index(round + 1)
			b.Append(s, i-1, entries(i, i, 1))
			b.SetHardState(s, raft.HardState{Term: 1, Vote: 1, Commit: i})
			b.SetApplied(s, raft.AppliedState{Applied: i, AppliedTerm: 1})
			b.Set(1, fmt.Appendf(nil, "s%04d/k", s), fmt.Appendf(nil, "%d", i))
			must(t, b.Commit(false))
			b.Close()
		}
		must(t, e.flushAll())
		for s := raft.ShardID(1); s <= groups; s++ {
			b := e.NewBatch()
			b.Truncate(s, raft.Index(round), raft.Index(round+1), 1)
			must(t, b.Commit(false))
			b.Close()
		}
		must(t, e.SyncNow())
		e.def.running.Wait()
	}
	return e
}

// rest calls Rest as often as the owner of an idle store does, and waits for what it began.
func rest(e *Engine, n int) {
	for range n {
		e.Rest()
		e.def.running.Wait()
	}
}

// logFiles returns what the write-ahead logs, and those that wait to be used again, take of the disk.
func logFiles(t *testing.T, e *Engine) int64 {
	t.Helper()
	n, err := e.logBlocks()
	must(t, err)
	return n
}

// contents prints all that Pebble holds.
func contents(t *testing.T, e *Engine) string {
	t.Helper()
	var b strings.Builder
	must(t, e.eachRaw([]byte{0}, []byte{0xff}, func(k Key, v []byte) (bool, error) {
		fmt.Fprintf(&b, "%x=%x\n", k.Raw(), v)
		return true, nil
	}))
	return b.String()
}

// TestTidy: a store that comes to rest takes little more of the disk than what it holds, holds
// what it held, and writes nothing more.
func TestTidy(t *testing.T) {
	if err := tidied(t); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"GV9", "GV10", "GV11"} {
		withoutRule(t, id, tidied)
	}
}

func tidied(t *testing.T) error {
	e := restEngine(t)
	was, logs, tables := contents(t, e), logFiles(t, e), e.db.Metrics().Total().TablesSize
	if e.Metrics().Resting {
		return fmt.Errorf("it rests, and nobody looked")
	}
	rest(e, 2)    // the first one finds batches since the one before
	for range 3 { // proofs that the disk is alive
		must(t, e.SyncNow())
	}
	m := e.db.Metrics()
	if !e.Metrics().Resting || logFiles(t, e) >= 16<<10 || m.Levels[0].TablesCount != 0 || m.Total().TablesSize > tables/2 {
		return fmt.Errorf("%d bytes of logs, before %d, %d of tables, before %d:\n%s", logFiles(t, e), logs, m.Total().TablesSize, tables, m)
	}
	if contents(t, e) != was {
		return fmt.Errorf("it holds something else")
	}
	written, flushes, merges := e.Metrics().BytesWritten, m.Flush.Count, m.Compact.Count
	rest(e, 3)
	if m := e.db.Metrics(); e.Metrics().BytesWritten != written || m.Flush.Count != flushes || m.Compact.Count != merges {
		return fmt.Errorf("at rest %d bytes were written, in %d flushes and %d compactions", e.Metrics().BytesWritten-written, m.Flush.Count-flushes, m.Compact.Count-merges)
	}
	// The log of a store that rests for long stays short.
	for range 20 {
		pb := e.db.NewBatch()
		must(t, pb.LogData(make([]byte, 1000), nil))
		must(t, e.commitUnsynced(pb))
		must(t, pb.Close())
	}
	must(t, e.SyncNow())
	if rest(e, 2); logFiles(t, e) >= 16<<10 || e.db.Metrics().Flush.Count > flushes+memTables+2 {
		return fmt.Errorf("after long rest: %d bytes of logs, %d flushes", logFiles(t, e), e.db.Metrics().Flush.Count-flushes)
	}
	o := e.opts
	must(t, e.Close())
	again, err := Open(o)
	if err != nil {
		return err
	}
	defer again.Close()
	if _, err := again.Boot(); err != nil {
		return err
	}
	if got := contents(t, again); strings.ReplaceAll(got, "\n", "") == "" || data(got) != data(was) {
		return fmt.Errorf("it holds something else when it is opened again")
	}
	return nil
}

// data leaves out what a start of the store changes.
func data(contents string) string {
	var b strings.Builder
	for line := range strings.Lines(contents) {
		if !strings.HasPrefix(line, "00") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// TestTidyWaits: what is at work, or in memory alone, is left as it is.
func TestTidyWaits(t *testing.T) {
	e := restEngine(t)
	rest(e, 1) // there were batches
	if e.Metrics().Resting {
		t.Error("a store that was written to rests")
	}
	put := func() {
		writeClean(t, e, func(b *Batch) {
			b.Set(1, []byte("s0001/k"), []byte("later"))
			b.SetApplied(1, raft.AppliedState{Applied: 6, AppliedTerm: 1, TruncIndex: 6, TruncTerm: 1})
		})
	}
	put()
	rest(e, 1) // in memory
	if e.Metrics().Resting {
		t.Error("a store rests though what was applied is in memory alone")
	}
	must(t, e.flushAll())
	rest(e, 1) // which is little
	if !e.Metrics().Resting {
		t.Error("a store that was hardly written to does not rest")
	}
}

// TestMergeDue: no store is rewritten for a little that lies above.
func TestMergeDue(t *testing.T) {
	for _, c := range []struct {
		levels []int64
		want   bool
	}{
		{nil, false},
		{[]int64{0, 0, 0, 0, 0, 0, 100 << 20}, false},
		{[]int64{20, 0, 0, 0, 0, 0, 20}, false},
		{[]int64{1 << 20, 0, 0, 0, 0, 0, 0}, true},
		{[]int64{1 << 20, 0, 0, 0, 0, 0, 3 << 20}, true},
		{[]int64{1 << 20, 0, 0, 0, 0, 0, 5 << 20}, false},
		{[]int64{0, 0, 0, 0, 0, 5 << 20, 0}, false},
		{[]int64{1 << 20, 0, 0, 0, 1 << 20, 0, 8 << 20}, true},
		{[]int64{200 << 20, 0, 0, 0, 0, 0, 100 << 20}, false},
	} {
		if got := mergeDue(c.levels, restBytes); got != c.want {
			t.Errorf("%v: %v", c.levels, got)
		}
	}
}

func tidyScript(seed uint64) *script {
	s := newDeferredScript(seed)
	for shard := raft.ShardID(1); shard <= 3; shard++ {
		s.create(shard)
	}
	for i := range 8 {
		s.round()
		s.round()
		s.flushDeferred()
		s.round()
		s.add("come to rest", false, (*Engine).tidyUp)
		if i%3 == 0 {
			s.describe(raft.ShardID(1+i%3), i%2 == 0)
		}
		s.add("disk gate", true, (*Engine).SyncNow)
	}
	return s
}

// TestTidyCrash: a crash while the store is made small takes nothing of what was durable.
func TestTidyCrash(t *testing.T) {
	seen, n, err := crashEverywhere(tidyScript(8), simfs.Modes, thinned(2), func(fs FS) Options {
		o := deferredOptions(fs)
		o.restBytes = 1
		return o
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d crashes, %d different steps came back", n, len(seen))
}
