package router

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// Bounds of the waits between two rounds of tries.
const (
	backoffMin = time.Millisecond
	backoffMax = 200 * time.Millisecond
)

// backoff returns the wait after the n-th fruitless round, n from 0: 1, 2, 4 ..
// 200 ms, of which the upper half is drawn from random.
func backoff(n int, random uint64) time.Duration {
	d := backoffMax
	if n < 8 {
		d = min(backoffMin<<n, backoffMax)
	}
	half := d / 2
	return half + time.Duration(random%uint64(d-half+1))
}

// However many requests wait to be tried again, tries begin about pollEvery apart, as long
// as each waits no longer than pollMost for it: a hundred thousand that try five times a
// second each would leave no processor time for the elections they wait for.
const (
	pollEvery = 20 * time.Microsecond
	pollMost  = 2 * time.Second
)

// apart returns the least wait of one of n requests, of which a quarter is drawn from random.
func apart(n int64, random uint64) time.Duration {
	d := min(time.Duration(n)*pollEvery, pollMost)
	if mutants.On("R-apart") {
		return 0
	}
	return d - d/4 + time.Duration(random%uint64(d/4+1))
}

// action is what the retry loop does next.
type action uint8

const (
	// actStop returns the error to the caller.
	actStop action = iota
	// actAgain sends again at once, to the node that pick names.
	actAgain
	// actWait ends the round: back off, then start over with a fresh look at the table.
	actWait
)

// verdict is the decision after one failed try.
type verdict struct {
	act action
	// after is the least wait of actWait that the answering node asked for.
	after time.Duration
}

// chain is the memory of one request's tries. It decides and does nothing: the
// loop tells it what came back (judge) and asks it whom to ask next (pick).
//
// A round is a run of tries without a wait in between. No node is asked twice
// in a round unless the table was healed in between, and at most maxRedirects
// replies of a round may send the request elsewhere.
type chain struct {
	write        bool   // the request is not idempotent: no second try after ErrAmbiguous
	stamp        *stamp // the request is a write of a session, which makes it idempotent
	local        bool   // any replica will do
	forward      bool   // a reachable replica may be asked to forward
	self         raft.NodeID
	maxRedirects int
	offset       int // where among the replicas a search begins

	tries, waits int // of the whole chain
	headless     int // rounds one after the other that found no leader
	// Of the round:
	redirects   int
	tried       []raft.NodeID
	unreachable []raft.NodeID
	target      raft.NodeID // where a reply sent us, zero: nowhere
	relay       raft.NodeID // a replica that shall forward, because its leader cannot be reached from here
	noQuorum    error       // the first NoQuorumError
	foreign     bool        // a node said that it holds no such shard
	denied      int         // replicas that answered, and knew no leader that can be reached
}

// askAll is after how many rounds in which one replica was asked the others are too.
const askAll = 4

// pick names the node to ask next and whether it shall forward the request to
// the leader. ok is false when the round has asked everyone.
func (c *chain) pick(d *raft.Descriptor, leader raft.NodeID) (node raft.NodeID, relay, ok bool) {
	if c.relay != 0 {
		node, c.relay = c.relay, 0
		return node, true, true
	}
	if t := c.target; t != 0 {
		c.target = 0
		if !slices.Contains(c.tried, t) {
			return t, false, true
		}
	}
	if c.denied > 0 && c.headless%askAll != 0 && !mutants.On("R-headless") {
		// All were asked in vain. While a group elects, any member hears of the leader
		// as soon as there is one; thousands of groups elect when a node dies, and the
		// questions about each would hold their elections up.
		return 0, false, false
	}
	if !c.local && leader != 0 && !slices.Contains(c.tried, leader) {
		return leader, false, true
	}
	if _, has := d.ReplicaOn(c.self); has && c.self != 0 && !slices.Contains(c.tried, c.self) {
		return c.self, false, true
	}
	for i := range d.Replicas {
		r := &d.Replicas[(c.offset+i)%len(d.Replicas)]
		if (r.Role != raft.Learner || c.local) && !slices.Contains(c.tried, r.Node) {
			return r.Node, false, true
		}
	}
	return 0, false, false
}

// judge decides after node answered err. healed says that the reply changed
// the cached range of the request's key.
func (c *chain) judge(node raft.NodeID, err error, healed bool) verdict {
	c.tries++
	c.tried = append(c.tried, node)
	if busy, ok := err.(*shard.OverloadedError); ok {
		return verdict{act: actWait, after: busy.RetryAfter}
	}
	var (
		notLeader   *shard.NotLeaderError
		epoch       *shard.EpochError
		overloaded  *shard.OverloadedError
		noQuorum    *shard.NoQuorumError
		unavailable *shard.UnavailableError
		full        *shard.SessionsFullError
	)
	switch {
	case err == error(senderClosedError{}):
		return verdict{act: actStop}
	case errors.Is(err, shard.ErrAmbiguous):
		if c.stamp != nil {
			c.stamp.unknown = true
			return c.again()
		}
		if c.write && !mutants.On("F9") {
			return verdict{act: actStop}
		}
		return c.again()
	case c.stamp != nil && c.stamp.unknown && (errors.As(err, &full) || errors.Is(err, shard.ErrDiskFull)):
		return verdict{act: actWait}
	case errors.As(err, &notLeader):
		return c.redirect(node, notLeader.Leader)
	case errors.As(err, &epoch):
		if healed {
			c.tried = c.tried[:0]
			return c.hop()
		}
		c.foreign = c.foreign || len(epoch.Descriptors) == 0
		return c.again()
	case errors.As(err, &overloaded):
		return verdict{act: actWait, after: overloaded.RetryAfter}
	case errors.As(err, &noQuorum):
		if c.noQuorum == nil {
			c.noQuorum = err
		}
		if node == c.self { // it cannot reach from here what it holds for down
			c.tried = append(c.tried, noQuorum.Down...)
		}
		return c.again()
	case errors.As(err, &unavailable), errors.Is(err, shard.ErrClosed):
		c.unreachable = append(c.unreachable, node)
		return c.again()
	}
	return verdict{act: actStop}
}

// redirect decides after node named the leader (zero: it knows none).
func (c *chain) redirect(node, leader raft.NodeID) verdict {
	if leader == 0 || leader == node || slices.Contains(c.tried, leader) {
		c.denied++
	}
	switch {
	case leader == 0 || leader == node:
		return c.again()
	case !slices.Contains(c.tried, leader):
		c.target = leader
		return c.hop()
	case c.forward && slices.Contains(c.unreachable, leader):
		c.relay = node
		return c.hop()
	}
	return c.again()
}

// hop counts a reply that sends the request elsewhere.
func (c *chain) hop() verdict {
	if c.redirects++; c.redirects > c.maxRedirects {
		return verdict{act: actWait}
	}
	return verdict{act: actAgain}
}

// again goes on with whoever was not asked in this round. Their number is
// bounded by the number of replicas and counts as no redirect.
func (c *chain) again() verdict { return verdict{act: actAgain} }

// endRound forgets what was learned in the round.
func (c *chain) endRound() {
	c.waits++
	if c.denied == 0 {
		c.headless = 0
	} else {
		c.headless++
	}
	c.redirects, c.denied = 0, 0
	c.tried, c.unreachable = c.tried[:0], c.unreachable[:0]
	c.target, c.relay, c.noQuorum, c.foreign = 0, 0, nil, false
}

// gaveUpError is the last error of a request whose time ran out between two
// tries. Nothing was applied: an ambiguous try is never followed by another.
type gaveUpError struct {
	last  error
	tries int
	took  time.Duration
	cause error // context.DeadlineExceeded or context.Canceled
}

// Error quotes the last failure and says how long it was tried.
func (e *gaveUpError) Error() string {
	why := "time is up"
	if errors.Is(e.cause, context.Canceled) {
		why = "the caller gave up"
	}
	return fmt.Sprintf("%v (%s after %d tries in %s)", e.last, why, e.tries, e.took.Round(time.Millisecond))
}

// Unwrap returns the last error and the context's.
func (e *gaveUpError) Unwrap() []error { return []error{e.last, e.cause} }
