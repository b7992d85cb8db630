package crashpoint

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// visitor is a client that gives its commands numbers, so that a second try has no
// second effect (package multiraft/session). The records of sessions are part of a
// group's state: a moment has the effect of a command and its record, or neither.
type visitor struct {
	c    *fleet
	id   [16]byte
	life time.Duration // of a command
	seq  uint64
	open int
	// tries are the commands that are not acknowledged, results what the first
	// answer to each was.
	tries   []raft.Command
	results map[uint64][]byte
	err     error
}

func (c *fleet) visitor(n byte, life time.Duration) *visitor {
	return &visitor{c: c, id: [16]byte{n, 15: 1}, life: life, results: map[uint64][]byte{}}
}

// send gives a command to whoever leads, and keeps it for another try.
func (v *visitor) send(s raft.ShardID, cmd raft.Command) error {
	m := v.c.leader(s)
	if m == nil {
		return fmt.Errorf("shard %d has no leader: %s", s, v.c.show())
	}
	seq := cmd.Session.Seq
	v.open++
	m.h.Propose(s, cmd, func(data []byte, index raft.Index, _ uint32, err error) {
		v.open--
		if err != nil {
			return // tried again, or left
		}
		m.acked = append(m.acked, clientAck{at: m.r.j.Len(), shard: s, index: index})
		if first, ok := v.results[seq]; ok && !bytes.Equal(first, data) {
			v.err = errors.Join(v.err, fmt.Errorf("command %d of session %x was answered %x, and then %x", seq, v.id[:1], first, data))
		}
		v.results[seq] = bytes.Clone(data)
	})
	return nil
}

// work sends n new commands, and some old ones again, and waits for the answers.
func (v *visitor) work(s raft.ShardID, n int) error {
	c := v.c
	for range n {
		v.seq++
		key := fmt.Appendf(nil, "a/%05d", c.r.rng.IntN(c.keys))
		cmd, err := shard.PutCommand(key, fmt.Appendf(nil, "%x/%d", v.id[:1], v.seq))
		if err != nil {
			return err
		}
		acked := v.seq - 1
		if len(v.tries) > 0 {
			acked = v.tries[0].Session.Seq - 1
		}
		cmd.Session = &raft.SessionHeader{ID: v.id, Lineage: s, Seq: v.seq, AckedTo: acked, Deadline: uint64(c.now) + uint64(v.life)}
		if err := v.send(s, cmd); err != nil {
			return err
		}
		if v.tries = append(v.tries, cmd); len(v.tries) > 4 {
			v.tries = v.tries[1:]
		}
		if c.r.rng.IntN(2) == 0 {
			if err := v.again(s); err != nil {
				return err
			}
		}
	}
	return errors.Join(c.until("answers to a session", func() bool { return v.open == 0 }), v.err)
}

// again sends what may have been lost a second time.
func (v *visitor) again(s raft.ShardID) error {
	for _, cmd := range v.tries {
		if err := v.send(s, cmd); err != nil {
			return err
		}
	}
	return nil
}

// end gives the session up.
func (v *visitor) end(s raft.ShardID) error {
	cmd, err := shard.EndSessionCommand([]byte("a/00000"))
	if err != nil {
		return err
	}
	v.seq++
	cmd.Session = &raft.SessionHeader{ID: v.id, Lineage: s, Seq: v.seq, AckedTo: v.seq - 1, Deadline: uint64(v.c.now) + uint64(v.life)}
	if err := v.send(s, cmd); err != nil {
		return err
	}
	return errors.Join(v.c.until("end of a session", func() bool { return v.open == 0 }), v.err)
}

// sessionScenarios drive whole nodes with commands of sessions.
func sessionScenarios(led, behindNow, rejoin func(c *fleet) error, restartAll func(c *fleet, halted bool) error) []Scenario {
	slow := func(c *fleet) { c.slowSyncs = true }
	return []Scenario{
		fleeted("host-sessions", slow, 3, led, func(c *fleet) error {
			a, b, short := c.visitor(1, time.Minute), c.visitor(2, time.Minute), c.visitor(3, 30*time.Millisecond)
			return do(
				func() error { return a.work(1, 5) },
				func() error { return short.work(1, 3) },
				func() error { return b.work(1, 4) },
				func() error { return c.pass(200) }, // the short one's time is over
				func() error { return a.work(1, 4) },
				func() error { return a.end(1) },
				func() error { return b.work(1, 4) },
				func() error { return c.level(1) },
			)
		}),
		fleeted("host-sessions-over-restarts", nil, 3, led, func(c *fleet) error {
			a := c.visitor(1, time.Minute)
			return do(
				func() error { return a.work(1, 4) },
				func() error { return restartAll(c, true) },
				func() error { return c.lead(1, 2) },
				func() error { return a.again(1) }, // the answers of before are given again
				func() error { return a.work(1, 3) },
				func() error { return c.lead(1, 3) },
				func() error { return a.again(1) },
				func() error { return a.work(1, 2) },
				func() error { return a.end(1) },
			)
		}),
		fleeted("host-sessions-in-a-snapshot", nil, 3, func(c *fleet) error {
			a := c.visitor(1, time.Minute)
			return do(func() error { return led(c) }, func() error { return a.work(1, 4) }, func() error { return behindNow(c) })
		}, func(c *fleet) error {
			b := c.visitor(2, time.Minute)
			return do(
				func() error { return b.work(1, 4) },
				func() error { return rejoin(c) },
				func() error { return c.lead(1, 3) }, // with what came by the snapshot
				func() error { return b.again(1) },
				func() error { return b.work(1, 2) },
			)
		}),
	}
}

// destroyScenarios take replicas away under whole nodes until their data is gone.
func destroyScenarios(led func(c *fleet) error) []Scenario {
	tables := func(c *fleet) { c.smallBytes, c.value = 256, 600 }
	out := raft.ConfStep{Remove: true, Replica: raft.Replica{Node: 3}}
	gone := func(c *fleet) error {
		return c.until("destruction of a replica", func() bool { _, here := c.member(3).h.View(1); return !here })
	}
	add := func(c *fleet) error {
		rep := raft.Replica{Node: 3, Role: raft.Learner}
		return do(
			func() error { return c.change(1, raft.ConfStep{Replica: rep}) },
			func() error { return c.level(1) }, func() error { return c.pass(60) },
			func() error { rep.Role = raft.Voter; return c.change(1, raft.ConfStep{Replica: rep}) },
			func() error { return c.write(1, 2, 2) },
			func() error { return c.level(1) },
		)
	}
	// beside gives every node a neighbour of the group that goes.
	beside := func(c *fleet) error {
		return do(func() error { return led(c) }, func() error { return c.create(descOf(2, 1, 2, 3)) }, func() error { return c.lead(2, 3) }, func() error { return c.write(2, 3, 3) })
	}
	return []Scenario{
		fleeted("host-replica-destroyed", nil, 3, led, func(c *fleet) error {
			return do(func() error { return c.change(1, out) }, func() error { return gone(c) }, func() error { return c.write(1, 2, 2) })
		}),
		fleeted("host-replica-destroyed-tables", tables, 3, beside, func(c *fleet) error {
			return do(func() error { return c.write(1, 8, 4) }, func() error { return c.change(1, out) }, func() error { return c.write(2, 1, 2) },
				func() error { return gone(c) }, func() error { return c.write(2, 1, 2) })
		}),
		fleeted("host-replica-destroyed-and-added", tables, 3, beside, func(c *fleet) error {
			return do(func() error { return c.change(1, out) }, func() error { return gone(c) }, func() error { return add(c) },
				func() error { return c.change(1, out) }, func() error { return gone(c) })
		}),
		fleeted("host-replica-destroyed-later", nil, 3, led, func(c *fleet) error {
			// It was cut off when it was removed, and asks when it comes back.
			c.cutOff(3, true)
			c.setDown(3, true)
			return do(
				func() error { return c.change(1, out) },
				func() error { return c.write(1, 2, 2) },
				func() error { c.cutOff(3, false); c.setDown(3, false); return gone(c) },
			)
		}),
	}
}
