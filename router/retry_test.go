package router

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// TestBackoff holds the sequence of waits: doubling from 1 ms to 200 ms, half
// of each drawn at random.
func TestBackoff(t *testing.T) {
	want := []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 200, 200, 200}
	for n, ms := range want {
		full := ms * time.Millisecond
		if got := backoff(n, 0); got != full/2 {
			t.Errorf("wait %d: least %v, want %v", n, got, full/2)
		}
		if got := backoff(n, uint64(full-full/2)); got != full {
			t.Errorf("wait %d: most %v, want %v", n, got, full)
		}
		if got := backoff(n, 1<<63+12345); got < full/2 || got > full {
			t.Errorf("wait %d: %v is out of bounds", n, got)
		}
	}
	if got := backoff(1<<40, 0); got != backoffMax/2 {
		t.Errorf("a very late wait: %v", got)
	}
}

// TestApart holds how far apart the tries of many waiting requests are: few of them are
// not held up, many try 37,500 to 50,000 times a second together, and none waits for ever.
func TestApart(t *testing.T) {
	for n, most := range map[int64]time.Duration{1: 20 * time.Microsecond, 3000: 60 * time.Millisecond, 50_000: time.Second, 1 << 30: pollMost} {
		for _, random := range []uint64{0, 1, 1<<63 + 99} {
			if got := apart(n, random); got < most*3/4 || got > most {
				t.Errorf("%d requests: %v, want %v to %v", n, got, most*3/4, most)
			}
		}
	}
}

// TestChain tells stories of one round: nodes answer, and the chain names the
// next one to ask. The shard has voters 1, 2, 3 and a learner on 4.
func TestChain(t *testing.T) {
	notLeader := func(leader raft.NodeID) error { return &shard.NotLeaderError{Shard: 2, Leader: leader} }
	var (
		unavailable = &shard.UnavailableError{}
		noQuorum    = &shard.NoQuorumError{Shard: 2, Down: []raft.NodeID{2, 3}}
		epoch       = &shard.EpochError{Shard: 2, Descriptors: []shard.Descriptor{{Shard: 2}}}
		foreign     = &shard.EpochError{Shard: 2}
		busy        = &shard.OverloadedError{RetryAfter: 30 * time.Millisecond}
	)
	type answer struct {
		err    error
		healed bool
	}
	tests := []struct {
		name    string
		c       chain
		leader  raft.NodeID
		answers []answer
		want    string // nodes asked, "+" for a relay, and how it ended
	}{
		{"the hint is asked first", chain{}, 2, []answer{{shard.ErrNotFound, false}}, "2 stop"},
		{"without a hint, replicas in turn, no learner", chain{}, 0, []answer{{notLeader(0), false}, {notLeader(0), false}, {notLeader(0), false}}, "1 2 3 end"},
		{"the search begins at an offset", chain{offset: 2}, 0, []answer{{notLeader(0), false}, {notLeader(0), false}, {notLeader(0), false}}, "3 1 2 end"},
		{"the own node before others", chain{self: 2}, 0, []answer{{notLeader(3), false}, {shard.ErrNotFound, false}}, "2 3 stop"},
		{"a redirect is followed", chain{}, 1, []answer{{notLeader(3), false}, {shard.ErrNotFound, false}}, "1 3 stop"},
		{"a redirect beyond the known replicas", chain{}, 1, []answer{{notLeader(9), false}, {shard.ErrNotFound, false}}, "1 9 stop"},
		{"two that name each other", chain{}, 1, []answer{{notLeader(2), false}, {notLeader(1), false}, {notLeader(1), false}}, "1 2 3 end"},
		{"an ambiguous write is not tried again", chain{write: true}, 1, []answer{{&shard.AmbiguousError{}, false}}, "1 stop"},
		{"an ambiguous read is", chain{}, 1, []answer{{&shard.AmbiguousError{}, false}, {shard.ErrNotFound, false}}, "1 2 stop"},
		{"an unreachable leader", chain{write: true}, 3, []answer{{unavailable, false}, {notLeader(3), false}, {notLeader(3), false}}, "3 1 2 end"},
		{"a relay to an unreachable leader", chain{write: true, forward: true}, 3, []answer{{unavailable, false}, {notLeader(3), false}, {shard.ErrNotFound, false}}, "3 1 1+ stop"},
		{"a stopped node is like an unreachable one", chain{write: true}, 1, []answer{{shard.ErrClosed, false}, {shard.ErrNotFound, false}}, "1 2 stop"},
		{"the own sender was closed", chain{}, 1, []answer{{senderClosedError{}, false}}, "1 stop"},
		{"no quorum: the others are asked once", chain{write: true}, 1, []answer{{noQuorum, false}, {notLeader(0), false}, {unavailable, false}}, "1 2 3 noquorum"},
		{"no quorum at the own node: it asks nobody it holds for down", chain{write: true, self: 1}, 1, []answer{{noQuorum, false}}, "1 noquorum"},
		{"no quorum at an isolated old leader", chain{write: true}, 1, []answer{{noQuorum, false}, {notLeader(3), false}, {shard.ErrNotFound, false}}, "1 2 3 stop"},
		{"a healed range starts over", chain{}, 1, []answer{{epoch, true}, {shard.ErrNotFound, false}}, "1 1 stop"},
		{"an outdated node is left aside", chain{}, 1, []answer{{epoch, false}, {shard.ErrNotFound, false}}, "1 2 stop"},
		{"nobody knows the shard", chain{}, 1, []answer{{foreign, false}, {foreign, false}, {foreign, false}}, "1 2 3 foreign"},
		{"overload asks for a wait", chain{}, 1, []answer{{busy, false}}, "1 wait 30ms"},
		{"redirects are capped", chain{maxRedirects: 2}, 1, []answer{{epoch, true}, {epoch, true}, {epoch, true}}, "1 1 1 wait 0s"},
		{"a conflict is an answer", chain{write: true}, 1, []answer{{&shard.ConflictError{}, false}}, "1 stop"},
		{"local: any replica, learners too", chain{local: true, offset: 3}, 1, []answer{{unavailable, false}, {unavailable, false}, {unavailable, false}, {unavailable, false}}, "4 1 2 3 end"},
		{"local: the own replica first", chain{local: true, self: 3}, 1, []answer{{shard.ErrNotFound, false}}, "3 stop"},
	}
	d := rangeOf(2, "", "", 1, 1)
	d.Replicas = append(d.Replicas, raft.Replica{Node: 4, ID: 4, Role: raft.Learner})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := tt.c
			if c.maxRedirects == 0 {
				c.maxRedirects = 8
			}
			if got := strings.Join(tellStory(&c, &d, tt.leader, func(i int) (error, bool) {
				if i == len(tt.answers) {
					return nil, false
				}
				return tt.answers[i].err, tt.answers[i].healed
			}), " "); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// tellStory runs one round against scripted answers.
func tellStory(c *chain, d *raft.Descriptor, leader raft.NodeID, answer func(int) (error, bool)) (story []string) {
	say := func(format string, args ...any) { story = append(story, fmt.Sprintf(format, args...)) }
	for i := 0; ; i++ {
		node, relay, ok := c.pick(d, leader)
		switch {
		case !ok && c.noQuorum != nil:
			say("noquorum")
			return story
		case !ok && c.foreign:
			say("foreign")
			return story
		case !ok:
			say("end")
			return story
		case relay:
			say("%d+", node)
		default:
			say("%d", node)
		}
		err, healed := answer(i)
		if err == nil {
			say("more asked than scripted")
			return story
		}
		switch v := c.judge(node, err, healed); v.act {
		case actStop:
			say("stop")
			return story
		case actWait:
			say("wait %v", v.after)
			return story
		}
	}
}

// TestEndRound shows that a new round starts with everybody.
func TestEndRound(t *testing.T) {
	d := rangeOf(2, "", "", 1, 1)
	c := chain{maxRedirects: 8}
	for range 3 {
		node, _, _ := c.pick(&d, 0)
		c.judge(node, &shard.UnavailableError{}, false)
	}
	if _, _, ok := c.pick(&d, 0); ok {
		t.Error("a fourth node was named")
	}
	c.endRound()
	if node, _, ok := c.pick(&d, 0); !ok || node != 1 || c.tries != 3 || c.waits != 1 {
		t.Errorf("after the round: node %d, %v, %d tries, %d waits", node, ok, c.tries, c.waits)
	}
}

// headless: while a shard has no leader, one replica is asked per round, all of them in
// the first round and every fourth after it; and everybody again once there was one.
func headless(*testing.T) error {
	d := rangeOf(2, "", "", 1, 1)
	c := chain{maxRedirects: 8, self: 1}
	var asked []int
	round := func(leader raft.NodeID, answer func(raft.NodeID) error) (n int) {
		for {
			node, _, ok := c.pick(&d, leader)
			if !ok {
				c.endRound()
				return n
			}
			n++
			if c.judge(node, answer(node), false).act != actAgain {
				c.endRound()
				return n
			}
		}
	}
	none := func(raft.NodeID) error { return &shard.NotLeaderError{Shard: 2} }
	for range 9 {
		asked = append(asked, round(0, none))
	}
	if want := []int{3, 1, 1, 1, 3, 1, 1, 1, 3}; !slices.Equal(asked, want) {
		return fmt.Errorf("no leader: %v replicas were asked in each round, want %v", asked, want)
	}
	// Its leader is known and dead: the replica is asked, and the leader is not there.
	asked = nil
	dead := func(n raft.NodeID) error {
		if n == 3 {
			return &shard.UnavailableError{Node: 3}
		}
		return &shard.NotLeaderError{Shard: 2, Leader: 3}
	}
	c = chain{maxRedirects: 8, self: 1}
	for range 5 {
		asked = append(asked, round(3, dead))
	}
	if want := []int{3, 2, 2, 2, 3}; !slices.Equal(asked, want) {
		return fmt.Errorf("a dead leader: %v replicas were asked in each round, want %v", asked, want)
	}
	// The own replica hears of the next one.
	if n := round(0, func(n raft.NodeID) error {
		if n == 2 {
			return shard.ErrNotFound
		}
		return &shard.NotLeaderError{Shard: 2, Leader: 2}
	}); n != 2 {
		return fmt.Errorf("the new leader was found after %d questions", n)
	}
	return nil
}

func TestHeadless(t *testing.T) {
	if err := headless(t); err != nil {
		t.Fatal(err)
	}
}

// TestJoinParts holds the outcome of a write that was applied shard by shard.
func TestJoinParts(t *testing.T) {
	refused := error(&shard.NoQuorumError{Shard: 2})
	unknown := error(&shard.AmbiguousError{Shard: 3})
	tests := []struct {
		name    string
		errs    []error
		want    shard.Outcome
		applied int // of a PartialError, -1: none expected
	}{
		{"all applied", []error{nil, nil}, shard.Applied, -1},
		{"none applied", []error{refused, refused}, shard.NotApplied, -1},
		{"one of two", []error{refused, nil}, shard.MaybeApplied, 1},
		{"one unknown, none applied", []error{refused, unknown}, shard.MaybeApplied, -1},
		{"one unknown, one applied", []error{unknown, nil}, shard.MaybeApplied, 1},
		{"one itself in part", []error{&shard.PartialError{Applied: 1, Shards: 2, Err: refused}, refused}, shard.MaybeApplied, 0},
	}
	for _, tt := range tests {
		err := joinParts(tt.errs)
		if got := shard.OutcomeOf(err); got != tt.want {
			t.Errorf("%s: outcome %v of %v, want %v", tt.name, got, err, tt.want)
		}
		var partial *shard.PartialError
		if errors.As(err, &partial) != (tt.applied >= 0) || partial != nil && (partial.Applied != tt.applied || partial.Shards != len(tt.errs)) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
