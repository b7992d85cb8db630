package kv

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// lonely is the world of a node without peers: it trusts itself, and nobody listens.
type lonely struct{ start time.Time }

func (lonely) Send(raft.NodeID, []raft.Msg)                    {}
func (l lonely) Now() raft.Time                                { return raft.Time(time.Since(l.start)) }
func (lonely) Wall() uint64                                    { return uint64(time.Now().UnixNano()) }
func (lonely) SupportFor(raft.NodeID) (raft.Epoch, bool)       { return 1 << 32, true }
func (lonely) SupportFrom(raft.NodeID) (raft.Epoch, raft.Time) { return 1 << 32, 1 << 62 }

// realStore is a store over a real host with groups of one replica.
type realStore struct {
	*Store
	e *engine.Engine
	h *multiraft.Host
}

func openReal(t *testing.T, fs engine.FS, descs []raft.Descriptor) *realStore {
	t.Helper()
	e, err := engine.Open(engine.Options{
		Dir: "store", FS: fs, Create: true, NoDiskWatch: true, CacheBytes: 1 << 20, MemTableBytes: 16 << 20,
		OnFatal: func(err error) { t.Errorf("engine: %v", err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	l := lonely{time.Now()}
	h, err := multiraft.New(multiraft.Config{Node: 1, Engine: e, Net: l, Liveness: l, Clock: l, Machine: NewMachine(), Loops: 2, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	groups, err := e.Boot()
	if err != nil {
		t.Fatal(err)
	}
	states := make([]raft.State, len(groups))
	for i := range groups {
		states[i] = groups[i].State
	}
	if err := errors.Join(h.AddGroups(states), h.CreateGroups(descs)); err != nil {
		t.Fatal(err)
	}
	h.Start()
	return &realStore{NewStore(Options{Host: h, Engine: e}), e, h}
}

func (s *realStore) close(t *testing.T) {
	s.h.Close()
	s.Store.Close()
	if err := s.e.Close(); err != nil {
		t.Error(err)
	}
}

// do retries until the shard has its leader.
func (s *realStore) do(t testing.TB, r *shard.Request) *shard.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		resp := s.Do(ctx, r)
		var notLeader *shard.NotLeaderError
		if !errors.As(resp.Err, &notLeader) || ctx.Err() != nil {
			return resp
		}
		if err := s.h.Campaign(ctx, r.Shard); err != nil {
			t.Fatal(err)
		}
	}
}

// Shows the whole corridor of one node: writes of many callers to several groups
// through real logs are applied once, in order, and are there after a restart.
func TestStoreOverHost(t *testing.T) {
	voter := []raft.Replica{{Node: 1, ID: 1, Role: raft.Voter}}
	descs := []raft.Descriptor{
		{Shard: 2, Keyspace: 1, Version: 1, ConfVer: 1, NextReplica: 2, Replicas: voter, End: bs("m")},
		{Shard: 3, Keyspace: 1, Version: 1, ConfVer: 1, NextReplica: 2, Replicas: voter, Start: bs("m")},
	}
	fs := engine.NewMemFS()
	s := openReal(t, fs, descs)
	request := func(id raft.ShardID, c raft.Command) *shard.Request {
		return &shard.Request{Shard: id, Keyspace: 1, DescVersion: 1, Kind: shard.KindWrite, Command: c}
	}
	read := func(id raft.ShardID, key string) *shard.Request {
		return &shard.Request{Shard: id, Keyspace: 1, DescVersion: 1, Kind: shard.KindGet, Key: bs(key)}
	}
	var wg sync.WaitGroup
	const callers, rounds = 8, 20
	for g := range callers {
		wg.Go(func() {
			id := raft.ShardID(2 + g%2)
			counter := []string{"counter", "sum"}[g%2]
			for i := range rounds {
				// Increment the shard's counter by compare-and-swap.
				for {
					r := s.do(t, read(id, counter))
					if r.Err != nil {
						t.Error(r.Err)
						return
					}
					var have shard.Value
					n := 0
					if r.Found {
						have = *r.Value
						fmt.Sscan(string(have.Bytes), &n)
					}
					w := s.do(t, request(id, cas(counter, have.Version, fmt.Sprint(n+1))))
					var conflict *shard.ConflictError
					if errors.As(w.Err, &conflict) {
						continue
					}
					if w.Err != nil {
						t.Error(w.Err)
					}
					break
				}
				if r := s.do(t, request(id, put(fmt.Sprintf("%s%d.%d", counter[:1], g, i), "x"))); r.Err != nil || r.Receipt.Lineage != id {
					t.Errorf("put: %+v", r)
				}
			}
		})
	}
	wg.Wait()
	check := func() {
		t.Helper()
		for i, counter := range []string{"counter", "sum"} {
			id := raft.ShardID(2 + i)
			if r := s.do(t, read(id, counter)); r.Err != nil || string(r.Value.Bytes) != fmt.Sprint(callers/2*rounds) {
				t.Errorf("shard %d: %+v", id, r)
			}
			r := s.do(t, &shard.Request{Shard: id, Keyspace: 1, Kind: shard.KindScan, Start: descs[i].Start, End: descs[i].End})
			if r.Err != nil || len(r.Pairs) != callers/2*rounds+1 || r.More {
				t.Errorf("shard %d: %d pairs, %v", id, len(r.Pairs), r.Err)
			}
		}
	}
	check()
	if r := s.do(t, request(2, put("z", ""))); shard.OutcomeOf(r.Err) != shard.NotApplied {
		t.Errorf("a key of the neighbour: %v", r.Err)
	}
	s.close(t)
	if r := s.Do(bg, request(2, put("a", ""))); r.Err != shard.ErrClosed {
		t.Errorf("after the end: %v", r.Err)
	}

	s = openReal(t, fs, nil)
	check()
	s.close(t)
}

// Shows that a command of a newer version fences the replica: the caller is told
// that the outcome is unknown, and later ones that nothing was applied.
func TestStoreFencedReplica(t *testing.T) {
	d := raft.Descriptor{Shard: 2, Keyspace: 1, Version: 1, ConfVer: 1, NextReplica: 2, Replicas: []raft.Replica{{Node: 1, ID: 1, Role: raft.Voter}}}
	s := openReal(t, engine.NewMemFS(), []raft.Descriptor{d})
	defer s.close(t)
	good := &shard.Request{Shard: 2, Keyspace: 1, Kind: shard.KindWrite, Command: put("a", "1")}
	if r := s.do(t, good); r.Err != nil {
		t.Fatal(r.Err)
	}
	told := make(chan error, 1)
	s.h.Propose(2, raft.Command{Op: shard.OpSplit}, func(_ []byte, _ raft.Index, _ uint32, err error) { told <- err })
	if err := <-told; !errors.Is(err, multiraft.ErrAmbiguous) {
		t.Errorf("the unknown command: %v", err)
	}
	if r := s.do(t, good); shard.OutcomeOf(r.Err) != shard.NotApplied || !errors.Is(r.Err, multiraft.ErrFenced) {
		t.Errorf("afterwards: %v", r.Err)
	}
}
