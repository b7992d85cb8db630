package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime/pprof"
	"time"

	"github.com/flotillakv/flotilla/bench"
	"github.com/flotillakv/flotilla/bench/workload"
)

const (
	// verifyRecords are read back after a run.
	verifyRecords = 500
	// replicaRecords are compared on all replicas.
	replicaRecords = 200
	// settleFor is how long a replica may need to catch up after the run.
	settleFor = 20 * time.Second
)

// outcome is one run of one engine.
type outcome struct {
	*bench.Result
	Note string `json:"note"`
	// Compared counts the records that were found equal on all three.
	Compared int     `json:"records_compared"`
	Start    float64 `json:"start_s"` // seconds until it served
}

// workDir makes the directory of a run, and says what machine it is on. It is for the
// caller to remove.
func workDir(p point) (dir string, m bench.Machine, err error) {
	if dir, err = os.MkdirTemp(p.Dir, "flotilla-compare-"); err != nil {
		return "", m, err
	}
	m, err = bench.Inspect(dir)
	if err == nil && !m.Durable && !p.AnyDisk {
		err = fmt.Errorf("%s is in memory (%s), where fsync does nothing: name a directory on a disk with --dir", dir, m.FileSystem)
	}
	if err != nil {
		os.RemoveAll(dir)
	}
	return dir, m, err
}

// single runs one engine once in this process.
func single(ctx context.Context, name string, p point, profile, heap string) (*outcome, error) {
	open, err := findEngine(name)
	if err != nil {
		return nil, err
	}
	spec, err := workload.Parse(p.Workload)
	if err != nil {
		return nil, err
	}
	set, err := workload.New(workload.Config{Spec: spec, Dist: workload.Uniform, Records: p.Keys, ValueBytes: p.Value, Seed: 1})
	if err != nil {
		return nil, err
	}
	dir, machine, err := workDir(p)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	began := time.Now()
	e, err := open(ctx, setup{dir: dir, shards: p.Shards})
	if err != nil {
		return nil, err
	}
	defer e.Close()
	o := &outcome{Start: time.Since(began).Seconds()}
	targets := []bench.Target{e.Target()}
	if err := bench.Load(ctx, set, targets, nil); err != nil {
		return nil, err
	}
	c := bench.Config{
		Set: set, Targets: targets, Clients: p.Clients, Warmup: p.Warmup, Duration: p.Duration,
		Timeout: 30 * time.Second, DataDir: dir, Verify: verifyRecords,
	}
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		started := false
		c.OnSecond = func(bench.Second) {
			if !started { // not the load, not the warm-up
				started = pprof.StartCPUProfile(f) == nil
			}
		}
		defer pprof.StopCPUProfile()
	}
	if o.Result, err = bench.Run(ctx, c); err != nil {
		return nil, err
	}
	pprof.StopCPUProfile()
	if err := writeHeap(heap); err != nil {
		return nil, err
	}
	if err := bench.Sample(ctx, set, targets, verifyRecords); err != nil {
		return nil, err
	}
	if o.Compared, err = sameEverywhere(ctx, e, set); err != nil {
		return nil, err
	}
	o.Engine, o.Workload, o.Shards = name, spec.Name, p.Shards
	o.Replicas, o.Note = 3, e.Note()
	o.Fsync, o.FsyncP50Ms, o.FsyncP99Ms = machine.Durable, machine.FsyncP50Ms, machine.FsyncP99Ms
	o.Machine, o.Commit, o.CPUScope = machine.String(), machine.Commit, "three nodes and the clients"
	return o, nil
}

// sameEverywhere compares what the replicas hold with what a linearizable read
// returns, once the clients have stopped.
func sameEverywhere(ctx context.Context, e engine, set *workload.Set) (int, error) {
	end := time.Now().Add(settleFor)
	n := 0
	step := max(1, set.Records()/replicaRecords)
	for rec := uint64(0); rec < set.Records(); rec += step {
		key := workload.AppendKey(nil, rec)
		want, _, err := e.Target().Read(ctx, key)
		if err != nil {
			return n, err
		}
		for node := range 3 {
			for {
				got, err := e.Local(ctx, node, key)
				if err == nil && bytes.Equal(got, want) {
					break
				}
				if time.Now().After(end) {
					return n, fmt.Errorf("the replica of node %d does not hold what was acknowledged under %q: %v", node+1, key, err)
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
		n++
	}
	return n, nil
}

func writeHeap(path string) error {
	if path == "" {
		return nil
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = pprof.Lookup("allocs").WriteTo(f, 0)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
