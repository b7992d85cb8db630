package router

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"sort"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/multiraft/session"
	"github.com/flotillakv/flotilla/shard"
)

// fleet is a cluster without Raft: one copy of the data, and for each shard the
// truth about its range and leader. It answers like nodes do, correctly and at
// once, unless a test interferes. It is Sender and Source in one.
type fleet struct {
	mu     sync.Mutex
	shards []*fleetShard // by start key
	data   map[string]shard.Value
	down   map[raft.NodeID]bool
	index  raft.Index
	// interfere, if set, may answer in place of the node: with handled true.
	interfere func(node raft.NodeID, q *shard.Request) (resp *shard.Response, err error, handled bool)
	// lose, if set, makes the node carry out the request and lose the answer.
	lose func(q *shard.Request) bool

	sent    []raft.NodeID // whom each request went to
	lookups int
	applied map[string]int // how often each value was written

	headers    []raft.SessionHeader // of commands that were judged
	answers    map[raft.Index]*shard.Response
	ended      []raft.ShardID // shards that were told the end of a session
	clockAhead time.Duration  // of the shards' clocks
}

// fleetShard is the truth about a shard.
type fleetShard struct {
	desc   shard.Descriptor
	leader raft.NodeID // zero: none
	term   raft.Term
	// deaf are replicas that do not know the leader.
	deaf     map[raft.NodeID]bool
	sessions sessionStore
	// down, if set, is what the shard's nodes say instead of serving.
	noQuorum *shard.NoQuorumError
}

// newFleet cuts keyspace 1 at the given keys: shards 2, 3 ..; voters on nodes 1
// to 3, shard s led by node 1+(s-2)%3 in term 1.
func newFleet(splits ...string) *fleet {
	f := &fleet{data: map[string]shard.Value{}, down: map[raft.NodeID]bool{}, applied: map[string]int{}}
	for i := range len(splits) + 1 {
		start, end := "", ""
		if i > 0 {
			start = splits[i-1]
		}
		if i < len(splits) {
			end = splits[i]
		}
		id := raft.ShardID(i + 2)
		f.shards = append(f.shards, &fleetShard{desc: rangeOf(id, start, end, 1, 1), leader: raft.NodeID(1 + i%3), term: 1, deaf: map[raft.NodeID]bool{}})
	}
	return f
}

// router returns a router that knows nothing yet.
func (f *fleet) router(t *testing.T, change ...func(*Options)) *Router {
	o := Options{Sender: f, Source: f}
	for _, c := range change {
		c(&o)
	}
	r := New(o)
	t.Cleanup(func() { r.Close() })
	return r
}

// warm returns a router whose table and hints are right, and forgets what was
// sent for that.
func (f *fleet) warm(t *testing.T, change ...func(*Options)) *Router {
	r := f.router(t, change...)
	for _, s := range f.shards {
		r.Table().Merge(s.desc)
		r.Table().SetLeader(1, s.desc.Start, s.desc.Shard, s.leader, s.term)
	}
	return r
}

func (f *fleet) shard(id raft.ShardID) *fleetShard {
	for _, s := range f.shards {
		if s.desc.Shard == id {
			return s
		}
	}
	return nil
}

// move makes node the leader of a shard, in the next term.
func (f *fleet) move(id raft.ShardID, node raft.NodeID) {
	s := f.shard(id)
	s.leader = node
	s.term++
}

// split cuts the shard that holds key at key. The right half is a new shard.
func (f *fleet) split(key string) {
	for i, s := range f.shards {
		if string(s.desc.Start) >= key || !before([]byte(key), s.desc.End) {
			continue
		}
		right := &fleetShard{desc: s.desc.Clone(), leader: s.leader, term: 1, deaf: map[raft.NodeID]bool{}}
		right.desc.Shard = raft.ShardID(len(f.shards) + 2)
		right.desc.Start = []byte(key)
		s.desc = s.desc.Clone()
		s.desc.End = []byte(key)
		s.desc.Version++
		right.desc.Version = s.desc.Version
		right.sessions = maps.Clone(s.sessions)
		f.shards = slices.Insert(f.shards, i+1, right)
		return
	}
}

func (f *fleet) Lookup(_ context.Context, keyspace uint32, key []byte, n int) ([]shard.Descriptor, []LeaderHint, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lookups++
	var descs []shard.Descriptor
	var hints []LeaderHint
	for _, s := range f.shards {
		if keyspace == 1 && before(key, s.desc.End) && len(descs) < n {
			descs = append(descs, s.desc)
			hints = append(hints, LeaderHint{Shard: s.desc.Shard, Node: s.leader, Term: s.term})
		}
	}
	return descs, hints, nil
}

func (f *fleet) Send(ctx context.Context, node raft.NodeID, q *shard.Request) (*shard.Response, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sent = append(f.sent, node)
	if q.TimeoutNanos <= 0 {
		return nil, errors.New("a request without time left")
	}
	if f.interfere != nil {
		if resp, err, handled := f.interfere(node, q); handled {
			return resp, err
		}
	}
	if f.down[node] {
		return nil, &shard.UnavailableError{Node: node, Why: "connection refused"}
	}
	resp := f.serve(node, q)
	if f.lose != nil && f.lose(q) {
		return nil, &shard.AmbiguousError{Shard: q.Shard, Why: "the connection broke"}
	}
	return resp, nil
}

// serve is what a node does with a request.
func (f *fleet) serve(node raft.NodeID, q *shard.Request) *shard.Response {
	s := f.shard(q.Shard)
	if s == nil {
		return q.Failed(&shard.EpochError{Shard: q.Shard})
	}
	if _, ok := s.desc.ReplicaOn(node); !ok {
		return q.Failed(&shard.EpochError{Shard: q.Shard})
	}
	local := q.Kind != shard.KindWrite && q.Consistency == shard.Local
	if node != s.leader && !local && (q.Hop > 0 || s.leader == 0) {
		e := &shard.NotLeaderError{Shard: q.Shard, Leader: s.leader, Term: s.term, Descriptor: &s.desc}
		if s.deaf[node] {
			e.Leader, e.Term = 0, 0
		}
		return q.Failed(e)
	}
	if s.noQuorum != nil && !local {
		return q.Failed(s.noQuorum)
	}
	if err := shard.CheckVersion(&s.desc, q.DescVersion); err != nil {
		return q.Failed(&shard.EpochError{Shard: q.Shard, Descriptors: f.around(s)})
	}
	if err := q.Check(); err != nil {
		return q.Failed(err)
	}
	switch q.Kind {
	case shard.KindGet:
		if v, ok := f.data[string(q.Key)]; ok {
			return &shard.Response{Found: true, Value: &v}
		}
		return &shard.Response{}
	case shard.KindScan:
		return f.scan(s, q)
	}
	if err := shard.CheckCommandSpan(&s.desc, q.Command); err != nil {
		return q.Failed(err)
	}
	if q.Command.Session != nil {
		return f.applyInSession(s, q)
	}
	return f.apply(q)
}

// applyInSession is apply for commands of sessions, as replicas judge them.
func (f *fleet) applyInSession(s *fleetShard, q *shard.Request) *shard.Response {
	h := q.Command.Session
	f.headers = append(f.headers, *h)
	if s.sessions == nil {
		s.sessions = sessionStore{}
	}
	now := uint64(time.Now().Add(f.clockAhead).UnixNano())
	table := session.Table{Store: s.sessions, Now: now}
	j, err := table.Judge(h)
	if err != nil {
		return q.Failed(err)
	}
	switch j.Verdict {
	case session.Replay:
		return f.answers[j.Result.Index]
	case session.Settled:
		return q.Failed(&shard.ResultGoneError{Shard: q.Shard})
	case session.Expired:
		return q.Failed(&shard.SessionExpiredError{Shard: q.Shard, Known: j.Known, Deadline: time.Unix(0, int64(h.Deadline)), Now: time.Unix(0, int64(now))})
	case session.Full:
		return q.Failed(&shard.SessionsFullError{Shard: q.Shard, Limit: session.MaxSessions})
	case session.Invalid:
		return q.Failed(&shard.ArgumentError{Field: "session", Reason: j.Reason})
	}
	resp := f.apply(q)
	if q.Command.Op == shard.OpEndSession {
		f.ended = append(f.ended, q.Shard)
		h = session.End(h)
	}
	if f.answers == nil {
		f.answers = map[raft.Index]*shard.Response{}
	}
	f.answers[f.index] = resp
	if err := table.Record(h, session.Result{Lineage: q.Shard, Index: f.index}, nil); err != nil {
		return q.Failed(err)
	}
	return resp
}

// sessionStore holds a shard's session records.
type sessionStore map[string][]byte

func (m sessionStore) Get(k []byte) ([]byte, bool, error) { v, ok := m[string(k)]; return v, ok, nil }
func (m sessionStore) Set(k, v []byte)                    { m[string(k)] = bytes.Clone(v) }
func (m sessionStore) Delete(k []byte)                    { delete(m, string(k)) }

// around returns the descriptors of s and its neighbour, as a node knows them.
func (f *fleet) around(s *fleetShard) []shard.Descriptor {
	i := slices.Index(f.shards, s)
	out := []shard.Descriptor{s.desc}
	if i+1 < len(f.shards) {
		out = append(out, f.shards[i+1].desc)
	}
	return out
}

func (f *fleet) scan(s *fleetShard, q *shard.Request) *shard.Response {
	if err := shard.CheckRange(&s.desc, q.Start, q.End); err != nil {
		return q.Failed(err)
	}
	var keys []string
	for k := range f.data {
		if k >= string(q.Start) && before([]byte(k), q.End) {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	if q.Reverse {
		slices.Reverse(keys)
	}
	resp := &shard.Response{}
	limit := min(q.Limit, 3) // small pages
	if limit == 0 {
		limit = 3
	}
	for i, k := range keys {
		if i == limit {
			resp.More, resp.Resume = true, []byte(k)
			if q.Reverse {
				resp.Resume = append([]byte(k), 0)
			}
			break
		}
		v := f.data[k]
		resp.Pairs = append(resp.Pairs, shard.Pair{Key: []byte(k), Value: v.Bytes, Version: v.Version})
	}
	return resp
}

func (f *fleet) apply(q *shard.Request) *shard.Response {
	f.index++
	version := shard.Version{Lineage: q.Shard, Index: f.index}
	resp := &shard.Response{Receipt: shard.Receipt{Version: version}}
	do := func(o shard.Op) {
		switch o.Kind {
		case shard.OpPut:
			f.applied[string(o.Value)]++
			f.data[string(o.Key)] = shard.Value{Bytes: bytes.Clone(o.Value), Version: version}
		case shard.OpDelete:
			delete(f.data, string(o.Key))
		case shard.OpDeleteRange:
			for k := range f.data {
				if k >= string(o.Key) && before([]byte(k), o.End) {
					delete(f.data, k)
				}
			}
		}
	}
	switch c := q.Command; c.Op {
	case shard.OpPut:
		k, v, _ := shard.DecodePut(c.Body)
		do(shard.PutOp(k, v))
	case shard.OpDelete:
		k, _ := shard.DecodeDelete(c.Body)
		do(shard.DeleteOp(k))
	case shard.OpDeleteRange:
		start, end, _ := shard.DecodeDeleteRange(c.Body)
		do(shard.DeleteRangeOp(start, end))
	case shard.OpCAS:
		k, want, v, _ := shard.DecodeCAS(c.Body)
		if have := f.data[string(k)].Version; have != want {
			return q.Failed(&shard.ConflictError{Have: have})
		}
		do(shard.PutOp(k, v))
	case shard.OpBatch:
		ops, _ := shard.DecodeBatch(c.Body)
		for o := range ops.All() {
			do(o)
		}
	case shard.OpTxn:
		v, _ := shard.DecodeTxn(c.Body)
		resp.Txn = &shard.TxnResult{Succeeded: true, Receipt: resp.Receipt}
		for o := range v.Then.All() {
			do(o)
		}
	}
	return resp
}
