package crashpoint

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"time"

	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
	"github.com/flotillakv/flotilla/shard/kv"
	"github.com/flotillakv/flotilla/snapshot"
)

// fleet is some whole nodes, stepped by hand on one goroutine, that talk to each
// other and to whomever the scenario plays itself.
type fleet struct {
	r       *Run
	members []*member
	now     raft.Time
	wire    []raft.Msg
	tasks   []func() // snapshots on their way
	cut     map[[2]raft.NodeID]bool
	down    map[raft.NodeID]bool   // whose support has lapsed
	extra   map[raft.NodeID]uint64 // epochs that were given up
	// script is told of messages to nodes that are no members.
	script func(m raft.Msg)
	value  int // bytes, at most
	keys   int
	sent   int // snapshots

	// Of all members, before they are opened.
	tuning     raft.Tuning
	smallBytes int // see snapshot.Options
	slowSyncs  bool
}

// member is one of its nodes.
type member struct {
	*node
	c     *fleet
	h     *multiraft.Host
	st    *multiraft.Stepper
	snaps *snapshot.Store
	acked []clientAck // of this round, term not known yet
	err   error
}

func newFleet(r *Run) *fleet {
	return &fleet{
		r: r, now: raft.Time(time.Hour), cut: map[[2]raft.NodeID]bool{}, down: map[raft.NodeID]bool{}, extra: map[raft.NodeID]uint64{},
		value: 20 + r.rng.IntN(200), keys: 30, tuning: raft.Tuning{LogKeepEntries: 8, TailBytes: 64, IdleTruncate: 20 * time.Millisecond, CommitDelay: 2 * time.Millisecond},
	}
}

// start opens the given nodes.
func (c *fleet) start(ids ...raft.NodeID) error {
	for _, id := range ids {
		n, err := c.r.AddNode(id)
		if err != nil {
			return err
		}
		m := &member{node: n, c: c}
		c.members = append(c.members, m)
		if err := m.run(); err != nil {
			return err
		}
	}
	return nil
}

func (c *fleet) member(id raft.NodeID) *member {
	for _, m := range c.members {
		if m.id == id {
			return m
		}
	}
	return nil
}

// run makes the host of an open store.
func (m *member) run() (err error) {
	from := m.r.j.Len()
	if m.snaps, err = snapshot.New(snapshot.Options{Engine: m.e, Node: m.id, SmallBytes: m.c.smallBytes, TableBytes: 2 << 10, Inline: true, Clock: snapClock{m.c}}); err != nil {
		return err
	}
	states, err := m.e.Boot()
	if err != nil {
		return err
	}
	m.h, err = multiraft.New(multiraft.Config{
		Node: m.id, Engine: m.e, Net: m, Liveness: view{m}, Clock: m, Machine: kv.NewMachine(), Snapshots: m,
		Tuning: m.c.tuning, Loops: 1, Seed: uint64(m.id), OnFatal: func(err error) { m.err = err },
	})
	if err != nil {
		return err
	}
	if m.st, err = m.h.Stepper(); err != nil {
		return err
	}
	loaded := make([]raft.State, 0, len(states))
	for _, s := range states {
		loaded = append(loaded, s.State)
	}
	if err := m.h.AddGroups(loaded); err != nil {
		return err
	}
	return m.see(from)
}

// stop closes the host and the store; halted: the loops are only stopped, what
// is open stays open.
func (m *member) stop(halted bool) error {
	m.r.Note("node %d stops, halted %v", m.id, halted)
	from := m.r.j.Len()
	if halted {
		m.h.Halt()
	}
	m.h.Close()
	m.snaps.Close()
	if err := m.see(from); err != nil {
		return err
	}
	if err := m.e.Close(); err != nil {
		return err
	}
	m.durable("a clean close")
	m.e = nil
	return nil
}

// startAgain opens a stopped member.
func (m *member) startAgain() error {
	m.r.Note("node %d starts", m.id)
	if err := m.open(); err != nil {
		return err
	}
	return m.run()
}

// Now implements multiraft.Clock.
func (m *member) Now() raft.Time { return m.c.now }

// Wall implements multiraft.Clock.
func (m *member) Wall() uint64 { return uint64(m.c.now) }

// view is the liveness table of a node: everybody is alive who is not down.
type view struct{ m *member }

func (c *fleet) epoch(n raft.NodeID) raft.Epoch { return raft.Epoch(1+c.extra[n]) << 32 }

func (v view) SupportFor(n raft.NodeID) (raft.Epoch, bool) {
	return v.m.c.epoch(n), !v.m.c.down[n] || n == v.m.id
}

func (v view) SupportFrom(n raft.NodeID) (raft.Epoch, raft.Time) {
	c := v.m.c
	if n != v.m.id && (c.down[n] || c.down[v.m.id]) {
		return c.epoch(v.m.id), 0
	}
	return c.epoch(v.m.id), c.now.Add(time.Hour)
}

// setDown makes everybody withdraw its support of a node, or give it again at a new epoch.
func (c *fleet) setDown(n raft.NodeID, down bool) {
	c.r.Note("node %d is taken for dead: %v", n, down)
	c.down[n] = down
	if down {
		c.extra[n]++
	}
	for _, m := range c.members {
		if m.e == nil {
			continue
		}
		for _, o := range c.members {
			m.h.LivenessChanged(o.id)
		}
	}
}

// cutOff cuts a node off, or heals its links.
func (c *fleet) cutOff(n raft.NodeID, off bool) {
	c.r.Note("node %d is cut off: %v", n, off)
	for _, m := range c.members {
		c.cut[[2]raft.NodeID{n, m.id}], c.cut[[2]raft.NodeID{m.id, n}] = off, off
		if !off && m.e != nil {
			for _, o := range c.members {
				m.h.PeerReset(o.id)
			}
		}
	}
}

// Send implements multiraft.Net. What leaves is a promise.
func (m *member) Send(_ raft.NodeID, msgs []raft.Msg) {
	for _, x := range msgs {
		m.promise(x)
		m.c.wire = append(m.c.wire, x)
	}
}

// promise notes what a message tells its receiver about the sender's disk.
func (m *member) promise(x raft.Msg) {
	group := func(s *State) *Group {
		if g := s.Groups[x.Shard]; g != nil {
			if r, ok := g.Desc.ReplicaOn(m.id); ok && r.ID == x.FromReplica {
				return g
			}
		}
		return nil
	}
	hard := func(test func(raft.HardState) bool) func(*State) bool {
		return func(s *State) bool {
			g := group(s)
			return g != nil && (g.Hard.Term > x.Term || g.Hard.Term == x.Term && test(g.Hard)) || g == nil && s.Tombs[x.Shard] > x.FromReplica
		}
	}
	switch {
	case x.Reject():
	case x.Type == raft.MsgVoteResp:
		m.promised(fmt.Sprintf("shard %d: a vote for replica %d in term %d", x.Shard, x.ToReplica, x.Term), hard(func(h raft.HardState) bool { return h.Vote == x.ToReplica }), nil)
	case x.Type == raft.MsgAppResp || x.Type == raft.MsgFortifyResp:
		if x.Epoch != 0 {
			m.promised(fmt.Sprintf("shard %d: fortified replica %d in term %d, epoch %d", x.Shard, x.ToReplica, x.Term, x.Epoch),
				hard(func(h raft.HardState) bool { return h.Lead == x.ToReplica && h.LeadEpoch >= x.Epoch }), nil)
		}
		if x.Type != raft.MsgAppResp || x.Index == 0 {
			return
		}
		term, known := raft.Term(0), false
		if g := group(m.moments[len(m.moments)-1].s); g != nil {
			term, known = g.Term(x.Index)
			known = known || x.Index <= g.Applied.TruncIndex
		}
		m.promised(fmt.Sprintf("shard %d: has entry %d of term %d, in term %d", x.Shard, x.Index, term, x.Term), func(s *State) bool {
			g := group(s)
			if g == nil || !known {
				return known && s.Tombs[x.Shard] > x.FromReplica
			}
			t, ok := g.Term(x.Index)
			return g.Hard.Term >= x.Term && (ok && t == term || x.Index <= g.Applied.TruncIndex)
		}, func(s *State) bool { g := group(s); return g != nil && g.Hard.Term == x.Term })
	case x.Type == raft.MsgSnapStatus && x.Index > 0:
		m.promised(fmt.Sprintf("shard %d: has a snapshot at %d", x.Shard, x.Index), func(s *State) bool {
			g := group(s)
			return g != nil && g.Applied.Applied >= x.Index
		}, nil)
	}
}

// SendSnapshot implements multiraft.SnapshotSender.
func (m *member) SendSnapshot(desc raft.Descriptor, to raft.NodeID, _ raft.ReplicaID, done func(raft.Index, raft.Term, error)) {
	c := m.c
	c.tasks = append(c.tasks, func() {
		t := c.member(to)
		if t == nil || t.e == nil || m.e == nil || c.cut[[2]raft.NodeID{m.id, to}] {
			done(0, 0, fmt.Errorf("node %d is out of reach", to))
			return
		}
		c.r.Note("snapshot of shard %d to node %d", desc.Shard, to)
		g, err := m.stream(t, &desc, math.MaxInt)
		if err != nil {
			done(0, 0, err)
			return
		}
		index, term := g.Meta.Index, g.Meta.Term
		c.sent++
		install := func(hs raft.HardState, as raft.AppliedState, exists, keepLog bool) (raft.State, error) {
			from := t.r.j.Len()
			st, err := g.InstallOn(hs, as, exists, keepLog)
			if err == nil {
				err = t.see(from) // it is told of in the same round
				t.durable("a snapshot was installed")
			}
			return st, err
		}
		err = t.h.InstallAside(desc.Shard, index, term, install, func(err error) {
			g.Close()
			done(index, term, err)
		})
		if err != nil {
			done(0, 0, err)
		}
	})
}

// stream brings a snapshot to t, or the first messages of it.
func (m *member) stream(t *member, desc *raft.Descriptor, messages int) (g *snapshot.Staged, err error) {
	opened := false
	_, _, err = m.snaps.Send(context.Background(), desc, t.id, func(_ context.Context, header []byte) (snapshot.Stream, error) {
		if opened { // the connection does not come back
			return nil, snapshot.Verdict(errors.New("out of reach"))
		}
		opened = true
		return &shortStream{snapshot.Pipe(func(next func() ([]byte, error), reply func([]byte) error) (err error) {
			g, err = t.snaps.Handle(m.id, header, next, reply)
			return err
		}), messages}, nil
	})
	if err != nil && g != nil {
		g.Close()
		return nil, errors.Join(err, errors.New("a part of a snapshot was taken for a whole one"))
	}
	return g, err
}

// shortStream breaks after some messages.
type shortStream struct {
	*snapshot.PipeStream
	left int
}

func (s *shortStream) Send(b []byte) error {
	if s.left--; s.left < 0 {
		s.Cut()
	}
	return s.PipeStream.Send(b)
}

// snapClock is the clock of the members' snapshots.
type snapClock struct{ c *fleet }

func (s snapClock) Now() raft.Time { return s.c.now }

func (snapClock) Sleep(context.Context, time.Duration) error { return nil }

// turn runs one round of everybody and delivers what was sent before it. It
// reports whether anything happened.
func (c *fleet) turn() (bool, error) {
	busy := false
	wire := c.wire
	c.wire = nil
	for _, x := range wire {
		busy = true
		if c.cut[[2]raft.NodeID{x.From, x.To}] {
			continue
		}
		if t := c.member(x.To); t != nil {
			if t.e != nil {
				t.h.OnMessages(x.From, []raft.Msg{x})
			}
		} else if c.script != nil {
			c.script(x)
		}
	}
	tasks := c.tasks
	c.tasks = nil
	for _, f := range tasks {
		busy = true
		f()
	}
	for _, m := range c.members {
		if m.e == nil {
			continue
		}
		did, err := m.round()
		if err != nil {
			return false, err
		}
		busy = busy || did
	}
	return busy, nil
}

func (m *member) round() (bool, error) {
	from := m.r.j.Len()
	did := m.st.Step(0, m.c.now)
	if did {
		if err := m.see(from); err != nil {
			return false, err
		}
	}
	for _, v := range m.h.Views() {
		g := m.moments[len(m.moments)-1].s.Groups[v.Shard]
		if did && g != nil && (g.Desc.ConfVer != v.Desc.ConfVer || g.Applied.Applied != v.Applied || g.Hard.Term < v.Term && v.IsLeader) {
			return false, fmt.Errorf("node %d shard %d: in memory configuration %d, applied %d, on disk %d, %d", m.id, v.Shard,
				v.Desc.ConfVer, v.Applied, g.Desc.ConfVer, g.Applied.Applied)
		}
	}
	for _, a := range m.acked {
		if g := m.moments[len(m.moments)-1].s.Groups[a.shard]; g != nil {
			a.term, _ = g.Term(a.index)
		}
		m.r.acks = append(m.r.acks, a)
	}
	m.acked = nil
	// Slow syncs are completed late, two at once.
	if n := m.st.Unsynced(0); n > 0 && (!m.c.slowSyncs || n > 1 || m.r.rng.IntN(3) == 0) {
		for range n {
			m.st.Complete(0)
		}
		did = true
	}
	if m.err != nil {
		return false, fmt.Errorf("node %d: %w", m.id, m.err)
	}
	return did || m.st.Unsynced(0) > 0, nil
}

// until runs the fleet until cond holds, time passing 1 ms a round.
func (c *fleet) until(what string, cond func() bool) error {
	for range 20000 {
		if cond() {
			return nil
		}
		c.now += raft.Time(time.Millisecond)
		if _, err := c.turn(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return fmt.Errorf("%s: it did not happen: %s", what, c.show())
}

// settle runs the fleet for some rounds, whatever happens.
func (c *fleet) pass(rounds int) error {
	for range rounds {
		c.now += raft.Time(time.Millisecond)
		if _, err := c.turn(); err != nil {
			return err
		}
	}
	return nil
}

func (c *fleet) show() (out string) {
	for _, m := range c.members {
		if m.e == nil {
			continue
		}
		for _, v := range m.h.Views() {
			out += fmt.Sprintf("node %d shard %d term %d leader %d commit %d applied %d last %d replicas %v; ", m.id, v.Shard, v.Term, v.Leader, v.Commit, v.Applied, v.Last, v.Desc.Replicas)
		}
	}
	return out
}

// call runs f, which waits for a loop, beside the rounds.
func (c *fleet) call(f func() error) error {
	ch := make(chan error, 1)
	go func() { ch <- f() }()
	for {
		select {
		case err := <-ch:
			return err
		default:
		}
		if _, err := c.turn(); err != nil {
			return err
		}
		runtime.Gosched()
	}
}

// create makes groups on the members.
func (c *fleet) create(descs ...raft.Descriptor) error {
	for _, m := range c.members {
		from := m.r.j.Len()
		if err := m.h.CreateGroups(descs); err != nil {
			return err
		}
		if err := m.see(from); err != nil {
			return err
		}
		m.durable("groups were created")
	}
	return nil
}

// lead makes node n lead shard.
func (c *fleet) lead(s raft.ShardID, n raft.NodeID) error {
	m := c.member(n)
	c.r.Note("node %d campaigns for shard %d", n, s)
	if err := c.call(func() error { return m.h.Campaign(context.Background(), s) }); err != nil {
		return err
	}
	leads := func() bool {
		v, ok := m.h.View(s)
		return ok && v.IsLeader && v.IsReady
	}
	// Another one may have campaigned by itself before.
	err := c.until("election", func() bool {
		l := c.leader(s)
		if l == nil || c.down[l.id] || c.cut[[2]raft.NodeID{l.id, n}] {
			return leads()
		}
		v, _ := l.h.View(s)
		return v.IsReady
	})
	if err != nil || leads() {
		return err
	}
	if l := c.leader(s); l != nil && l != m {
		if err := c.call(func() error { return l.h.Transfer(context.Background(), s, n) }); err != nil {
			return err
		}
	}
	return c.until("transfer after an election", leads)
}

// leader returns the member that leads a shard.
func (c *fleet) leader(s raft.ShardID) *member {
	var best *member
	var term raft.Term
	for _, m := range c.members {
		if m.e == nil {
			continue
		}
		if v, ok := m.h.View(s); ok && v.IsLeader && v.Term >= term {
			best, term = m, v.Term
		}
	}
	return best
}

// propose hands n commands to node m, and does not wait. open counts those
// without an answer.
func (m *member) propose(s raft.ShardID, n int, open *int) {
	d, _ := m.h.Descriptor(s)
	for range n {
		k := m.r.rng.IntN(m.c.keys)
		key := fmt.Appendf(nil, "%s/%05d", d.Start, k)
		var cmd raft.Command
		var err error
		switch m.r.rng.IntN(8) {
		case 0:
			cmd, err = shard.DeleteCommand(key)
		case 1:
			cmd, err = shard.DeleteRangeCommand(fmt.Appendf(nil, "%s/%05d", d.Start, max(0, k-5)), key)
		default:
			cmd, err = shard.PutCommand(key, make([]byte, 10+m.r.rng.IntN(m.c.value)))
		}
		if err != nil {
			panic(err) // keys and values of this function's own making
		}
		*open++
		m.h.Propose(s, cmd, func(_ []byte, index raft.Index, _ uint32, err error) {
			*open--
			if err == nil {
				m.acked = append(m.acked, clientAck{at: m.r.j.Len(), shard: s, index: index})
			}
		})
	}
}

// write proposes commands one burst after the other and waits for the answers.
func (c *fleet) write(s raft.ShardID, bursts, each int) error {
	c.r.Note("%d writes to shard %d", bursts*each, s)
	open := 0
	for range bursts {
		m := c.leader(s)
		if m == nil {
			return fmt.Errorf("shard %d has no leader: %s", s, c.show())
		}
		m.propose(s, each, &open)
		if err := c.until("write", func() bool { return open <= each/2 }); err != nil {
			return err
		}
	}
	return c.until("write", func() bool { return open == 0 })
}

// level waits until all live replicas have applied the same.
func (c *fleet) level(s raft.ShardID) error {
	return c.until("catching up", func() bool {
		l := c.leader(s)
		if l == nil {
			return false
		}
		lv, _ := l.h.View(s)
		for _, rep := range lv.Desc.Replicas {
			m := c.member(rep.Node)
			if m == nil || m.e == nil || c.cut[[2]raft.NodeID{l.id, m.id}] {
				continue
			}
			if v, ok := m.h.View(s); !ok || v.Applied != lv.Last || v.Desc.ConfVer != lv.Desc.ConfVer {
				return false
			}
		}
		return true
	})
}

// change carries out a change of members.
func (c *fleet) change(s raft.ShardID, steps ...raft.ConfStep) error {
	c.r.Note("change of members of shard %d: %+v", s, steps)
	m := c.leader(s)
	if m == nil {
		return fmt.Errorf("shard %d has no leader", s)
	}
	v, _ := m.h.View(s)
	open := 1
	var answer []byte
	var failed error
	err := c.call(func() error {
		return m.h.ChangeConf(context.Background(), s, raft.ConfChange{Steps: steps, ConfVer: v.Desc.ConfVer}, func(data []byte, _ raft.Index, _ uint32, err error) {
			open, answer, failed = 0, data, err
		})
	})
	if err != nil {
		return err
	}
	if err := c.until("change", func() bool { return open == 0 }); err != nil {
		return err
	}
	if failed != nil || len(answer) > 0 {
		return fmt.Errorf("change of members: %s %w", answer, failed)
	}
	return c.until("end of a joint configuration", func() bool {
		l := c.leader(s)
		if l == nil {
			return false
		}
		v, _ := l.h.View(s)
		return !v.Desc.IsJoint()
	})
}
