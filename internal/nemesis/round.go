package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/internal/piped"
	"github.com/flotillakv/flotilla/internal/sim/linear"
	"github.com/flotillakv/flotilla/shard"
)

const (
	// healWithin bounds the time from the end of all faults to a whole cluster,
	// equalWithin from then to equal replicas, readWithin of one last read.
	healWithin  = 90 * time.Second
	equalWithin = 60 * time.Second
	readWithin  = 30 * time.Second
	// checkWithin bounds the check of one group's history.
	checkWithin = 2 * time.Minute
	// slots is how many faults there are at a time.
	slots = 2
	// sample is how many groups of earlier rounds are read after each round.
	sample = 12
)

// run is the state of a run between its rounds.
type run struct {
	o     *Options
	c     *cluster
	doors []*door
	kept  map[int]*kept // by round
}

// kept is how a round left its keys: what the last read saw, and what writes of
// unknown outcome may still make of it.
type kept struct {
	last  map[int]linear.State
	later map[int][linear.KeysMax][]linear.Value
}

func (x *run) openDoors() {
	for _, n := range x.c.nodes {
		x.doors = append(x.doors, newDoor(n))
	}
}

func (x *run) closeDoors() {
	for _, d := range x.doors {
		d.c.Close()
	}
}

// leaders asks every node what it leads.
func (x *run) leaders(ctx context.Context) map[int]int {
	var mu sync.Mutex
	led := map[int]int{}
	var wg sync.WaitGroup
	for i, d := range x.doors {
		wg.Go(func() {
			var a struct {
				Node flotilla.NodeInfo `json:"node"`
			}
			if d.ask(ctx, "node", struct{}{}, &a) == nil {
				mu.Lock()
				led[i] = a.Node.Leaders
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return led
}

// round runs one round; nil: ctx ended.
func (x *run) round(ctx context.Context, i int, length time.Duration) (*Round, error) {
	began := time.Now()
	seed := x.o.Seed + uint64(i)
	r := &Round{Number: i + 1, Seed: seed, Counts: Counts{Faults: map[string]int{}}}
	l := newLoad(i, seed, x.o.Rate)
	say := func(format string, args ...any) {
		x.o.OnEvent(fmt.Sprintf("round %d +%.1fs  ", r.Number, time.Since(began).Seconds()) + fmt.Sprintf(format, args...))
	}
	starts := x.starts()
	broken, err := x.storm(ctx, l, r, length, func(s string) { say("%s", s) })
	if err != nil || ctx.Err() != nil {
		return nil, err
	}
	r.Violations = append(r.Violations, broken...)
	say("mending everything")
	mended := time.Now()
	x.c.net.heal()
	for _, n := range x.c.nodes {
		if err := x.c.start(n); err != nil {
			return nil, err
		}
	}
	why := x.awaitHealthy(ctx, healWithin)
	r.HealSeconds = time.Since(mended).Seconds()
	if why == "" {
		if why = x.restore(ctx, healWithin); why == "" {
			why = x.awaitHealthy(ctx, healWithin)
		}
	}
	if ctx.Err() != nil {
		return nil, nil
	}
	if why != "" {
		r.Violations = append(r.Violations, fmt.Sprintf("%s after all faults were mended: %s", healWithin, why))
	} else {
		r.Violations = append(r.Violations, x.readBack(ctx, l)...)
	}
	if ctx.Err() != nil {
		return nil, nil
	}
	say("checking the histories")
	good, bad := linear.Check(l.h, checkWithin)
	for _, v := range bad {
		r.Violations = append(r.Violations, v.Error())
	}
	r.Violations = append(r.Violations, l.odd...)
	if why == "" {
		limit := equalWithin
		if len(r.Violations) > 0 {
			limit = time.Second // enough to see one more thing that is wrong
		}
		if why := x.awaitEqual(ctx, limit); why != "" {
			r.Violations = append(r.Violations, why)
		}
		var odd []string
		r.Reread, odd = x.reread(ctx, x.earlier(), stream(seed, 3))
		r.Violations = append(r.Violations, odd...)
	}
	if ctx.Err() != nil {
		return nil, nil
	}
	r.Violations = append(r.Violations, x.c.ended()...)
	n := l.h.Counts()
	r.Operations, r.Reads, r.Writes, r.Unheld, r.Ambiguous, r.Refused = int(l.ops.Load()), n.Reads, n.Writes, n.Unheld, n.Ambiguous, n.Refused
	r.Histories, r.Starts = good, x.starts()-starts
	x.kept[i] = keep(l.h)
	r.Seconds = time.Since(began).Seconds()
	if len(r.Violations) > 0 {
		r.Artifacts = x.o.Dir
		return r, x.save(l, r, bad)
	}
	return r, nil
}

func (x *run) starts() (n int) {
	for _, m := range x.c.nodes {
		m.mu.Lock()
		n += m.starts
		m.mu.Unlock()
	}
	return n
}

// storm lets clients and faults work for a while.
func (x *run) storm(ctx context.Context, l *load, r *Round, length time.Duration, event func(string)) (broken []string, err error) {
	kv, err := x.clients(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, c := range kv {
			c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	s := &storm{c: x.c, client: x, admin: kv[len(kv)-1], event: event, ctx: ctx, counts: r.Faults}
	if s.kinds, err = x.o.chosen(); err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	pipes := map[flotilla.KV]*piped.KV{} // shared by the workers of one client
	for i := range workers {
		c := kv[i%len(kv)]
		w := &worker{l: l, id: i, rand: stream(l.seed, 100+uint64(i)), kv: c}
		if i%3 == 1 {
			session, err := c.NewSession(flotilla.SessionOptions{})
			if err != nil {
				return nil, err
			}
			defer session.Close()
			w.kv = session
		}
		if i%2 == 0 { // every other one through a pipeline
			p := pipes[w.kv]
			if p == nil {
				if p, err = piped.New(w.kv, workers); err != nil {
					return nil, err
				}
				defer p.Close()
				pipes[w.kv] = p
			}
			w.kv = p
		}
		if i%4 == 3 {
			w.reads = x.doors[i/4%len(x.doors)]
		}
		wg.Go(func() { w.run(ctx) })
	}
	for i := range slots {
		wg.Go(func() {
			if sleep(ctx, time.Duration(i)*time.Second) {
				s.run(stream(l.seed, 10+uint64(i)))
			}
		})
	}
	wg.Wait()
	return s.broken, nil
}

// clients connects one client that knows the address of one node for each
// node, and one that knows all.
func (x *run) clients(ctx context.Context) (kv []*flotilla.Client, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	all := x.addrs()
	for i := range len(all) + 1 {
		addrs := all
		if i < len(all) {
			addrs = all[i : i+1]
		}
		c, err := flotilla.Dial(ctx, addrs, flotilla.ClientOptions{})
		if err != nil {
			for _, c := range kv {
				c.Close()
			}
			return nil, fmt.Errorf("nemesis: a client cannot connect to a healthy cluster: %w", err)
		}
		kv = append(kv, c)
	}
	return kv, nil
}

// addrs lists the nodes' addresses for clients.
func (x *run) addrs() (all []string) {
	for _, n := range x.c.nodes {
		all = append(all, n.clientVia)
	}
	return all
}

// awaitHealthy waits until every process is ready and every node sees all
// nodes and all replicas up; it returns what is missing, or "".
func (x *run) awaitHealthy(ctx context.Context, limit time.Duration) string {
	return await(ctx, limit, func(ctx context.Context) string {
		if bad := x.c.ended(); len(bad) > 0 {
			return strings.Join(bad, "; ")
		}
		for i, n := range x.c.nodes {
			if !n.isReady() {
				return fmt.Sprintf("node %s is not ready", n.name())
			}
			var s flotilla.ClusterStatus
			if err := x.doors[i].ask(ctx, "status", struct{}{}, &s); err != nil {
				return fmt.Sprintf("node %s does not answer: %v", n.name(), err)
			}
			if s.State != "HEALTHY" || len(s.Nodes) != len(x.c.nodes) {
				return fmt.Sprintf("node %s says the cluster of %d nodes is %s: %s", n.name(), len(s.Nodes), s.State, s.Note)
			}
		}
		return ""
	})
}

// awaitEqual waits until all replicas of every shard hold the same at the same
// index.
func (x *run) awaitEqual(ctx context.Context, limit time.Duration) string {
	bad := ""
	why := await(ctx, limit, func(ctx context.Context) string {
		var all []flotilla.ShardInfo
		if err := x.doors[0].ask(ctx, "shards", struct{}{}, &all); err != nil {
			return err.Error()
		}
		for _, s := range all {
			type state struct {
				Applied uint64 `json:"applied"`
				Digest  uint64 `json:"digest"`
			}
			var first state
			for k, rep := range s.Replicas {
				var is state
				if err := x.doors[rep.Node-1].ask(ctx, "digest", map[string]uint64{"shard": s.ID}, &is); err != nil {
					return fmt.Sprintf("node n%d tells no digest of shard %d: %v", rep.Node, s.ID, err)
				}
				switch {
				case k == 0:
					first = is
				case is.Applied != first.Applied:
					return fmt.Sprintf("shard %d is applied through %d on n%d and %d on n%d", s.ID, first.Applied, s.Replicas[0].Node, is.Applied, rep.Node)
				case is.Digest != first.Digest:
					bad = fmt.Sprintf("shard %d differs between n%d and n%d, both at index %d", s.ID, s.Replicas[0].Node, rep.Node, is.Applied)
					return ""
				}
			}
		}
		return ""
	})
	if bad == "" && why != "" {
		return "replicas do not become equal: " + why
	}
	return bad
}

// await calls done until it has nothing more to wait for; it returns what that
// was when the limit was reached.
func await(ctx context.Context, limit time.Duration, done func(context.Context) string) string {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		one, stop := context.WithTimeout(ctx, 5*time.Second)
		why := done(one)
		stop()
		if why == "" || !sleep(ctx, 100*time.Millisecond) {
			return why
		}
	}
}

// readBack reads every group through every node; the reads are part of the history.
func (x *run) readBack(ctx context.Context, l *load) (bad []string) {
	for i, d := range x.doors {
		w := &worker{l: l, id: workers + i, rand: stream(l.seed, 200+uint64(i)), reads: d, patient: true}
		for g := range groups {
			began := time.Now()
			for {
				if g < registers {
					w.get(ctx, g, 0)
				} else {
					w.scan(ctx, g)
				}
				if w.err == nil {
					break
				}
				if time.Since(began) > readWithin || !sleep(ctx, 20*time.Millisecond) {
					return append(bad, fmt.Sprintf("group %d cannot be read through node %s of a healthy cluster for %s: %v", g, endName(i), readWithin, w.err))
				}
			}
		}
	}
	return nil
}

// keep takes from a history what the next rounds read again.
func keep(h *linear.History) *kept {
	k := &kept{last: map[int]linear.State{}, later: map[int][linear.KeysMax][]linear.Value{}}
	at := map[int]int64{}
	for _, o := range h.Ops() {
		if o.Read != 0 && o.Write == 0 && o.Client >= workers && o.Return >= at[o.Group] {
			k.last[o.Group], at[o.Group] = o.Saw, o.Return
		}
		if o.Write != 0 && o.Outcome == shard.MaybeApplied {
			all := k.later[o.Group]
			for i := range linear.KeysMax {
				if o.Write.Has(i) {
					all[i] = append(all[i], o.Values[i])
				}
			}
			k.later[o.Group] = all
		}
	}
	return k
}

// earlier lists the rounds that are kept.
func (x *run) earlier() []int {
	var all []int
	for i := range x.kept {
		all = append(all, i)
	}
	slices.Sort(all)
	return all
}

// reread reads groups of earlier rounds: some of them, drawn from r, or all
// without it. Nothing but a late write of unknown outcome may have changed them.
func (x *run) reread(ctx context.Context, rounds []int, r *rand.Rand) (n int, bad []string) {
	type place struct{ round, group int }
	var all []place
	for _, i := range rounds {
		for g := range groups {
			all = append(all, place{i, g})
		}
	}
	if r != nil {
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		all = all[:min(sample, len(all))]
	}
	for turn, p := range all {
		d := x.doors[turn%len(x.doors)]
		is, err := readGroup(ctx, d, p.round, p.group)
		if err != nil {
			return n, append(bad, fmt.Sprintf("group %d of round %d cannot be read: %v", p.group, p.round+1, err))
		}
		k := x.kept[p.round]
		for i := range linear.KeysMax {
			n++
			if was := k.last[p.group][i]; is[i] != was && !slices.Contains(k.later[p.group][i], is[i]) {
				bad = append(bad, fmt.Sprintf("key %d of group %d of round %d held value %d and now holds %d, which nobody wrote since", i, p.group, p.round+1, was, is[i]))
			}
		}
	}
	return n, bad
}

func readGroup(ctx context.Context, d *door, round, g int) (s linear.State, err error) {
	for began := time.Now(); ; {
		s = linear.State{}
		one, cancel := context.WithTimeout(ctx, 5*time.Second)
		err = nil
		for p, e := range d.Scan(one, flotilla.Prefix(prefix(round, g))) {
			if e != nil {
				err = e
				break
			}
			k := int(p.Key[len(p.Key)-1]) - 'a'
			if k < 0 || k >= linear.KeysMax {
				cancel()
				return s, fmt.Errorf("there is a key %q that nobody wrote", p.Key)
			}
			s[k] = valueOf(p.Value)
		}
		cancel()
		if err == nil || time.Since(began) > readWithin || !sleep(ctx, 50*time.Millisecond) {
			return s, err
		}
	}
}

// save writes what a violation is to be understood from.
func (x *run) save(l *load, r *Round, bad []*linear.Violation) error {
	f, err := os.Create(x.o.artifact("history-%d.jsonl", r.Seed))
	if err != nil {
		return err
	}
	err = errors.Join(l.h.Write(f), f.Close())
	for i, v := range bad {
		if i < 5 {
			err = errors.Join(err, v.Draw(x.o.artifact("history-%d-group-%d.html", r.Seed, v.Group)))
		}
	}
	return err
}
