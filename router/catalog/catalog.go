package catalog

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// KV is keyspace 0 as a linearizable store. Errors are those of package shard.
type KV interface {
	// Get returns the value of key, or shard.ErrNotFound.
	Get(ctx context.Context, key []byte) (shard.Value, error)
	// Scan returns the first limit pairs (zero: all) of [start, end).
	Scan(ctx context.Context, start, end []byte, limit int) ([]shard.Pair, error)
	Txn(ctx context.Context, t shard.Txn) (shard.TxnResult, error)
}

var (
	// ErrNoCluster says that the catalog is empty: the cluster was not bootstrapped.
	ErrNoCluster = errors.New("catalog: the cluster was not bootstrapped yet")
	// ErrOtherCluster says that the catalog belongs to a cluster of another id.
	ErrOtherCluster = errors.New("catalog: it belongs to another cluster")
)

// maxLooks bounds how often an operation looks again after another writer was
// faster.
const maxLooks = 16

// bootstrapChunk bounds the operations of one transaction of Bootstrap.
const bootstrapChunk = 4 << 10

// Bootstrap writes the catalog of a new cluster. The cluster record comes with
// the last transaction, so that its presence says that everything is there; a
// bootstrap that was cut off is simply run again. If the catalog is there
// already, nothing is written: nil when it is this cluster's, else ErrOtherCluster.
func Bootstrap(ctx context.Context, kv KV, c Cluster, nodes []NodeInfo, p Plan) error {
	ops := BootstrapOps(c, nodes, p)
	absent := []shard.Cond{shard.IfAbsent([]byte(clusterKey))}
	for chunk := range slices.Chunk(ops, bootstrapChunk) {
		res, err := kv.Txn(ctx, shard.Txn{If: absent, Then: chunk})
		if err != nil {
			return fmt.Errorf("catalog: bootstrap: %w", err)
		}
		if !res.Succeeded {
			have, err := GetCluster(ctx, kv)
			if err == nil && have.ID != c.ID {
				err = fmt.Errorf("%w: %x, not %x", ErrOtherCluster, have.ID, c.ID)
			}
			return err
		}
	}
	return nil
}

// BootstrapOps lists the puts that make the catalog of a new cluster: nodes,
// ranges with their first leaders (in term 0, so that any reported leader
// replaces them), the id counters, and last the cluster record.
func BootstrapOps(c Cluster, nodes []NodeInfo, p Plan) []shard.Op {
	ops := make([]shard.Op, 0, len(nodes)+len(p.Shards)+4)
	nextNode := raft.NodeID(1)
	for i := range nodes {
		ops = append(ops, shard.PutOp(nodeKey(nodes[i].ID), nodes[i].Encode(nil)))
		nextNode = max(nextNode, nodes[i].ID+1)
	}
	nextShard := p.Meta.Desc.Shard + 1
	if l := p.Layout; l != nil {
		ops = append(ops, shard.PutOp(layoutKey(l.Keyspace), l.Encode(nil)))
		nextShard = max(nextShard, l.First+raft.ShardID(l.Count))
	}
	for _, r := range append([]Route{p.Meta}, p.Shards...) {
		ops = append(ops, shard.PutOp(routeKey(r.Desc.Keyspace, r.Desc.End), r.Encode(nil)))
		nextShard = max(nextShard, r.Desc.Shard+1)
	}
	return append(ops,
		shard.PutOp([]byte(nextNodeKey), encodeCounter(uint64(nextNode))),
		shard.PutOp([]byte(nextShardKey), encodeCounter(uint64(nextShard))),
		shard.PutOp([]byte(clusterKey), c.Encode(nil)))
}

// GetCluster returns the cluster record, or ErrNoCluster.
func GetCluster(ctx context.Context, kv KV) (Cluster, error) {
	v, err := kv.Get(ctx, []byte(clusterKey))
	if errors.Is(err, shard.ErrNotFound) {
		return Cluster{}, ErrNoCluster
	}
	if err != nil {
		return Cluster{}, err
	}
	return DecodeCluster(v.Bytes)
}

// LookupRange returns the range that holds key and up to n-1 ranges to its
// right, in key order. If no range holds key, the first one above it comes
// first; none means that there is none.
func LookupRange(ctx context.Context, kv KV, keyspace uint32, key []byte, n int) ([]Route, error) {
	n = max(n, 1)
	l, err := layoutOf(ctx, kv, keyspace)
	if err != nil {
		return nil, err
	}
	pairs, err := kv.Scan(ctx, seekKey(keyspace, key), routesEnd(keyspace), n)
	if err != nil {
		return nil, err
	}
	routes, err := decodeRoutes(pairs)
	if err != nil || l == nil {
		return routes, err
	}
	return overlay(l, routes, key, n), nil
}

// ListShards returns up to n ranges of all keyspaces, ordered by keyspace and
// key, beginning at cursor (nil: the first). next is the cursor of what
// follows, nil at the end.
func ListShards(ctx context.Context, kv KV, cursor []byte, n int) (routes []Route, next []byte, err error) {
	n = max(n, 1)
	keyspace, key := uint32(0), []byte(nil)
	if len(cursor) > 0 {
		if len(cursor) < 4 {
			return nil, nil, &shard.ArgumentError{Field: "cursor", Reason: "it is not one of a list of shards"}
		}
		keyspace, key = binary.BigEndian.Uint32(cursor), cursor[4:]
	}
	for {
		more, err := LookupRange(ctx, kv, keyspace, key, n-len(routes))
		if err != nil {
			return nil, nil, err
		}
		routes = append(routes, more...)
		if k := len(more); k > 0 && len(more[k-1].Desc.End) > 0 && len(routes) == n {
			end := more[k-1].Desc.End
			return routes, append(binary.BigEndian.AppendUint32(nil, keyspace), end...), nil
		}
		var ok bool
		if keyspace, ok, err = nextKeyspace(ctx, kv, keyspace); err != nil || !ok {
			return routes, nil, err
		}
		if key = nil; len(routes) >= n {
			return routes, binary.BigEndian.AppendUint32(nil, keyspace), nil
		}
	}
}

func decodeRoutes(pairs []shard.Pair) ([]Route, error) {
	routes := make([]Route, len(pairs))
	for i, p := range pairs {
		var err error
		if routes[i], err = DecodeRoute(p.Value); err != nil {
			return nil, err
		}
	}
	return routes, nil
}

// FindShard returns the range of a shard by its id, or shard.ErrNotFound. A shard
// that ends where it ended when its keyspace was made is found at once; for others
// the list of ranges is read from the front.
func FindShard(ctx context.Context, kv KV, id raft.ShardID) (Route, error) {
	for ks, ok := uint32(0), true; ok; {
		l, err := layoutOf(ctx, kv, ks)
		if err != nil {
			return Route{}, err
		}
		if l != nil {
			if i, in := l.Index(id); in {
				routes, err := LookupRange(ctx, kv, ks, l.start(i), 1)
				if err != nil {
					return Route{}, err
				}
				if len(routes) > 0 && routes[0].Desc.Shard == id {
					return routes[0], nil
				}
			}
		}
		if ks, ok, err = nextKeyspace(ctx, kv, ks); err != nil {
			return Route{}, err
		}
	}
	var cursor []byte
	for {
		routes, next, err := ListShards(ctx, kv, cursor, 1<<10)
		if err != nil {
			return Route{}, err
		}
		for _, r := range routes {
			if r.Desc.Shard == id {
				return r, nil
			}
		}
		if next == nil {
			return Route{}, fmt.Errorf("%w: shard %d", shard.ErrNotFound, id)
		}
		cursor = next
	}
}

// ListNodes returns all nodes, by id.
func ListNodes(ctx context.Context, kv KV) ([]NodeInfo, error) {
	pairs, err := kv.Scan(ctx, []byte(nodePrefix), prefixEnd([]byte(nodePrefix)), 0)
	if err != nil {
		return nil, err
	}
	nodes := make([]NodeInfo, len(pairs))
	for i, p := range pairs {
		if nodes[i], err = DecodeNode(p.Value); err != nil {
			return nil, err
		}
	}
	return nodes, nil
}

// GetNode returns a node, or shard.ErrNotFound.
func GetNode(ctx context.Context, kv KV, id raft.NodeID) (NodeInfo, error) {
	v, err := kv.Get(ctx, nodeKey(id))
	if err != nil {
		return NodeInfo{}, err
	}
	return DecodeNode(v.Bytes)
}

// RegisterNode records a node and returns its record. With ID zero the node is
// new and gets the next free id. With an id, the record of that node is
// brought up to date: addresses, name and version change, the time of joining
// stays; an id that was never given out is shard.ErrNotFound. After an
// ambiguous error an id may be lost, which does no harm.
func RegisterNode(ctx context.Context, kv KV, n NodeInfo) (NodeInfo, error) {
	return RegisterNext(ctx, kv, n, 0)
}

// NextNodeError says that a new node would get the id Next, not the one it
// expects. Nothing was registered.
type NextNodeError struct{ Next, Expected raft.NodeID }

// Error names both ids.
func (e *NextNodeError) Error() string {
	return fmt.Sprintf("catalog: the next new node gets the id %d, not %d; nothing was registered", e.Next, e.Expected)
}

// RegisterNext is RegisterNode for a new node that can have no other id than
// expect, since its certificate names it; zero: any. If another one comes next, it
// fails with *NextNodeError.
func RegisterNext(ctx context.Context, kv KV, n NodeInfo, expect raft.NodeID) (NodeInfo, error) {
	for range maxLooks {
		var t shard.Txn
		want := n
		if n.ID == 0 {
			next, version, err := readCounter(ctx, kv, nextNodeKey)
			if err != nil {
				return NodeInfo{}, err
			}
			if next > 1<<32-1 {
				return NodeInfo{}, &shard.LimitError{What: "node ids", Limit: 1<<32 - 1, Got: 1 << 32}
			}
			if want.ID = raft.NodeID(next); expect != 0 && expect != want.ID {
				return NodeInfo{}, &NextNodeError{Next: want.ID, Expected: expect}
			}
			t.If = []shard.Cond{shard.IfVersion([]byte(nextNodeKey), version)}
			t.Then = []shard.Op{shard.PutOp([]byte(nextNodeKey), encodeCounter(next+1))}
		} else {
			v, err := kv.Get(ctx, nodeKey(n.ID))
			if err != nil {
				return NodeInfo{}, err
			}
			have, err := DecodeNode(v.Bytes)
			if err != nil {
				return NodeInfo{}, err
			}
			want.JoinedAt = have.JoinedAt
			if want == have {
				return have, nil
			}
			t.If = []shard.Cond{shard.IfVersion(nodeKey(n.ID), v.Version)}
		}
		t.Then = append(t.Then, shard.PutOp(nodeKey(want.ID), want.Encode(nil)))
		res, err := kv.Txn(ctx, t)
		if err != nil {
			return NodeInfo{}, err
		}
		if res.Succeeded {
			return want, nil
		}
	}
	return NodeInfo{}, errContention("registering a node")
}

// RemoveNode deletes the record of a node, whose id is not given out again. It
// does nothing if there is none.
func RemoveNode(ctx context.Context, kv KV, id raft.NodeID) error {
	_, err := kv.Txn(ctx, shard.Txn{Then: []shard.Op{shard.DeleteOp(nodeKey(id))}})
	return err
}

// AllocShards reserves n consecutive shard ids and returns the first. After an
// ambiguous error a block may be lost, which does no harm.
func AllocShards(ctx context.Context, kv KV, n uint64) (raft.ShardID, error) {
	if n == 0 || n > 1<<32 {
		return 0, &shard.ArgumentError{Field: "number of shard ids", Reason: "it must be from 1 to 2^32"}
	}
	for range maxLooks {
		next, version, err := readCounter(ctx, kv, nextShardKey)
		if err != nil {
			return 0, err
		}
		res, err := kv.Txn(ctx, shard.Txn{
			If:   []shard.Cond{shard.IfVersion([]byte(nextShardKey), version)},
			Then: []shard.Op{shard.PutOp([]byte(nextShardKey), encodeCounter(next+n))},
		})
		if err != nil {
			return 0, err
		}
		if res.Succeeded {
			return raft.ShardID(next), nil
		}
	}
	return 0, errContention("allocating shard ids")
}

func readCounter(ctx context.Context, kv KV, key string) (uint64, shard.Version, error) {
	v, err := kv.Get(ctx, []byte(key))
	if errors.Is(err, shard.ErrNotFound) {
		return 0, shard.Version{}, ErrNoCluster
	}
	if err != nil {
		return 0, shard.Version{}, err
	}
	next, err := decodeCounter(v.Bytes)
	return next, v.Version, err
}

// LeaderUpdate reports that Node leads Shard in Term. Keyspace and End find the
// range's record.
type LeaderUpdate struct {
	Keyspace uint32
	End      []byte
	Shard    raft.ShardID
	Node     raft.NodeID
	Term     raft.Term
}

// UpdateLeaders records leaders and returns how many records changed. A record
// only moves forward: an update whose term is not above the recorded one, whose
// shard is not the one filed there, or whose record is missing changes nothing.
// Updates are read and written leaderChunk at a time, so callers collect what
// changes at the same time. After an error the count is that of the updates
// before it; all of them may be given again.
func UpdateLeaders(ctx context.Context, kv KV, ups []LeaderUpdate) (changed int, err error) {
	for chunk := range slices.Chunk(ups, leaderChunk) {
		n, err := updateLeaders(ctx, kv, chunk)
		changed += n
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// leaderChunk bounds the records of one transaction of UpdateLeaders, so that
// they fit even with the longest split keys.
const leaderChunk = 128

func updateLeaders(ctx context.Context, kv KV, ups []LeaderUpdate) (int, error) {
	recs := make([]leaderRecord, 0, len(ups)) // without duplicates
	of := make([]int, len(ups))               // of[i] is the record of ups[i]
	for i, u := range ups {
		key := routeKey(u.Keyspace, u.End)
		of[i] = slices.IndexFunc(recs, func(r leaderRecord) bool { return bytes.Equal(r.key, key) })
		if of[i] < 0 {
			of[i] = len(recs)
			recs = append(recs, leaderRecord{key: key, keyspace: u.Keyspace, end: u.End})
		}
	}
	for range maxLooks {
		if err := readLeaders(ctx, kv, recs); err != nil {
			return 0, err
		}
		for i := range recs { // what no record says, a layout may
			r := &recs[i]
			if r.found {
				continue
			}
			l, err := layoutOf(ctx, kv, r.keyspace)
			if err != nil {
				return 0, err
			}
			if l != nil {
				r.route, r.found = l.ending(r.end)
			}
		}
		for i, u := range ups {
			recs[of[i]].update(u)
		}
		var t shard.Txn
		for i := range recs {
			if r := &recs[i]; r.moved {
				if r.version == (shard.Version{}) {
					t.If = append(t.If, shard.IfAbsent(r.key))
				} else {
					t.If = append(t.If, shard.IfVersion(r.key, r.version))
				}
				t.Then = append(t.Then, shard.PutOp(r.key, r.route.Encode(nil)))
			}
		}
		if len(t.Then) == 0 {
			return 0, nil
		}
		res, err := kv.Txn(ctx, t)
		if err != nil {
			return 0, err
		}
		if res.Succeeded {
			return len(t.Then), nil
		}
	}
	return 0, errContention("recording leaders")
}

// leaderRecord is a range's record that updateLeaders looks at.
type leaderRecord struct {
	key      []byte
	keyspace uint32
	end      []byte
	found    bool
	version  shard.Version // zero: the range is of a layout, and has no record
	route    Route
	moved    bool
}

// readLeaders reads all records with one transaction: one round trip.
func readLeaders(ctx context.Context, kv KV, recs []leaderRecord) error {
	gets := make([]shard.Op, len(recs))
	for i := range recs {
		gets[i] = shard.GetOp(recs[i].key)
	}
	res, err := kv.Txn(ctx, shard.Txn{Then: gets})
	if err != nil {
		return err
	}
	if len(res.Gets) != len(recs) {
		return fmt.Errorf("%w: %d answers to %d reads", ErrCorrupt, len(res.Gets), len(recs))
	}
	for i, g := range res.Gets {
		r := &recs[i]
		*r = leaderRecord{key: r.key, keyspace: r.keyspace, end: r.end, found: g.Found}
		if !g.Found {
			continue
		}
		r.version = g.Value.Version
		if r.route, err = DecodeRoute(g.Value.Bytes); err != nil {
			return err
		}
	}
	return nil
}

// update moves the record forward if u is news. That a shard is led by the node it
// was dealt to needs no record.
func (r *leaderRecord) update(u LeaderUpdate) {
	if r.found && (r.version == (shard.Version{}) && !r.moved || mutants.On("R-dealt")) && r.route.Leader == u.Node {
		return
	}
	if r.found && r.route.Desc.Shard == u.Shard && u.Node != 0 && u.Term > r.route.Term {
		r.route.Leader, r.route.Term, r.moved = u.Node, u.Term, true
	}
}

// PutDescriptor records a shard's descriptor and reports whether it was news.
// The recorded (Version, ConfVer) never goes down, and a range filed for
// another shard is replaced only by a higher Version. The recorded leader stays.
// Ranges do not move in this release: the record found under d's end must
// begin where d begins, else *shard.ArgumentError.
func PutDescriptor(ctx context.Context, kv KV, d raft.Descriptor) (bool, error) {
	if max(len(d.Start), len(d.End)) > MaxSplitKeyBytes {
		return false, &shard.LimitError{What: "bytes of a range's bound", Limit: MaxSplitKeyBytes, Got: max(len(d.Start), len(d.End))}
	}
	key := routeKey(d.Keyspace, d.End)
	for range maxLooks {
		r := Route{Desc: d}
		cond := shard.IfAbsent(key)
		v, err := kv.Get(ctx, key)
		switch {
		case errors.Is(err, shard.ErrNotFound):
			l, err := layoutOf(ctx, kv, d.Keyspace)
			if err != nil {
				return false, err
			}
			if l == nil {
				break
			}
			have, ok := l.ending(d.End)
			switch {
			case !ok:
			case !bytes.Equal(have.Desc.Start, d.Start):
				return false, overlaps(&have)
			case !supersedes(&d, &have.Desc):
				return false, nil
			case have.Desc.Shard == d.Shard:
				r.Leader = have.Leader
			}
		case err != nil:
			return false, err
		default:
			have, err := DecodeRoute(v.Bytes)
			if err != nil {
				return false, err
			}
			if !bytes.Equal(have.Desc.Start, d.Start) {
				return false, overlaps(&have)
			}
			if !supersedes(&d, &have.Desc) {
				return false, nil
			}
			if have.Desc.Shard == d.Shard {
				r.Leader, r.Term = have.Leader, have.Term
			}
			cond = shard.IfVersion(key, v.Version)
		}
		res, err := kv.Txn(ctx, shard.Txn{If: []shard.Cond{cond}, Then: []shard.Op{shard.PutOp(key, r.Encode(nil))}})
		if err != nil {
			return false, err
		}
		if res.Succeeded {
			return true, nil
		}
	}
	return false, errContention("recording a descriptor")
}

func overlaps(have *Route) error {
	return &shard.ArgumentError{Field: "descriptor", Reason: fmt.Sprintf("its range overlaps that of shard %d", have.Desc.Shard)}
}

// supersedes reports whether d takes the place of the recorded old.
func supersedes(d, old *raft.Descriptor) bool {
	if d.Version != old.Version {
		return d.Version > old.Version
	}
	return d.Shard == old.Shard && d.ConfVer > old.ConfVer
}

func errContention(what string) error {
	return &shard.UnavailableError{Why: fmt.Sprintf("%s met another writer %d times in a row", what, maxLooks)}
}

// LeaderHint names the leader a range's record holds.
type LeaderHint = struct {
	Shard raft.ShardID
	Node  raft.NodeID
	Term  raft.Term
}

// Source answers a router's questions from the catalog.
type Source struct{ KV KV }

// Lookup is LookupRange in the router's terms.
func (s Source) Lookup(ctx context.Context, keyspace uint32, key []byte, n int) ([]shard.Descriptor, []LeaderHint, error) {
	routes, err := LookupRange(ctx, s.KV, keyspace, key, n)
	if err != nil {
		return nil, nil, err
	}
	descs := make([]shard.Descriptor, len(routes))
	var hints []LeaderHint
	for i, r := range routes {
		descs[i] = r.Desc
		if r.Leader != 0 {
			hints = append(hints, LeaderHint{Shard: r.Desc.Shard, Node: r.Leader, Term: r.Term})
		}
	}
	return descs, hints, nil
}

// Nodes returns the address book.
func (s Source) Nodes(ctx context.Context) ([]NodeInfo, error) { return ListNodes(ctx, s.KV) }
