package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
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

// dragonboatKind says where a Dragonboat keeps what.
type dragonboatKind int

const (
	inMemory    dragonboatKind = iota // records in memory, log in its Pebble
	onDisk                            // records in a Pebble of their own
	onDiskSmall                       // and little memory, so few and small files, for the log
	onDiskTan                         // and the log in tan
)

// dragonboatEngine is Dragonboat v4, tuned for few cores: two workers per stage
// and one log database instead of sixteen.
type dragonboatEngine struct {
	setup   setup
	kind    dragonboatKind
	again   [dbNodes]uint64 // replica ids of nodes that were replaced
	members map[uint64]dragonboat.Target

	mu     sync.RWMutex           // guards the next two
	hosts  []*dragonboat.NodeHost // nil: stopped
	stores []*pebble.DB           // of the machines, one per node; nil for those in memory

	splits   [][]byte
	sessions []*client.Session // by shard
	lead     []atomic.Int32    // by shard: the index of the leader's host
	stop     chan struct{}
	wg       sync.WaitGroup
	note     string
}

// newDragonboat prepares three nodes, none of which is started.
func newDragonboat(s setup, kind dragonboatKind) (*dragonboatEngine, error) {
	for _, name := range []string{"raft", "rsm", "transport", "grpc", "dragonboat", "logdb", "raftpb", "config", "tan", "settings", "registry"} {
		logger.GetLogger(name).SetLevel(logger.CRITICAL)
	}
	e := &dragonboatEngine{splits: workload.Splits(s.shards), lead: make([]atomic.Int32, s.shards), stop: make(chan struct{})}
	members := make(map[uint64]dragonboat.Target)
	for i := range dbNodes {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		members[uint64(i+1)] = l.Addr().String()
		l.Close()
	}
	e.members, e.setup, e.kind = members, s, kind
	e.hosts, e.stores = make([]*dragonboat.NodeHost, dbNodes), make([]*pebble.DB, dbNodes)
	return e, nil
}

func openDragonboat(ctx context.Context, s setup, kind dragonboatKind) (_ engine, err error) {
	e, err := newDragonboat(s, kind)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	for i := range dbNodes {
		if err := e.start(i); err != nil {
			return nil, err
		}
	}
	for shard := range s.shards {
		e.sessions = append(e.sessions, e.host(0).GetNoOPSession(uint64(shard+1)))
	}
	if err := e.spread(ctx); err != nil {
		return nil, err
	}
	e.wg.Go(e.follow)
	e.note = "2 workers per stage, 1 log database, no snapshots, RTT 100 ms; leaders dealt evenly"
	if n := s.snapshotEntries; n > 0 {
		e.note = fmt.Sprintf("2 workers per stage, 1 log database, RTT 100 ms; SnapshotEntries %d (the records of a shard: sending more entries than that costs more than sending a snapshot, which is its documentation's rule), CompactionOverhead %d (its documentation's example)", n, compactionOverhead)
	}
	switch kind {
	case onDiskSmall:
		e.note += "; log database with its small memory settings (GetSmallMemLogDBConfig)"
	case onDiskTan:
		e.note += "; log in tan"
	}
	return e, nil
}

// compactionOverhead is how many entries Dragonboat keeps behind a snapshot.
const compactionOverhead = 500

// start starts one node, for the first time or again.
func (e *dragonboatEngine) start(i int) error {
	expert := config.GetDefaultExpertConfig()
	expert.Engine.ExecShards, expert.Engine.CommitShards, expert.Engine.ApplyShards = 2, 2, 2
	switch e.kind {
	case onDiskTan:
		expert.LogDBFactory = tan.Factory
	case onDiskSmall:
		expert.LogDB = config.GetSmallMemLogDBConfig()
	}
	expert.LogDB.Shards = 1
	dir := filepath.Join(e.setup.dir, fmt.Sprintf("d%d", i+1))
	host, err := dragonboat.NewNodeHost(config.NodeHostConfig{
		DeploymentID: 1, NodeHostDir: dir, RTTMillisecond: 100, RaftAddress: e.members[uint64(i+1)], Expert: expert,
	})
	if err != nil {
		return fmt.Errorf("dragonboat: %w", err)
	}
	var db *pebble.DB
	if e.kind != inMemory {
		if db, err = pebble.Open(filepath.Join(dir, "machine"), machineOptions(e.setup.snapshotEntries > 0)); err != nil {
			host.Close()
			return err
		}
	}
	e.mu.Lock()
	e.hosts[i], e.stores[i] = host, db
	e.mu.Unlock()
	if e.again[i] != 0 {
		return nil // Fill starts its replicas
	}
	return e.startReplicas(i, uint64(i+1), e.members)
}

// startReplicas starts a replica of each shard at a node; without members it is one
// that was added to the shard.
func (e *dragonboatEngine) startReplicas(i int, replica uint64, members map[uint64]dragonboat.Target) error {
	host, db := e.host(i), e.stores[i]
	for shard := range e.setup.shards {
		c := config.Config{
			ReplicaID: replica, ShardID: uint64(shard + 1), ElectionRTT: 10, HeartbeatRTT: 1, CheckQuorum: true, Quiesce: e.setup.quiesce,
		}
		if n := e.setup.snapshotEntries; n > 0 {
			c.SnapshotEntries, c.CompactionOverhead = n, compactionOverhead
		}
		var err error
		if e.kind != inMemory {
			err = host.StartOnDiskReplica(members, len(members) == 0, func(shard, _ uint64) statemachine.IOnDiskStateMachine {
				return &diskMachine{db: db, shard: shard}
			}, c)
		} else {
			err = host.StartConcurrentReplica(members, len(members) == 0, func(uint64, uint64) statemachine.IConcurrentStateMachine {
				return &memMachine{data: make(map[string][]byte)}
			}, c)
		}
		if err != nil {
			return fmt.Errorf("dragonboat: shard %d on node %d: %w", shard+1, i+1, err)
		}
	}
	return nil
}

// host returns a node's host, nil while it is stopped.
func (e *dragonboatEngine) host(i int) *dragonboat.NodeHost {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.hosts[i]
}

var errStopped = errors.New("compare: the node is stopped")

// Put writes where the leader was last seen, which may be stopped by now.
func (e *dragonboatEngine) Put(ctx context.Context, key, value []byte) error {
	return e.Write(ctx, key, value)
}

// Get reads at the first node, which is never stopped.
func (e *dragonboatEngine) Get(ctx context.Context, key []byte) ([]byte, error) {
	ctx, cancel := limited(ctx)
	defer cancel()
	got, err := e.host(0).SyncRead(ctx, uint64(e.shard(key)+1), key)
	if err != nil {
		return nil, err
	}
	v, _ := got.([]byte)
	return v, nil
}

// Stop closes one node and its machines.
func (e *dragonboatEngine) Stop(node int) error {
	e.mu.Lock()
	h, db := e.hosts[node], e.stores[node]
	e.hosts[node], e.stores[node] = nil, nil
	e.mu.Unlock()
	h.Close()
	if db != nil {
		return db.Close()
	}
	return nil
}

// Restart starts a node that was stopped.
func (e *dragonboatEngine) Restart(_ context.Context, node int) error { return e.start(node) }

// Wipe stops a node, takes its replicas out of their shards, and starts an empty one.
func (e *dragonboatEngine) Wipe(ctx context.Context, node int) error {
	if err := e.Stop(node); err != nil {
		return err
	}
	for shard := range e.setup.shards {
		if err := e.change(ctx, func(ctx context.Context) error {
			return e.host(0).SyncRequestDeleteReplica(ctx, uint64(shard+1), uint64(node+1), 0)
		}); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(filepath.Join(e.setup.dir, fmt.Sprintf("d%d", node+1))); err != nil {
		return err
	}
	e.again[node] = uint64(node + 1 + dbNodes)
	return e.start(node)
}

// change makes a change of members, again while there is no leader.
func (e *dragonboatEngine) change(ctx context.Context, f func(ctx context.Context) error) error {
	for tries := 0; ; tries++ {
		try, cancel := limited(ctx)
		err := f(try)
		cancel()
		if err == nil || ctx.Err() != nil || tries > 20 {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Fill adds replicas of the replaced node to all shards.
func (e *dragonboatEngine) Fill(ctx context.Context, node int) error {
	for shard := range e.setup.shards {
		if err := e.change(ctx, func(ctx context.Context) error {
			return e.host(0).SyncRequestAddReplica(ctx, uint64(shard+1), e.again[node], e.members[uint64(node+1)], 0)
		}); err != nil {
			return err
		}
	}
	return e.startReplicas(node, e.again[node], nil)
}

// machineOptions are those of the machines' Pebble: the same memtables and
// filters that Flotilla gives its own; and as few of them, where the disk counts.
func machineOptions(bounded bool) *pebble.Options {
	o := &pebble.Options{
		MemTableSize: 64 << 20, MemTableStopWritesThreshold: 6, L0CompactionThreshold: 4, L0StopWritesThreshold: 24,
		LBaseMaxBytes: 256 << 20, FormatMajorVersion: pebble.FormatNewest, Logger: quiet{},
	}
	if bounded { // Pebble keeps as many files of its log as there may be memtables
		o.MemTableSize, o.MemTableStopWritesThreshold = 32<<20, 3
	}
	return o
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
			lead, _, ok, err := e.host(shard % dbNodes).GetLeaderID(uint64(shard + 1))
			switch {
			case err != nil || !ok:
			case lead == want:
				settled++
				e.lead[shard].Store(int32(want - 1))
			default:
				_ = e.host(int(lead-1)).RequestLeaderTransfer(uint64(shard+1), want) // asked again until it leads
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
			if lead, _, ok, err := e.host(0).GetLeaderID(uint64(shard + 1)); err == nil && ok && lead > 0 {
				e.lead[shard].Store(int32(lead - 1))
			}
		}
	}
}

func (e *dragonboatEngine) Target() bench.Target { return e }
func (e *dragonboatEngine) Note() string         { return e.note }

func (e *dragonboatEngine) Local(_ context.Context, node int, key []byte) ([]byte, error) {
	h := e.host(node)
	if h == nil {
		return nil, errStopped
	}
	got, err := h.StaleRead(uint64(e.shard(key)+1), key)
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
		if h != nil {
			h.Close()
		}
	}
	for _, db := range e.stores {
		if db != nil {
			db.Close()
		}
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
	h := e.host(int(e.lead[shard].Load()))
	if h == nil {
		return nil, false, errStopped
	}
	got, err := h.SyncRead(ctx, uint64(shard+1), key)
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
	h := e.host(int(e.lead[shard].Load()))
	if h == nil {
		return errStopped
	}
	_, err := h.SyncPropose(ctx, e.sessions[shard], cmd)
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
