package engine

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// BenchmarkRound is what a loop writes per round: one entry of one 128-byte
// command appended to each of n groups, and the previous entry of each applied
// and truncated. ns/op is per entry. The file system is in memory, so it is
// the CPU of engine and Pebble without the disk.
func BenchmarkRound(b *testing.B) {
	for _, n := range []int{64, 256} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { benchRound(b, NewMemFS(), "/n1", n, false) })
	}
}

// BenchmarkRoundDisk is BenchmarkRound on a real disk, each round synced, two
// rounds in flight.
func BenchmarkRoundDisk(b *testing.B) {
	for _, n := range []int{64, 256} {
		b.Run(fmt.Sprint(n), func(b *testing.B) { benchRound(b, nil, b.TempDir(), n, true) })
	}
}

func benchRound(b *testing.B, fs FS, dir string, n int, sync bool) {
	e, err := Open(Options{Dir: dir, FS: fs, Create: true, CacheBytes: 8 << 20, MemTableBytes: 64 << 20})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	val := make([]byte, 128)
	keys := make([][]byte, n)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "user%08d", i)
	}
	ent := make([]raft.Entry, 1)
	var idx raft.Index
	var flying *Batch
	finish := func() {
		if flying != nil {
			if err := flying.Wait(); err != nil {
				b.Fatal(err)
			}
			flying.Close()
		}
	}
	v := raft.EncodeEntry(nil, 1, 1, raft.EntryNormal, raft.EntryHeader{}, []raft.Command{{Op: 1, Body: val}})
	b.ReportAllocs()
	b.ResetTimer()
	cpu := cpuTime()
	for done := 0; done < b.N; done += n {
		idx++
		bt := e.NewBatch()
		for s := range n {
			shard := raft.ShardID(s + 1)
			ent[0] = raft.Entry{Index: idx, Term: 1, Type: raft.EntryNormal, Value: v}
			bt.Append(shard, idx-1, ent)
			if idx > 1 {
				bt.Set(1, keys[s], val)
				bt.SetApplied(shard, raft.AppliedState{Applied: idx - 1, AppliedTerm: 1, TruncIndex: idx - 1, TruncTerm: 1})
				bt.Truncate(shard, idx-2, idx-1, 1)
			}
		}
		if err := bt.Commit(sync); err != nil {
			b.Fatal(err)
		}
		finish()
		flying = bt
	}
	finish()
	b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N), "cpu-ns/op")
}

// BenchmarkGet reads committed keys and keys of an open batch.
func BenchmarkGet(b *testing.B) {
	e, err := Open(Options{Dir: "/n1", FS: NewMemFS(), Create: true})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	bt := e.NewBatch()
	defer bt.Close()
	keys := make([][]byte, 1000)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "user%08d", i)
		bt.Set(1, keys[i], make([]byte, 128))
	}
	b.Run("batch", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			if _, ok, err := bt.Get(1, keys[i%len(keys)]); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
	if err := bt.Commit(false); err != nil {
		b.Fatal(err)
	}
	b.Run("engine", func(b *testing.B) {
		b.ReportAllocs()
		var dst []byte
		for i := range b.N {
			var ok bool
			if dst, ok, err = e.Get(1, keys[i%len(keys)], dst); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
}

// cpuTime returns the processor time the process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
