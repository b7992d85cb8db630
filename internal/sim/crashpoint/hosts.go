package crashpoint

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/snapshot"
)

// fleeted makes a scenario of whole nodes. prepare sets the fleet up, past is not
// recorded.
func fleeted(name string, prepare func(c *fleet), nodes int, past, run func(c *fleet) error) Scenario {
	return Scenario{Name: name, Run: func(r *Run) error {
		c := newFleet(r)
		if prepare != nil {
			prepare(c)
		}
		for n := 1; n <= nodes; n++ {
			if err := c.start(raft.NodeID(n)); err != nil {
				return err
			}
		}
		if past != nil {
			if err := past(c); err != nil {
				return fmt.Errorf("past: %w", err)
			}
		}
		if err := r.Restart(); err != nil {
			return err
		}
		err := run(c)
		for _, m := range c.members {
			if m.e != nil {
				err = errors.Join(err, m.stop(false))
			}
		}
		return err
	}}
}

// hostScenarios drive whole nodes.
func hostScenarios() []Scenario {
	trio := descOf(1, 1, 2, 3)
	created := func(c *fleet) error { return c.create(trio) }
	led := func(c *fleet) error {
		return do(func() error { return created(c) }, func() error { return c.lead(1, 1) }, func() error { return c.write(1, 4, 4) }, func() error { return c.level(1) })
	}
	tables := func(c *fleet) { c.smallBytes, c.value = 256, 600 }
	slow := func(c *fleet) { c.slowSyncs = true }
	// behind leaves node 3 behind the log of the leader.
	behindNow := func(c *fleet) error {
		return do(
			func() error { c.cutOff(3, true); c.setDown(3, true); return c.write(1, 24, 4) },
			func() error { return c.pass(3000) },
		)
	}
	behind := func(c *fleet) error {
		return do(func() error { return led(c) }, func() error { return behindNow(c) })
	}
	rejoin := func(c *fleet) error {
		c.cutOff(3, false)
		c.setDown(3, false)
		before := c.sent
		if err := do(func() error { return c.level(1) }, func() error { return c.pass(60) }, func() error { return c.write(1, 2, 2) }, func() error { return c.level(1) }); err != nil {
			return err
		}
		if c.sent == before {
			return errors.New("node 3 came back without a snapshot")
		}
		return nil
	}
	restartAll := func(c *fleet, halted bool) error {
		for _, m := range c.members {
			if err := m.stop(halted); err != nil {
				return err
			}
		}
		c.wire = nil
		for _, m := range c.members {
			c.extra[m.id]++
			if err := m.startAgain(); err != nil {
				return err
			}
		}
		return nil
	}
	list := slices.Concat(sessionScenarios(led, behindNow, rejoin, restartAll), destroyScenarios(led))
	return append(list, []Scenario{
		fleeted("host-single-voter", nil, 1, func(c *fleet) error {
			return do(func() error { return c.create(descOf(1, 1)) }, func() error { return c.lead(1, 1) })
		}, func(c *fleet) error { return c.write(1, 10, 4) }),
		fleeted("host-election", nil, 3, created, func(c *fleet) error { return c.lead(1, 1) }),
		fleeted("host-elections-in-turn", nil, 3, led, func(c *fleet) error {
			for _, n := range []raft.NodeID{2, 3, 1} {
				c.setDown(c.leader(1).id, true)
				if err := c.pass(20); err != nil {
					return err
				}
				if err := c.lead(1, n); err != nil {
					return err
				}
				for _, m := range c.members {
					if c.down[m.id] {
						c.setDown(m.id, false)
					}
				}
				if err := c.write(1, 1, 2); err != nil {
					return err
				}
			}
			return nil
		}),
		fleeted("host-new-epochs", nil, 3, led, func(c *fleet) error {
			for range 3 {
				c.setDown(1, true)
				c.setDown(1, false)
				if err := do(func() error { return c.pass(600) }, func() error { return c.write(1, 1, 2) }); err != nil {
					return err
				}
			}
			return nil
		}),
		fleeted("host-writes", nil, 3, led, func(c *fleet) error {
			return do(func() error { return c.write(1, 12, 4) }, func() error { return c.level(1) })
		}),
		fleeted("host-writes-slow-syncs", slow, 3, led, func(c *fleet) error {
			return do(func() error { return c.write(1, 12, 4) }, func() error { return c.level(1) })
		}),
		fleeted("host-many-groups", slow, 3, func(c *fleet) error {
			for s := raft.ShardID(1); s <= 6; s++ {
				if err := do(func() error { return c.create(descOf(s, 1, 2, 3)) }, func() error { return c.lead(s, raft.NodeID(s%3+1)) }); err != nil {
					return err
				}
			}
			return nil
		}, func(c *fleet) error {
			open := 0
			for range 6 {
				for s := raft.ShardID(1); s <= 6; s++ {
					if m := c.leader(s); m != nil {
						m.propose(s, 1+c.r.rng.IntN(3), &open)
					}
				}
				if err := c.pass(2); err != nil {
					return err
				}
			}
			return c.until("writes", func() bool { return open == 0 })
		}),
		fleeted("host-lost-leader-comes-back", nil, 3, led, func(c *fleet) error {
			// The old leader has entries that nobody else has; they are overwritten.
			open := 0
			c.cutOff(1, true)
			c.member(1).propose(1, 5, &open)
			if err := c.pass(3); err != nil {
				return err
			}
			c.setDown(1, true)
			return do(
				func() error { return c.pass(20) },
				func() error { return c.lead(1, 2) },
				func() error { return c.write(1, 3, 2) },
				func() error { c.cutOff(1, false); c.setDown(1, false); return c.level(1) },
				func() error { return c.write(1, 2, 2) },
			)
		}),
		fleeted("host-truncation", nil, 3, led, func(c *fleet) error {
			for range 4 {
				if err := do(func() error { return c.write(1, 6, 4) }, func() error { return c.level(1) }, func() error { return c.pass(60) }, func() error { return c.pass(40) }); err != nil {
					return err
				}
			}
			return nil
		}),
		fleeted("host-transfer", nil, 3, led, func(c *fleet) error {
			for _, to := range []raft.NodeID{2, 3, 1} {
				c.r.Note("transfer to node %d", to)
				m := c.leader(1)
				if err := c.call(func() error { return m.h.Transfer(context.Background(), 1, to) }); err != nil {
					return err
				}
				err := c.until("transfer", func() bool {
					v, _ := c.member(to).h.View(1)
					return v.IsLeader && v.IsReady
				})
				if err != nil {
					return err
				}
				if err := c.write(1, 1, 3); err != nil {
					return err
				}
			}
			return nil
		}),
		fleeted("host-snapshot-small", nil, 3, behind, rejoin),
		fleeted("host-snapshot-tables", tables, 3, behind, rejoin),
		fleeted("host-snapshot-twice", tables, 3, behind, func(c *fleet) error {
			if err := rejoin(c); err != nil {
				return err
			}
			c.cutOff(3, true)
			c.setDown(3, true)
			return do(func() error { return c.write(1, 24, 4) }, func() error { return c.pass(3000) }, func() error { return rejoin(c) })
		}),
		fleeted("host-snapshot-interrupted", func(c *fleet) { c.smallBytes, c.keys = 256, 2000 }, 3, func(c *fleet) error {
			return do(func() error { return led(c) }, func() error { return c.write(1, 10, 60) }, func() error { return behindNow(c) })
		}, func(c *fleet) error {
			from, to := c.member(1), c.member(3)
			d, _ := from.h.Descriptor(1)
			for _, part := range []int{3, 4, 7} { // each takes what came of those before
				c.r.Note("the first %d messages of a snapshot", part)
				if _, err := from.stream(to, &d, part); !errors.Is(err, snapshot.ErrRefused) {
					return fmt.Errorf("half a snapshot: %w", err)
				}
			}
			return rejoin(c)
		}),
		fleeted("host-learner-promoted", nil, 4, led, func(c *fleet) error {
			rep := raft.Replica{Node: 4, Role: raft.Learner}
			return do(
				func() error { return c.change(1, raft.ConfStep{Replica: rep}) },
				func() error { return c.level(1) }, func() error { return c.pass(60) },
				func() error { rep.Role = raft.Voter; return c.change(1, raft.ConfStep{Replica: rep}) },
				func() error { return c.write(1, 2, 2) },
				func() error { return c.level(1) }, func() error { return c.pass(60) },
			)
		}),
		fleeted("host-member-replaced", tables, 4, led, func(c *fleet) error {
			return do(
				func() error {
					return c.change(1, raft.ConfStep{Replica: raft.Replica{Node: 4, Role: raft.Learner}})
				},
				func() error { return c.level(1) }, func() error { return c.pass(60) },
				func() error {
					return c.change(1, raft.ConfStep{Replica: raft.Replica{Node: 4, Role: raft.Voter}}, raft.ConfStep{Remove: true, Replica: raft.Replica{Node: 3}})
				},
				func() error { return c.write(1, 2, 2) },
				func() error { return c.level(1) }, func() error { return c.pass(60) },
			)
		}),
		fleeted("host-member-removed", nil, 3, led, func(c *fleet) error {
			return do(
				func() error { return c.change(1, raft.ConfStep{Remove: true, Replica: raft.Replica{Node: 3}}) },
				func() error { return c.write(1, 3, 2) },
			)
		}),
		fleeted("host-clean-stop", nil, 3, led, func(c *fleet) error {
			return do(
				func() error { return c.write(1, 2, 2) },
				func() error { return restartAll(c, false) },
				func() error { return c.lead(1, 2) },
				func() error { return c.write(1, 2, 2) },
			)
		}),
		fleeted("host-halted-stop", slow, 3, led, func(c *fleet) error {
			open := 0
			c.leader(1).propose(1, 4, &open)
			return do(
				func() error { return c.pass(1) },
				func() error { return restartAll(c, true) },
				func() error { return c.lead(1, 3) },
				func() error { return c.write(1, 2, 2) },
			)
		}),
	}...)
}
