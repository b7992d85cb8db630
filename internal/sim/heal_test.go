package sim

import (
	"testing"
	"time"
)

// TestHealClogged: links that keep the order and were clogged for an hour when
// the faults end carry messages again at once. (What was held back used to keep
// its time of arrival, and everything sent later had to queue behind it: a
// healthy pair of nodes that hears each other one way only.)
func TestHealClogged(t *testing.T) {
	s := Draw(5, "calm", 2*time.Second, 3)
	s.Params.Stream = true
	s.Actions = nil
	for a := range 3 {
		s.Actions = append(s.Actions, Action{At: int64(time.Second), Kind: ActClog, Node: a, Peer: (a + 1) % 3, Dur: time.Hour})
	}
	s.Actions = append(s.Actions, Action{At: int64(1100 * time.Millisecond), Kind: ActKillLeader, Node: 0, Peer: 1, Dur: 100 * time.Millisecond})
	if r := Run(Options{Schedule: &s}); r.Failure != nil {
		t.Error(r.Report(40))
	}
}
