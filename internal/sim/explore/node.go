package explore

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

const (
	nodesMax  = 3
	termsMax  = 5
	entryMax  = 8
	shardID   = raft.ShardID(2)
	farFuture = raft.Time(1 << 60)
)

// pair is what a node knows of its liveness towards another one. It stands for
// the rules of package liveness: the model of the rules themselves shows that
// they keep what Core assumes here.
type pair struct {
	given     raft.Epoch // the epoch at which this node supports the other
	givenLive bool
	asked     raft.Epoch // the epoch at which this node asks the other
	counted   bool       // and counts the answer
}

// image is the content of a node's store. Slices and descriptors in it are
// replaced, never changed.
type image struct {
	hard    raft.HardState
	applied raft.AppliedState
	desc    *raft.Descriptor
	log     []raft.Entry // from index 1
}

func (im *image) state() raft.State {
	st := raft.State{Hard: im.hard, Applied: im.applied, Desc: *im.desc, Last: raft.Index(len(im.log))}
	for _, e := range im.log {
		if n := len(st.Runs); n == 0 || st.Runs[n-1].Term != e.Term {
			st.Runs = append(st.Runs, raft.TermRun{First: e.Index, Term: e.Term})
		}
	}
	st.Tail = im.log[im.applied.Applied:]
	return st
}

func (im *image) do(b *batch) {
	for i := range b.appends {
		e := b.appends[i].Entries
		im.log = slices.Concat(im.log[:e[0].Index-1], e)
	}
	if b.hasHard {
		im.hard = b.hard
	}
	if b.applied != nil {
		im.applied = *b.applied
	}
	if b.desc != nil {
		im.desc = b.desc
	}
}

// batch is what one round writes. Batches become durable in order.
type batch struct {
	appends []raft.AppendTask
	hard    raft.HardState
	hasHard bool
	applied *raft.AppliedState
	desc    *raft.Descriptor
	held    []raft.Msg
}

// read is a read that waits for its index.
type read struct {
	ctx  uint64
	need raft.Index    // committed anywhere when it began
	ask  *raft.ReadAsk // it is another node's
}

// node is the state of one node. Once it is known to the model it never changes:
// a step makes another one.
type node struct {
	at    int // 0, 1, ..: node id - 1
	core  *raft.Core
	pairs [nodesMax]pair
	boot  uint32

	durable image
	visible image
	pending []*batch
	desc    *raft.Descriptor // applied
	votes   [termsMax + 1]uint8
	reads   []read

	// What follows from the above, kept for speed.
	st     raft.Status
	timers []raft.Timer
	leased bool       // holds a lease
	lease  raft.Index // at which it would serve reads under it
	hash   []uint64   // by renaming
	idle   marks      // messages that are known to have no effect
}

func (n *node) id() raft.NodeID { return raft.NodeID(n.at + 1) }

// SupportFor is raft.Liveness.
func (n *node) SupportFor(id raft.NodeID) (raft.Epoch, bool) {
	if id == n.id() {
		return raft.Epoch(n.boot), true
	}
	if id == 0 {
		return 0, false // of a leader that is not known
	}
	p := &n.pairs[id-1]
	return p.given, p.givenLive
}

// SupportFrom is raft.Liveness.
func (n *node) SupportFrom(id raft.NodeID) (raft.Epoch, raft.Time) {
	if id == n.id() {
		return raft.Epoch(n.boot), farFuture
	}
	p := &n.pairs[id-1]
	if !p.counted {
		return p.asked, 0
	}
	return p.asked, raft.FrozenTime.Add(time.Hour)
}

// clone returns a copy to be stepped.
func (n *node) clone() *node {
	c := *n
	c.pending = slices.Clone(n.pending)
	c.reads = slices.Clone(n.reads)
	c.timers, c.hash, c.idle = nil, nil, nil
	if n.core != nil {
		c.core = n.core.Clone(&c)
	}
	return &c
}

// effects is what a step of a node does beyond its own state.
type effects struct {
	msgs     []raft.Msg
	elected  raft.Term // led since this step; zero: none
	commits  []commit  // the commit index moved
	appended bool      // the log changed
	again    bool      // the core was handed something behind the flush
	fail     *Failure
}

// commit says that entries up to index were committed by configuration desc, and
// the term if it was the leader who did.
type commit struct {
	index raft.Index
	desc  *raft.Descriptor
	led   raft.Term
}

func (fx *effects) broken(rule, format string, args ...any) {
	if fx.fail == nil {
		fx.fail = &Failure{rule, fmt.Sprintf(format, args...)}
	}
}

// start makes the core from what is durable.
func (n *node) start(m *Group, fx *effects) {
	n.visible, n.pending, n.reads = n.durable, nil, nil
	n.desc = n.visible.desc
	c, err := raft.NewCore(raft.Config{Node: n.id(), Replica: raft.ReplicaID(n.at + 1), Liveness: n, Leased: true, Tuning: m.tuning}, n.visible.state(), raft.FrozenTime)
	if err != nil {
		fx.broken("F1", "node %d does not start: %v", n.id(), err)
		return
	}
	n.core = c
	n.st = c.Status()
	n.finish(m, fx)
}

// finish ends a round as the owner of a core does, and whatever rounds follow
// from it at once.
func (n *node) finish(m *Group, fx *effects) {
	o := &m.out
	for k := 0; ; k++ {
		if n.core.Stirred() {
			n.core.Flush(raft.FrozenTime, o)
		} else if err := n.core.CheckQuiet(raft.FrozenTime); err != nil {
			fx.broken("L3", "node %d: %v", n.id(), err)
		}
		b, desc := &batch{}, n.desc
		n.apply(b, o, fx)
		n.write(m, b, o, fx)
		n.core.Freeze(false)
		st := n.core.Status()
		switch {
		case st.Term < n.st.Term:
			fx.broken("S5", "node %d: the term goes back from %d to %d", n.id(), n.st.Term, st.Term)
		case st.Commit < n.st.Commit:
			fx.broken("S5", "node %d: the commit index goes back from %d to %d", n.id(), n.st.Commit, st.Commit)
		case st.Commit > st.Last:
			fx.broken("S5", "node %d: commit index %d is beyond the log's end %d", n.id(), st.Commit, st.Last)
		case st.Anomalies != 0:
			fx.broken("S11", "node %d got a message that no correct peer sends", n.id())
		}
		if st.Commit > n.st.Commit {
			c := commit{index: st.Commit, desc: desc}
			if st.Role == raft.RoleLeader {
				c.led = st.Term
			}
			fx.commits = append(fx.commits, c)
		}
		n.st = st
		if fx.fail != nil || n.core.Deadline() > raft.FrozenTime && !fx.again {
			return
		}
		fx.again = false
		if k == 8 {
			fx.broken("F1", "node %d does not come to rest", n.id())
			return
		}
		o.Reset()
		n.core.Tick(raft.FrozenTime, o)
	}
}

// apply hands committed entries to the state machine, which is the
// configuration and nothing else.
func (n *node) apply(b *batch, o *raft.Out, fx *effects) {
	as := n.visible.applied
	was := as.Applied
	for i := 0; i < len(o.Applies); i++ {
		for _, e := range o.Applies[i].Entries {
			if e.Index != as.Applied+1 {
				fx.broken("S4", "node %d applies entry %d after %d", n.id(), e.Index, as.Applied)
				return
			}
			as.Applied, as.AppliedTerm = e.Index, e.Term
			if e.Type == raft.EntryConf {
				if next, ok := nextDesc(n.desc, &e); ok {
					if !meet(n.desc, next) {
						fx.broken("S10", "quorums of configurations %v and %v need not meet", n.desc.Replicas, next.Replicas)
					}
					n.desc, b.desc, as.ConfIndex = next, next, e.Index
				}
				n.core.ConfApplied(raft.FrozenTime, n.desc.Clone(), e.Index, o)
			}
			n.core.Applied(e.Index, e.Term, len(e.Value), o)
		}
	}
	if as.Applied > was {
		b.applied = &as
	}
}

func nextDesc(d *raft.Descriptor, e *raft.Entry) (*raft.Descriptor, bool) {
	for _, c := range e.Commands() {
		cc, err := raft.DecodeConfChange(c.Body)
		if err != nil {
			return d, false
		}
		next, err := d.Apply(cc)
		return &next, err == nil
	}
	return d, false
}

// write makes the round's batch visible and sends what need not wait for it.
func (n *node) write(m *Group, b *batch, o *raft.Out, fx *effects) {
	for _, r := range o.Roles {
		if r.IsLeader && fx.elected != r.Term && (n.st.Role != raft.RoleLeader || n.st.Term != r.Term) {
			fx.elected = r.Term
		}
	}
	for _, a := range o.Asks {
		if index, ok := n.core.LeaseRead(raft.FrozenTime); ok {
			n.core.AnswerRead(a, index, true, o)
			continue
		}
		ctx := n.newContext()
		n.reads = append(n.reads, read{ctx: ctx, ask: &a})
		n.core.ReadIndex(raft.FrozenTime, ctx, o)
		fx.again = true
	}
	o.Asks = o.Asks[:0]
	for _, r := range o.Reads {
		i := slices.IndexFunc(n.reads, func(q read) bool { return q.ctx == r.Context })
		if i < 0 {
			continue
		}
		q := n.reads[i]
		if q.ask != nil {
			n.core.AnswerRead(*q.ask, r.Index, r.Err == nil, o)
		} else if r.Err == nil && r.Index < q.need {
			fx.broken("S15", "node %d answers a read with index %d, committed before it began was %d", n.id(), r.Index, q.need)
		}
		n.reads = slices.Delete(n.reads, i, i+1)
	}
	for i := range o.HardStates {
		b.hard, b.hasHard = o.HardStates[i].State, true
	}
	for i := range o.Appends {
		t := o.Appends[i]
		first := t.Entries[0].Index
		last := raft.Index(len(n.visible.log))
		if i > 0 {
			last = b.appends[i-1].Mark.Index
		}
		if t.OldLast != last || first > last+1 {
			fx.broken("S18", "node %d: append at %d (old end %d) to a log that ends at %d", n.id(), first, t.OldLast, last)
			return
		}
		for k := range t.Entries {
			e := &t.Entries[k]
			if e.Index <= n.st.Commit && n.visible.log[e.Index-1].Term != e.Term {
				fx.broken("S3", "node %d overwrites entry %d, which it knows to be committed", n.id(), e.Index)
			}
		}
		b.appends = append(b.appends, t)
		fx.appended = true
	}
	for i := range o.Msgs {
		n.send(m, &o.Msgs[i], fx)
	}
	b.held = slices.Clone(o.Held)
	if len(b.appends) == 0 && !b.hasHard && b.applied == nil && len(n.pending) == 0 {
		for i := range b.held {
			n.send(m, &b.held[i], fx)
		}
		return
	}
	if len(b.appends) == 0 && !b.hasHard && b.applied == nil && len(b.held) == 0 {
		return
	}
	n.visible.do(b)
	n.pending = append(n.pending, b)
}

// persist makes the oldest batch durable, sends what waited for that and tells
// the core.
func (n *node) persist(m *Group, fx *effects) {
	b := n.pending[0]
	n.pending = n.pending[1:]
	n.durable.do(b)
	if b.hasHard && b.hard.Vote != 0 && b.hard.Term <= termsMax {
		v := &n.votes[b.hard.Term]
		if *v != 0 && *v != uint8(b.hard.Vote) {
			fx.broken("S7", "node %d voted for %d and for %d in term %d", n.id(), *v, b.hard.Vote, b.hard.Term)
			return
		}
		*v = uint8(b.hard.Vote)
	}
	for i := range b.held {
		n.send(m, &b.held[i], fx)
	}
	if b.hasHard {
		n.core.Appended(raft.FrozenTime, raft.LogMark{Term: b.hard.Term}, &m.out)
	}
	for i := range b.appends {
		n.core.Appended(raft.FrozenTime, b.appends[i].Mark, &m.out)
	}
	n.finish(m, fx)
}

// send checks that what a message promises is durable (S6).
func (n *node) send(m *Group, msg *raft.Msg, fx *effects) {
	d := &n.durable
	switch msg.Type {
	case raft.MsgAppResp:
		if msg.Reject() || d.hard.Term > msg.Term {
			break
		}
		if int(msg.Index) > len(d.log) {
			fx.broken("S6", "node %d acknowledges entry %d, its durable log ends at %d", n.id(), msg.Index, len(d.log))
		}
		n.fortified(msg, fx)
	case raft.MsgFortifyResp:
		n.fortified(msg, fx)
	case raft.MsgVoteResp:
		if msg.Reject() || msg.Term > termsMax {
			break
		}
		v := &n.votes[msg.Term]
		if *v == 0 && d.hard.Term > msg.Term {
			*v = uint8(msg.ToReplica)
		}
		if *v != uint8(msg.ToReplica) {
			fx.broken("S6", "node %d grants %d a vote in term %d, durable is a vote for %d", n.id(), msg.ToReplica, msg.Term, *v)
		}
	}
	msg.CompactTo = 0 // logs are not cut in this model
	fx.msgs = append(fx.msgs, *msg)
}

func (n *node) fortified(msg *raft.Msg, fx *effects) {
	h := &n.durable.hard
	if msg.Epoch != 0 && h.Term <= msg.Term && (h.Term != msg.Term || h.Lead != msg.ToReplica || h.LeadEpoch != msg.Epoch) {
		fx.broken("S6", "node %d promises epoch %d to %d in term %d, durable is %+v", n.id(), msg.Epoch, msg.ToReplica, msg.Term, *h)
	}
}

// newContext returns a context that no waiting read has.
func (n *node) newContext() uint64 {
	ctx := uint64(1)
	for _, r := range n.reads {
		ctx = max(ctx, r.ctx+1)
	}
	return ctx
}

// appendForm appends the canonical form of n under a renaming.
func (n *node) appendForm(dst []byte, f *raft.StateForm) []byte {
	u := binary.AppendUvarint
	id := func(i uint8) uint8 { return uint8(f.Rename[i]) }
	dst = append(dst, id(uint8(n.at+1)), byte(n.boot))
	var pairs [nodesMax]*pair
	for i := range n.pairs {
		pairs[f.Rename[i+1]-1] = &n.pairs[i]
	}
	for _, p := range pairs {
		dst = u(u(append(dst, bit(p.givenLive)|bit(p.counted)<<1), uint64(p.given)), uint64(p.asked))
	}
	for _, v := range n.votes {
		dst = append(dst, id(v))
	}
	dst = append(dst, byte(len(n.reads)))
	for _, r := range n.reads {
		dst = append(dst, byte(r.ctx), byte(r.need), bit(r.ask != nil))
		if r.ask != nil {
			dst = u(append(dst, id(uint8(r.ask.From))), r.ask.Round)
		}
	}
	dst = n.durable.appendForm(dst, f)
	dst = append(dst, byte(len(n.pending)))
	for _, b := range n.pending {
		dst = append(dst, byte(len(b.appends)), bit(b.hasHard)|bit(b.applied != nil)<<1|bit(b.desc != nil)<<2, byte(len(b.held)))
		for i := range b.appends {
			t := &b.appends[i]
			dst = append(dst, byte(t.Mark.Term), byte(t.Mark.Index), byte(len(t.Entries)))
			for k := range t.Entries {
				dst = f.AppendEntry(dst, &t.Entries[k])
			}
		}
		if b.hasHard {
			dst = f.AppendHardState(dst, &b.hard)
		}
		if b.applied != nil {
			dst = append(dst, byte(b.applied.Applied), byte(b.applied.AppliedTerm), byte(b.applied.ConfIndex))
		}
		if b.desc != nil {
			dst = f.AppendDescriptor(dst, b.desc)
		}
		held := uint64(0) // in whatever order
		for i := range b.held {
			end := len(dst)
			dst = f.AppendMsg(dst, &b.held[i])
			held += hash(dst[end:])
			dst = dst[:end]
		}
		dst = binary.LittleEndian.AppendUint64(dst, held)
	}
	return n.core.AppendState(dst, f)
}

func (im *image) appendForm(dst []byte, f *raft.StateForm) []byte {
	dst = f.AppendHardState(dst, &im.hard)
	dst = append(dst, byte(im.applied.Applied), byte(im.applied.AppliedTerm), byte(im.applied.ConfIndex))
	dst = f.AppendDescriptor(dst, im.desc)
	dst = append(dst, byte(len(im.log)))
	for i := range im.log {
		dst = f.AppendEntry(dst, &im.log[i])
	}
	return dst
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// quorum reports whether has holds for a majority of every half of d.
func quorum(d *raft.Descriptor, has func(raft.Replica) bool) bool {
	var in, inYes, out, outYes int
	for _, r := range d.Replicas {
		yes := int(bit(has(r)))
		if r.Role == raft.Voter || r.Role == raft.VoterIncoming {
			in++
			inYes += yes
		}
		if r.Role == raft.Voter || r.Role == raft.VoterOutgoing || r.Role == raft.VoterDemoting {
			out++
			outYes += yes
		}
	}
	return in > 0 && inYes > in/2 && outYes > out/2
}

// meet reports whether every quorum of a meets every quorum of b.
func meet(a, b *raft.Descriptor) bool {
	for set := range uint(1 << nodesMax) {
		in := func(r raft.Replica) bool { return set>>(r.Node-1)&1 != 0 }
		if quorum(a, in) && quorum(b, func(r raft.Replica) bool { return !in(r) }) {
			return false
		}
	}
	return true
}
