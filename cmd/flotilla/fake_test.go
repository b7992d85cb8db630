package main

import (
	"bytes"
	"context"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/snapshot/backup"
)

// fakeKV is a cluster in a map. Each element of fail is returned once, in
// order, by the next requests; with applied the write happens all the same.
type fakeKV struct {
	flotilla.KV
	mu        sync.Mutex
	data      map[string]flotilla.Value
	index     raft.Index
	fail      []fault
	status    flotilla.ClusterStatus
	shards    []flotilla.ShardInfo
	snapshots []flotilla.SnapshotInfo
	writes    int
	broken    map[int]error // from the write with this number on
}

type fault struct {
	err     error
	applied bool
}

func newFakeKV() *fakeKV { return &fakeKV{data: make(map[string]flotilla.Value)} }

// next takes the next fault.
func (f *fakeKV) next() (fault, bool) {
	if len(f.fail) == 0 {
		return fault{}, false
	}
	x := f.fail[0]
	f.fail = f.fail[1:]
	return x, true
}

// failAfter lets all writes fail after n more; a negative n ends that.
func (f *fakeKV) failAfter(n int, err error) {
	f.broken = nil
	if n >= 0 {
		f.broken = map[int]error{f.writes + n: err}
	}
}

func (f *fakeKV) write(change func(v flotilla.Version)) (flotilla.Receipt, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	x, failed := f.next()
	for n, err := range f.broken {
		if f.writes >= n {
			x, failed = fault{err: err}, true
		}
	}
	f.index++
	f.writes++
	v := flotilla.Version{Lineage: 2, Index: f.index}
	if !failed || x.applied {
		change(v)
	}
	if failed {
		return flotilla.Receipt{}, x.err
	}
	return flotilla.Receipt{Version: v}, nil
}

func (f *fakeKV) Get(_ context.Context, key []byte, _ ...flotilla.ReadOption) (flotilla.Value, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if x, ok := f.next(); ok {
		return flotilla.Value{}, x.err
	}
	v, ok := f.data[string(key)]
	if !ok {
		return v, flotilla.ErrNotFound
	}
	return v, nil
}

func checkFake(key, val []byte) error {
	if len(key) == 0 {
		return &flotilla.ArgumentError{Field: "key", Reason: "it is empty"}
	}
	if len(val) > flotilla.MaxValueBytes {
		return &flotilla.LimitError{What: "bytes of a value", Limit: flotilla.MaxValueBytes, Got: len(val)}
	}
	return nil
}

func (f *fakeKV) Put(_ context.Context, key, val []byte, _ ...flotilla.WriteOption) (flotilla.Receipt, error) {
	if err := checkFake(key, val); err != nil {
		return flotilla.Receipt{}, err
	}
	return f.write(func(v flotilla.Version) { f.data[string(key)] = flotilla.Value{Bytes: bytes.Clone(val), Version: v} })
}

func (f *fakeKV) Delete(_ context.Context, key []byte, _ ...flotilla.WriteOption) (flotilla.Receipt, error) {
	return f.write(func(flotilla.Version) { delete(f.data, string(key)) })
}

func (f *fakeKV) CAS(_ context.Context, key []byte, want flotilla.Version, val []byte, _ ...flotilla.WriteOption) (flotilla.Receipt, error) {
	f.mu.Lock()
	have := f.data[string(key)].Version
	f.mu.Unlock()
	if have != want {
		return flotilla.Receipt{}, &flotilla.ConflictError{Have: have}
	}
	return f.Put(context.Background(), key, val)
}

func (f *fakeKV) Write(_ context.Context, b *flotilla.Batch, _ ...flotilla.WriteOption) (flotilla.Receipt, error) {
	return f.write(func(v flotilla.Version) {
		for op := range b.Ops() {
			f.data[string(op.Key)] = flotilla.Value{Bytes: bytes.Clone(op.Value), Version: v}
		}
	})
}

func (f *fakeKV) Scan(_ context.Context, r flotilla.Range, _ ...flotilla.ReadOption) iter.Seq2[flotilla.Pair, error] {
	return func(yield func(flotilla.Pair, error) bool) {
		f.mu.Lock()
		x, failed := f.next()
		keys := slices.Sorted(maps.Keys(f.data))
		data := maps.Clone(f.data)
		f.mu.Unlock()
		if len(r.End) > 0 && bytes.Compare(r.Start, r.End) > 0 {
			yield(flotilla.Pair{}, &flotilla.ArgumentError{Field: "range", Reason: "its start is after its end"})
			return
		}
		if r.Reverse {
			slices.Reverse(keys)
		}
		n := 0
		for _, k := range keys {
			if k < string(r.Start) || len(r.End) > 0 && k >= string(r.End) {
				continue
			}
			if failed && n == 1 {
				break
			}
			if n++; !yield(flotilla.Pair{Key: []byte(k), Value: data[k].Bytes, Version: data[k].Version}, nil) || n == r.Limit {
				return
			}
		}
		if failed {
			yield(flotilla.Pair{}, x.err)
		}
	}
}

func (f *fakeKV) Status(context.Context) (flotilla.ClusterStatus, error) { return f.status, nil }
func (f *fakeKV) Nodes(context.Context) ([]flotilla.NodeInfo, error)     { return f.status.Nodes, nil }
func (f *fakeKV) Shards(context.Context) ([]flotilla.ShardInfo, error)   { return f.shards, nil }
func (f *fakeKV) ShardsFrom(_ context.Context, key []byte, limit int) (out []flotilla.ShardInfo, err error) {
	for _, s := range f.shards {
		if len(out) < limit && (key == nil || userShard(&s) && (len(s.End) == 0 || bytes.Compare(s.End, key) > 0)) {
			out = append(out, s)
		}
	}
	return out, nil
}
func (f *fakeKV) Close() error { return nil }
func (f *fakeKV) ChangeReplicas(_ context.Context, id uint64, changes ...flotilla.ReplicaChange) (flotilla.ShardInfo, error) {
	if x, ok := f.next(); ok {
		return flotilla.ShardInfo{}, x.err
	}
	for i := range f.shards {
		s := &f.shards[i]
		if s.ID != id {
			continue
		}
		for _, c := range changes {
			n := len(s.Replicas)
			s.Replicas = slices.DeleteFunc(s.Replicas, func(r flotilla.ReplicaInfo) bool { return r.Node == c.Node && c.Role != r.Role })
			changed := len(s.Replicas) != n
			if c.Role != flotilla.RoleNone && !slices.ContainsFunc(s.Replicas, func(r flotilla.ReplicaInfo) bool { return r.Node == c.Node }) {
				s.Replicas = append(s.Replicas, flotilla.ReplicaInfo{Node: c.Node, Role: c.Role})
				changed = true
			}
			if changed {
				s.ConfVer++
			}
		}
		return *s, nil
	}
	return flotilla.ShardInfo{}, flotilla.ErrNotFound
}

func (f *fakeKV) TransferLeader(_ context.Context, id uint64, to uint32) error {
	if x, ok := f.next(); ok {
		return x.err
	}
	s, err := f.Shard(context.Background(), id)
	if err == nil && !slices.ContainsFunc(s.Replicas, func(r flotilla.ReplicaInfo) bool { return r.Node == to }) {
		err = flotilla.ErrNotFound
	}
	return err
}

func (f *fakeKV) RemoveNode(_ context.Context, id uint32, o flotilla.RemovalOptions) (flotilla.Removal, error) {
	if x, ok := f.next(); ok {
		return flotilla.Removal{Node: id}, x.err
	}
	r := flotilla.Removal{Node: id, Gone: true}
	for _, n := range f.status.Nodes {
		if n.ID == id {
			r.Gone, r.Moves = !o.Plan, []flotilla.Move{{Shard: 1, From: id, To: 9, Done: !o.Plan}}
		}
	}
	return r, nil
}

func (f *fakeKV) Shard(_ context.Context, id uint64) (flotilla.ShardInfo, error) {
	for _, s := range f.shards {
		if s.ID == id {
			return s, nil
		}
	}
	return flotilla.ShardInfo{}, flotilla.ErrNotFound
}

// command is a command line run against a fakeKV.
type command struct {
	kv          *fakeKV
	env         map[string]string
	stdin       string
	out, errOut bytes.Buffer
	dialed      []string
	dialErr     error
}

func (c *command) run(t *testing.T, args ...string) int {
	t.Helper()
	c.out.Reset()
	c.errOut.Reset()
	a := &app{
		in: strings.NewReader(c.stdin), out: &c.out, errOut: &c.errOut,
		env: func(k string) (string, bool) { v, ok := c.env[k]; return v, ok },
		dial: func(_ context.Context, addrs []string, _ flotilla.ClientOptions) (client, error) {
			c.dialed = addrs
			return c.kv, c.dialErr
		},
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return run(ctx, a, args)
}

func newCommand() *command { return &command{kv: newFakeKV(), env: make(map[string]string)} }

// mustRun fails the test unless the command exits with 0.
func (c *command) mustRun(t *testing.T, args ...string) string {
	t.Helper()
	if code := c.run(t, args...); code != 0 {
		t.Fatalf("flotilla %s: exit code %d\n%s", strings.Join(args, " "), code, c.errOut.String())
	}
	return c.out.String()
}

func (f *fakeKV) Snapshots(context.Context) ([]flotilla.SnapshotInfo, error) {
	x, _ := f.next()
	return f.snapshots, x.err
}

func (f *fakeKV) TakeSnapshot(context.Context, backup.Store, []uint64, backup.Options) (*backup.Manifest, error) {
	x, _ := f.next()
	return nil, x.err
}

func (f *fakeKV) Backup(context.Context, backup.Store, backup.Options) (*backup.Manifest, error) {
	x, _ := f.next()
	return nil, x.err
}

func (f *fakeKV) Restore(context.Context, backup.Store, *backup.Manifest, backup.IfNotEmpty, backup.Options) error {
	x, _ := f.next()
	return x.err
}
