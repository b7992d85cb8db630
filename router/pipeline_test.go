package router

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// starterFleet is a fleet that is a Starter.
type starterFleet struct {
	*fleet
	mu      sync.Mutex
	hold    bool // answers wait for let
	held    []func()
	dropped []uint64 // requests given up
	refuse  bool     // Start reports false
}

func (f *starterFleet) Start(node raft.NodeID, q *shard.Request, a shard.Answerer) (shard.Abandoner, uint64, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse {
		return nil, 0, false
	}
	answer := func() {
		resp, err := f.Send(context.Background(), node, q)
		a.Answered(resp, err)
	}
	if f.hold {
		f.held = append(f.held, answer)
	} else {
		go answer()
	}
	return f, uint64(len(f.held)), true
}

// endingStarter is a starterFleet that something ends while it starts a request.
type endingStarter struct {
	*starterFleet
	end func()
}

func (s *endingStarter) Start(node raft.NodeID, q *shard.Request, a shard.Answerer) (shard.Abandoner, uint64, bool) {
	s.end()
	return s.starterFleet.Start(node, q, a)
}

func (f *starterFleet) Abandon(id uint64) {
	f.mu.Lock()
	f.dropped = append(f.dropped, id)
	f.mu.Unlock()
}

// times returns how often a value was written.
func (f *fleet) times(value string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied[value]
}

// let answers what was held.
func (f *starterFleet) let() {
	f.mu.Lock()
	held := f.held
	f.held, f.hold = nil, false
	f.mu.Unlock()
	for _, h := range held {
		h()
	}
}

func startable(o *Options) { o.Sender = &starterFleet{fleet: o.Sender.(*fleet)} }

// outcomeOf is what an operation gave, as text without times.
func outcomeOf(r shard.Receipt, v shard.Value, t shard.TxnResult, err error) string {
	text := fmt.Sprintf("%v %q %v %v", r, v.Bytes, t, err)
	if err != nil {
		text += fmt.Sprintf(" (%v, deadline %t, cancelled %t, closed %t)", shard.OutcomeOf(err), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, shard.ErrClosed))
	}
	return regexp.MustCompile(` in \d[^)]*\)`).ReplaceAllString(text, " in some time)")
}

// operations are carried out by a call that waits and by a pipeline.
var operations = []struct {
	name string
	wait func(ctx context.Context, s Space) string
	pipe func(ctx context.Context, p *Pipeline) error
}{
	{"get",
		func(ctx context.Context, s Space) string {
			v, err := s.Get(ctx, []byte("k"), shard.Linearizable)
			return outcomeOf(shard.Receipt{}, v, shard.TxnResult{}, err)
		},
		func(ctx context.Context, p *Pipeline) error { return p.Get(ctx, []byte("k"), shard.Linearizable, "t") }},
	{"get of nothing",
		func(ctx context.Context, s Space) string {
			v, err := s.Get(ctx, []byte("nothing"), shard.Local)
			return outcomeOf(shard.Receipt{}, v, shard.TxnResult{}, err)
		},
		func(ctx context.Context, p *Pipeline) error { return p.Get(ctx, []byte("nothing"), shard.Local, "t") }},
	{"get without a key",
		func(ctx context.Context, s Space) string {
			v, err := s.Get(ctx, nil, shard.Linearizable)
			return outcomeOf(shard.Receipt{}, v, shard.TxnResult{}, err)
		},
		func(ctx context.Context, p *Pipeline) error { return p.Get(ctx, nil, shard.Linearizable, "t") }},
	writeOp("put",
		func(ctx context.Context, s Space) (shard.Receipt, error) {
			return s.Put(ctx, []byte("k"), []byte("new"))
		},
		func(ctx context.Context, p *Pipeline) error { return p.Put(ctx, []byte("k"), []byte("new"), "t") }),
	writeOp("put without a key",
		func(ctx context.Context, s Space) (shard.Receipt, error) { return s.Put(ctx, nil, []byte("new")) },
		func(ctx context.Context, p *Pipeline) error { return p.Put(ctx, nil, []byte("new"), "t") }),
	writeOp("delete",
		func(ctx context.Context, s Space) (shard.Receipt, error) { return s.Delete(ctx, []byte("k")) },
		func(ctx context.Context, p *Pipeline) error { return p.Delete(ctx, []byte("k"), "t") }),
	writeOp("swap that conflicts",
		func(ctx context.Context, s Space) (shard.Receipt, error) {
			return s.CAS(ctx, []byte("k"), shard.Version{Lineage: 9}, []byte("new"))
		},
		func(ctx context.Context, p *Pipeline) error {
			return p.CAS(ctx, []byte("k"), shard.Version{Lineage: 9}, []byte("new"), "t")
		}),
	writeOp("batch",
		func(ctx context.Context, s Space) (shard.Receipt, error) {
			return s.Write(ctx, batchOf("k", "l"), false)
		},
		func(ctx context.Context, p *Pipeline) error { return p.Write(ctx, batchOf("k", "l"), false, "t") }),
	writeOp("batch over shards",
		func(ctx context.Context, s Space) (shard.Receipt, error) {
			return s.Write(ctx, batchOf("b", "k", "z"), false)
		},
		func(ctx context.Context, p *Pipeline) error { return p.Write(ctx, batchOf("b", "k", "z"), false, "t") }),
	writeOp("batch in parts",
		func(ctx context.Context, s Space) (shard.Receipt, error) {
			return s.Write(ctx, batchOf("b", "k", "z"), true)
		},
		func(ctx context.Context, p *Pipeline) error { return p.Write(ctx, batchOf("b", "k", "z"), true, "t") }),
	writeOp("empty batch",
		func(ctx context.Context, s Space) (shard.Receipt, error) { return s.Write(ctx, new(shard.Batch), true) },
		func(ctx context.Context, p *Pipeline) error { return p.Write(ctx, new(shard.Batch), true, "t") }),
	writeOp("range deletion over shards",
		func(ctx context.Context, s Space) (shard.Receipt, error) {
			return s.DeleteRange(ctx, []byte("b"), []byte("l"), false)
		},
		func(ctx context.Context, p *Pipeline) error {
			return p.DeleteRange(ctx, []byte("b"), []byte("l"), false, "t")
		}),
	writeOp("range deletion in parts",
		func(ctx context.Context, s Space) (shard.Receipt, error) {
			return s.DeleteRange(ctx, []byte("b"), []byte("l"), true)
		},
		func(ctx context.Context, p *Pipeline) error {
			return p.DeleteRange(ctx, []byte("b"), []byte("l"), true, "t")
		}),
	{"transaction",
		func(ctx context.Context, s Space) string {
			t, err := s.Txn(ctx, someTxn())
			return outcomeOf(shard.Receipt{}, shard.Value{}, t, err)
		},
		func(ctx context.Context, p *Pipeline) error { return p.Txn(ctx, someTxn(), "t") }},
}

func someTxn() shard.Txn {
	return shard.Txn{Then: []shard.Op{shard.PutOp([]byte("k"), []byte("txn"))}}
}

func batchOf(keys ...string) *shard.Batch {
	b := new(shard.Batch)
	for _, k := range keys {
		b.Put([]byte(k), []byte("batch"))
	}
	return b
}

type operation = struct {
	name string
	wait func(ctx context.Context, s Space) string
	pipe func(ctx context.Context, p *Pipeline) error
}

func writeOp(name string, wait func(context.Context, Space) (shard.Receipt, error), pipe func(context.Context, *Pipeline) error) operation {
	return operation{name, func(ctx context.Context, s Space) string {
		r, err := wait(ctx, s)
		return outcomeOf(r, shard.Value{}, shard.TxnResult{}, err)
	}, pipe}
}

// situations are what may happen to an operation on its way.
var situations = []struct {
	name  string
	cold  bool // the router's table is empty
	stop  bool // the context has ended before
	limit time.Duration
	set   func(f *fleet)
}{
	{name: "all is well"},
	{name: "the table is empty", cold: true},
	{name: "the context has ended", stop: true},
	{name: "the leader moved", set: func(f *fleet) { f.move(3, 1) }},
	{name: "the shard was split", set: func(f *fleet) { f.split("k1") }},
	{name: "the leader is down", limit: time.Second, set: func(f *fleet) { f.down[2] = true }},
	{name: "the leader is down and another one leads", set: func(f *fleet) { f.down[2] = true; f.move(3, 3) }},
	{name: "everybody is down", limit: time.Second, set: func(f *fleet) { f.down = map[raft.NodeID]bool{1: true, 2: true, 3: true} }},
	{name: "no quorum", set: func(f *fleet) { f.shard(3).noQuorum = &shard.NoQuorumError{Shard: 3, Voters: 3} }},
	{name: "overloaded twice", set: func(f *fleet) {
		n := 0
		f.interfere = func(_ raft.NodeID, q *shard.Request) (*shard.Response, error, bool) {
			n++
			return q.Failed(&shard.OverloadedError{RetryAfter: 50 * time.Millisecond, Why: "test"}), nil, n <= 2
		}
	}},
	{name: "overloaded for ever", limit: time.Second, set: func(f *fleet) {
		f.interfere = func(_ raft.NodeID, q *shard.Request) (*shard.Response, error, bool) {
			return q.Failed(&shard.OverloadedError{RetryAfter: 50 * time.Millisecond, Why: "test"}), nil, true
		}
	}},
	{name: "the answer is lost", set: func(f *fleet) {
		n := 0
		f.lose = func(*shard.Request) bool { n++; return n == 1 }
	}},
	{name: "the answer is empty", set: func(f *fleet) {
		f.interfere = func(raft.NodeID, *shard.Request) (*shard.Response, error, bool) { return nil, nil, true }
	}, limit: time.Second},
	{name: "the sender is closed", set: func(f *fleet) {
		f.interfere = func(raft.NodeID, *shard.Request) (*shard.Response, error, bool) { return nil, shard.ErrClosed, true }
	}},
	{name: "the node is closed", limit: time.Second, set: func(f *fleet) {
		f.interfere = func(_ raft.NodeID, q *shard.Request) (*shard.Response, error, bool) {
			return q.Failed(shard.ErrClosed), nil, true
		}
	}},
	{name: "an error nobody knows", set: func(f *fleet) {
		f.interfere = func(_ raft.NodeID, q *shard.Request) (*shard.Response, error, bool) {
			return q.Failed(&shard.RemoteError{Text: "strange"}), nil, true
		}
	}},
}

// alike runs every operation in every situation by a call that waits and by a
// pipeline, each on a cluster of its own, and compares results and errors, the
// nodes that were asked, and what the cluster holds afterwards.
func alike(t *testing.T, in func(s Space) Space) error {
	for _, sit := range situations {
		for _, op := range operations {
			run := func(do func(ctx context.Context, r *Router, s Space) string) (string, *fleet) {
				f := newFleet("g", "p")
				f.data["k"] = shard.Value{Bytes: []byte("old"), Version: shard.Version{Lineage: 3, Index: 1}}
				if sit.set != nil {
					sit.set(f)
				}
				stable := func(o *Options) { o.Rand = func() uint64 { return 7 } }
				r := f.router(t, startable, stable)
				if !sit.cold {
					for i, s := range newFleet("g", "p").shards { // as it was before
						r.Table().Merge(s.desc)
						r.Table().SetLeader(1, s.desc.Start, s.desc.Shard, raft.NodeID(1+i%3), 1)
					}
				}
				ctx := t.Context()
				if sit.limit > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, sit.limit)
					defer cancel()
				}
				if sit.stop {
					var cancel context.CancelFunc
					ctx, cancel = context.WithCancel(ctx)
					cancel()
				}
				return do(ctx, r, in(r.Space(1))), f
			}
			waited, fw := run(func(ctx context.Context, _ *Router, s Space) string { return op.wait(ctx, s) })
			piped, fp := run(func(ctx context.Context, r *Router, s Space) string {
				p := s.NewPipeline(1)
				defer p.Close()
				if err := op.pipe(ctx, p); err != nil {
					return err.Error()
				}
				c := <-p.Done()
				if c.Tag != "t" || p.Pending() != 0 {
					return fmt.Sprintf("tag %v, %d calls pending", c.Tag, p.Pending())
				}
				return outcomeOf(c.Receipt, c.Value, c.Txn, c.Err)
			})
			same := slices.Equal(fw.sent, fp.sent)
			if op.name == "batch in parts" || op.name == "range deletion in parts" { // the parts are concurrent
				same = len(fw.sent) == len(fp.sent)
				waited = regexp.MustCompile(`shard \d|Shard:\d`).ReplaceAllString(waited, "shard")
				piped = regexp.MustCompile(`shard \d|Shard:\d`).ReplaceAllString(piped, "shard")
			}
			if waited != piped || !same || !reflect.DeepEqual(fw.applied, fp.applied) {
				return fmt.Errorf("%s, %s: the call that waits gave\n%s, asking %v\nand the pipeline\n%s, asking %v", sit.name, op.name, waited, fw.sent, piped, fp.sent)
			}
		}
	}
	return nil
}

// pipelineCases are checks that a planted bug must fail. Each runs in virtual time.
var pipelineCases = []struct {
	name string
	run  func(t *testing.T) error
}{
	{"a call gives what the method that waits gives", func(t *testing.T) error {
		return alike(t, func(s Space) Space { return s })
	}},
	{"also in a session", func(t *testing.T) error {
		return alike(t, func(s Space) Space { return s.InSession(s.NewSession([16]byte{5}, time.Minute)) })
	}},
	{"it holds no more than its depth", func(t *testing.T) error {
		p, f := held(t, 4)
		defer p.Close()
		for i := range 4 {
			if err := p.Put(t.Context(), []byte("k"), []byte("v"), i); err != nil {
				return err
			}
		}
		if err := p.Put(t.Context(), []byte("k"), []byte("v"), 4); !errors.Is(err, ErrPipelineFull) {
			return fmt.Errorf("a fifth call of four: %v", err)
		}
		f.let()
		synctest.Wait()
		if err := p.Put(t.Context(), []byte("k"), []byte("v"), 4); !errors.Is(err, ErrPipelineFull) || p.Pending() != 4 {
			return fmt.Errorf("a fifth call while four wait to be received: %v, %d pending", err, p.Pending())
		}
		<-p.Done()
		if err := p.Put(t.Context(), []byte("k"), []byte("v"), 4); err != nil || p.Pending() != 4 {
			return fmt.Errorf("after one was received: %v, %d pending", err, p.Pending())
		}
		if f.times("v") != 4 {
			return fmt.Errorf("%d writes applied", f.times("v"))
		}
		return nil
	}},
	{"a context that ends ends its calls and no others, once", func(t *testing.T) error {
		p, f := held(t, 8)
		defer p.Close()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		other, stop := context.WithCancel(t.Context())
		defer stop()
		for i := range 6 {
			c := ctx
			if i%2 == 1 {
				c = other
			}
			var err error
			if i < 4 {
				err = p.Put(c, []byte("k"), []byte("v"), i)
			} else {
				err = p.Get(c, []byte("k"), shard.Linearizable, i)
			}
			if err != nil {
				return err
			}
		}
		cancel()
		synctest.Wait()
		for range 3 {
			select {
			case c := <-p.Done():
				write := c.Tag.(int) < 4
				if c.Tag.(int)%2 != 0 || !errors.Is(c.Err, context.Canceled) || errors.Is(c.Err, shard.ErrAmbiguous) != write {
					return fmt.Errorf("call %v ended with %v", c.Tag, c.Err)
				}
			default:
				return errors.New("a call of the context did not end with it")
			}
		}
		if len(f.dropped) != 3 {
			return fmt.Errorf("the sender was told to drop %v", f.dropped)
		}
		f.let()
		synctest.Wait()
		if p.Pending() != 3 {
			return fmt.Errorf("%d calls pending of the other context", p.Pending())
		}
		for range 3 {
			if c := <-p.Done(); c.Tag.(int)%2 != 1 || c.Err != nil && c.Tag != 5 {
				return fmt.Errorf("call %v of the other context: %v", c.Tag, c.Err)
			}
		}
		return nil
	}},
	{"a call without a deadline ends after the router's timeout", func(t *testing.T) error {
		p, _ := held(t, 8)
		defer p.Close()
		for i := range 3 {
			if err := p.Put(context.Background(), []byte("k"), []byte("v"), time.Now()); err != nil {
				return err
			}
			time.Sleep(time.Duration(i+1) * time.Second)
		}
		for range 3 {
			c := <-p.Done()
			if took := time.Since(c.Tag.(time.Time)); took != 10*time.Second || !errors.Is(c.Err, shard.ErrAmbiguous) || !errors.Is(c.Err, context.DeadlineExceeded) {
				return fmt.Errorf("after %v: %v", took, c.Err)
			}
		}
		return nil
	}},
	{"closing ends what is under way and hands everything out", func(t *testing.T) error {
		p, f := held(t, 8)
		for i := range 3 {
			if err := p.Put(context.Background(), []byte("k"), []byte("v"), i); err != nil {
				return err
			}
		}
		f.hold = false
		if err := p.Get(t.Context(), []byte("k"), shard.Linearizable, 3); err != nil {
			return err
		}
		synctest.Wait()
		if err := p.Close(); err != nil {
			return err
		}
		if err := p.Put(t.Context(), []byte("k"), nil, 0); !errors.Is(err, shard.ErrClosed) {
			return fmt.Errorf("a call after Close: %v", err)
		}
		ambiguous := 0
		for c := range p.Done() {
			if errors.Is(c.Err, shard.ErrAmbiguous) && c.Tag.(int) < 3 {
				ambiguous++
			} else if c.Tag != 3 || !errors.Is(c.Err, shard.ErrNotFound) {
				return fmt.Errorf("call %v: %v", c.Tag, c.Err)
			}
		}
		if ambiguous != 3 {
			return fmt.Errorf("%d of 3 writes under way are ambiguous", ambiguous)
		}
		f.let() // what comes now concerns nobody
		return p.Close()
	}},
	{"closing the router ends what is tried again", func(t *testing.T) error {
		f := newFleet()
		f.interfere = func(_ raft.NodeID, q *shard.Request) (*shard.Response, error, bool) {
			return q.Failed(&shard.OverloadedError{RetryAfter: time.Second, Why: "test"}), nil, true
		}
		r := f.warm(t, startable)
		p := r.Space(1).NewPipeline(4)
		defer p.Close()
		for range 3 {
			if err := p.Put(context.Background(), []byte("k"), nil, nil); err != nil {
				return err
			}
		}
		synctest.Wait()
		r.Close()
		r.Wait()
		if err := p.Put(context.Background(), []byte("k"), nil, nil); err != nil {
			return err
		}
		for range 4 {
			if c := <-p.Done(); !errors.Is(c.Err, shard.ErrClosed) || shard.OutcomeOf(c.Err) != shard.NotApplied {
				return c.Err
			}
		}
		return nil
	}},
	{"many writes of one session take effect once each, though answers are lost", func(t *testing.T) error {
		f := newFleet()
		rnd := rand.New(rand.NewPCG(1, 2))
		f.lose = func(*shard.Request) bool { return rnd.IntN(3) == 0 }
		r := f.warm(t, startable)
		s, _ := inSession(r, time.Minute)
		p := s.NewPipeline(256)
		defer p.Close()
		for i := range 256 {
			if err := p.Put(t.Context(), []byte("k"), []byte(strconv.Itoa(i)), i); err != nil {
				return err
			}
		}
		for range 256 {
			c := <-p.Done()
			if v := strconv.Itoa(c.Tag.(int)); c.Err != nil || f.times(v) != 1 {
				return fmt.Errorf("write %s: %v, applied %d times", v, c.Err, f.times(v))
			}
		}
		return nil
	}},
	{"calls under way cost no goroutine", func(t *testing.T) error {
		p, f := held(t, 1024)
		defer p.Close()
		before := runtime.NumGoroutine()
		for i := range 1024 {
			if err := p.Put(t.Context(), []byte("k"), []byte("v"), i); err != nil {
				return err
			}
		}
		if now := runtime.NumGoroutine(); now > before+16 {
			return fmt.Errorf("%d goroutines before, %d with 1024 calls under way", before, now)
		}
		f.let()
		for range 1024 {
			if c := <-p.Done(); c.Err != nil {
				return c.Err
			}
		}
		return nil
	}},
	{"the caller may use its slices again at once", func(t *testing.T) error {
		f := newFleet("g", "p")
		sf := &starterFleet{fleet: f, hold: true}
		p := f.warm(t, func(o *Options) { o.Sender = sf }).Space(1).NewPipeline(8)
		defer p.Close()
		for _, k := range []string{"k1", "k2", "k3", "k4"} {
			f.data[k] = shard.Value{Bytes: []byte("old"), Version: shard.Version{Lineage: 3, Index: 1}}
		}
		for i, start := range []func(k, v []byte) error{
			func(k, v []byte) error { return p.Put(t.Context(), k, v, 0) },
			func(k, v []byte) error {
				return p.CAS(t.Context(), k, shard.Version{Lineage: 3, Index: 1}, v, 1)
			},
			func(k, _ []byte) error { return p.Delete(t.Context(), k, 2) },
			func(k, _ []byte) error { return p.DeleteRange(t.Context(), k, append(k, 'x'), false, 3) },
			func(k, _ []byte) error { return p.Get(t.Context(), k, shard.Linearizable, 4) },
		} {
			k, v := append(make([]byte, 0, 4), 'k', byte('1'+i)), []byte("new")
			if err := start(k, v); err != nil {
				return err
			}
			copy(k[:3], "b_z") // another shard
			copy(v, "???")
		}
		f.move(3, 1) // so that each call is tried again
		sf.let()
		for range 5 {
			if c := <-p.Done(); c.Err != nil && (c.Tag != 4 || c.Err != shard.ErrNotFound) {
				return fmt.Errorf("call %v: %w", c.Tag, c.Err)
			}
		}
		if len(f.data) != 2 || string(f.data["k1"].Bytes) != "new" || string(f.data["k2"].Bytes) != "new" {
			return fmt.Errorf("there is %v", f.data)
		}
		return nil
	}},
	{"an answer that comes late reaches nobody else", func(t *testing.T) error {
		p, f := held(t, 4)
		defer p.Close()
		for round := range 3 { // what a call is made of is used again
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if err := p.Put(ctx, []byte("k"), []byte("late"), "given up"); err != nil {
				return err
			}
			cancel()
			if c := <-p.Done(); c.Tag != "given up" || !errors.Is(c.Err, shard.ErrAmbiguous) {
				return fmt.Errorf("call %v: %v", c.Tag, c.Err)
			}
			if err := p.Get(t.Context(), []byte("nothing"), shard.Linearizable, "next"); err != nil {
				return err
			}
			f.mu.Lock()
			answers := f.held
			f.held = nil
			f.mu.Unlock()
			answers[0]()
			synctest.Wait()
			if n := len(p.Done()); n != 0 || p.Pending() != 1 || f.times("late") != round+1 {
				return fmt.Errorf("%d calls are over by an answer to another one, %d are pending", n, p.Pending())
			}
			answers[1]()
			if c := <-p.Done(); c.Tag != "next" || c.Err != shard.ErrNotFound {
				return fmt.Errorf("call %v: %v", c.Tag, c.Err)
			}
		}
		return nil
	}},
	{"calls that end at their start are given up", func(t *testing.T) error {
		f := newFleet()
		s := &endingStarter{starterFleet: &starterFleet{fleet: f, hold: true}}
		p := f.warm(t, func(o *Options) { o.Sender = s }).Space(1).NewPipeline(4)
		defer p.Close()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for _, by := range []struct {
			name string
			ctx  context.Context
			end  func()
		}{
			{"its context", ctx, cancel},
			{"the router's limit", t.Context(), func() { time.Sleep(time.Minute) }},
		} {
			name := by.name
			s.end = func() { by.end(); synctest.Wait() }
			if err := p.Put(by.ctx, []byte("k"), []byte("v"), name); err != nil {
				return err
			}
			select {
			case c := <-p.Done():
				if !errors.Is(c.Err, shard.ErrAmbiguous) {
					return fmt.Errorf("%s: %v", name, c.Err)
				}
			default:
				return fmt.Errorf("a call that ended by %s while it was handed over goes on", name)
			}
			if len(s.dropped) == 0 {
				return fmt.Errorf("%s: the sender was not told", name)
			}
			s.dropped = nil
		}
		return nil
	}},
	{"a sender that cannot start now is asked to wait", func(t *testing.T) error {
		p, f := held(t, 4)
		defer p.Close()
		f.refuse = true
		if err := p.Put(t.Context(), []byte("k"), []byte("v"), nil); err != nil {
			return err
		}
		c := <-p.Done()
		if c.Err != nil || f.times("v") != 1 || len(f.sent) != 1 {
			return fmt.Errorf("%v, applied %d times, asked %v", c.Err, f.times("v"), f.sent)
		}
		return nil
	}},
}

// held returns a pipeline over a cluster of one shard that does not answer until let.
func held(t *testing.T, depth int) (*Pipeline, *starterFleet) {
	f := newFleet()
	s := &starterFleet{fleet: f, hold: true}
	r := f.warm(t, func(o *Options) { o.Sender = s })
	return r.Space(1).NewPipeline(depth), s
}

// Shows that the calls of a pipeline end as calls that wait do, that their number
// is bounded, and how they end with contexts, pipelines and routers.
func TestPipeline(t *testing.T) {
	for _, c := range pipelineCases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if err := c.run(t); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// Shows that starting, ending, cancelling and closing from many goroutines at once
// hands out every call exactly once. In real time, for the race detector.
func TestPipelineFromManyGoroutines(t *testing.T) {
	f := newFleet("g", "p")
	r := f.warm(t, startable)
	p := r.Space(1).NewPipeline(32)
	var wg sync.WaitGroup
	var mu sync.Mutex
	started := map[int]bool{}
	for g := range 4 {
		wg.Go(func() {
			var cancels []context.CancelFunc
			defer func() {
				for _, cancel := range cancels {
					cancel()
				}
			}()
			for i := 0; ; i++ {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%3)*10*time.Microsecond+time.Nanosecond)
				cancels = append(cancels, cancel)
				tag := g<<32 | i
				mu.Lock()
				started[tag] = true
				mu.Unlock()
				err := p.Put(ctx, []byte{byte('a' + i%26)}, []byte(strconv.Itoa(tag)), tag)
				if i%2 == 0 {
					cancel()
				}
				if err == nil {
					continue
				}
				mu.Lock()
				delete(started, tag)
				mu.Unlock()
				if errors.Is(err, shard.ErrClosed) {
					return
				}
				runtime.Gosched()
			}
		})
	}
	got := 0
	for c := range p.Done() {
		mu.Lock()
		if !started[c.Tag.(int)] {
			t.Errorf("call %d came out and was not under way", c.Tag)
		}
		delete(started, c.Tag.(int))
		mu.Unlock()
		if got++; got == 3000 {
			go p.Close()
		}
	}
	wg.Wait()
	if len(started) > 0 || got < 3000 {
		t.Errorf("%d calls came out, %d did not", got, len(started))
	}
}

// TestPipelinePatience: of calls of a pipeline that an overloaded node refuses, as
// many wait as of calls that wait; the others come out at once, as refused.
func TestPipelinePatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet()
		s := f.warm(t, func(o *Options) { o.Patience = 3; o.Timeout = 2 * time.Second; startable(o) }).Space(1)
		f.interfere = func(_ raft.NodeID, q *shard.Request) (*shard.Response, error, bool) {
			return q.Failed(&shard.OverloadedError{RetryAfter: 400 * time.Millisecond, Why: "queue"}), nil, true
		}
		p := s.NewPipeline(100)
		defer p.Close()
		begun := time.Now()
		for i := range 10 {
			if err := p.Put(t.Context(), []byte("k"), nil, i); err != nil {
				t.Fatal(err)
			}
		}
		atOnce, late := 0, 0
		for range 10 {
			c := <-p.Done()
			var busy *shard.OverloadedError
			if !errors.As(c.Err, &busy) || busy.RetryAfter != 400*time.Millisecond || shard.OutcomeOf(c.Err) != shard.NotApplied {
				t.Errorf("got %v", c.Err)
			}
			switch d := time.Since(begun); {
			case d < time.Millisecond && !errors.Is(c.Err, context.DeadlineExceeded):
				atOnce++
			case d > time.Second && errors.Is(c.Err, context.DeadlineExceeded):
				late++
			}
		}
		if n := s.r.Stats().TurnedAway; atOnce != 7 || late != 3 || n != 7 {
			t.Errorf("%d were told at once, %d waited, %d counted as turned away; want 7, 3 and 7", atOnce, late, n)
		}
	})
}
