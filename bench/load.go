package bench

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/flotillakv/flotilla/bench/workload"
)

const (
	// loadChunk is the number of records sorted at a time, so that neighbours in
	// the key space travel in one batch.
	loadChunk = 1 << 17
	// loadBatch bounds the records of a batch, loadBatchBytes its size.
	loadBatch      = 256
	loadBatchBytes = 256 << 10
	// loadClients is the number of batches in flight.
	loadClients = 64
)

// Load stores all records of a set, spreading its batches over the targets.
// Progress, which may be nil, is called now and then with the number of records
// acknowledged so far. The first error ends the load.
func Load(ctx context.Context, set *workload.Set, targets []Target, progress func(done uint64)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var done atomic.Uint64
	jobs := make(chan []uint64)
	var wg sync.WaitGroup
	for i := range loadClients {
		wg.Go(func() {
			var keys, values [][]byte
			for records := range jobs {
				keys, values = keys[:0], values[:0]
				for _, rec := range records {
					keys = append(keys, workload.AppendKey(nil, rec))
					values = append(values, set.Value(rec))
				}
				if err := targets[i%len(targets)].Load(ctx, keys, values); err != nil {
					cancel(err)
					return
				}
				if n := done.Add(uint64(len(records))); progress != nil {
					progress(n)
				}
			}
		})
	}
	feedLoad(ctx, set, jobs)
	close(jobs)
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("loading %d records: %w", set.Records(), err)
	}
	return nil
}

// feedLoad cuts the records into batches of neighbouring keys.
func feedLoad(ctx context.Context, set *workload.Set, jobs chan<- []uint64) {
	perBatch := max(1, min(loadBatch, loadBatchBytes/(workload.KeySize+len(set.Value(0))+1)))
	for first := uint64(0); first < set.Records(); first += loadChunk {
		n := min(loadChunk, set.Records()-first)
		chunk := make([]uint64, n)
		for i := range chunk {
			chunk[i] = first + uint64(i)
		}
		sortByKey(chunk)
		// Batches are sent in a scattered order: in key order the clients would
		// all write to one shard after the other.
		starts := make([]int, 0, len(chunk)/perBatch+1)
		for at := 0; at < len(chunk); at += perBatch {
			starts = append(starts, at)
		}
		rand.Shuffle(len(starts), func(i, j int) { starts[i], starts[j] = starts[j], starts[i] })
		for _, at := range starts {
			select {
			case jobs <- chunk[at:min(at+perBatch, len(chunk))]:
			case <-ctx.Done():
				return
			}
		}
	}
}

func sortByKey(records []uint64) {
	keys := make([][workload.KeySize]byte, len(records))
	for i, rec := range records {
		workload.AppendKey(keys[i][:0], rec)
	}
	sort.Sort(&byKey{records, keys})
}

type byKey struct {
	records []uint64
	keys    [][workload.KeySize]byte
}

func (b *byKey) Len() int           { return len(b.records) }
func (b *byKey) Less(i, j int) bool { return bytes.Compare(b.keys[i][:], b.keys[j][:]) < 0 }
func (b *byKey) Swap(i, j int) {
	b.records[i], b.records[j] = b.records[j], b.records[i]
	b.keys[i], b.keys[j] = b.keys[j], b.keys[i]
}

// Sample reads n loaded records back, spread evenly over the set, and returns
// an error if one is missing or cannot be read.
func Sample(ctx context.Context, set *workload.Set, targets []Target, n int) error {
	step := max(1, set.Records()/uint64(n))
	for rec := uint64(0); rec < set.Records(); rec += step {
		key := workload.AppendKey(nil, rec)
		_, found, err := readBack(ctx, targets[rec%uint64(len(targets))], key)
		if err != nil {
			return fmt.Errorf("reading record %q back: %w", key, err)
		}
		if !found {
			return fmt.Errorf("record %q was acknowledged and is gone", key)
		}
	}
	return nil
}
