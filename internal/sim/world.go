package sim

import (
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// shard is the id of the one group of a T0 run.
const shard raft.ShardID = 7

// Options chooses a run.
type Options struct {
	Seed    uint64
	Profile string // one of Profiles; empty means "swarm"
	// Nodes fixes the number of processes; zero lets the seed draw it.
	Nodes int
	// Duration is the virtual length of the safety phase; zero lets the seed draw it.
	Duration time.Duration
	// Schedule replaces what the seed would draw, for shrinking.
	Schedule *Schedule
	// Hook is called once when the world is built and before it runs. Tests use
	// it to watch; nil means none.
	Hook func(*World)
	// Coverage, if not nil, counts the faults that take hold in the run. It
	// changes nothing in it.
	Coverage *coverage.Table
	// Trace, if not nil, gets every event as a line of JSON (see [Feed]).
	Trace io.Writer
}

// Result is the outcome of one run.
type Result struct {
	Schedule Schedule
	Events   uint64        // events taken from the heap
	Virtual  time.Duration // virtual time that passed
	Hash     uint64        // of the whole trace; equal for equal options
	Commits  raft.Index    // entries committed
	Leaders  int           // terms with a leader
	Confs    int           // configurations applied
	Crashes  int
	Snaps    int  // snapshots installed
	Amnesias int  // disks that came back older than they were
	Forgot   int  // nodes of these that were found out and stopped for good
	Halted   bool // a majority forgot, and the group stood still for good
	Acks     int  // commands acknowledged to clients
	Reads    int  // read indexes answered
	// LeaseReads counts those of them that a lease answered.
	LeaseReads int
	Headless   bool // no liveness phase: a voter that has no state made a quorum impossible
	Failure    *Failure
	// TraceErr is the error of writing Options.Trace.
	TraceErr error

	opts  Options // the run's
	turns []turn  // the story
}

// Failure is the first violation a run met.
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

// violation is thrown by oracles and caught by Run.
type violation struct{ oracle, detail string }

type eventKind uint8

const (
	evDeliver eventKind = iota + 1
	evCtl
	evRound
	evTick
	evSync
	evPairs
	evUndo
	evRestart
	evApply
	evFetch
	evSnapBuild
	evSnapArrive
	evReset
	evLinger
)

// event is what happens at some time. gen is the life of the node it is meant for;
// zero means any.
type event struct {
	at   int64
	kind eventKind
	node int32
	gen  uint32
	x    uint64
	msg  *raft.Msg
	ctl  raft.Ctl
	arg  any
}

// key is an event's place in the heap: by time, then by order of scheduling.
type key struct {
	at   int64
	seq  uint64
	slot int32 // in the slab
}

// World is one simulated cluster.
type World struct {
	sched Schedule
	p     *Params
	tun   raft.Tuning // of p, with defaults
	now   int64       // virtual nanoseconds
	seq   uint64
	heap  []key
	slab  []event
	free  []int32 // unused slots of the slab
	// nextAct is the next action of the schedule.
	nextAct int
	nodes   []*node
	net     network
	orc     oracle
	trace   tracer
	cov     *coverage.Table // nil: nobody wants to know
	// armed are the actions that wait for an operation (strike.go), by number.
	armed    []Action
	armedIDs []uint64
	nextArm  uint64
	rng      *rand.Rand // delays, losses, latencies
	res      *Result
	calm     bool // the liveness phase has begun: no loss, fast disks
	nextID   uint64
	recent   [2]int64 // busy-loop guard: window start, events in it
}

// Run runs one simulation to its end or to the first violation.
func Run(o Options) (res *Result) {
	if o.Profile == "" {
		o.Profile = "swarm"
	}
	res = &Result{opts: o}
	if o.Schedule != nil {
		res.Schedule = *o.Schedule
	} else {
		res.Schedule = Draw(o.Seed, o.Profile, o.Duration, o.Nodes)
	}
	w := &World{sched: res.Schedule, res: res, cov: o.Coverage}
	w.p = &w.sched.Params
	w.tun = w.p.Tuning.WithDefaults()
	w.rng = rand.New(rand.NewPCG(w.sched.Seed, 0xd11ce))
	if o.Trace != nil {
		w.trace.feed = NewFeed(o.Trace, "t0", w.sched.Seed, w.sched.Profile)
	}
	w.orc.init(w)
	defer func() {
		if r := recover(); r != nil {
			f := &Failure{At: time.Duration(w.now), Tail: w.trace.tail(traceKeep)}
			if v, ok := r.(violation); ok {
				f.Oracle, f.Detail = v.oracle, v.detail
			} else {
				f.Oracle, f.Detail = "panic", fmt.Sprint(r, "\n", stack())
			}
			res.Failure = f
		}
		w.finish()
	}()
	w.build()
	if o.Hook != nil {
		o.Hook(w)
	}
	w.runUntil(int64(w.sched.Duration))
	w.await()
	if w.p.OldMajority {
		w.halts()
		return res
	}
	w.liveness()
	return res
}

func (w *World) finish() {
	w.res.Virtual = time.Duration(w.now)
	w.res.Hash = w.trace.hash
	w.res.Commits = w.orc.last()
	w.res.Leaders = len(w.orc.leaders)
	w.res.Confs = len(w.orc.confs)
	if feed := w.trace.feed; feed != nil {
		oracle, detail := "", ""
		if f := w.res.Failure; f != nil {
			oracle, detail = f.Oracle, f.Detail
		}
		w.res.TraceErr = feed.End(w.now, w.trace.hash, oracle, detail)
	}
}

// fail ends the run.
func (w *World) fail(oracle, format string, args ...any) {
	panic(violation{oracle, fmt.Sprintf(format, args...)})
}

// log adds a line to the trace. what must be a constant of distinct length or
// be told apart by a and b.
func (w *World) log(node int, what string, a, b uint64) {
	w.trace.add(record{at: w.now, node: node, what: what, a: a, b: b})
}

// build makes the nodes and boots them.
func (w *World) build() {
	w.net.init(w)
	desc := raft.Descriptor{Shard: shard, Keyspace: 1, ConfVer: 1, Version: 1, NextReplica: raft.ReplicaID(w.p.Voters + 1)}
	for i := range w.p.Voters {
		desc.Replicas = append(desc.Replicas, raft.Replica{Node: raft.NodeID(i + 1), ID: raft.ReplicaID(i + 1), Role: raft.Voter})
	}
	w.orc.addConf(0, desc.Clone())
	for i := range w.p.Nodes {
		n := newNode(w, i)
		w.nodes = append(w.nodes, n)
		if i < w.p.Voters {
			for _, im := range []*image{&n.disk.durable, &n.disk.visible} {
				im.exists, im.replica, im.desc = true, raft.ReplicaID(i+1), desc.Clone()
			}
		}
	}
	for _, n := range w.nodes {
		n.boot()
	}
}

// after schedules e in d from now.
func (w *World) after(d time.Duration, e event) {
	e.at = w.now + max(int64(d), 1)
	w.at(e)
}

func (w *World) at(e event) {
	w.seq++
	slot := int32(len(w.slab))
	if k := len(w.free); k > 0 {
		slot = w.free[k-1]
		w.free = w.free[:k-1]
		w.slab[slot] = e
	} else {
		w.slab = append(w.slab, e)
	}
	h := append(w.heap, key{e.at, w.seq, slot})
	i := len(h) - 1
	k := h[i]
	for i > 0 {
		p := (i - 1) / 2
		if !k.before(&h[p]) {
			break
		}
		h[i] = h[p]
		i = p
	}
	h[i] = k
	w.heap = h
}

func (a *key) before(b *key) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }

// pop takes the next event from the heap into e.
func (w *World) pop(e *event) {
	h := w.heap
	slot := h[0].slot
	*e = w.slab[slot]
	s := &w.slab[slot]
	s.msg, s.arg = nil, nil
	w.free = append(w.free, slot)
	n := len(h) - 1
	k := h[n]
	h = h[:n]
	i := 0
	for {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && h[c+1].before(&h[c]) {
			c++
		}
		if !h[c].before(&k) {
			break
		}
		h[i] = h[c]
		i = c
	}
	if n > 0 {
		h[i] = k
	}
	w.heap = h
}

// runUntil carries out all events before t.
func (w *World) runUntil(t int64) {
	var e event
	for {
		// At one instant the schedule's actions come first.
		acts := w.sched.Actions
		act := w.nextAct < len(acts) && acts[w.nextAct].At < t && (len(w.heap) == 0 || acts[w.nextAct].At <= w.heap[0].at)
		if !act && (len(w.heap) == 0 || w.heap[0].at >= t) {
			break
		}
		if act {
			w.now = acts[w.nextAct].At
		} else {
			w.pop(&e)
			w.now = e.at
		}
		w.res.Events++
		if w.now-w.recent[0] > 1e6 {
			w.recent = [2]int64{w.now, 0}
		}
		if w.recent[1]++; w.recent[1] > 50_000 {
			w.fail("spin", "more than 50000 events in a virtual millisecond")
		}
		if act {
			w.nextAct++
			w.act(acts[w.nextAct-1])
			continue
		}
		w.do(&e)
	}
	w.now = t
}

func (w *World) do(e *event) {
	switch e.kind {
	case evUndo:
		e.arg.(func())()
		return
	case evRestart:
		if n := w.nodes[e.node]; !n.up && n.gen == e.gen && !n.held {
			n.boot()
		}
		return
	}
	n := w.nodes[e.node]
	if !n.up || e.gen != 0 && e.gen != n.gen {
		if e.kind == evSnapArrive {
			n.arriving--
		}
		return
	}
	if n.pausedUntil > w.now {
		if w.cov != nil && e.kind == evDeliver {
			w.coverOp(coverage.Pause, coverage.OpOf(e.msg), n)
		}
		e.at = n.pausedUntil
		if e.kind == evCtl || e.kind == evDeliver {
			e.at++ // timers first
		}
		w.at(*e)
		return
	}
	n.handle(e)
	if len(w.armed) > 0 {
		w.strike(n)
	}
}

// exp draws an exponentially distributed duration, capped at 20 times its mean.
func (w *World) exp(mean time.Duration) time.Duration {
	return time.Duration(float64(mean) * min(w.rng.ExpFloat64(), 20))
}
