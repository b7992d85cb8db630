package crashpoint

import (
	"context"
	"errors"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Scenarios are all of them.
var Scenarios = append(handScenarios(), hostScenarios()...)

// handed makes a scenario of node 1, whose record begins after a past.
func handed(name string, past, run func(h *hand) error) Scenario {
	return Scenario{Name: name, Run: func(r *Run) error {
		h, err := byHand(r)
		if err != nil {
			return err
		}
		if past != nil {
			if err := past(h); err != nil {
				return err
			}
			if err := r.Restart(); err != nil {
				return err
			}
		}
		return run(h)
	}}
}

// handScenarios drive the store as a loop does.
func handScenarios() []Scenario {
	three := func(h *hand) error { return h.create(1, 2, 3) }
	// fill gives a group a log, most of it applied.
	fill := func(h *hand, id raft.ShardID, entries int) error {
		return do(
			func() error { return h.round(true, h.appendTo(id, 0, entries)) },
			func() error { return h.round(false, h.apply(id, entries-3)) },
		)
	}
	filled := func(h *hand) error {
		return do(
			func() error { return three(h) },
			func() error { return fill(h, 1, 40) },
			func() error { return fill(h, 2, 20) },
			func() error { return fill(h, 3, 10) },
		)
	}
	flushed := func(h *hand) error {
		return do(func() error { return filled(h) }, h.flush)
	}
	old := func(h *hand) error { // written by an earlier life: no single deletes
		return do(func() error { return filled(h) }, h.reopen)
	}
	// busy does rounds over the groups, some of them synced.
	busy := func(h *hand, rounds int, not ...raft.ShardID) error {
		for k := range rounds {
			var ops []func(*engine.Batch) error
			for _, id := range groups2ids(h.groups) {
				skip := h.r.rng.IntN(4) == 0
				for _, n := range not {
					skip = skip || n == id
				}
				if skip {
					continue
				}
				first := raft.Index(0)
				if g := h.groups[id]; h.r.rng.IntN(6) == 0 && g.last() > g.as.Applied {
					first = g.as.Applied + 1 + raft.Index(h.r.rng.IntN(int(g.last()-g.as.Applied)))
				}
				ops = append(ops, h.appendTo(id, first, 1+h.r.rng.IntN(4)), h.apply(id, h.r.rng.IntN(5)))
				if h.r.rng.IntN(3) == 0 {
					ops = append(ops, h.truncate(id, h.r.rng.IntN(4)))
				}
			}
			if err := h.round(h.r.rng.IntN(3) == 0, ops...); err != nil {
				return err
			}
			if k%7 == 6 {
				if err := h.gate(); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return []Scenario{
		handed("start", nil, func(h *hand) error { return nil }),
		handed("start-and-create", nil, three),
		handed("reopen", filled, func(h *hand) error { return do(h.reopen, h.reopen) }),
		handed("reopen-empty", func(h *hand) error { return nil }, func(h *hand) error { return do(h.reopen, h.reopen) }),
		handed("create-many", func(h *hand) error { return nil }, func(h *hand) error {
			var ids []raft.ShardID
			for id := raft.ShardID(1); id <= 60; id++ {
				ids = append(ids, id)
			}
			return do(func() error { return h.create(ids[:40]...) }, func() error { return h.create(ids[40:]...) })
		}),
		handed("votes", three, func(h *hand) error {
			for t := raft.Term(2); t < 12; t++ {
				if err := h.round(true, h.vote(1, t, 0)); err != nil {
					return err
				}
				if err := h.round(true, h.vote(1, t, raft.ReplicaID(t%3+1)), h.vote(2, t, 2)); err != nil {
					return err
				}
			}
			return nil
		}),
		handed("append-one-by-one", three, func(h *hand) error {
			for range 20 {
				if err := h.round(true, h.appendTo(1, 0, 1)); err != nil {
					return err
				}
			}
			return nil
		}),
		handed("append-many-groups", three, func(h *hand) error {
			for range 10 {
				if err := h.round(true, h.appendTo(1, 0, 3), h.appendTo(2, 0, 2), h.appendTo(3, 0, 1)); err != nil {
					return err
				}
			}
			return nil
		}),
		handed("append-larger-than-memtable", three, func(h *hand) error {
			h.value = 30 << 10
			return do(
				func() error { return h.round(true, h.appendTo(1, 0, 4)) },
				func() error { return h.round(false, h.apply(1, 4)) },
				func() error { return h.round(true, h.appendTo(2, 0, 1)) },
				func() error { return h.round(true, h.appendTo(1, 0, 3), h.apply(1, 2)) },
			)
		}),
		handed("overwrite-suffix", filled, func(h *hand) error {
			return do(
				func() error { return h.round(true, h.appendTo(1, 39, 5)) },
				func() error { return h.round(true, h.appendTo(2, 18, 1)) },
				func() error { return h.round(true, h.appendTo(1, 0, 2), h.apply(1, 9)) },
			)
		}),
		handed("overwrite-again-and-again", filled, func(h *hand) error {
			for k := range 8 {
				if err := h.round(k%2 == 0, h.appendTo(1, 38, 1+k%4)); err != nil {
					return err
				}
			}
			return h.flush()
		}),
		handed("overwrite-entries-of-an-earlier-life", old, func(h *hand) error {
			return do(
				func() error { return h.round(true, h.appendTo(1, 38, 4)) },
				func() error { return h.round(true, h.appendTo(1, 39, 1)) },
				h.flush,
				func() error { return h.round(true, h.appendTo(1, 38, 2), h.apply(1, 9), h.truncate(1, 0)) },
				h.flush, h.reopen,
			)
		}),
		handed("truncate-own", three, func(h *hand) error {
			for range 6 {
				err := do(
					func() error { return h.round(true, h.appendTo(1, 0, 12)) },
					func() error { return h.round(false, h.apply(1, 10)) },
					func() error { return h.round(false, h.truncate(1, 1)) },
				)
				if err != nil {
					return err
				}
			}
			return h.flush()
		}),
		handed("truncate-earlier-life", old, func(h *hand) error {
			return do(
				func() error { return h.round(false, h.truncate(1, 0)) },
				func() error { return h.round(true, h.appendTo(1, 0, 3), h.apply(1, 6)) },
				h.flush,
				func() error { return h.round(true, h.truncate(1, 1), h.truncate(2, 0)) },
				h.reopen,
			)
		}),
		handed("truncate-by-range", func(h *hand) error {
			h.value = 1
			return do(
				func() error { return three(h) },
				func() error { return h.round(true, h.appendTo(1, 0, 4300)) },
				func() error { return h.round(true, h.apply(1, 4290)) },
			)
		}, func(h *hand) error {
			return do(
				func() error { return h.round(false, h.truncate(1, 20)) },
				func() error { return h.round(true, h.appendTo(1, 0, 3), h.apply(1, 3)) },
				h.flush,
			)
		}),
		handed("apply-with-truncation", filled, func(h *hand) error {
			for range 8 {
				if err := h.round(false, h.appendTo(1, 0, 4), h.apply(1, 4), h.truncate(1, 2)); err != nil {
					return err
				}
			}
			return h.gate()
		}),
		handed("apply-before-durable", filled, func(h *hand) error {
			for k := range 12 {
				if err := h.round(false, h.appendTo(1, 0, 2), h.apply(1, 9)); err != nil {
					return err
				}
				if k%4 == 3 {
					if err := h.round(true, h.appendTo(2, 0, 1)); err != nil {
						return err
					}
				}
			}
			return nil
		}),
		handed("busy", filled, func(h *hand) error { return busy(h, 40) }),
		handed("memtable-rotation", three, func(h *hand) error {
			h.value = 4 << 10
			for k := range 24 {
				if err := h.round(k%3 == 0, h.appendTo(1, 0, 3), h.apply(1, 2), h.truncate(1, 2)); err != nil {
					return err
				}
			}
			return nil
		}),
		handed("recycled-log", func(h *hand) error {
			h.value = 8 << 10
			if err := three(h); err != nil {
				return err
			}
			for range 20 {
				if err := h.round(false, h.appendTo(1, 0, 2), h.apply(1, 2), h.truncate(1, 1)); err != nil {
					return err
				}
			}
			return h.gate()
		}, func(h *hand) error {
			for range 16 {
				if err := h.round(true, h.appendTo(1, 0, 2), h.apply(1, 2), h.truncate(1, 1)); err != nil {
					return err
				}
			}
			return nil
		}),
		handed("flush", filled, func(h *hand) error {
			return do(func() error { return busy(h, 4) }, h.flush, func() error { return busy(h, 4) }, h.flush)
		}),
		handed("compaction", filled, func(h *hand) error {
			for range 3 {
				if err := do(func() error { return busy(h, 4) }, h.flush); err != nil {
					return err
				}
			}
			return h.step("compaction", func() error { return h.e.Compact(context.Background()) })
		}),
		handed("install-small-over-empty", three, func(h *hand) error { return h.install(4, 5, false) }),
		handed("install-small-over-existing", filled, func(h *hand) error {
			return do(
				func() error { return h.round(false, h.appendTo(1, 0, 8)) },
				func() error { return h.install(1, 5, false) },
				func() error { return busy(h, 4) },
			)
		}),
		handed("install-tables-over-empty", flushed, func(h *hand) error {
			return do(func() error { return h.round(false, h.appendTo(2, 0, 2)) }, func() error { return h.install(4, 40, true) }, func() error { return busy(h, 3) })
		}),
		handed("install-tables-over-existing", flushed, func(h *hand) error {
			return do(
				func() error { return h.round(false, h.appendTo(2, 0, 2), h.appendTo(3, 0, 1)) },
				func() error { return h.install(1, 40, true) },
				func() error { return busy(h, 4) },
			)
		}),
		handed("install-over-a-log-in-memory", filled, func(h *hand) error {
			return do(
				func() error { return h.round(false, h.appendTo(1, 0, 8)) },
				func() error { return h.install(1, 20, true) },
				func() error { return busy(h, 3) },
			)
		}),
		handed("install-twice", flushed, func(h *hand) error {
			return do(
				func() error { return h.install(2, 30, true) },
				func() error { return busy(h, 3, 2) },
				func() error { return h.install(2, 10, true) },
				func() error { return h.install(2, 3, false) },
			)
		}),
		handed("destroy", flushed, func(h *hand) error { return h.destroy(1) }),
		handed("destroy-in-memory", filled, func(h *hand) error { return h.destroy(1) }),
		handed("destroy-with-neighbours", flushed, func(h *hand) error {
			return do(func() error { return busy(h, 3) }, func() error { return h.destroy(2) }, func() error { return busy(h, 3) }, func() error { return h.destroy(1) })
		}),
		handed("add-again-after-destroy", flushed, func(h *hand) error {
			return do(
				func() error { return h.destroy(1) },
				func() error { return h.create(1) },
				func() error { return h.round(true, h.appendTo(1, 0, 3), h.apply(1, 2)) },
				func() error { return h.destroy(1) },
				func() error { return h.install(1, 20, true) },
				func() error { return busy(h, 3) },
			)
		}),
		handed("watermark", filled, func(h *hand) error {
			for range 6 {
				if err := do(func() error { return h.round(false, h.appendTo(1, 0, 1)) }, h.gate); err != nil {
					return err
				}
			}
			return do(h.reopen, func() error { return h.round(false, h.appendTo(1, 0, 1)) })
		}),
		handed("support", three, func(h *hand) error {
			for e := raft.Epoch(1); e < 6; e++ {
				for _, w := range []bool{false, true} {
					err := h.step("support record", func() error {
						return h.e.SaveSupport(engine.SupportRecord{Node: 2, Epoch: e << 32, Withdrawn: w}, engine.SupportRecord{Node: 3, Epoch: e << 32, Withdrawn: false})
					})
					if err != nil {
						return err
					}
				}
			}
			return h.reopen()
		}),
		handed("failed-sync", filled, func(h *hand) error {
			// What the kernel could not write is gone, and the next sync succeeds.
			h.mayFail = true
			h.r.fs.SetFaults(simfs.Fault{Kind: simfs.OpSync, Class: simfs.ClassWAL, Nth: 3 + h.r.rng.IntN(4), Effect: simfs.SyncLost})
			for range 12 {
				if err := h.round(false, h.appendTo(1, 0, 2), h.apply(1, 1)); err != nil {
					return err
				}
				if err := h.gate(); err != nil {
					if !errors.Is(err, engine.ErrFailed) {
						return err
					}
					return nil
				}
			}
			return errors.New("nobody noticed that a sync failed")
		}),
		handed("full-disk", filled, func(h *hand) error {
			h.mayFail = true
			h.value = 3 << 10
			h.r.fs.SetSpace(160 << 10)
			for range 400 {
				if err := h.round(true, h.appendTo(1, 0, 2), h.apply(1, 2), h.truncate(1, 1)); err != nil {
					if !errors.Is(err, engine.ErrFailed) {
						return err
					}
					return nil
				}
			}
			return errors.New("the disk did not fill up")
		}),
		handed("process-killed-and-restarted", filled, func(h *hand) error {
			for range 3 {
				if err := do(func() error { return busy(h, 3) }, h.kill); err != nil {
					return err
				}
			}
			return nil
		}),
	}
}
