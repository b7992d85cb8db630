package router

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// nearSender serves keys of its own at once, and counts what it is asked.
type nearSender struct {
	okSender
	vals  map[string]*shard.Value // nil: known to be absent
	asked []raft.ShardID
}

func (n *nearSender) ReadNear(d *raft.Descriptor, key []byte) (v shard.Value, found, ok bool) {
	n.asked = append(n.asked, d.Shard)
	p, ok := n.vals[string(key)]
	if p == nil {
		return shard.Value{}, false, ok
	}
	return *p, true, true
}

// TestReadNear: a linearizable get is answered on the short way if there is one,
// and goes the long one in every other case; one of a pipeline does, too.
func TestReadNear(t *testing.T) {
	t.Run("a call that waits", func(t *testing.T) { testReadNear(t, Space.Get) })
	t.Run("a pipeline", func(t *testing.T) {
		testReadNear(t, func(s Space, ctx context.Context, key []byte, how shard.Consistency) (shard.Value, error) {
			p := s.NewPipeline(1)
			defer p.Close()
			if err := p.Get(ctx, key, how, "tag"); err != nil {
				return shard.Value{}, err
			}
			if err := p.Put(ctx, []byte("k"), nil, "full"); err != ErrPipelineFull {
				t.Errorf("a second call of one: %v", err)
			}
			c := <-p.Done()
			if c.Tag != "tag" || p.Pending() != 0 {
				t.Errorf("tag %v, %d calls are pending", c.Tag, p.Pending())
			}
			return c.Value, c.Err
		})
	})
}

func testReadNear(t *testing.T, get func(s Space, ctx context.Context, key []byte, how shard.Consistency) (shard.Value, error)) {
	n := &nearSender{
		okSender: okSender{&shard.Response{Found: true, Value: &shard.Value{Bytes: []byte("far")}}},
		vals:     map[string]*shard.Value{"near": {Bytes: []byte("near")}, "none": nil},
	}
	r := New(Options{Sender: n})
	defer r.Close()
	ranges := manyRanges(2, func(i int) string { return []string{"", "n"}[i] })
	r.Table().Merge(ranges...)
	ended, end := context.WithCancel(t.Context())
	end()
	for name, c := range map[string]struct {
		ctx   context.Context
		key   string
		level shard.Consistency
		want  string
		err   error
		asked int
	}{
		"near":        {t.Context(), "near", shard.Linearizable, "near", nil, 1},
		"absent":      {t.Context(), "none", shard.Linearizable, "", shard.ErrNotFound, 1},
		"not served":  {t.Context(), "else", shard.Linearizable, "far", nil, 1},
		"no clock":    {t.Context(), "near", shard.NoClock, "far", nil, 0},
		"follower":    {t.Context(), "near", shard.Follower, "far", nil, 0},
		"local":       {t.Context(), "near", shard.Local, "far", nil, 0},
		"ended":       {ended, "near", shard.Linearizable, "", context.Canceled, 0},
		"invalid key": {t.Context(), string(make([]byte, shard.MaxKeyBytes+1)), shard.Linearizable, "", &shard.LimitError{}, 0},
	} {
		n.asked = nil
		before := r.Stats()
		v, err := get(r.Space(1), c.ctx, []byte(c.key), c.level)
		var limit *shard.LimitError
		if errors.As(c.err, &limit) {
			if !errors.As(err, &limit) {
				t.Errorf("%s: %v", name, err)
			}
		} else if !errors.Is(err, c.err) || string(v.Bytes) != c.want {
			t.Errorf("%s: %q, %v", name, v.Bytes, err)
		}
		if len(n.asked) != c.asked {
			t.Errorf("%s: asked %d times", name, len(n.asked))
		}
		for _, s := range n.asked {
			if route, _ := r.Table().Lookup(1, []byte(c.key)); s != route.Desc.Shard {
				t.Errorf("%s: asked for shard %d", name, s)
			}
		}
		after := r.Stats()
		if d := after.Requests - before.Requests; d > 1 || d == 0 && (c.want != "" || c.err == shard.ErrNotFound) {
			t.Errorf("%s: counted as %d requests", name, d)
		}
	}
	if route, _ := r.Table().Lookup(1, []byte("near")); !r.Table().Evict(route) {
		t.Fatal("not evicted")
	}
	n.asked = nil
	if _, _, ok := r.Space(1).readNear(t.Context(), []byte("near")); ok || len(n.asked) != 0 {
		t.Error("read by a hole in the table")
	}
}

// ownStore is a node's own way to the fleet: node 1's store is here.
type ownStore struct {
	*fleet
	bounded []bool // of each try: whether its context had a deadline
}

func (o *ownStore) ReadNear(*raft.Descriptor, []byte) (shard.Value, bool, bool) {
	return shard.Value{}, false, false
}

func (o *ownStore) Send(ctx context.Context, node raft.NodeID, q *shard.Request) (*shard.Response, error) {
	_, has := ctx.Deadline()
	o.bounded = append(o.bounded, has)
	if has || node != 1 {
		return o.fleet.Send(ctx, node, q)
	}
	// As a store does: by the request's own time.
	ctx, cancel := context.WithTimeout(ctx, time.Duration(q.TimeoutNanos))
	defer cancel()
	return o.fleet.Send(ctx, node, q)
}

// TestTryHere: a caller without a deadline pays for none while the own store
// serves, and has one as soon as anything else is needed, with the time that is left.
func TestTryHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("m")
		o := &ownStore{fleet: f}
		s := f.warm(t, func(opt *Options) { opt.Sender, opt.Self, opt.Timeout = o, 1, time.Second }).Space(1)
		want := func(what, key string, bounded ...bool) {
			t.Helper()
			o.bounded = nil
			if _, err := s.Put(t.Context(), []byte(key), []byte("v")); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if !slices.Equal(o.bounded, bounded) {
				t.Errorf("%s: tries with deadlines %v, want %v", what, o.bounded, bounded)
			}
		}
		want("led here", "a", false)
		want("led elsewhere", "n", true)
		f.move(2, 3)
		want("moved away", "a", false, true)
		f.move(2, 1)
		want("moved back", "a", true, true)
		if v, err := s.Get(t.Context(), []byte("a"), shard.Linearizable); err != nil || string(v.Bytes) != "v" {
			t.Errorf("%q, %v", v.Bytes, err)
		}
		f.interfere = func(node raft.NodeID, q *shard.Request) (*shard.Response, error, bool) {
			time.Sleep(300 * time.Millisecond)
			return nil, &shard.UnavailableError{Node: node, Why: "asleep"}, true
		}
		var err error
		if d := took(func() { _, err = s.Put(t.Context(), []byte("a"), nil) }); err == nil || d < time.Second/2 || d > 1300*time.Millisecond { // the last try began in time
			t.Errorf("gave up after %v with %v, time was 1 s", d, err)
		}
	})
}
