package flotillatest_test

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/flotillatest"
	"github.com/flotillakv/flotilla/internal/piped"
	"github.com/flotillakv/flotilla/internal/sim/linear"
)

// The long form:
//
//	go test ./flotillatest -run TestLinear -timeout 0 -flotilla.linear.duration 30m -flotilla.linear.seed 1
//
// runs histories of all profiles, each with a seed of its own, until the time is
// over. A violation prints the command that repeats its seed and leaves the
// history in -flotilla.linear.out.
var (
	linearDuration = flag.Duration("flotilla.linear.duration", 0, "run linearizability histories for that long; 0: the short form, one per profile")
	linearSeed     = flag.Uint64("flotilla.linear.seed", 1, "seed of the first history")
	linearProfile  = flag.String("flotilla.linear.profile", "", "run only this profile")
	linearOut      = flag.String("flotilla.linear.out", "", "directory for histories that contain a violation; empty: the system's directory for temporary files")
	linearVerbose  = flag.Bool("flotilla.linear.verbose", false, "print the nodes' logs and the faults")
)

// profile is a mix of faults.
type profile struct {
	name   string
	nodes  int
	shards int
	faults []fault
	pause  time.Duration // the least time between two faults
	loss   float64       // of frames, all the time
	// replicas per shard. Zero: 3
	replicas int
	big      int // the size of the largest values; zero: 300 bytes
}

// fault breaks something and returns how to mend it (nil: it mends itself).
type fault struct {
	name string
	do   func(*storm) func()
}

var (
	kill = fault{"kill", func(s *storm) func() {
		i := s.rand.IntN(s.c.Size())
		s.c.Kill(i)
		return func() { s.begin(i) }
	}}
	killMajority = fault{"kill a majority", func(s *storm) func() {
		down := s.rand.Perm(s.c.Size())[:s.c.Size()/2+1]
		for _, i := range down {
			s.c.Kill(i)
		}
		return func() { s.begin(down...) }
	}}
	powerOne = fault{"power loss of one", func(s *storm) func() {
		i := s.rand.IntN(s.c.Size())
		s.c.PowerLoss(i)
		return func() { s.begin(i) }
	}}
	powerSome = fault{"power loss of a majority", func(s *storm) func() {
		down := s.rand.Perm(s.c.Size())[:s.c.Size()/2+1]
		s.c.PowerLoss(down...)
		return func() { s.begin(down...) }
	}}
	powerAll = fault{"power loss of all", func(s *storm) func() {
		s.c.PowerLoss()
		down := s.rand.Perm(s.c.Size())
		s.begin(down...)
		return nil
	}}
	stop = fault{"close and reopen", func(s *storm) func() {
		i := s.rand.IntN(s.c.Size())
		s.c.Stop(i)
		return func() { s.begin(i) }
	}}
	partition = fault{"partition", func(s *storm) func() {
		p := s.rand.Perm(s.c.Size())
		cut := 1 + s.rand.IntN(len(p)-1)
		s.c.Partition(p[:cut], p[cut:])
		return s.heal
	}}
	splitAll = fault{"everybody alone", func(s *storm) func() {
		s.c.Partition()
		return s.heal
	}}
	oneWay = fault{"one-way cut", func(s *storm) func() {
		p := s.rand.Perm(s.c.Size())
		s.c.OneWay(p[0], p[1])
		return s.heal
	}}
	deaf = fault{"a node that hears nobody", func(s *storm) func() {
		i := s.rand.IntN(s.c.Size())
		for j := range s.c.Size() {
			if j != i {
				s.c.OneWay(j, i)
			}
		}
		return s.heal
	}}
	mute = fault{"a node that nobody hears", func(s *storm) func() {
		i := s.rand.IntN(s.c.Size())
		for j := range s.c.Size() {
			if j != i {
				s.c.OneWay(i, j)
			}
		}
		return s.heal
	}}
	lostAnswers = fault{"answers to clients get lost", func(s *storm) func() {
		s.c.OneWay(s.rand.IntN(s.c.Size()), flotillatest.Clients)
		return s.heal
	}}
	away = fault{"away beyond the log", func(s *storm) func() {
		i := s.rand.IntN(s.c.Size())
		crash := s.c.Kill
		if s.rand.IntN(2) == 0 {
			crash = func(i int) { s.c.PowerLoss(i) }
		}
		crash(i)
		// Twice of what a log keeps for a node that is away.
		for from, began := s.written.Load(), time.Now(); s.written.Load() < from+32<<20 && time.Since(began) < 10*time.Second; {
			s.wait(10 * time.Millisecond)
		}
		return func() { s.begin(i) }
	}}
	loss = fault{"message loss", func(s *storm) func() {
		s.c.Loss(0.02 + 0.3*s.rand.Float64())
		return s.heal
	}}
	delay = fault{"delay", func(s *storm) func() {
		s.c.Delay(time.Duration(1+s.rand.IntN(40)) * time.Millisecond)
		return s.heal
	}}
	replace = fault{"replace a replica", func(s *storm) func() {
		s.change(func(held, free []uint32) []flotilla.ReplicaChange {
			if len(free) == 0 {
				return nil
			}
			return []flotilla.ReplicaChange{{Node: free[0], Role: flotilla.RoleVoter}, {Node: held[0], Role: flotilla.RoleNone}}
		})
		return nil
	}}
	grow = fault{"add a replica", func(s *storm) func() {
		s.change(func(held, free []uint32) []flotilla.ReplicaChange {
			if len(free) == 0 {
				return nil
			}
			role := flotilla.RoleVoter
			if s.rand.IntN(3) == 0 {
				role = flotilla.RoleLearner
			}
			return []flotilla.ReplicaChange{{Node: free[0], Role: role}}
		})
		return nil
	}}
	shrink = fault{"remove or demote a replica", func(s *storm) func() {
		s.change(func(held, free []uint32) []flotilla.ReplicaChange {
			if len(held) < 3 {
				return nil
			}
			role := flotilla.RoleNone
			if s.rand.IntN(3) == 0 {
				role = flotilla.RoleLearner
			}
			return []flotilla.ReplicaChange{{Node: held[0], Role: role}}
		})
		return nil
	}}
	moveAll = fault{"replace several at once", func(s *storm) func() {
		s.change(func(held, free []uint32) (out []flotilla.ReplicaChange) {
			for i, n := range free {
				out = append(out, flotilla.ReplicaChange{Node: n, Role: flotilla.RoleVoter})
				if i < len(held) {
					out = append(out, flotilla.ReplicaChange{Node: held[i], Role: flotilla.RoleNone})
				}
			}
			return out
		})
		return nil
	}}
	transfer = fault{"leader transfers", func(s *storm) func() {
		for _, n := range s.c.Nodes() {
			ctx, cancel := context.WithTimeout(s.ctx, 100*time.Millisecond)
			shards, _ := n.Shards(ctx)
			for _, sh := range shards {
				if sh.Leader == n.ID() && s.rand.IntN(2) == 0 {
					to := sh.Replicas[s.rand.IntN(len(sh.Replicas))].Node
					_ = n.TransferLeader(ctx, sh.ID, to) // may fail, like everything in a storm
				}
			}
			cancel()
		}
		return nil
	}}
)

var profiles = []profile{
	{name: "kills", nodes: 3, shards: 8, faults: []fault{kill, kill, kill, killMajority, stop, transfer}, pause: 150 * time.Millisecond},
	{name: "power", nodes: 3, shards: 4, faults: []fault{powerOne, powerOne, powerSome, powerAll}, pause: 150 * time.Millisecond},
	{name: "partitions", nodes: 3, shards: 8, faults: []fault{partition, splitAll, oneWay, oneWay, deaf, mute, lostAnswers}, pause: 100 * time.Millisecond},
	{name: "loss", nodes: 3, shards: 8, faults: []fault{loss, loss, delay, oneWay, lostAnswers, transfer}, pause: 100 * time.Millisecond, loss: 0.02},
	{name: "away", nodes: 3, shards: 1, faults: []fault{away, away, oneWay, kill, transfer}, pause: 300 * time.Millisecond, big: 150_000},
	{name: "members", nodes: 5, shards: 4, replicas: 3, faults: []fault{replace, replace, moveAll, grow, shrink, kill, powerOne, partition, oneWay, transfer, stop, loss}, pause: 50 * time.Millisecond},
	{name: "everything", nodes: 5, shards: 6, faults: []fault{kill, powerOne, powerSome, powerAll, partition, oneWay, deaf, mute, lostAnswers, loss, delay, stop, transfer}, pause: 50 * time.Millisecond},
}

// TestLinear: clients get, put, swap, delete, batch and scan while nodes crash
// and the network fails. One order explains all they saw; nothing acknowledged
// is lost; nothing refused took effect; in the end all replicas are equal.
func TestLinear(t *testing.T) {
	run := func(t *testing.T, p profile, seed uint64, d time.Duration) {
		s := newStorm(t, p, seed)
		s.run(d)
	}
	var chosen []profile
	for _, p := range profiles {
		if *linearProfile == "" || *linearProfile == p.name {
			chosen = append(chosen, p)
		}
	}
	if len(chosen) == 0 {
		t.Fatalf("there is no profile %q", *linearProfile)
	}
	if *linearDuration == 0 {
		for _, p := range chosen {
			t.Run(p.name, func(t *testing.T) { run(t, p, *linearSeed, 2500*time.Millisecond) })
		}
		return
	}
	began := time.Now()
	for seed := *linearSeed; time.Since(began) < *linearDuration && !t.Failed(); seed++ {
		for _, p := range chosen {
			t.Run(fmt.Sprintf("%s/%d", p.name, seed), func(t *testing.T) { run(t, p, seed, 6*time.Second) })
		}
	}
}

const (
	registers   = 24 // groups of one key
	pages       = 12 // groups of linear.KeysMax keys
	clients     = 12
	thinkNanos  = 2e6
	checkWithin = time.Minute
)

// storm is one run.
type storm struct {
	t       *testing.T
	p       profile
	seed    uint64
	c       *flotillatest.Cluster
	h       *linear.History
	ctx     context.Context
	rand    *rand.Rand
	pending []<-chan error // restarts
	faults  map[string]int
	changes sync.WaitGroup
	moved   atomic.Int64 // changes of replicas that were carried out
	written atomic.Int64 // bytes of values acknowledged
	snaps   atomic.Int64 // snapshots installed

	mu sync.Mutex // guards what follows
	// known is what clients last saw of each group: a swap wants it. Only a hint.
	known map[int]seen
	// pipes are pipelines, shared by the clients that take the same way.
	pipes map[flotilla.KV]*piped.KV
}

type seen struct {
	saw  linear.State
	vers [linear.KeysMax]flotilla.Version
}

func newStorm(t *testing.T, p profile, seed uint64) *storm {
	o := []flotillatest.Option{flotillatest.WithShards(p.shards), flotillatest.WithSeed(seed)}
	if p.replicas > 0 {
		o = append(o, flotillatest.WithReplicas(p.replicas))
	}
	if *linearVerbose {
		o = append(o, flotillatest.WithLogger(slog.New(slog.NewTextHandler(os.Stderr, nil))))
	}
	s := &storm{
		t: t, p: p, seed: seed, h: linear.NewHistory(), ctx: t.Context(), rand: rand.New(rand.NewPCG(seed, 7)),
		faults: map[string]int{}, known: map[int]seen{}, pipes: map[flotilla.KV]*piped.KV{},
	}
	o = append(o, flotillatest.WithObserver(func(int) flotilla.Observer {
		return flotilla.Observer{OnSnapshot: func(e flotilla.SnapshotEvent) {
			if !e.Sent && e.Err == nil {
				s.snaps.Add(1)
			}
		}}
	}))
	s.c = flotillatest.NewCluster(t, p.nodes, o...)
	return s
}

// run lets clients work through faults for d, mends everything, reads
// everything back, and checks.
func (s *storm) run(d time.Duration) {
	t := s.t
	defer s.closePipes()
	var stop atomic.Bool
	var wg sync.WaitGroup
	for i := range clients {
		w := &worker{s: s, id: i, rand: rand.New(rand.NewPCG(s.seed, 100+uint64(i)))}
		if i%2 == 0 {
			w.remote = s.c.Client()
		}
		wg.Go(func() {
			for !stop.Load() {
				w.work()
			}
		})
	}
	s.c.Loss(s.p.loss)
	s.storm(d)
	stop.Store(true)
	wg.Wait()
	s.calm()
	s.readBack()
	s.c.AwaitEqualReplicas()
	s.c.AwaitNoLeftovers()
	if s.p.name == "members" && s.moved.Load() == 0 {
		t.Error("no change of replicas was carried out")
	}
	good, bad := linear.Check(s.h, checkWithin)
	n := s.h.Counts()
	t.Logf("%d operations (%d reads, %d writes, %d conditions that did not hold, %d unknown, %d refused) in %d groups, %d in order; %d snapshots, %d changes of replicas; faults: %v",
		n.Ops, n.Reads, n.Writes, n.Unheld, n.Ambiguous, n.Refused, n.Groups, good, s.snaps.Load(), s.moved.Load(), s.faults)
	if n.Writes < 100 || n.Reads < 100 {
		t.Errorf("too little came through: %+v", n)
	}
	if len(bad) > 0 {
		s.report(bad)
	}
}

// storm breaks and mends until d is over, on the test's goroutine.
func (s *storm) storm(d time.Duration) {
	end := time.Now().Add(d)
	s.wait(100 * time.Millisecond)
	for time.Now().Before(end) && !s.t.Failed() {
		f := s.p.faults[s.rand.IntN(len(s.p.faults))]
		s.faults[f.name]++
		if *linearVerbose {
			fmt.Fprintf(os.Stderr, "--- %d ms: %s\n", s.h.Now()/1e6, f.name)
		}
		mend := f.do(s)
		s.wait(time.Duration(50+s.rand.IntN(500)) * time.Millisecond)
		if mend != nil {
			mend()
		}
		s.wait(s.p.pause + time.Duration(s.rand.IntN(300))*time.Millisecond)
		if s.rand.IntN(3) == 0 {
			s.settle()
		}
	}
}

func (s *storm) wait(d time.Duration) {
	select {
	case <-s.ctx.Done():
	case <-time.After(d):
	}
}

func (s *storm) heal() {
	s.c.Heal()
	s.c.Loss(s.p.loss)
}

func (s *storm) begin(nodes ...int) {
	for _, i := range nodes {
		if s.c.Node(i) == nil && !s.c.Starting(i) {
			s.pending = append(s.pending, s.c.Begin(i))
		}
	}
}

// settle waits for restarts that are under way.
func (s *storm) settle() {
	s.t.Helper()
	for _, done := range s.pending {
		if err := <-done; err != nil && !errors.Is(err, flotillatest.ErrStopped) {
			s.t.Fatalf("restart: %v", err)
		}
	}
	s.pending = nil
}

// change asks for a change of the replicas of some shard, in the background, so
// that other faults meet it. plan gets the shard's voters and the other nodes,
// shuffled.
func (s *storm) change(plan func(held, free []uint32) []flotilla.ReplicaChange) {
	nodes := s.c.Nodes()
	if len(nodes) == 0 {
		return
	}
	n := nodes[s.rand.IntN(len(nodes))]
	ctx, cancel := context.WithTimeout(s.ctx, 300*time.Millisecond)
	shards, _ := n.Shards(ctx)
	cancel()
	if len(shards) == 0 {
		return
	}
	sh := shards[s.rand.IntN(len(shards))]
	var held, free []uint32
	for _, i := range s.rand.Perm(s.c.Size()) {
		id, voter := uint32(i+1), false
		for _, r := range sh.Replicas {
			voter = voter || r.Node == id && r.Role == "voter"
		}
		if voter {
			held = append(held, id)
		} else {
			free = append(free, id)
		}
	}
	if len(held) == 0 {
		return
	}
	changes := plan(held, free)
	if len(changes) == 0 {
		return
	}
	patience := time.Duration(500+s.rand.IntN(3000)) * time.Millisecond
	s.changes.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, patience)
		defer cancel()
		_, err := n.ChangeReplicas(ctx, sh.ID, changes...) // may fail, like everything in a storm
		if err == nil {
			s.moved.Add(1)
		}
		if *linearVerbose {
			fmt.Fprintf(os.Stderr, "--- shard %d %v: %v\n", sh.ID, changes, err)
		}
	})
}

// calm ends all faults.
func (s *storm) calm() {
	s.t.Helper()
	s.c.Heal()
	s.changes.Wait()
	s.settle()
	s.c.RestartAll()
	s.c.AwaitLeaders()
}

// readBack reads every group through every node.
func (s *storm) readBack() {
	s.t.Helper()
	for i := range s.c.Nodes() {
		w := &worker{s: s, id: clients + i, rand: rand.New(rand.NewPCG(s.seed, 200)), node: s.c.Node(i), patient: true}
		for g := range registers + pages {
			// A node that was alone may need a moment to hear the others again.
			for began := time.Now(); ; s.wait(5 * time.Millisecond) {
				if g < registers {
					w.get(g, 0)
				} else {
					w.scan(g)
				}
				if w.err == nil {
					break
				}
				if time.Since(began) > 10*time.Second {
					s.t.Fatalf("read group %d back through node %d: %v", g, i, w.err)
				}
			}
		}
	}
}

func (s *storm) report(bad []*linear.Violation) {
	t := s.t
	t.Helper()
	for _, v := range bad {
		t.Errorf("%v", v)
	}
	dir := *linearOut
	if dir == "" {
		dir = os.TempDir()
	}
	base := filepath.Join(dir, fmt.Sprintf("flotilla-linear-%s-%d", s.p.name, s.seed))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Errorf("history not written: %v", err)
		return
	}
	f, err := os.Create(base + ".jsonl")
	if err == nil {
		err = errors.Join(s.h.Write(f), f.Close())
	}
	for _, v := range bad {
		err = errors.Join(err, v.Draw(fmt.Sprintf("%s-group%d.html", base, v.Group)))
	}
	if err != nil {
		t.Errorf("history not written: %v", err)
	}
	t.Errorf("history and pictures: %s*\nrepeat: go test ./flotillatest -run TestLinear -count 1 -flotilla.linear.profile %s -flotilla.linear.seed %d -flotilla.linear.duration 1m", base, s.p.name, s.seed)
}

// worker is one client: of its own, or embedded in whatever node it finds.
type worker struct {
	s       *storm
	id      int
	rand    *rand.Rand
	remote  *flotilla.Client
	node    *flotilla.Node
	patient bool
	err     error // of the last call

	sessions map[flotilla.KV]*flotilla.Session // of this client, by the way it takes
}

// inSession returns the way in a session, for two clients of three: their writes
// are tried again after an unknown outcome, and must take effect once. Sessions
// live for some dozens of writes, with a time to live that is sometimes too short.
func (w *worker) inSession(kv flotilla.KV) flotilla.KV {
	way, ok := kv.(interface {
		NewSession(flotilla.SessionOptions) (*flotilla.Session, error)
	})
	if !ok || w.id%3 == 0 || w.patient {
		return kv
	}
	s := w.sessions[kv]
	if s != nil && w.rand.IntN(40) > 0 {
		return s
	}
	if s != nil && w.rand.IntN(2) == 0 {
		s.Close()
	}
	if w.sessions == nil {
		w.sessions = map[flotilla.KV]*flotilla.Session{}
	}
	s, err := way.NewSession(flotilla.SessionOptions{TTL: []time.Duration{time.Second, 2 * time.Second, time.Minute}[w.rand.IntN(3)]})
	if err != nil {
		w.s.t.Error(err)
		return kv
	}
	w.sessions[kv] = s
	return s
}

// piped returns the way through a pipeline that all clients that take it share, so
// that calls of many meet in it.
func (s *storm) piped(kv flotilla.KV) flotilla.KV {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pipes[kv]; p != nil {
		return p
	}
	p, err := piped.New(kv, 2*clients)
	if err != nil {
		s.t.Error(err)
		return kv
	}
	s.pipes[kv] = p
	return p
}

// closePipes ends all pipelines, which nobody uses any more.
func (s *storm) closePipes() {
	for _, p := range s.pipes {
		p.Close()
	}
}

// door returns the way this call takes.
func (w *worker) door() flotilla.KV {
	switch {
	case w.node != nil:
		return w.node
	case w.remote != nil:
		return w.remote
	}
	nodes := w.s.c.Nodes()
	if len(nodes) == 0 {
		return w.s.c.KV()
	}
	return nodes[w.rand.IntN(len(nodes))]
}

func (w *worker) work() {
	w.s.wait(time.Duration(w.rand.IntN(2 * thinkNanos)))
	if w.rand.IntN(100) < 60 {
		g := w.rand.IntN(registers)
		switch n := w.rand.IntN(100); {
		case n < 45:
			w.get(g, 0)
		case n < 70:
			w.put(g, 0)
		case n < 92:
			w.cas(g, 0)
		default:
			w.del(g, 0)
		}
		return
	}
	g := registers + w.rand.IntN(pages)
	k := w.rand.IntN(linear.KeysMax)
	switch n := w.rand.IntN(100); {
	case n < 35:
		w.scan(g)
	case n < 45:
		w.get(g, k)
	case n < 55:
		w.put(g, k)
	case n < 62:
		w.cas(g, k)
	case n < 80:
		w.batch(g)
	case n < 94:
		w.txn(g)
	case n < 97:
		w.del(g, k)
	default:
		w.delRange(g)
	}
}

// prefix begins the keys of a group; groups are spread over all shards.
func prefix(g int) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(g*65536/(registers+pages)))
	return append(b, fmt.Sprintf("/%d/", g)...)
}

func key(g, k int) []byte { return append(prefix(g), byte('a'+k)) }

// bytesOf makes the value, of some length.
func (w *worker) bytesOf(v linear.Value) []byte {
	size := 300
	if w.s.p.big > 0 && v%4 != 0 {
		size = w.s.p.big
	}
	b := make([]byte, 4+int(v)*7919%size)
	binary.BigEndian.PutUint32(b, uint32(v))
	return b
}

func (w *worker) valueOf(b []byte) linear.Value {
	if len(b) < 4 {
		return 0xffffffff // nobody wrote this
	}
	v := linear.Value(binary.BigEndian.Uint32(b))
	if !slices.Equal(b, w.bytesOf(v)) {
		return 0xffffffff
	}
	return v
}

// call runs f within a deadline that is sometimes too short.
func (w *worker) call(o *linear.Op, f func(ctx context.Context, kv flotilla.KV) error) {
	d := time.Duration(20+w.rand.IntN(1000)) * time.Millisecond
	if w.patient {
		d = 30 * time.Second
	}
	ctx, cancel := context.WithTimeout(w.s.ctx, d)
	defer cancel()
	o.Client = w.id
	kv := w.inSession(w.door())
	if w.rand.IntN(2) == 0 {
		kv = w.s.piped(kv)
	}
	o.Call = w.s.h.Now()
	w.err = f(ctx, kv)
	o.Return = w.s.h.Now()
	if w.err != nil {
		o.Err = w.err.Error()
	}
}

// wrote records a write.
func (w *worker) wrote(o linear.Op, r flotilla.Receipt) {
	o.Outcome = flotilla.Outcome(w.err)
	if w.err == nil {
		o.Held, o.Receipt = true, r.Version
		for k := range linear.KeysMax {
			if o.Write.Has(k) && o.Values[k] != 0 {
				w.s.written.Add(int64(len(w.bytesOf(o.Values[k]))))
			}
		}
	}
	w.s.h.Add(o)
}

// read records a read, unless it failed, and what was seen.
func (w *worker) read(o linear.Op) {
	if w.err != nil {
		return
	}
	o.Outcome = flotilla.Applied
	w.learn(&o)
	w.s.h.Add(o)
}

func (w *worker) learn(o *linear.Op) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	k := w.s.known[o.Group]
	for i := range linear.KeysMax {
		if o.Read.Has(i) {
			k.saw[i], k.vers[i] = o.Saw[i], o.SawVersions[i]
		}
	}
	w.s.known[o.Group] = k
}

func (w *worker) hint(g int) seen {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	return w.s.known[g]
}

// readOption draws on what a read rests: the leader's lease, a quorum, or the
// leader's word to another replica. All must look alike.
func (w *worker) readOption() flotilla.ReadOption {
	switch w.rand.IntN(4) {
	case 0:
		return flotilla.NoClock()
	case 1:
		return flotilla.Follower()
	}
	return flotilla.Linearizable()
}

func (w *worker) get(g, k int) {
	o := linear.Op{Group: g, Name: "get", Read: 1 << k}
	w.call(&o, func(ctx context.Context, kv flotilla.KV) error {
		v, err := kv.Get(ctx, key(g, k), w.readOption())
		if errors.Is(err, flotilla.ErrNotFound) {
			return nil
		}
		if err == nil {
			o.Saw[k], o.SawVersions[k] = w.valueOf(v.Bytes), v.Version
		}
		return err
	})
	w.read(o)
}

func (w *worker) scan(g int) {
	o := linear.Op{Group: g, Name: "scan", Read: 1<<linear.KeysMax - 1}
	r := flotilla.Prefix(prefix(g))
	if r.Reverse = w.rand.IntN(3) == 0; r.Reverse {
		o.Name = "scan back"
	}
	w.call(&o, func(ctx context.Context, kv flotilla.KV) error {
		last := -1
		for p, err := range kv.Scan(ctx, r, w.readOption()) {
			if err != nil {
				return err
			}
			k := int(p.Key[len(p.Key)-1]) - 'a'
			if k < 0 || k >= linear.KeysMax || !slices.Equal(p.Key, key(g, k)) || last >= 0 && (k > last) == r.Reverse {
				w.s.t.Errorf("scan of group %d yields %q after %d", g, p.Key, last)
				return flotilla.ErrNotFound
			}
			last = k
			o.Saw[k], o.SawVersions[k] = w.valueOf(p.Value), p.Version
		}
		return nil
	})
	w.read(o)
}

func (w *worker) put(g, k int) {
	o := linear.Op{Group: g, Name: "put", Write: 1 << k}
	o.Values[k] = w.s.h.Fresh()
	var r flotilla.Receipt
	w.call(&o, func(ctx context.Context, kv flotilla.KV) (err error) {
		r, err = kv.Put(ctx, key(g, k), w.bytesOf(o.Values[k]))
		return err
	})
	w.wrote(o, r)
}

func (w *worker) del(g, k int) {
	o := linear.Op{Group: g, Name: "delete", Write: 1 << k}
	var r flotilla.Receipt
	w.call(&o, func(ctx context.Context, kv flotilla.KV) (err error) {
		r, err = kv.Delete(ctx, key(g, k))
		return err
	})
	w.wrote(o, r)
}

func (w *worker) delRange(g int) {
	o := linear.Op{Group: g, Name: "delete range", Write: 1<<linear.KeysMax - 1}
	var r flotilla.Receipt
	w.call(&o, func(ctx context.Context, kv flotilla.KV) (err error) {
		r, err = kv.DeleteRange(ctx, flotilla.Prefix(prefix(g)))
		return err
	})
	w.wrote(o, r)
}

func (w *worker) cas(g, k int) {
	was := w.hint(g)
	o := linear.Op{Group: g, Name: "cas", Write: 1 << k, Conditional: true, CondKey: k, Want: was.saw[k]}
	o.Values[k] = w.s.h.Fresh()
	var r flotilla.Receipt
	w.call(&o, func(ctx context.Context, kv flotilla.KV) (err error) {
		r, err = kv.CAS(ctx, key(g, k), was.vers[k], w.bytesOf(o.Values[k]))
		return err
	})
	var conflict *flotilla.ConflictError
	if !errors.As(w.err, &conflict) {
		w.wrote(o, r)
		return
	}
	o.Outcome, o.Have = flotilla.Applied, conflict.Have
	if conflict.Have.IsZero() {
		o.Read |= 1 << k
	}
	w.s.h.Add(o)
}

func (w *worker) batch(g int) {
	o := linear.Op{Group: g, Name: "batch"}
	var b flotilla.Batch
	for k := range linear.KeysMax {
		switch w.rand.IntN(8) {
		case 0, 1:
		case 2:
			o.Write |= 1 << k
			b.Delete(key(g, k))
		default:
			o.Write |= 1 << k
			o.Values[k] = w.s.h.Fresh()
			b.Put(key(g, k), w.bytesOf(o.Values[k]))
		}
	}
	if o.Write == 0 {
		return
	}
	var r flotilla.Receipt
	w.call(&o, func(ctx context.Context, kv flotilla.KV) (err error) {
		r, err = kv.Write(ctx, &b)
		return err
	})
	w.wrote(o, r)
}

// txn reads all keys of a group and, if one of them is as it was last seen,
// writes two.
func (w *worker) txn(g int) {
	was := w.hint(g)
	c := w.rand.IntN(linear.KeysMax)
	o := linear.Op{Group: g, Name: "txn", Conditional: true, CondKey: c, Want: was.saw[c]}
	var q flotilla.Txn
	switch {
	case was.saw[c] == 0:
		q.If = append(q.If, flotilla.IfAbsent(key(g, c)))
	case w.rand.IntN(2) == 0:
		q.If = append(q.If, flotilla.IfValue(key(g, c), w.bytesOf(was.saw[c])))
	default:
		q.If = append(q.If, flotilla.IfVersion(key(g, c), was.vers[c]))
	}
	for k := range linear.KeysMax {
		q.Then = append(q.Then, flotilla.GetOp(key(g, k)))
		q.Else = append(q.Else, flotilla.GetOp(key(g, k)))
	}
	for _, k := range w.rand.Perm(linear.KeysMax)[:2] {
		o.Write |= 1 << k
		o.Values[k] = w.s.h.Fresh()
		q.Then = append(q.Then, flotilla.PutOp(key(g, k), w.bytesOf(o.Values[k])))
	}
	var r flotilla.TxnResult
	w.call(&o, func(ctx context.Context, kv flotilla.KV) (err error) {
		r, err = kv.Txn(ctx, q)
		return err
	})
	o.Outcome = flotilla.Outcome(w.err)
	if o.Outcome == flotilla.Applied {
		o.Held, o.Receipt = r.Succeeded, r.Receipt.Version
	}
	if w.err == nil {
		o.Read = 1<<linear.KeysMax - 1
		for k, v := range r.Gets {
			if v.Found {
				o.Saw[k], o.SawVersions[k] = w.valueOf(v.Value.Bytes), v.Value.Version
			}
		}
		w.learn(&o)
	}
	w.s.h.Add(o)
}
