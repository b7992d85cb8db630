package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/client"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/logger"
	"github.com/lni/dragonboat/v4/plugin/tan"
	"github.com/lni/dragonboat/v4/statemachine"

	"github.com/flotillakv/flotilla/bench"
	"github.com/flotillakv/flotilla/bench/workload"
)

const (
	dbNodes      = 3
	dbOpTimeout  = 10 * time.Second
	dbLeaderWait = 2 * time.Minute
)

// dragonboatEngine is Dragonboat v4, tuned for few cores: two workers per stage
// and one log database instead of sixteen.
type dragonboatEngine struct {
	hosts    []*dragonboat.NodeHost
	stores   []*pebble.DB // of the machines, one per node; nil for those in memory
	splits   [][]byte
	sessions []*client.Session // by shard
	lead     []atomic.Int32    // by shard: the index of the leader's host
	stop     chan struct{}
	wg       sync.WaitGroup
	note     string
}

func openDragonboat(ctx context.Context, s setup, disk, useTan bool) (_ engine, err error) {
	for _, name := range []string{"raft", "rsm", "transport", "grpc", "dragonboat", "logdb", "raftpb", "config", "tan", "settings", "registry"} {
		logger.GetLogger(name).SetLevel(logger.CRITICAL)
	}
	e := &dragonboatEngine{splits: workload.Splits(s.shards), lead: make([]atomic.Int32, s.shards), stop: make(chan struct{})}
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	members := make(map[uint64]dragonboat.Target)
	for i := range dbNodes {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		members[uint64(i+1)] = l.Addr().String()
		l.Close()
	}
	for i := range dbNodes {
		expert := config.GetDefaultExpertConfig()
		expert.Engine.ExecShards, expert.Engine.CommitShards, expert.Engine.ApplyShards = 2, 2, 2
		expert.LogDB.Shards = 1
		if useTan {
			expert.LogDBFactory = tan.Factory
		}
		dir := filepath.Join(s.dir, fmt.Sprintf("d%d", i+1))
		host, err := dragonboat.NewNodeHost(config.NodeHostConfig{
			DeploymentID: 1, NodeHostDir: dir, RTTMillisecond: 100, RaftAddress: members[uint64(i+1)], Expert: expert,
		})
		if err != nil {
			return nil, fmt.Errorf("dragonboat: %w", err)
		}
		e.hosts = append(e.hosts, host)
		if disk {
			db, err := pebble.Open(filepath.Join(dir, "machine"), machineOptions())
			if err != nil {
				return nil, err
			}
			e.stores = append(e.stores, db)
		}
		for shard := range s.shards {
			c := config.Config{
				ReplicaID: uint64(i + 1), ShardID: uint64(shard + 1), ElectionRTT: 10, HeartbeatRTT: 1, CheckQuorum: true,
			}
			if disk {
				err = host.StartOnDiskReplica(members, false, func(shard, _ uint64) statemachine.IOnDiskStateMachine {
					return &diskMachine{db: e.stores[i], shard: shard}
				}, c)
			} else {
				err = host.StartConcurrentReplica(members, false, func(uint64, uint64) statemachine.IConcurrentStateMachine {
					return &memMachine{data: make(map[string][]byte)}
				}, c)
			}
			if err != nil {
				return nil, fmt.Errorf("dragonboat: shard %d on node %d: %w", shard+1, i+1, err)
			}
		}
	}
	for shard := range s.shards {
		e.sessions = append(e.sessions, e.hosts[0].GetNoOPSession(uint64(shard+1)))
	}
	if err := e.spread(ctx); err != nil {
		return nil, err
	}
	e.wg.Go(e.follow)
	e.note = "2 workers per stage, 1 log database, no snapshots, RTT 100 ms; leaders dealt evenly"
	if useTan {
		e.note += "; log in tan"
	}
	return e, nil
}

// machineOptions are those of the machines' Pebble: the same memtables and
// filters that Flotilla gives its own.
func machineOptions() *pebble.Options {
	return &pebble.Options{
		MemTableSize: 64 << 20, MemTableStopWritesThreshold: 6, L0CompactionThreshold: 4, L0StopWritesThreshold: 24,
		LBaseMaxBytes: 256 << 20, FormatMajorVersion: pebble.FormatNewest, Logger: quiet{},
	}
}

type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(f string, a ...any) {
	panic(fmt.Sprintf(f, a...))
}

// spread waits for a leader of each shard and deals leaders evenly.
func (e *dragonboatEngine) spread(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dbLeaderWait)
	defer cancel()
	for {
		settled := 0
		for shard := range e.lead {
			want := uint64(shard%dbNodes + 1)
			lead, _, ok, err := e.hosts[shard%dbNodes].GetLeaderID(uint64(shard + 1))
			switch {
			case err != nil || !ok:
			case lead == want:
				settled++
				e.lead[shard].Store(int32(want - 1))
			default:
				_ = e.hosts[lead-1].RequestLeaderTransfer(uint64(shard+1), want) // asked again until it leads
			}
		}
		if settled == len(e.lead) {
			return nil
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("dragonboat: %d of %d shards have the leader they should: %w", settled, len(e.lead), ctx.Err())
		}
	}
}

// follow keeps up with who leads.
func (e *dragonboatEngine) follow() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-e.stop:
			return
		}
		for shard := range e.lead {
			if lead, _, ok, err := e.hosts[0].GetLeaderID(uint64(shard + 1)); err == nil && ok && lead > 0 {
				e.lead[shard].Store(int32(lead - 1))
			}
		}
	}
}

func (e *dragonboatEngine) Target() bench.Target { return e }
func (e *dragonboatEngine) Note() string         { return e.note }

func (e *dragonboatEngine) Local(_ context.Context, node int, key []byte) ([]byte, error) {
	got, err := e.hosts[node].StaleRead(uint64(e.shard(key)+1), key)
	if err != nil {
		return nil, err
	}
	v, _ := got.([]byte)
	return v, nil
}

func (e *dragonboatEngine) Close() {
	close(e.stop)
	e.wg.Wait()
	for _, h := range e.hosts {
		h.Close()
	}
	for _, db := range e.stores {
		db.Close()
	}
}

func (e *dragonboatEngine) shard(key []byte) int {
	i, found := slices.BinarySearchFunc(e.splits, key, bytes.Compare)
	if found {
		i++
	}
	return i
}

func (e *dragonboatEngine) Read(ctx context.Context, key []byte) ([]byte, bool, error) {
	ctx, cancel := limited(ctx)
	defer cancel()
	shard := e.shard(key)
	got, err := e.hosts[e.lead[shard].Load()].SyncRead(ctx, uint64(shard+1), key)
	if err != nil {
		return nil, false, err
	}
	v, _ := got.([]byte)
	return v, v != nil, nil
}

func (e *dragonboatEngine) Write(ctx context.Context, key, value []byte) error {
	return e.propose(ctx, e.shard(key), appendRecord(make([]byte, 0, 6+len(key)+len(value)), key, value))
}

func (e *dragonboatEngine) propose(ctx context.Context, shard int, cmd []byte) error {
	ctx, cancel := limited(ctx)
	defer cancel()
	_, err := e.hosts[e.lead[shard].Load()].SyncPropose(ctx, e.sessions[shard], cmd)
	return err
}

// limited gives a context the deadline that Dragonboat asks for.
func limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, dbOpTimeout)
}

// Scan reads one shard, and is there because bench.Target has it; no workload
// of the comparison scans.
func (e *dragonboatEngine) Scan(context.Context, []byte, int) (int, error) {
	return 0, errors.New("compare: scans are not compared")
}

func (e *dragonboatEngine) Load(ctx context.Context, keys, values [][]byte) error {
	for i := 0; i < len(keys); {
		shard := e.shard(keys[i])
		var cmd []byte
		for ; i < len(keys) && e.shard(keys[i]) == shard; i++ {
			cmd = appendRecord(cmd, keys[i], values[i])
		}
		for tries := 0; ; tries++ {
			try, cancel := context.WithTimeout(ctx, dbOpTimeout)
			err := e.propose(try, shard, cmd)
			cancel()
			if err == nil {
				break
			}
			if ctx.Err() != nil || tries > 100 {
				return err
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return nil
}
