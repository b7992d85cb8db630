package flotilla

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/snapshot/backup"
)

// Backup copies all shards to dst, each as of one moment that has everything
// acknowledged before the call, and returns the manifest, which names these
// moments. It reads from followers where it can. Writes go on meanwhile. After an
// error there is no new backup in dst; what was stored is used by the next one.
func (c *Client) Backup(ctx context.Context, dst backup.Store, o backup.Options) (*backup.Manifest, error) {
	return backup.Create(ctx, c.cutSource(), dst, release(o))
}

// TakeSnapshot is Backup for some shards, by id (none: all): it stores a snapshot of
// them in dst and returns its manifest. It fails with ErrNotFound for a shard that does not
// exist and *ArgumentError for one that is not of the user's keyspace.
func (c *Client) TakeSnapshot(ctx context.Context, dst backup.Store, shards []uint64, o backup.Options) (*backup.Manifest, error) {
	return backup.Take(ctx, c.cutSource(), dst, shards, release(o))
}

func (c *Client) cutSource() *cutSource {
	return &cutSource{cluster: c.cluster, shards: c.Shards, ask: c.senders.Admin, limit: c.o.Timeout}
}

// Restore writes a backup, or a snapshot, into the cluster, whatever its nodes and shards are;
// see backup.Restore.
func (c *Client) Restore(ctx context.Context, src backup.Store, m *backup.Manifest, how backup.IfNotEmpty, o backup.Options) error {
	return backup.Restore(ctx, src, m, restoreTarget{c}, how, o)
}

// Backup is Client.Backup of the node's cluster.
func (n *Node) Backup(ctx context.Context, dst backup.Store, o backup.Options) (*backup.Manifest, error) {
	return backup.Create(ctx, n.cutSource(), dst, release(o))
}

// TakeSnapshot is Client.TakeSnapshot of the node's cluster.
func (n *Node) TakeSnapshot(ctx context.Context, dst backup.Store, shards []uint64, o backup.Options) (*backup.Manifest, error) {
	return backup.Take(ctx, n.cutSource(), dst, shards, release(o))
}

func (n *Node) cutSource() *cutSource {
	ask := func(ctx context.Context, node raft.NodeID, method string, in []byte) ([]byte, error) {
		if uint32(node) == n.ID() {
			return n.admin(ctx, method, in)
		}
		return n.senders.Admin(ctx, node, method, in)
	}
	return &cutSource{cluster: n.form.Load().Cluster, shards: n.Shards, ask: ask, limit: n.o.Timeout}
}

// Restore is Client.Restore into the node's cluster.
func (n *Node) Restore(ctx context.Context, src backup.Store, m *backup.Manifest, how backup.IfNotEmpty, o backup.Options) error {
	return backup.Restore(ctx, src, m, restoreTarget{n}, how, o)
}

func release(o backup.Options) backup.Options {
	if o.Release == "" {
		o.Release = ReleaseVersion
	}
	return o
}

// cutSource is a cluster as a backup sees it.
type cutSource struct {
	cluster string
	shards  func(ctx context.Context) ([]ShardInfo, error)
	ask     func(ctx context.Context, node raft.NodeID, method string, in []byte) ([]byte, error)
	limit   time.Duration // of one question
}

func (s *cutSource) Cluster() string { return s.cluster }

func (s *cutSource) Shards(ctx context.Context) ([]uint64, error) {
	list, err := s.shards(ctx)
	var ids []uint64
	for i := range list {
		if list[i].Keyspace == userKeyspace {
			ids = append(ids, list[i].ID)
		}
	}
	return ids, err
}

// bound leaves time to ask another node, whoever bounds the whole.
func (s *cutSource) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.limit <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, s.limit/4)
}

// Open asks the followers first, then the leader.
func (s *cutSource) Open(ctx context.Context, id uint64) (backup.Cut, error) {
	list, err := s.shards(ctx)
	if err != nil {
		return nil, err
	}
	var info *ShardInfo
	for i := range list {
		if list[i].ID == id {
			info = &list[i]
		}
	}
	if info == nil {
		return nil, fmt.Errorf("shard %d: %w", id, ErrNotFound)
	}
	var nodes, leader []uint32
	for i := range info.Replicas {
		r := info.Replicas[(i+int(id))%len(info.Replicas)] // not always the same node
		if r.Node == info.Leader {
			leader = append(leader, r.Node)
		} else {
			nodes = append(nodes, r.Node)
		}
	}
	in, err := json.Marshal(shardQuery{id})
	if err != nil {
		return nil, err
	}
	err = &UnavailableError{Why: "no node has a replica"}
	for _, node := range append(nodes, leader...) {
		var a cutAnswer
		if a, err = s.openAt(ctx, node, in); err == nil {
			return &remoteCut{s: s, node: raft.NodeID(node), answer: a}, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

func (s *cutSource) openAt(ctx context.Context, node uint32, in []byte) (a cutAnswer, err error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	b, err := s.ask(ctx, raft.NodeID(node), adminCut, in)
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	return a, err
}

// remoteCut reads a cut from the node that holds it.
type remoteCut struct {
	s      *cutSource
	node   raft.NodeID
	answer cutAnswer
	after  []byte
}

func (r *remoteCut) At() backup.ShardCut { return r.answer.At }

// Next asks twice; then the node is given up. Asking again is harmless: the
// question names the last key that arrived.
func (r *remoteCut) Next(ctx context.Context) ([]backup.Pair, bool, error) {
	in, err := json.Marshal(cutQuery{Cut: r.answer.Cut, After: r.after})
	if err != nil {
		return nil, false, err
	}
	for try := 1; ; try++ {
		pairs, more, err := r.page(ctx, in)
		if err == nil {
			if len(pairs) > 0 {
				r.after = append(r.after[:0], pairs[len(pairs)-1].Key...)
			}
			return pairs, more, nil
		}
		if ctx.Err() != nil {
			return nil, false, ctx.Err()
		}
		if errors.Is(err, ErrNotFound) {
			return nil, false, fmt.Errorf("%w: node %d was restarted, nobody read it for %v, it was %v old, or the node's disk is nearly used up",
				backup.ErrCutLost, r.node, cutIdleLimit, cutLifeLimit)
		}
		if try == 2 {
			return nil, false, fmt.Errorf("%w: node %d: %w", backup.ErrCutLost, r.node, err)
		}
	}
}

func (r *remoteCut) page(ctx context.Context, in []byte) ([]backup.Pair, bool, error) {
	ctx, cancel := r.s.bound(ctx)
	defer cancel()
	b, err := r.s.ask(ctx, r.node, adminCutPage, in)
	if err != nil {
		return nil, false, err
	}
	return backup.DecodePage(b)
}

// Close does not wait long for a node that may be gone: the cut ends by itself.
func (r *remoteCut) Close() {
	in, err := json.Marshal(cutQuery{Cut: r.answer.Cut})
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, _ = r.s.ask(ctx, r.node, adminCutClose, in)
}

// restoreTarget is a cluster that a backup is written into.
type restoreTarget struct{ kv KV }

func (t restoreTarget) Empty(ctx context.Context, start, end []byte) (bool, error) {
	for _, err := range t.kv.Scan(ctx, Range{Start: start, End: end, Limit: 1}) {
		return false, err
	}
	return true, nil
}

func (t restoreTarget) Clear(ctx context.Context, start, end []byte) error {
	_, err := t.kv.DeleteRange(ctx, Range{Start: start, End: end}, NonAtomic())
	return err
}

func (t restoreTarget) Write(ctx context.Context, pairs []backup.Pair) error {
	if len(pairs) == 1 { // may be too large for a batch
		_, err := t.kv.Put(ctx, pairs[0].Key, pairs[0].Value)
		return err
	}
	var b Batch
	for _, p := range pairs {
		b.Put(p.Key, p.Value)
	}
	_, err := t.kv.Write(ctx, &b, NonAtomic())
	return err
}
