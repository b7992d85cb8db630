package interop

import (
	cryptorand "crypto/rand"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Differ replays one random schedule through a group of ours alone and through
// a group of theirs alone, and compares after each step what a client and an
// administrator can see: the committed commands in their order, the
// configuration, and the leader where the schedule names one. Who wins an
// election that nobody asked for is left to the implementations. It returns the
// number of steps, of commands committed, and the first difference.
func Differ(seed uint64, nodes, steps int) (committed int, err error) {
	a, err := newScript(seed, nodes, true)
	if err != nil {
		return 0, err
	}
	b, err := newScript(seed, nodes, false)
	if err != nil {
		return 0, err
	}
	rng := rand.New(rand.NewPCG(seed, 5))
	for i := range steps {
		draw := rng.Uint64()
		what, errA := a.step(draw)
		_, errB := b.step(draw)
		switch {
		case errA != nil || errB != nil:
			return 0, fmt.Errorf("seed %d, step %d, %s: ours: %v, theirs: %v\nours:\n%s\ntheirs:\n%s", seed, i, what, errA, errB,
				strings.Join(a.w.res.Story, "\n"), strings.Join(b.w.res.Story, "\n"))
		case !slices.Equal(a.w.commands, b.w.commands):
			return 0, fmt.Errorf("seed %d, step %d, %s: ours committed %d commands, theirs %d: %s", seed, i, what, len(a.w.commands), len(b.w.commands), firstDifference(a.w.commands, b.w.commands))
		case a.conf() != b.conf():
			return 0, fmt.Errorf("seed %d, step %d, %s: configuration of ours %s, of theirs %s", seed, i, what, a.conf(), b.conf())
		}
	}
	return len(a.w.commands), nil
}

func firstDifference(a, b []string) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("number %d is %q and %q", i, a[i], b[i])
		}
	}
	return "one is the beginning of the other"
}

// script drives one group.
type script struct {
	w    *world
	next int
}

func newScript(seed uint64, nodes int, own bool) (s *script, err error) {
	o := Options{Seed: seed, Ours: nodes}
	if !own {
		o.Ours, o.Theirs = 0, nodes
	}
	cryptorand.Reader = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 's'})
	w := &world{o: o, rng: rand.New(rand.NewPCG(seed, 78)), res: &Result{}, homes: map[raft.ReplicaID]raft.NodeID{}, scripted: true}
	s = &script{w: w}
	defer s.guard(&err)
	w.build()
	return s, nil
}

// guard turns a violation into an error.
func (s *script) guard(err *error) {
	if p := recover(); p != nil {
		v, ok := p.(violation)
		if !ok {
			panic(p)
		}
		*err = v.error
	}
}

// await lets time pass until ok holds.
func (s *script) await(what string, ok func() bool) {
	for limit := s.w.now + int64(30*time.Second); !ok(); {
		if s.w.now > limit {
			s.w.fail("it does not come about that %s", what)
		}
		s.w.until(s.w.now + int64(10*time.Millisecond))
	}
}

// lead waits for a leader that a majority follows: the one of the highest term
// that can commit. It returns it.
func (s *script) lead(not raft.ReplicaID) member {
	var m member
	s.await("a leader is there", func() bool {
		for _, n := range s.w.nodes {
			if n.up && n.m != nil && n.m.replica() != not && n.m.leads() && s.caught(n.m, not) {
				m = n.m
				return true
			}
		}
		return false
	})
	return m
}

// caught reports whether a quorum of the voters has applied all that m has.
func (s *script) caught(m member, not raft.ReplicaID) bool {
	voters, have := 0, 0
	for _, r := range m.descriptor().Replicas {
		if r.Role != raft.Voter {
			continue
		}
		voters++
		if n := s.w.nodes[r.Node-1]; r.ID != not && n.up && n.m != nil && n.m.replica() == r.ID && n.m.appliedAt() >= m.appliedAt() && m.appliedAt() == s.w.orc.newest {
			have++
		}
	}
	return 2*have > voters
}

func (s *script) conf() string {
	var best *raft.Descriptor
	for _, n := range s.w.nodes {
		if n.m != nil {
			if d := n.m.descriptor(); best == nil || d.ConfVer > best.ConfVer {
				best = d
			}
		}
	}
	return fmt.Sprint(best.ConfVer, best.Replicas)
}

// put commits n commands.
func (s *script) put(m member, n int) {
	for range n {
		s.next++
		c := fmt.Sprintf("c%d", s.next)
		s.await(c+" is committed", func() bool {
			if slices.Contains(s.w.commands, c) {
				return true
			}
			if len(s.w.commands) == 0 || s.w.commands[len(s.w.commands)-1] != c {
				if !m.propose([]byte(c)) {
					m = s.lead(0)
					return false
				}
			}
			s.w.until(s.w.now + int64(200*time.Millisecond))
			return slices.Contains(s.w.commands, c)
		})
	}
}

// step takes the step that draw names.
func (s *script) step(draw uint64) (what string, err error) {
	defer s.guard(&err)
	r := rand.New(rand.NewPCG(draw, 1))
	w := s.w
	m := s.lead(0)
	d := m.descriptor()
	var others []raft.Replica // voters that do not lead
	for _, p := range d.Replicas {
		if p.ID != m.replica() && p.Role == raft.Voter {
			others = append(others, p)
		}
	}
	k := r.IntN(7)
	pick := r.IntN(64)
	switch k {
	case 0:
		what = "commands"
		s.put(m, 1+pick%5)
	case 1:
		// What an isolated leader takes in is lost once another one has led.
		what = "isolate the leader"
		home := w.homes[m.replica()]
		s.cutOff(home, true)
		for i := range 3 {
			m.propose(fmt.Appendf(nil, "lost%d", i))
		}
		s.put(s.lead(m.replica()), 2)
		s.cutOff(home, false)
	case 2:
		what = "kill the leader"
		home := w.nodes[w.homes[m.replica()]-1]
		w.kill(home, 20*time.Second)
		s.put(s.lead(m.replica()), 2)
		w.restart(home)
	case 3:
		what = "a follower misses more than the log keeps"
		if len(others) == 0 {
			return what, nil
		}
		home := w.nodes[others[pick%len(others)].Node-1]
		s.settle()
		w.kill(home, time.Hour)
		for i := range w.keep + 50 {
			if !m.propose(fmt.Appendf(nil, "bulk%d.%d", s.next, i)) {
				w.fail("a leader with a quorum refuses a command")
			}
			w.until(w.now + int64(5*time.Millisecond))
		}
		s.lead(0)
		w.restart(home)
	case 4:
		what = "transfer"
		if len(others) == 0 {
			return what, nil
		}
		// The place in the descriptor names the target in both groups, unless it leads there.
		to := d.Replicas[pick%len(d.Replicas)]
		if to.Role != raft.Voter {
			return what, nil
		}
		if to.ID != m.replica() {
			s.settle()
			m.transfer(to.ID)
		}
		s.await("the target leads", func() bool {
			n := w.nodes[to.Node-1]
			return n.m.leads()
		})
		s.put(s.lead(0), 1)
	case 5:
		what = "restart of all"
		s.settle()
		for _, n := range w.nodes {
			w.kill(n, time.Hour)
		}
		w.until(w.now + int64(time.Second))
		for _, n := range w.nodes {
			w.restart(n)
		}
		s.put(s.lead(0), 1)
	case 6:
		what = "change of members"
		s.settle()
		s.change(pick)
	}
	s.settle()
	return what, nil
}

func (s *script) cutOff(n raft.NodeID, cut bool) {
	for _, o := range s.w.nodes {
		if o.id != n {
			s.w.cut[n][o.id], s.w.cut[o.id][n] = cut, cut
		}
	}
}

// settle waits until every member has everything.
func (s *script) settle() {
	s.w.until(s.w.now + int64(100*time.Millisecond)) // what is under way becomes known
	s.await("all members have caught up", func() bool { return s.w.caughtUp(s.w.orc.newest) })
}

// change makes one change of members that does not depend on who leads: it
// moves the leadership out of the way first.
func (s *script) change(pick int) {
	w := s.w
	m := s.lead(0)
	d := m.descriptor().Clone()
	cc := raft.ConfChange{ConfVer: d.ConfVer}
	stay := raft.ReplicaID(0) // who has to lead meanwhile
	voters := 0
	var learner *raft.Replica
	for i, r := range d.Replicas {
		if r.Role == raft.Voter {
			voters++
			stay = r.ID
		} else {
			learner = &d.Replicas[i]
		}
	}
	var free raft.NodeID
	for _, n := range w.nodes {
		if _, ok := d.ReplicaOn(n.id); !ok {
			free = n.id
		}
	}
	first := d.Replicas[0] // the one that goes, if one goes
	switch {
	case learner != nil && pick%2 == 0 && voters > 2 && first.Role == raft.Voter && first.ID != stay: // replace, by a joint configuration
		up := *learner
		up.Role = raft.Voter
		cc.Steps = []raft.ConfStep{{Replica: up}, {Remove: true, Replica: first}}
	case learner != nil:
		up := *learner
		up.Role = raft.Voter
		cc.Steps = []raft.ConfStep{{Replica: up}}
	case free != 0:
		cc.Steps = []raft.ConfStep{{Replica: raft.Replica{Node: free, ID: d.NextReplica, Role: raft.Learner}}}
	case voters > 3 && first.ID != stay:
		cc.Steps = []raft.ConfStep{{Remove: true, Replica: first}}
	default:
		return
	}
	if m.replica() != stay {
		m.transfer(stay)
		s.await("the remaining replica leads", func() bool { return w.nodes[w.homes[stay]-1].m.leads() })
		s.settle()
		m = s.lead(0)
	}
	ok := false
	s.await("the change is proposed", func() bool {
		if m.descriptor().ConfVer == cc.ConfVer && !ok {
			ok = m.change(cc)
		}
		w.until(w.now + int64(500*time.Millisecond))
		if m.descriptor().ConfVer == cc.ConfVer {
			ok = false
			m = s.lead(0)
			return false
		}
		return !m.descriptor().IsJoint()
	})
}
