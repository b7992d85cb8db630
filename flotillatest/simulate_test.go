package flotillatest_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/flotillatest"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/shard"
)

// bank moves money between accounts, which must not lose or make any.
type bank struct{ leaky bool }

const accounts = 5

func balance(v []byte) uint64 {
	if len(v) != 8 {
		return 100
	}
	return binary.BigEndian.Uint64(v)
}

func (b bank) Apply(tx *multiraft.Tx, cmd []byte) ([]byte, error) {
	from, to, amount := cmd[:1], cmd[1:2], uint64(cmd[2])
	v, _, err := tx.Get(from)
	if err != nil {
		return nil, err
	}
	x, _, err := tx.Get(to)
	if err != nil {
		return nil, err
	}
	if balance(v) < amount || from[0] == to[0] {
		return nil, fmt.Errorf("refused")
	}
	if err := tx.Set(from, binary.BigEndian.AppendUint64(nil, balance(v)-amount)); err != nil {
		return nil, err
	}
	if b.leaky {
		amount += uint64(time.Now().UnixNano() % 2) // what no state machine may do
	}
	return nil, tx.Set(to, binary.BigEndian.AppendUint64(nil, balance(x)+amount))
}

func (bank) Query(v *multiraft.Reader, _ []byte) ([]byte, error) {
	sum := uint64(0)
	for a := range byte(accounts) {
		b, _, err := v.Get([]byte{a})
		if err != nil {
			return nil, err
		}
		sum += balance(b)
	}
	return binary.BigEndian.AppendUint64(nil, sum), nil
}

func bankScenario(leaky bool) flotillatest.Scenario {
	return flotillatest.Scenario{
		Machine: func() multiraft.Machine { return bank{leaky} },
		Next: func(rng *rand.Rand, _ int) flotillatest.SimOp {
			if rng.IntN(3) == 0 {
				return flotillatest.SimOp{Query: true}
			}
			return flotillatest.SimOp{Body: []byte{byte(rng.IntN(accounts)), byte(rng.IntN(accounts)), byte(rng.IntN(100))}}
		},
		Check: func(h []flotillatest.SimResult) error {
			for _, r := range h {
				if r.Query && r.Outcome == shard.Applied && binary.BigEndian.Uint64(r.Result) != accounts*100 {
					return fmt.Errorf("somebody saw %d in all accounts", binary.BigEndian.Uint64(r.Result))
				}
			}
			return nil
		},
		Duration: time.Second,
	}
}

// TestSimulate: a bank keeps its money through crashes and cuts; and a machine
// that is not deterministic, and does not keep it, is found.
func TestSimulate(t *testing.T) {
	for seed := range uint64(6) {
		flotillatest.Simulate(t, seed, bankScenario(false))
	}
	for _, profile := range []string{"crash", "conf"} {
		s := bankScenario(false)
		s.Profile = profile
		flotillatest.Simulate(t, 1, s)
	}
	r := &recorder{TB: t}
	for seed := uint64(0); seed < 10 && r.text == ""; seed++ {
		flotillatest.Simulate(r, seed, bankScenario(true))
	}
	if !strings.Contains(r.text, "seed") || !strings.Contains(r.text, "violated") {
		t.Fatalf("a machine that looks at the clock was not found: %q", r.text)
	}
}

// recorder is a test that may fail.
type recorder struct {
	testing.TB
	text string
}

func (r *recorder) Errorf(format string, args ...any) { r.text = fmt.Sprintf(format, args...) }

// A state machine of one's own is put through crashes, cuts, failing disks and
// membership changes by one call per seed.
func ExampleSimulate() {
	test := func(t *testing.T) {
		for seed := range uint64(100) {
			flotillatest.Simulate(t, seed, bankScenario(false))
		}
	}
	_ = test // TestBank(t *testing.T)
}
