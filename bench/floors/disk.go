package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

const block = 4096

// syncs writes blocks and syncs each.
func syncs(dir string, d time.Duration, rewrite bool) (int, []time.Duration, error) {
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	const blocks = 4096
	buf := make([]byte, block)
	if rewrite {
		if _, err := f.Write(make([]byte, blocks*block)); err != nil {
			return 0, nil, err
		}
		if err := f.Sync(); err != nil {
			return 0, nil, err
		}
	}
	var steps []time.Duration
	for start := time.Now(); time.Since(start) < d; {
		n := len(steps)
		if rewrite {
			n %= blocks
		}
		began := time.Now()
		if _, err := f.WriteAt(buf, int64(n)*block); err != nil {
			return 0, nil, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return 0, nil, err
		}
		steps = append(steps, time.Since(began))
	}
	return len(steps), steps, nil
}

func open(dir string, i int) (*pebble.DB, error) {
	o := &pebble.Options{
		MemTableSize: 64 << 20, MemTableStopWritesThreshold: 6, L0CompactionThreshold: 4, L0StopWritesThreshold: 24,
		LBaseMaxBytes: 256 << 20, FormatMajorVersion: pebble.FormatNewest, Logger: quiet{},
	}
	return pebble.Open(filepath.Join(dir, fmt.Sprint("s", i)), o)
}

type quiet struct{}

func (quiet) Infof(string, ...any)      {}
func (quiet) Errorf(string, ...any)     {}
func (quiet) Fatalf(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }

// many runs a function on several stores, by several goroutines each, and adds
// up what they did.
func many(dir string, stores, each int, f func(db *pebble.DB, store, worker int) (int, []time.Duration, error)) (int, []time.Duration, error) {
	var mu sync.Mutex
	var units int
	var steps []time.Duration
	var failed error
	var wg sync.WaitGroup
	for s := range stores {
		db, err := open(dir, s)
		if err != nil {
			return 0, nil, err
		}
		defer db.Close()
		for w := range each {
			wg.Go(func() {
				n, took, err := f(db, s, w)
				mu.Lock()
				defer mu.Unlock()
				units += n
				steps = append(steps, took...)
				if err != nil {
					failed = err
				}
			})
		}
	}
	wg.Wait()
	return units, steps, failed
}

// commits measures batches of records under random keys.
func commits(stores, committers, records, value int, sync bool) func(string, time.Duration) (int, []time.Duration, error) {
	return func(dir string, d time.Duration) (int, []time.Duration, error) {
		end := time.Now().Add(d)
		return many(dir, stores, committers, func(db *pebble.DB, store, worker int) (units int, steps []time.Duration, err error) {
			r := rand.New(rand.NewPCG(uint64(store), uint64(worker)))
			val := make([]byte, value)
			for time.Now().Before(end) {
				began := time.Now()
				b := db.NewBatch()
				for range records {
					op := b.SetDeferred(16, value)
					binary.BigEndian.PutUint64(op.Key, r.Uint64())
					copy(op.Value, val)
					if err := op.Finish(); err != nil {
						return units, steps, err
					}
				}
				if err := b.Commit(&pebble.WriteOptions{Sync: sync}); err != nil {
					return units, steps, err
				}
				if err := b.Close(); err != nil {
					return units, steps, err
				}
				units += records
				steps = append(steps, time.Since(began))
			}
			return units, steps, nil
		})
	}
}

const (
	// pendingRounds are under way at a time, and keepRounds later a log entry is
	// removed again.
	pendingRounds = 2
	keepRounds    = 3
	valueBytes    = 128
	prefixLog     = 1
	prefixApplied = 2
	prefixData    = 3
)

// pattern is what three nodes do to their disks for a round: per touched group
// one log entry that holds the round's operations, the removal of the entry of
// three rounds ago, one record of what is applied, and the data. An operation
// counts once all three stores have it.
func pattern(ops, groups int, apply bool) func(string, time.Duration) (int, []time.Duration, error) {
	return func(dir string, d time.Duration) (int, []time.Duration, error) {
		end := time.Now().Add(d)
		n, steps, err := many(dir, 3, 1, func(db *pebble.DB, store, _ int) (units int, steps []time.Duration, err error) {
			r := rand.New(rand.NewPCG(uint64(store), 7))
			var pending []*pebble.Batch
			var began []time.Time
			wait := func() error {
				b := pending[0]
				if err := b.SyncWait(); err != nil {
					return err
				}
				steps = append(steps, time.Since(began[0]))
				pending, began = pending[1:], began[1:]
				units += ops
				return b.Close()
			}
			for round := uint64(0); time.Now().Before(end); round++ {
				if len(pending) == pendingRounds {
					if err := wait(); err != nil {
						return units, steps, err
					}
				}
				b := db.NewBatch()
				fillRound(b, r, round, ops, groups, apply)
				began = append(began, time.Now())
				if err := db.ApplyNoSyncWait(b, pebble.Sync); err != nil {
					return units, steps, err
				}
				pending = append(pending, b)
			}
			for len(pending) > 0 {
				if err := wait(); err != nil {
					return units, steps, err
				}
			}
			return units, steps, nil
		})
		return n / 3, steps, err
	}
}

func fillRound(b *pebble.Batch, r *rand.Rand, round uint64, ops, groups int, apply bool) {
	key := func(prefix byte, group, index uint64) []byte {
		k := append(make([]byte, 0, 17), prefix)
		k = binary.BigEndian.AppendUint64(k, group)
		return binary.BigEndian.AppendUint64(k, index)
	}
	touched := min(groups, ops)
	per := ops / touched
	entry := make([]byte, per*(valueBytes+32))
	for g := range uint64(touched) {
		_ = b.Set(key(prefixLog, g, round), entry, nil)
		if round >= keepRounds {
			_ = b.SingleDelete(key(prefixLog, g, round-keepRounds), nil)
		}
		if apply {
			_ = b.Set(key(prefixApplied, g, 0), entry[:48], nil)
		}
	}
	if !apply {
		return
	}
	for range ops {
		op := b.SetDeferred(17, valueBytes)
		op.Key[0] = prefixData
		binary.BigEndian.PutUint64(op.Key[1:], r.Uint64N(1<<20))
		_ = op.Finish()
	}
}
