package flotillatest

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/t1"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/shard"
)

// Scenario is what Simulate puts a state machine through.
type Scenario struct {
	// Machine makes the state machine of a node; it is called once per start.
	// Required.
	Machine func() multiraft.Machine
	// Next draws what a client does next. It must depend on rng and client alone.
	// Required.
	Next func(rng *rand.Rand, client int) SimOp
	// Check judges what all clients did and saw, in the order in which it ended.
	// Nil: only the machine's determinism and the store's promises are checked.
	Check func(h []SimResult) error
	// Profile chooses the faults: "swarm" (a mix drawn by the seed; also if
	// empty), "calm", "crash", "net", "snap", "disk", "conf".
	Profile string
	// Duration is the virtual length of the faulty phase. Zero: the seed draws
	// some seconds.
	Duration time.Duration
}

// SimOp is a command, which may change the machine, or a query, which does not.
type SimOp struct {
	Query bool
	Body  []byte
}

// SimResult is what became of an operation. Call and Return order operations: one
// whose Return is below another's Call was over before that one began.
type SimResult struct {
	SimOp
	Client       int
	Call, Return int64
	// Outcome says whether a command was applied; queries that failed are not
	// recorded. A command that a client tries again, because it was refused for
	// certain, is recorded once per attempt.
	Outcome shard.Outcome
	Result  []byte
	// Err is a *multiraft.MachineError if the machine refused the command.
	Err error
}

// Simulate runs a cluster of whole nodes with a custom state machine in virtual
// time, decided by seed alone: crashes that lose what was not synced, failing
// disks, a faulty network, drifting clocks, changing members. Then it mends
// everything for a random quorum, which has to finish all that was begun. The
// test fails if Check does, if replicas that applied the same log hold different
// keys (the machine is not deterministic), or if the store broke a promise. A
// failure names the seed; the same seed shows it again, step by step. It takes
// some hundred milliseconds per seed, so run many.
func Simulate(t testing.TB, seed uint64, s Scenario) {
	t.Helper()
	if s.Machine == nil || s.Next == nil {
		t.Fatal("flotillatest: Simulate needs Machine and Next")
	}
	c := &t1.Custom{
		Machine: s.Machine,
		Next:    func(rng *rand.Rand, client int) t1.CustomOp { return t1.CustomOp(s.Next(rng, client)) },
	}
	if s.Check != nil {
		c.Check = func(h []t1.CustomResult) error {
			out := make([]SimResult, len(h))
			for i, r := range h {
				out[i] = SimResult{SimOp: SimOp(r.CustomOp), Client: r.Client, Call: r.Call, Return: r.Return, Outcome: r.Outcome, Result: r.Result, Err: r.Err}
			}
			return s.Check(out)
		}
	}
	o := t1.Options{Seed: seed, Profile: s.Profile, Duration: s.Duration, Custom: c}
	res := t1.Run(o)
	if res.Failure == nil {
		t.Logf("seed %d: %s", seed, res.Summary())
		return
	}
	o.Verbose = true
	if again := t1.Run(o); again.Failure != nil {
		res = again
	}
	lines := strings.SplitAfter(res.Failure.Tail, "\n")
	t.Errorf("seed %d: %v\n%s%s\nflotillatest.Simulate with seed %d shows it again", seed, res.Failure,
		strings.Join(lines[max(0, len(lines)-40):], ""), res.Summary(), seed)
}
