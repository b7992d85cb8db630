package t1

import (
	"bytes"
	"sort"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard/kv"
)

// model is a shard executed a second time, in memory: every committed entry,
// once, in order. Its digest after each entry says what a disk that is applied
// through it must hold.
type model struct {
	desc raft.Descriptor
	data map[string]string
	own  map[string]string // the state machine's records of the group
	time uint64            // of the group
	sum  uint64            // over all pairs, in no order
}

func newModel(d raft.Descriptor) *model {
	return &model{desc: d, data: map[string]string{}, own: map[string]string{}}
}

func pairHash(key, val []byte) uint64 { return mix(hashBytes(key), hashBytes(val)) }

// apply executes an entry and returns the results of its commands.
func (m *model) apply(e raft.Entry) ([][]byte, error) {
	h, err := e.Header()
	if err != nil {
		return nil, err
	}
	if e.Type != raft.EntryNormal {
		m.time = max(m.time, h.GroupTs)
		return nil, nil
	}
	n := 0
	for range e.Commands() {
		n++
	}
	a := multiraft.ApplyContext{Desc: &m.desc, Entry: e, Header: h, Results: make([][]byte, n), TimeBefore: m.time}
	m.time = a.GroupTime()
	return a.Results, kv.ApplyTo(m, &a)
}

// Get implements kv.Writer.
func (m *model) Get(_ uint32, key []byte) ([]byte, bool, error) {
	v, ok := m.data[string(key)]
	return []byte(v), ok, nil
}

// Set implements kv.Writer.
func (m *model) Set(_ uint32, key, val []byte) {
	m.remove(string(key))
	m.data[string(key)] = string(val)
	m.sum += pairHash(key, val)
}

// Delete implements kv.Writer.
func (m *model) Delete(_ uint32, key []byte) { m.remove(string(key)) }

// DeleteRange implements kv.Writer.
func (m *model) DeleteRange(_ uint32, start, end []byte) {
	var gone []string
	for k := range m.data {
		if k >= string(start) && (len(end) == 0 || k < string(end)) {
			gone = append(gone, k)
		}
	}
	sort.Strings(gone)
	for _, k := range gone {
		m.remove(k)
	}
}

func (m *model) remove(key string) {
	if v, ok := m.data[key]; ok {
		m.sum -= pairHash([]byte(key), []byte(v))
		delete(m.data, key)
	}
}

// ownHash tells a record of the group from a pair of the keyspace.
func ownHash(suffix, val []byte) uint64 { return mix(pairHash(suffix, val), 3) }

// GetGroup implements kv.Writer.
func (m *model) GetGroup(_ raft.ShardID, suffix []byte) ([]byte, bool, error) {
	v, ok := m.own[string(suffix)]
	return []byte(v), ok, nil
}

// SetGroup implements kv.Writer.
func (m *model) SetGroup(s raft.ShardID, suffix, val []byte) {
	m.DeleteGroup(s, suffix)
	m.own[string(suffix)] = string(val)
	m.sum += ownHash(suffix, val)
}

// DeleteGroup implements kv.Writer.
func (m *model) DeleteGroup(_ raft.ShardID, suffix []byte) {
	if v, ok := m.own[string(suffix)]; ok {
		m.sum -= ownHash(suffix, []byte(v))
		delete(m.own, string(suffix))
	}
}

// digest is the model's sum of what an engine holds of a shard.
func digest(e *engine.Engine, d *raft.Descriptor) (sum uint64, keys int, err error) {
	it, err := e.NewIter(d.Keyspace, d.Start, d.End)
	if err != nil {
		return 0, 0, err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		sum += pairHash(bytes.Clone(it.Key()), bytes.Clone(it.Value()))
		keys++
	}
	if err := it.Err(); err != nil {
		return 0, 0, err
	}
	own, err := e.NewGroupIter(d.Shard)
	if err != nil {
		return 0, 0, err
	}
	defer own.Close()
	for ok := own.First(); ok; ok = own.Next() {
		sum += ownHash(bytes.Clone(own.Key()), bytes.Clone(own.Value()))
	}
	return sum, keys, own.Err()
}

// machine is the product's state machine on one node.
type machine struct{ n *node }

// Apply implements multiraft.StateMachine.
func (m machine) Apply(b *engine.Batch, a *multiraft.ApplyContext) error {
	if m.n.custom != nil {
		return multiraft.NewCustom(m.n.custom).Apply(b, a)
	}
	if err := kv.NewMachine().Apply(b, a); err != nil {
		return err
	}
	m.n.w.stray.apply(m.n, b, a)
	return nil
}

// expect notes that somebody waits for an answer of the host. Each is answered
// exactly once: the answer calls what is returned, and release looks for what is
// left when the host is closed.
func (n *node) expect(what string) (told func()) {
	n.waiting++
	gen, answered := n.asks, false
	return func() {
		if answered {
			n.twice = what // told by the next check: this may be another goroutine
		}
		if answered = true; gen == n.asks {
			n.waiting--
		}
	}
}

// door is the host as the request executor sees it, with checks in between.
type door struct{ n *node }

// Propose implements kv.Host.
func (d door) Propose(s raft.ShardID, cmd raft.Command, done func(data []byte, index raft.Index, slot uint32, err error)) {
	n, gen := d.n, d.n.gen
	n.w.orc.proposed(s, &cmd)
	told := n.expect("proposal")
	n.host.Propose(s, cmd, func(data []byte, index raft.Index, slot uint32, err error) {
		told()
		if n.gen != gen || !n.up {
			return
		}
		n.w.orc.answered(n, s, &cmd, data, index, slot, err)
		done(data, index, slot, err)
	})
}

// read asks for a read by one of the host's ways. Whoever may read must have
// applied everything that was acknowledged before it asked: S15.
func (d door) read(s raft.ShardID, how string, ask func(raft.ShardID, func(raft.Index, error)), done func(index raft.Index, err error)) {
	n, gen := d.n, d.n.gen
	acked := n.w.orc.groups[s].acked
	told := n.expect("read")
	ask(s, func(index raft.Index, err error) {
		told()
		if n.gen != gen || !n.up {
			return
		}
		if err == nil {
			if v, ok := n.host.View(s); index < acked || ok && v.Applied < index {
				n.w.fail("S15", "node %d allows a %s read of shard %d at index %d and has applied %d; acknowledged was %d before it was asked", n.id, how, s, index, v.Applied, acked)
			}
		}
		done(index, err)
	})
}

// ReadIndex implements kv.Host.
func (d door) ReadIndex(s raft.ShardID, done func(index raft.Index, err error)) {
	d.read(s, "quorum", d.n.host.ReadIndex, done)
}

// Read implements kv.Host.
func (d door) Read(s raft.ShardID, done func(index raft.Index, err error)) {
	d.read(s, "lease", d.n.host.Read, done)
}

// FollowerRead implements kv.Host.
func (d door) FollowerRead(s raft.ShardID, done func(index raft.Index, err error)) {
	d.read(s, "follower", d.n.host.FollowerRead, done)
}

// LeaseRead implements kv.Host. Whoever holds a lease has applied everything
// that was acknowledged by now: S14.
func (d door) LeaseRead(s raft.ShardID) bool {
	n := d.n
	if !n.host.LeaseRead(s) {
		return false
	}
	n.w.res.LeaseReads++
	if v, ok := n.host.View(s); ok && v.Asleep {
		n.w.res.AsleepRead++
	}
	n.w.drifting(n, coverage.LeaseRead, s)
	v, ok := n.host.View(s)
	g := n.w.orc.groups[s]
	if ok && v.Applied < g.acked {
		n.w.fail("S14", "node %d serves shard %d by its lease and has applied %d, acknowledged is %d", n.id, s, v.Applied, g.acked)
	}
	// By the clock of the world: whoever leads an earlier term has ended serving.
	if ok && v.Term < g.serving {
		n.w.fail("S14", "node %d serves shard %d by its lease in term %d, after a leader of term %d did", n.id, s, v.Term, g.serving)
	}
	if ok {
		g.serving = v.Term
	}
	return true
}

// Generation implements kv.Host.
func (d door) Generation(s raft.ShardID) uint64 { return d.n.host.Generation(s) }

// Descriptor implements kv.Host.
func (d door) Descriptor(s raft.ShardID) (raft.Descriptor, bool) { return d.n.host.Descriptor(s) }
