package nemesis

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"sync/atomic"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
	"github.com/flotillakv/flotilla/transport"
)

// userKeyspace is the keyspace of the KV interface.
const userKeyspace = 1

// door asks one node and no other: it reads through that node, whoever leads,
// and asks it about itself. Of flotilla.KV it has the reads.
type door struct {
	flotilla.KV // nil: writes take the way of a flotilla.Client
	c           *transport.Client
	turn        atomic.Uint64 // the ways to read take turns
}

func newDoor(n *node) *door {
	return &door{c: transport.NewClient(n.clientVia, transport.ClientOptions{Node: raft.NodeID(n.i + 1)})}
}

func (d *door) do(ctx context.Context, r *shard.Request) (*shard.Response, error) {
	r.Keyspace = userKeyspace
	r.Consistency = []shard.Consistency{shard.Linearizable, shard.NoClock, shard.Follower}[d.turn.Add(1)%3]
	resp, err := d.c.Do(ctx, r)
	if err == nil && resp.Err != nil {
		err = resp.Err
	}
	return resp, err
}

// Get reads through the node.
func (d *door) Get(ctx context.Context, key []byte, _ ...flotilla.ReadOption) (flotilla.Value, error) {
	resp, err := d.do(ctx, &shard.Request{Kind: shard.KindGet, Key: key})
	switch {
	case err != nil:
		return flotilla.Value{}, err
	case !resp.Found || resp.Value == nil:
		return flotilla.Value{}, flotilla.ErrNotFound
	}
	return *resp.Value, nil
}

// Scan reads one page through the node: a group is never more than that.
func (d *door) Scan(ctx context.Context, r flotilla.Range, _ ...flotilla.ReadOption) iter.Seq2[flotilla.Pair, error] {
	return func(yield func(flotilla.Pair, error) bool) {
		resp, err := d.do(ctx, &shard.Request{Kind: shard.KindScan, Start: r.Start, End: r.End, Reverse: r.Reverse})
		if err == nil && resp.More {
			err = fmt.Errorf("a page of [%q, %q) does not hold it all", r.Start, r.End)
		}
		if err != nil {
			yield(flotilla.Pair{}, err)
			return
		}
		for _, p := range resp.Pairs {
			if !yield(p, nil) {
				return
			}
		}
	}
}

// ask puts a named query to the node.
func (d *door) ask(ctx context.Context, method string, q, a any) error {
	in, err := json.Marshal(q)
	if err != nil {
		return err
	}
	out, err := d.c.Admin(ctx, method, in)
	if err != nil {
		return err
	}
	return json.Unmarshal(out, a)
}
