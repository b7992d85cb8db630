package t1

import (
	"fmt"
	"io"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/sim"
	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Options chooses a run.
type Options struct {
	Seed    uint64
	Profile string // one of Profiles; empty means "swarm"
	// Duration is the virtual length of the safety phase; zero: drawn.
	Duration time.Duration
	// Schedule replaces what the seed would draw, for replay and shrinking.
	Schedule *Schedule
	// Cache is a block cache to be shared by the engines of many runs. Nil: one of the run's own.
	Cache *engine.Cache
	// Custom replaces the key-value machine and its clients. Nil: these.
	Custom *Custom
	// Verbose puts every message and answer into the tail of the trace.
	Verbose bool
	// Check bounds the time that the check of one group of keys may take. Zero: 2 s.
	Check time.Duration
	// Coverage, if not nil, counts the faults that take hold in the run. It
	// changes nothing in it.
	Coverage *coverage.Table
	// Trace, if not nil, gets every event as a line of JSON (see sim.Feed).
	Trace io.Writer
}

// Result is the outcome of one run.
type Result struct {
	Schedule Schedule
	Counts
	Virtual time.Duration
	Hash    uint64 // of frames, batches, answers and final state; equal for equal options
	Failure *Failure
	// TraceErr is the error of writing Options.Trace.
	TraceErr error

	opts Options // the run's
}

// Failure is the first violation that a run met.
type Failure struct {
	Oracle string // "S1", "L1", ...; "panic" for a panic of the code under test
	Detail string
	At     time.Duration // virtual
	Tail   string        // the last events, one line each
}

// Error returns the oracle and what it saw.
func (f *Failure) Error() string {
	return fmt.Sprintf("%s violated at %v: %s", f.Oracle, f.At, f.Detail)
}

// violation is thrown by checks and caught by Run.
type violation struct{ oracle, detail string }

// event is one entry of the heap. A node's event is dropped when the node has
// another life by then, and put off while the node is paused.
type event struct {
	at  int64
	seq uint64
	n   *node // nil: the world's
	gen uint32
	f   func()
}

// World is one simulated cluster.
type World struct {
	sched   Schedule
	p       *Params
	opt     Options
	now     int64 // virtual nanoseconds
	seq     uint64
	heap    []event
	nodes   []*node
	net     network
	orc     oracle
	clients clients
	stray   stray
	custom  *customRun // nil: the key-value machine
	trace   tracer
	cov     *coverage.Table // nil: nobody wants to know
	armed   []*Action       // wait for an operation; see strike.go
	rng     *rand.Rand
	res     *Result
	calm    bool // the liveness phase has begun
	task    *task
	cache   *engine.Cache
	recent  [2]int64 // busy-loop guard: window start, events in it
}

// Run carries out one simulation to its end or to the first violation.
func Run(o Options) (res *Result) {
	if o.Profile == "" {
		o.Profile = "swarm"
	}
	if o.Check == 0 {
		o.Check = 2 * time.Second
	}
	res = &Result{opts: o}
	if o.Schedule != nil {
		res.Schedule = *o.Schedule
	} else {
		res.Schedule = Draw(o.Seed, o.Profile, o.Duration)
	}
	w := &World{sched: res.Schedule, res: res, opt: o, cache: o.Cache, cov: o.Coverage}
	w.p = &w.sched.Params
	if o.Custom != nil {
		w.p.Shards, w.p.Groups = 1, 1
		res.Schedule.Params = *w.p
	}
	w.rng = rand.New(rand.NewPCG(w.sched.Seed, 0xd11ce7))
	if w.cache == nil {
		w.cache = engine.NewCache(2 << 20)
		defer w.cache.Close()
	}
	defer func() {
		if r := recover(); r != nil {
			f := &Failure{At: time.Duration(w.now)}
			if v, ok := r.(violation); ok {
				f.Oracle, f.Detail = v.oracle, v.detail
			} else {
				f.Oracle, f.Detail = "panic", fmt.Sprint(r, "\n", string(debug.Stack()))
			}
			f.Tail = w.trace.tail(traceKeep)
			res.Failure = f
		}
		w.closeAll()
		res.Virtual = time.Duration(w.now)
		res.Hash = w.trace.hash
		if feed := w.trace.feed; feed != nil {
			oracle, detail := "", ""
			if f := res.Failure; f != nil {
				oracle, detail = f.Oracle, f.Detail
			}
			res.TraceErr = feed.End(w.now, w.trace.hash, oracle, detail)
		}
	}()
	if o.Trace != nil {
		w.trace.feed = sim.NewFeed(o.Trace, "t1", w.sched.Seed, w.sched.Profile)
		w.opt.Verbose = true
	}
	w.build()
	for _, a := range w.sched.Actions {
		w.at(a.At, func() { w.act(a) })
	}
	w.runUntil(int64(w.sched.Duration))
	w.liveness()
	w.finalChecks()
	return res
}

func (w *World) build() {
	w.orc.init(w)
	w.net.init(w)
	w.clients.init(w)
	w.stray.init(w)
	if w.opt.Custom != nil {
		w.custom = &customRun{}
		w.custom.init(w)
	}
	for i := range w.p.Nodes {
		w.nodes = append(w.nodes, newNode(w, i))
	}
	for _, n := range w.nodes {
		n.boot()
	}
}

// closeAll releases what is open, whatever happened.
func (w *World) closeAll() {
	defer func() {
		if r := recover(); r != nil && w.res.Failure == nil {
			w.res.Failure = &Failure{Oracle: "panic", Detail: fmt.Sprint("while closing: ", r, "\n", string(debug.Stack())), At: time.Duration(w.now), Tail: w.trace.tail(traceKeep)}
		}
	}()
	for _, n := range w.nodes {
		n.release()
		n.swap(n.disk)
	}
}

// fail ends the run.
func (w *World) fail(oracle, format string, args ...any) {
	panic(violation{oracle, fmt.Sprintf(format, args...)})
}

// log adds a line to the trace.
func (w *World) log(node int, what string, a, b uint64) {
	w.trace.add(line{at: w.now, node: node, what: what, a: a, b: b})
}

// say adds a line of text, which does not enter the hash, if anybody is to read it.
func (w *World) say(node int, what, format string, args ...any) {
	if !w.opt.Verbose {
		return
	}
	w.trace.add(line{at: w.now, node: node, what: what, text: text(fmt.Sprintf(format, args...))})
}

// at schedules an event of the world.
func (w *World) at(t int64, f func()) { w.push(event{at: t, f: f}) }

// after schedules an event of the world.
func (w *World) after(d time.Duration, f func()) { w.push(event{at: w.now + int64(d), f: f}) }

// on schedules an event of a node in its present life.
func (w *World) on(n *node, t int64, f func()) { w.push(event{at: t, n: n, gen: n.gen, f: f}) }

func (w *World) push(e event) {
	e.at = max(e.at, w.now)
	w.seq++
	e.seq = w.seq
	h := append(w.heap, e)
	i := len(h) - 1
	for i > 0 {
		p := (i - 1) / 2
		if !before(&h[i], &h[p]) {
			break
		}
		h[i], h[p] = h[p], h[i]
		i = p
	}
	w.heap = h
}

func before(a, b *event) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }

func (w *World) pop() event {
	h := w.heap
	e := h[0]
	n := len(h) - 1
	h[0] = h[n]
	h[n] = event{}
	h = h[:n]
	for i := 0; ; {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && before(&h[c+1], &h[c]) {
			c++
		}
		if !before(&h[c], &h[i]) {
			break
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
	w.heap = h
	return e
}

// runUntil carries out all events before t.
func (w *World) runUntil(t int64) {
	for len(w.heap) > 0 && w.heap[0].at < t {
		e := w.pop()
		w.now = e.at
		w.res.Events++
		if w.now-w.recent[0] > 1e6 {
			w.recent = [2]int64{w.now, 0}
		}
		if w.recent[1]++; w.recent[1] > int64(50_000+1_000*len(w.orc.order)) {
			w.fail("S19", "more than %d events in a virtual millisecond", w.recent[1])
		}
		w.do(&e)
	}
	w.now = t
}

func (w *World) do(e *event) {
	n := e.n
	if n == nil {
		e.f()
		return
	}
	if !n.up || e.gen != n.gen {
		return
	}
	if n.pausedUntil > w.now {
		e.at = n.pausedUntil
		w.push(*e)
		return
	}
	n.guarded(e.f)
	n.settleDown()
	if len(w.armed) > 0 {
		w.strike(n)
	}
}

// exp draws an exponentially distributed duration, capped at 20 times its mean.
func (w *World) exp(mean time.Duration) time.Duration {
	return time.Duration(float64(mean) * min(w.rng.ExpFloat64(), 20))
}

// descriptors returns the shards of the cluster: even parts of the keyspace,
// their replicas dealt round over the nodes.
func (w *World) descriptors() []raft.Descriptor {
	var out []raft.Descriptor
	for s := range w.p.Shards {
		d := raft.Descriptor{Shard: raft.ShardID(s + 1), Keyspace: 1, ConfVer: 1, Version: 1}
		if s > 0 {
			d.Start = shardKey(s)
		}
		if s < w.p.Shards-1 {
			d.End = shardKey(s + 1)
		}
		k := min(w.p.Replicas, w.p.Nodes)
		for i := range w.p.Nodes {
			if (i-s%w.p.Nodes+w.p.Nodes)%w.p.Nodes < k {
				d.Replicas = append(d.Replicas, raft.Replica{Node: raft.NodeID(i + 1), ID: raft.ReplicaID(len(d.Replicas) + 1), Role: raft.Voter})
			}
		}
		d.NextReplica = raft.ReplicaID(k + 1)
		out = append(out, d)
	}
	return out
}

// shardKey is the first key of the s-th part of the keyspace, counted from 0.
func shardKey(s int) []byte {
	if s < 24 {
		return []byte{byte('a' + s)}
	}
	s -= 24
	return []byte{byte('a' + 24 + s/200), byte(1 + s%200)}
}

// maxShards bounds the shards of a run.
const maxShards = 4096
