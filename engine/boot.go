package engine

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Boot is BootEach with all states at once.
func (e *Engine) Boot() (out []GroupState, err error) {
	err = e.BootEach(func(st raft.State) error {
		out = append(out, GroupState{st})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// BootEach carries out destroy intents, then reads the state of every group that
// has a descriptor, in one pass over the store, and calls f with them, ordered by shard. It
// is called once, before any batch. An error of f's ends it and is returned.
// A store whose records are damaged, or do not belong together, is refused with an
// *OpenError, which wraps a *GroupError if it is about one group; nothing was changed, but
// f may have been called.
func (e *Engine) BootEach(f func(raft.State) error) (err error) {
	if err = e.enter(); err != nil {
		return err
	}
	defer e.leave()
	var own error
	err = e.boot(func(st raft.State) error {
		own = f(st)
		return own
	})
	if own != nil {
		return own
	}
	if err != nil && (e.usable() == nil || pebble.IsCorruptionError(err)) {
		return e.openErr(Corrupt, e.replaceHint(), err)
	}
	return err
}

func (e *Engine) boot(f func(raft.State) error) error {
	if err := e.carryOutIntents(); err != nil {
		return err
	}
	// One iterator per prefix, all of one view, merged by shard.
	states, err := e.newRawIter([]byte{prefixApplied}, []byte{prefixApplied + 1})
	if err != nil {
		return err
	}
	defer states.Close()
	hards, err := states.Clone(pebble.CloneOptions{IterOptions: bounds([]byte{prefixHard}, []byte{prefixHard + 1})})
	if err != nil {
		return err
	}
	defer hards.Close()
	logs, err := states.Clone(pebble.CloneOptions{IterOptions: bounds([]byte{prefixLog}, []byte{prefixLog + 1})})
	if err != nil {
		return err
	}
	defer logs.Close()
	var recs [][]byte // all of them are read once, not one for each of its groups
	err = e.eachRecord(func(_ recordID, val []byte) error {
		recs = append(recs, slices.Clone(val))
		return nil
	})
	if err != nil {
		return err
	}
	defer e.journal.dropIndex()
	head := e.journal.oldest()
	record := func(rec uint64, _ recordID) ([]byte, error) { return recs[rec-head], nil }
	state, hard := walker{it: states}, walker{it: hards}
	orphans := e.journal.shards()
	var order ranges
	var kb [logKeyLen]byte
	for ok := state.seek([]byte{prefixApplied}); ok; {
		k, err := ParseKey(states.Key())
		if err != nil {
			return err
		}
		st, live, err := e.loadGroup(k.Shard, state.get, hard.get, logs, record)
		if err != nil {
			return err
		}
		if live {
			delete(orphans, k.Shard)
			if _, here := st.Desc.ReplicaOn(e.identRec.Node); here || e.identRec.Node == 0 {
				if err := order.add(&st.Desc); err != nil {
					return err
				}
			}
			if err := f(st); err != nil {
				return err
			}
		} else {
			e.log.Warn("state of a group without a descriptor; it is ignored", "shard", k.Shard)
		}
		if k.Shard == ^raft.ShardID(0) {
			break
		}
		ok = state.seek(appendGroup(kb[:0], prefixApplied, k.Shard+1))
	}
	if err := e.iterError(errors.Join(states.Error(), hards.Error(), logs.Error())); err != nil {
		return err
	}
	if order.mixed {
		if err := e.checkOverlap(); err != nil {
			return err
		}
	}
	e.journal.orphaned(orphans)
	return nil
}

// ranges looks for replicas that hold the same keys. Most stores have their shards in the
// order of their keys; then it remembers one range only.
type ranges struct {
	last  raft.Descriptor
	mixed bool // they are in another order: all have to be looked at
}

func (r *ranges) add(d *raft.Descriptor) error {
	switch last := &r.last; {
	case last.Shard == 0 || last.Keyspace < d.Keyspace:
	case last.Keyspace == d.Keyspace && bytes.Compare(last.Start, d.Start) <= 0:
		if err := overlap(last, d); err != nil {
			return err
		}
	default:
		r.mixed = true
	}
	r.last = *d
	return nil
}

// overlap refuses two descriptors, in the order of their keys, that hold the same keys.
func overlap(a, b *raft.Descriptor) error {
	if a.Keyspace == b.Keyspace && (len(a.End) == 0 || bytes.Compare(a.End, b.Start) > 0) && !mutants.On("H-overlap") {
		return &GroupError{Shard: b.Shard, Err: fmt.Errorf("descriptor: its keys from %.64q on are those of shard %d too: %w", b.Start, a.Shard, raft.ErrCorrupt)}
	}
	return nil
}

// checkOverlap refuses two replicas of this node that hold the same keys: both
// would write them. A group that has no replica here any more only waits for
// its end.
func (e *Engine) checkOverlap() error {
	var live []raft.Descriptor
	err := e.eachDescriptor(func(d *raft.Descriptor) {
		if _, here := d.ReplicaOn(e.identRec.Node); here || e.identRec.Node == 0 {
			live = append(live, d.Clone())
		}
	})
	if err != nil {
		return err
	}
	slices.SortFunc(live, func(x, y raft.Descriptor) int {
		return cmp.Or(cmp.Compare(x.Keyspace, y.Keyspace), bytes.Compare(x.Start, y.Start))
	})
	for i := 1; i < len(live); i++ {
		if err := overlap(&live[i-1], &live[i]); err != nil {
			return err
		}
	}
	return nil
}

// walker reads single keys through an iterator. Where they are asked for in ascending order
// it walks, which costs a fraction of a seek for each.
type walker struct {
	it    *pebble.Iterator
	asked []byte // last; nil: none
	ok    bool   // it stands on the first key from asked on; else there is none
}

// walkerSteps is how far a walker walks before it seeks.
const walkerSteps = 4

// seek moves to the first key from key on, and reports whether there is one.
func (c *walker) seek(key []byte) bool {
	walk := c.asked != nil && bytes.Compare(c.asked, key) <= 0
	c.asked = append(c.asked[:0], key...)
	if walk {
		for n := 0; c.ok && n < walkerSteps; n++ {
			if bytes.Compare(c.it.Key(), key) >= 0 {
				return true
			}
			c.ok = c.it.Next()
		}
		if !c.ok {
			return false
		}
	}
	c.ok = c.it.SeekGE(key)
	return c.ok
}

// get is a getter. The value counts until the next call.
func (c *walker) get(key []byte) ([]byte, bool, error) {
	if !c.seek(key) || !bytes.Equal(c.it.Key(), key) {
		return nil, false, c.it.Error()
	}
	v, err := c.it.ValueAndErr()
	return v, err == nil, err
}
