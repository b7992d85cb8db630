package nemesis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Options of a run. Binary and Dir are needed.
type Options struct {
	// Binary is the flotilla command to run.
	Binary string
	// Dir gets the nodes' directories and logs, and the histories of violations.
	// It must be empty or not exist.
	Dir string
	// Nodes is the number of processes, 3 to 7. Zero: 3.
	Nodes int
	// Shards of the cluster. Zero: 6.
	Shards int
	// Seed of the first round; each round has the next. Zero: 1.
	Seed uint64
	// Duration of the run. Zero: a minute. The last round ends about then.
	Duration time.Duration
	// Rounds bounds the number of rounds. Zero: no bound.
	Rounds int
	// Storm is how long clients and faults work in each round. Zero: 30 s.
	Storm time.Duration
	// Rate of operations per second, over all clients. Zero: 200.
	Rate int
	// Faults lists the kinds to draw from; see Kinds. Empty: all.
	Faults []string
	// Netns gives each process a network namespace of its own, joined by a network
	// that loses, doubles and delays packets. It needs root, on Linux. Without it
	// they share the loopback interface, with proxies between them.
	Netns bool
	// ServeArgs are further arguments of every node.
	ServeArgs []string
	// OnRound is told of each round, OnEvent of each fault and step. Nil: nobody.
	OnRound func(Round)
	OnEvent func(string)
}

// WithDefaults fills in what is zero.
func (o Options) WithDefaults() Options {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.Nodes, 3)
	def(&o.Shards, 6)
	def(&o.Rate, 200)
	if o.Seed == 0 {
		o.Seed = 1
	}
	if o.Duration == 0 {
		o.Duration = time.Minute
	}
	if o.Storm == 0 {
		o.Storm = 30 * time.Second
	}
	if o.OnRound == nil {
		o.OnRound = func(Round) {}
	}
	if o.OnEvent == nil {
		o.OnEvent = func(string) {}
	}
	return o
}

// Validate says what is wrong with the options, in words for a user; it touches nothing.
func (o Options) Validate() error {
	o = o.WithDefaults()
	switch {
	case o.Binary == "":
		return errors.New("nemesis: no binary is given")
	case o.Dir == "":
		return errors.New("nemesis: no directory is given")
	case o.Nodes < 3 || o.Nodes > 7:
		return fmt.Errorf("nemesis: %d nodes: must be 3 to 7", o.Nodes)
	case o.Shards < 1 || o.Shards > 1024:
		return fmt.Errorf("nemesis: %d shards: must be 1 to 1024", o.Shards)
	case o.Rate < 1 || o.Rate > 5000:
		return fmt.Errorf("nemesis: a rate of %d operations per second: must be 1 to 5000", o.Rate)
	case o.Duration <= 0 || o.Storm < time.Second || o.Storm > 5*time.Minute:
		return fmt.Errorf("nemesis: a duration of %s in rounds of %s: rounds take 1s to 5m, so that their histories can be checked", o.Duration, o.Storm)
	}
	if old, err := os.ReadDir(o.Dir); err == nil && len(old) > 0 {
		return fmt.Errorf("nemesis: %s is not empty; name a directory that does not exist", o.Dir)
	}
	if o.Netns {
		if err := packetsPossible(); err != nil {
			return fmt.Errorf("nemesis: %w", err)
		}
	}
	_, err := o.chosen()
	return err
}

// Kinds names all kinds of faults.
func Kinds() []string {
	var all []string
	for _, k := range kinds {
		all = append(all, k.name)
	}
	slices.Sort(all)
	return all
}

func (o *Options) chosen() (ks []kind, err error) {
	if len(o.Faults) == 0 {
		for _, k := range kinds {
			if o.Netns || !k.packets {
				ks = append(ks, k)
			}
		}
		return ks, nil
	}
	for _, name := range o.Faults {
		i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == name })
		if i < 0 {
			return nil, fmt.Errorf("nemesis: there is no fault %q; there are %s", name, strings.Join(Kinds(), ", "))
		}
		if kinds[i].packets && !o.Netns {
			return nil, fmt.Errorf("nemesis: the fault %q is one of packets; it needs --netns", name)
		}
		ks = append(ks, kinds[i])
	}
	return ks, nil
}

// Counts are what happened in a round or a run.
type Counts struct {
	// Operations are the calls of clients, failed reads included; Reads, Writes
	// those with an answer; Unheld conditions that did not hold; Ambiguous writes
	// of unknown outcome; Refused writes that were certainly not applied.
	Operations int `json:"operations"`
	Reads      int `json:"reads"`
	Writes     int `json:"writes"`
	Unheld     int `json:"unheld"`
	Ambiguous  int `json:"ambiguous"`
	Refused    int `json:"refused"`
	// Histories are the groups of keys whose history was found in order, Reread
	// the keys of earlier rounds that were read again.
	Histories int `json:"histories"`
	Reread    int `json:"reread"`
	// Starts is how often a process was started.
	Starts int `json:"starts"`
	// Faults by kind.
	Faults map[string]int `json:"faults"`
}

// FaultCount is the number of faults of all kinds.
func (c *Counts) FaultCount() (n int) {
	for _, k := range c.Faults {
		n += k
	}
	return n
}

func (c *Counts) add(d *Counts) {
	c.Operations += d.Operations
	c.Reads += d.Reads
	c.Writes += d.Writes
	c.Unheld += d.Unheld
	c.Ambiguous += d.Ambiguous
	c.Refused += d.Refused
	c.Histories += d.Histories
	c.Reread += d.Reread
	c.Starts += d.Starts
	for k, n := range d.Faults {
		c.Faults[k] += n
	}
}

// Round is what became of one round.
type Round struct {
	Number  int     `json:"round"`
	Seed    uint64  `json:"seed"`
	Seconds float64 `json:"seconds"`
	// HealSeconds is the time from the end of the faults until every replica was
	// up and every shard had a leader.
	HealSeconds float64 `json:"heal_seconds"`
	Counts
	// Violations is empty when the round passed.
	Violations []string `json:"violations,omitempty"`
	// Artifacts is where histories and logs lie, if there are violations.
	Artifacts string `json:"artifacts,omitempty"`
}

// Summary is what became of a run.
type Summary struct {
	Seed    uint64  `json:"seed"`
	Nodes   int     `json:"nodes"`
	Shards  int     `json:"shards"`
	Rounds  int     `json:"rounds"`
	Seconds float64 `json:"seconds"`
	Counts
	Violations []string `json:"violations,omitempty"`
	Artifacts  string   `json:"artifacts,omitempty"`
	// Interrupted: the run was stopped before its time.
	Interrupted bool `json:"interrupted,omitempty"`
}

// Run runs rounds until the time is over, ctx ends, or there is a violation:
// that is in the summary. An error means that the run could not go on for a
// reason of its own, such as no free ports.
func Run(ctx context.Context, o Options) (sum Summary, err error) {
	o = o.WithDefaults()
	if err := o.Validate(); err != nil {
		return sum, err
	}
	began := time.Now()
	sum = Summary{Seed: o.Seed, Nodes: o.Nodes, Shards: o.Shards, Counts: Counts{Faults: map[string]int{}}}
	defer func() { sum.Seconds = time.Since(began).Seconds() }()
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return sum, err
	}
	c, err := newCluster(&o)
	if err != nil {
		return sum, err
	}
	defer c.close()
	x := &run{o: &o, c: c, kept: map[int]*kept{}}
	x.openDoors()
	defer x.closeDoors()
	for _, n := range c.nodes {
		if err := c.start(n); err != nil {
			return sum, err
		}
	}
	if why := x.awaitHealthy(ctx, time.Minute); why != "" {
		if ctx.Err() != nil {
			sum.Interrupted = true
			return sum, nil
		}
		return sum, fmt.Errorf("nemesis: the cluster does not form: %s", why)
	}
	o.OnEvent(fmt.Sprintf("the cluster has formed in %.1fs", time.Since(began).Seconds()))
	for i := 0; o.Rounds == 0 || i < o.Rounds; i++ {
		left := o.Duration - time.Since(began)
		if i > 0 && left < min(5*time.Second, o.Storm) {
			break
		}
		r, err := x.round(ctx, i, min(o.Storm, max(left, time.Second)))
		if err != nil {
			return sum, err
		}
		if r == nil { // interrupted
			sum.Interrupted = true
			return sum, nil
		}
		sum.Rounds++
		sum.Counts.add(&r.Counts)
		sum.Violations = append(sum.Violations, r.Violations...)
		o.OnRound(*r)
		if len(sum.Violations) > 0 {
			sum.Artifacts = o.Dir
			return sum, nil
		}
	}
	old, bad := x.reread(ctx, slices.Sorted(maps.Keys(x.kept)), nil)
	sum.Reread += old
	sum.Violations = append(sum.Violations, bad...)
	for _, n := range c.nodes {
		if err := n.stop(); err != nil {
			sum.Violations = append(sum.Violations, err.Error())
		}
	}
	if len(sum.Violations) > 0 {
		sum.Artifacts = o.Dir
	}
	return sum, nil
}

// stream returns the source of one purpose of a round.
func stream(seed uint64, purpose uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, purpose)) }

// artifact returns the path of a file that a violation leaves.
func (o *Options) artifact(format string, args ...any) string {
	return filepath.Join(o.Dir, fmt.Sprintf(format, args...))
}
