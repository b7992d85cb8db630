package multiraft

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// The tests of this file are named for the binding rules of the design. Each is
// a scenario that needs its rule: with the rule taken out (b0_mutants_test.go) it
// fails. The loops' half of C4 is in close_test.go.

// Nobody is told of success before the state machine has applied the command,
// which it may not be able to.
func TestB0_A3(t *testing.T) { b0(t, toldWhenApplied, "B0-A3") }

// What a leader knows is published before a client hears of a commit.
func TestB0_B5(t *testing.T) { b0(t, leasePublished, "D8c") }

// The time of a group only moves forward, whatever the clocks do, and a node
// whose clock is wrong takes no proposals.
func TestB0_C6(t *testing.T) { b0(t, timeOfTheGroup, "B0-C6", "B0-C6b") }

// b0 runs a scenario, and again without its rule.
func b0(t *testing.T, run func(*testing.T) error, without ...string) {
	t.Helper()
	if err := run(t); err != nil {
		t.Fatal(err)
	}
	for _, id := range without {
		withoutRule(t, id, run)
	}
}

func toldWhenApplied(t *testing.T) error {
	r := newRig(t)
	r.fail = errors.New("boom")
	r.lead(2)
	r.ack(2)
	good, bad := r.propose("good"), r.propose("poison")
	if good.n != 0 || bad.n != 0 {
		return errors.New("told before the entries were committed")
	}
	r.ack(2)
	if good.n != 1 || good.err != nil || !slices.Equal(r.applied, []string{"good"}) {
		return fmt.Errorf("applied %q, told %d times, %v", r.applied, good.n, good.err)
	}
	if bad.n != 1 || !errors.Is(bad.err, ErrAmbiguous) {
		return fmt.Errorf("a command that could not be applied: told %d times, %v", bad.n, bad.err)
	}
	return nil
}

func timeOfTheGroup(t *testing.T) error {
	r := newRig(t)
	sound := true
	r.h.clockOK = func() bool { return sound }
	r.lead(2)
	r.ack(2)
	r.propose("a")
	r.ack(2)
	r.now -= raft.Time(1e9) // the wall clock is set back
	r.propose("b")
	r.ack(2)
	r.propose("c")
	r.ack(2)
	var stamps []uint64
	for _, m := range r.sent {
		for _, e := range m.Entries {
			if h, err := e.Header(); err == nil && e.Type == raft.EntryNormal && m.To == 2 {
				stamps = append(stamps, h.GroupTs)
			}
		}
	}
	if len(stamps) < 3 || len(r.times) != 3 {
		t.Fatalf("stamps %v, times %v", stamps, r.times)
	}
	for i := 1; i < len(stamps); i++ {
		if stamps[i] <= stamps[i-1] {
			return fmt.Errorf("entry %d is stamped %d, the one before %d", i, stamps[i], stamps[i-1])
		}
	}
	sound = false
	var busy *OverloadedError
	if o := r.propose("d"); o.n != 1 || !errors.As(o.err, &busy) {
		r.ack(2)
		return fmt.Errorf("with a clock that is wrong: told %d times, %v", o.n, o.err)
	}
	return nil
}
