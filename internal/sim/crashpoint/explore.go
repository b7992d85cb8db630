package crashpoint

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Scenario is a named script.
type Scenario struct {
	Name string
	// Run does the script. It is recorded from the first operation on the disk on,
	// or from its last call of Restart.
	Run func(r *Run) error
}

// Options of an exploration. The zero value checks one image per operation.
type Options struct {
	Scenarios []Scenario // nil: Scenarios
	// PerOp is how many images of a crash at each operation to make. Zero: 1.
	PerOp float64
	// Images is how many images to open, second crashes not counted: the scenarios
	// run again, with the next seed, until there were so many. Zero: each scenario
	// runs once.
	Images int
	// Seed chooses the draws of the scenarios and of the images.
	Seed uint64
	// Workers is how many scenarios run at a time. Zero: 1.
	Workers int
	// SecondEvery is after how many images the recovery itself is crashed, at up
	// to four of its operations. Zero: 8.
	SecondEvery int
	// Defer says whether the stores defer applying.
	Defer Defer
	// At, Mode and Draw, if Only is set, choose a single image.
	Only bool
	At   int
	Mode simfs.Mode
	Draw uint64
	// DumpDir is where the image of a failure is copied to. Empty: nowhere.
	DumpDir string
	// Failures is after how many failures to stop. Zero: 1.
	Failures int
	// Progress is told of every scenario that is complete.
	Progress func(name string, t Tally)
}

// Defer chooses the runs in which stores defer applying.
type Defer uint8

// By default it is two runs of three.
const (
	DeferSome Defer = iota
	DeferNever
	DeferAlways
)

// Tally counts what was done.
type Tally struct {
	Scenarios  int
	Runs       int // of scenarios
	Operations int // recorded operations that change files
	Images     int // distinct images, opened and checked
	Same       int // images equal to one before, whose outcome was checked again
	Second     int // images of a crash within the recovery of another
	Failed     int
}

func (t *Tally) add(o Tally) {
	t.Scenarios += o.Scenarios
	t.Runs += o.Runs
	t.Operations += o.Operations
	t.Images += o.Images
	t.Same += o.Same
	t.Second += o.Second
	t.Failed += o.Failed
}

// String prints the tally on one line.
func (t Tally) String() string {
	return fmt.Sprintf("%d scenarios in %d runs, %d operations, %d images opened (%d more were equal to one of them), %d second crashes, %d failures",
		t.Scenarios, t.Runs, t.Operations, t.Images, t.Same, t.Second, t.Failed)
}

// Explore crashes every scenario everywhere. Its error describes the failures.
func Explore(o Options) (Tally, error) {
	if o.Scenarios == nil {
		o.Scenarios = Scenarios
	}
	o.SecondEvery = max(1, o.SecondEvery)
	if o.SecondEvery == 1 {
		o.SecondEvery = 8
	}
	o.Failures = max(1, o.Failures)
	if o.PerOp <= 0 {
		o.PerOp = 1
	}
	var mu sync.Mutex
	var sum Tally
	var errs []error
	var next atomic.Int64
	var wg sync.WaitGroup
	for range max(1, o.Workers) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				round, k := i/len(o.Scenarios), i%len(o.Scenarios)
				mu.Lock()
				stop := len(errs) >= o.Failures || round > 0 && sum.Images >= o.Images
				mu.Unlock()
				if stop {
					return
				}
				t, err := explore(&o, o.Scenarios[k], o.Seed+uint64(round))
				mu.Lock()
				sum.add(t)
				if round > 0 {
					sum.Scenarios--
				}
				if err != nil {
					errs = append(errs, err)
				}
				if o.Progress != nil {
					o.Progress(o.Scenarios[k].Name, t)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return sum, errors.Join(errs...)
}

// Record runs a scenario without a crash.
func Record(s Scenario, seed uint64, d Defer) (*Run, error) {
	r := newRun(s.Name, seed, d)
	err := s.Run(r)
	for _, n := range r.nodes {
		if n.fatal != nil && !n.mayFail {
			err = errors.Join(err, n.fatal)
		}
		if n.e != nil {
			if cerr := n.e.Close(); !n.mayFail {
				err = errors.Join(err, cerr)
			}
			n.e = nil
		}
	}
	for _, n := range r.nodes {
		if err == nil {
			err = n.settle()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("scenario %s, seed %d, without a crash: %w", s.Name, seed, err)
	}
	return r, nil
}

// shot says which image.
type shot struct {
	at   int
	mode simfs.Mode
	draw uint64
}

// known is the outcome of an image that was checked.
type known []booted

type explorer struct {
	o     *Options
	r     *Run
	seed  uint64
	t     Tally
	seen  map[uint64]known
	count int
}

func explore(o *Options, s Scenario, seed uint64) (Tally, error) {
	r, err := Record(s, seed, o.Defer)
	x := &explorer{o: o, r: r, seed: seed, seen: map[uint64]known{}}
	x.t.Scenarios, x.t.Runs = 1, 1
	if err != nil {
		x.t.Failed++
		return x.t, err
	}
	n := r.j.Len()
	x.t.Operations = n
	c := r.j.Cursor()
	if o.Only {
		c.Seek(o.At)
		_, err := x.check(c, shot{o.At, o.Mode, o.Draw}, true)
		return x.t, err
	}
	due := 1.0 - o.PerOp*float64(seed%7)/7
	for at := 0; at <= n; at++ {
		c.Seek(at)
		due += o.PerOp
		for m := 0; due >= 1; m++ {
			due--
			sh := shot{at, simfs.Modes[(at+m+int(seed))%len(simfs.Modes)], mix(seed, []byte(fmt.Sprint(at, m)))}
			if done, err := x.check(c, sh, false); err != nil {
				x.t.Failed++
				return x.t, err
			} else if !done {
				x.t.Same++
			}
		}
	}
	return x.t, nil
}

// check checks one image; it reports false if an equal one was opened before.
func (x *explorer) check(c *simfs.Cursor, sh shot, second bool) (opened bool, err error) {
	img := c.Image(sh.mode, sh.draw)
	key := img.Key()
	defer func() {
		if err != nil {
			err = x.failure(c, sh, err)
		}
	}()
	limits := make([]bounds, len(x.r.nodes))
	for i, n := range x.r.nodes {
		limits[i] = n.after(sh.at)
	}
	if was, ok := x.seen[key]; ok && !second {
		for i, n := range x.r.nodes {
			b := limits[i]
			if was[i].epoch <= b.epoch {
				return false, fmt.Errorf("node %d: boot epoch %d, others know of %d", n.id, was[i].epoch, b.epoch)
			}
			if was[i].moment < b.least {
				return false, fmt.Errorf("node %d comes back at moment %d, but it had told that moment %d is durable: %s", n.id, was[i].moment, b.least, b.why)
			}
		}
		return false, x.cluster(was, sh.at)
	}
	x.count++
	second = second || x.count%x.o.SecondEvery == 0
	var j *simfs.Journal
	if second {
		j = img.Record()
	}
	out, exposed, err := x.recoverAll(img, limits, j)
	x.t.Images++
	if err != nil {
		return true, err
	}
	if len(x.seen) < 1<<16 {
		x.seen[key] = out
	}
	if err := x.cluster(out, sh.at); err != nil {
		return true, err
	}
	if second {
		return true, x.again(j, sh, limits, exposed)
	}
	return true, nil
}

// exposure: node i let others know of an epoch when the recovery had done at operations.
type exposure struct {
	at, node int
	epoch    uint64
}

func (x *explorer) recoverAll(img *simfs.FS, limits []bounds, j *simfs.Journal) (out known, exposed []exposure, err error) {
	for i, n := range x.r.nodes {
		b, err := n.recover(img, limits[i], func(epoch uint64) {
			if j != nil {
				exposed = append(exposed, exposure{j.Len(), i, epoch})
			}
		})
		if err != nil {
			return nil, nil, err
		}
		out = append(out, b)
	}
	return out, exposed, nil
}

// again crashes within a recovery, whose journal is j.
func (x *explorer) again(j *simfs.Journal, sh shot, limits []bounds, exposed []exposure) error {
	n := j.Len()
	c := j.Cursor()
	points := 4
	if x.o.Only {
		points = n + 1
	}
	at := 0
	for k := range points {
		step := max(1, (n+1)/points)
		at = k*step + int(mix(sh.draw, []byte{byte(k)})%uint64(step))
		if at > n {
			break
		}
		c.Seek(at)
		mode := simfs.Modes[(x.count+k)%len(simfs.Modes)]
		b := slices.Clone(limits)
		for _, e := range exposed {
			if e.at <= at {
				b[e.node].epoch = max(b[e.node].epoch, e.epoch)
			}
		}
		draw := mix(sh.draw, []byte{byte(k), 1})
		out, _, err := x.recoverAll(c.Image(mode, draw), b, nil)
		x.t.Second++
		if err == nil {
			err = x.cluster(out, sh.at)
		}
		if err != nil {
			return fmt.Errorf("second crash, in the recovery, after %d of its %d operations, mode %s: %w", at, n, mode, err)
		}
	}
	return nil
}

// cluster holds what all nodes came back with against what clients were told:
// a majority of the voters of the newest configuration has every entry that was
// acknowledged.
func (x *explorer) cluster(out known, at int) error {
	for _, a := range x.r.acks {
		if a.at > at {
			continue
		}
		var conf *Group
		for _, b := range out {
			if b.state == nil {
				continue
			}
			if g := b.state.Groups[a.shard]; g != nil && (conf == nil || g.Desc.ConfVer > conf.Desc.ConfVer) {
				conf = g
			}
		}
		if conf == nil {
			return fmt.Errorf("shard %d is gone everywhere, entry %d was acknowledged to a client", a.shard, a.index)
		}
		have, voters := 0, 0
		for _, rep := range conf.Desc.Replicas {
			if r := rep.Role; r != raft.Voter && r != raft.VoterOutgoing && r != raft.VoterDemoting {
				continue
			}
			voters++
			for i, n := range x.r.nodes {
				if n.id != rep.Node || out[i].state == nil {
					continue
				}
				g := out[i].state.Groups[a.shard]
				if g == nil {
					continue
				}
				if t, ok := g.Term(a.index); g.Applied.Applied >= a.index || ok && t == a.term {
					have++
				}
			}
		}
		if have <= voters/2 {
			return fmt.Errorf("entry %d of shard %d, term %d, was acknowledged to a client; %d of %d voters have it", a.index, a.shard, a.term, have, voters)
		}
	}
	return nil
}

// failure describes what went wrong, and how to see it again.
func (x *explorer) failure(c *simfs.Cursor, sh shot, err error) error {
	var b strings.Builder
	n := x.r.j.Len()
	fmt.Fprintf(&b, "scenario %s, seed %d, crash after %d of %d operations, mode %s, draw %d: %v\n", x.r.name, x.seed, sh.at, n, sh.mode, sh.draw, err)
	if sh.at > 0 {
		fmt.Fprintf(&b, "  last operation: %s\n", x.r.j.Op(sh.at-1))
	}
	if sh.at < n {
		fmt.Fprintf(&b, "  next operation: %s\n", x.r.j.Op(sh.at))
	}
	for _, s := range x.r.note {
		if s.at <= sh.at {
			fmt.Fprintf(&b, "  done: (from operation %d) %s\n", s.at, s.what)
		}
	}
	fmt.Fprintf(&b, "  not synced: %v\n", c.Pending())
	fmt.Fprintf(&b, "  again: go test ./internal/sim/crashpoint -run 'TestOne$' -crash.scenario=%s -crash.seed=%d -crash.at=%d -crash.mode=%s -crash.draw=%d\n",
		x.r.name, x.seed, sh.at, sh.mode, sh.draw)
	if x.o.DumpDir != "" {
		dir := filepath.Join(x.o.DumpDir, fmt.Sprintf("%s-%d-%d-%s", x.r.name, x.seed, sh.at, sh.mode))
		if derr := c.Image(sh.mode, sh.draw).Dump(dir); derr != nil {
			fmt.Fprintf(&b, "  the image could not be kept: %v\n", derr)
		} else {
			fmt.Fprintf(&b, "  image: %s\n", dir)
		}
	}
	return errors.New(b.String())
}
