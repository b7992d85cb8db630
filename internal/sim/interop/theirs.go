package interop

import (
	"bytes"
	"fmt"

	etcd "go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// theirs is a member that runs the reference implementation. Its store is
// durable at the end of each Ready, as its documentation asks for.
type theirs struct {
	w     *world
	n     *node
	id    raft.ReplicaID
	store *etcd.MemoryStorage
	raw   *etcd.RawNode

	st          state
	applied     raft.Index
	appliedTerm raft.Term
	sinceCut    int
	ackTerm     raft.Term
	ackIndex    raft.Index
	lead        bool
}

func newTheirs(w *world, n *node, id raft.ReplicaID, first *snapshot) *theirs {
	m := &theirs{w: w, n: n, id: id, store: etcd.NewMemoryStorage()}
	if first != nil {
		m.w.must(m.store.ApplySnapshot(snapOf(first)))
		m.w.must(m.store.SetHardState(&pb.HardState{Term: new(uint64(first.term)), Commit: new(uint64(first.index))}))
	}
	m.boot()
	return m
}

func snapOf(s *snapshot) *pb.Snapshot {
	return &pb.Snapshot{Data: s.state.encode(), Metadata: &pb.SnapshotMetadata{
		ConfState: confState(&s.state.desc), Index: new(uint64(s.index)), Term: new(uint64(s.term)),
	}}
}

// boot starts from what the store holds.
func (m *theirs) boot() {
	snap, err := m.store.Snapshot()
	m.w.must(err)
	m.st, m.applied, m.appliedTerm = state{}, 0, 0
	if i := snap.GetMetadata().GetIndex(); i > 0 {
		m.st, err = decodeState(snap.GetData())
		m.w.must(err)
		m.applied, m.appliedTerm = raft.Index(i), raft.Term(snap.GetMetadata().GetTerm())
	}
	m.ackTerm, m.ackIndex, m.lead = 0, 0, false
	m.raw, err = etcd.NewRawNode(&etcd.Config{
		ID: uint64(m.id), ElectionTick: m.w.ticks, HeartbeatTick: 1, Storage: m.store, Applied: uint64(m.applied),
		MaxSizePerMsg: 4 << 10, MaxInflightMsgs: 16, MaxUncommittedEntriesSize: 1 << 20,
		CheckQuorum: m.w.o.Seed%2 == 0, PreVote: true, StepDownOnRemoval: true, Logger: quiet{},
	})
	m.w.must(err)
	m.ready()
}

func (m *theirs) replica() raft.ReplicaID { return m.id }

func (m *theirs) descriptor() *raft.Descriptor { return &m.st.desc }

func (m *theirs) crash() { m.raw = nil }

func (m *theirs) appliedAt() raft.Index { return m.applied }

func (m *theirs) leads() bool { return m.raw.BasicStatus().RaftState == etcd.StateLeader }

func (m *theirs) term() raft.Term { return raft.Term(m.raw.BasicStatus().GetTerm()) }

func (m *theirs) tick() {
	m.raw.Tick()
	if m.leads() && m.st.desc.IsJoint() {
		cc := raft.ConfChange{ConfVer: m.st.desc.ConfVer}
		_ = m.raw.ProposeConfChange(&pb.ConfChangeV2{Context: cc.Encode(nil)}) // refused while one is under way
	}
	m.ready()
}

func (m *theirs) alarm() {}

func (m *theirs) livenessChanged(raft.NodeID) {}

func (m *theirs) beats() {} // it makes its own

func (m *theirs) deliver(p *packet) {
	switch {
	case p.snap != nil:
		s := snapOf(p.snap)
		_ = m.raw.Step(&pb.Message{
			Type: pb.MsgSnap.Enum(), From: new(uint64(p.snap.from)), To: new(uint64(m.id)), Term: new(uint64(p.snap.sender)), Snapshot: s,
		})
	case p.theirs != nil:
		if p.theirs.GetTo() == uint64(m.id) {
			_ = m.raw.Step(p.theirs)
		}
	case p.ours != nil:
		m.fromOurs(p.ours)
	}
	m.ready()
}

func (m *theirs) fromOurs(o *raft.Msg) {
	if o.ToReplica != m.id {
		return
	}
	if o.Type == raft.MsgLeadQuery {
		// The reference has no such question. The adapter knows the answer.
		if t := m.term(); o.Term < t || o.Term == t && !m.leads() {
			m.w.send(&packet{from: m.n.id, to: o.From, ours: &raft.Msg{
				Type: raft.MsgStepDown, Shard: group, From: m.n.id, To: o.From, FromReplica: m.id, ToReplica: o.FromReplica, Term: o.Term,
			}})
		}
		return
	}
	acked := raft.Index(0)
	if m.ackTerm == o.Term {
		acked = m.ackIndex
	}
	for _, t := range toTheirs(o, acked) {
		_ = m.raw.Step(t)
	}
}

func (m *theirs) propose(body []byte) bool {
	if !m.leads() {
		return false
	}
	err := m.raw.Propose(append([]byte{rawCommand}, body...))
	m.ready()
	return err == nil
}

func (m *theirs) change(cc raft.ConfChange) bool {
	next, err := m.st.desc.Apply(cc)
	if err != nil || !m.leads() {
		return false
	}
	v2 := confChange(&m.st.desc, &next)
	v2.Context = cc.Encode(nil)
	err = m.raw.ProposeConfChange(v2)
	m.ready()
	return err == nil
}

func (m *theirs) transfer(to raft.ReplicaID) {
	if m.leads() {
		m.raw.TransferLeader(uint64(to))
		m.ready()
	}
}

func (m *theirs) read(ctx uint64) {
	if m.leads() {
		m.raw.ReadIndex(contextOf(ctx))
		m.ready()
	}
}

// ready carries out everything the reference asks for.
func (m *theirs) ready() {
	for m.raw.HasReady() {
		rd := m.raw.Ready()
		if rd.Snapshot != nil && rd.Snapshot.GetMetadata().GetIndex() > 0 {
			m.w.must(m.store.ApplySnapshot(rd.Snapshot))
			st, err := decodeState(rd.Snapshot.GetData())
			m.w.must(err)
			m.st, m.applied = st, raft.Index(rd.Snapshot.GetMetadata().GetIndex())
			m.appliedTerm = raft.Term(rd.Snapshot.GetMetadata().GetTerm())
			m.w.res.Snaps++
			m.w.orc.state(m.w, m.id, m.applied, &m.st)
		}
		m.w.must(m.store.Append(rd.Entries))
		if rd.HardState != nil {
			m.w.must(m.store.SetHardState(proto.Clone(rd.HardState).(*pb.HardState)))
		}
		for _, e := range rd.CommittedEntries {
			m.apply(e)
		}
		for _, r := range rd.ReadStates {
			m.w.orc.answered(m.w, roundOf(r.RequestCtx), raft.Index(r.Index))
		}
		for _, msg := range rd.Messages {
			m.sendOne(msg)
		}
		m.raw.Advance(rd)
		if now := m.leads(); now && !m.lead {
			m.w.orc.leader(m.w, m.term(), m.id, "etcd/raft")
			m.w.res.TheirTerms++
		}
		m.lead = m.leads()
	}
	if m.sinceCut > m.w.keep {
		m.sinceCut = 0
		s := snapshot{index: m.applied, term: m.appliedTerm, state: m.st}
		if _, err := m.store.CreateSnapshot(uint64(m.applied), confState(&m.st.desc), s.state.encode()); err != nil {
			return
		}
		if back := raft.Index(m.w.rng.IntN(m.w.keep)); back < m.applied {
			_ = m.store.Compact(uint64(m.applied - back)) // what is cut already stays cut
		}
	}
}

func (m *theirs) apply(e *pb.Entry) {
	ours, err := canonical(e)
	if err != nil {
		m.w.fail("entry %d at replica %d: %v", e.GetIndex(), m.id, err)
	}
	old := m.st.desc
	m.w.orc.apply(m.w, m.id, &m.st, ours)
	if m.applied+1 != ours.Index {
		m.w.fail("replica %d applies %d after %d", m.id, ours.Index, m.applied)
	}
	m.applied, m.appliedTerm = ours.Index, ours.Term
	m.sinceCut++
	if ours.Type == raft.EntryConf && m.st.desc.ConfVer != old.ConfVer {
		got := m.raw.ApplyConfChange(confChange(&old, &m.st.desc))
		if err := got.Equivalent(confState(&m.st.desc)); err != nil {
			m.w.fail("after entry %d the two implementations have different configurations: %v", ours.Index, err)
		}
	}
}

func (m *theirs) sendOne(msg *pb.Message) {
	switch msg.GetType() {
	case pb.MsgAppResp:
		if !msg.GetReject() {
			if t := raft.Term(msg.GetTerm()); t != m.ackTerm {
				m.ackTerm, m.ackIndex = t, 0
			}
			m.ackIndex = max(m.ackIndex, raft.Index(msg.GetIndex()))
		}
	case pb.MsgVoteResp:
		if !msg.GetReject() {
			m.w.orc.vote(m.w, m.id, raft.Term(msg.GetTerm()), raft.ReplicaID(msg.GetTo()))
		}
	case pb.MsgVote:
		m.w.orc.vote(m.w, m.id, raft.Term(msg.GetTerm()), m.id)
	case pb.MsgSnap:
		st, err := decodeState(msg.GetSnapshot().GetData())
		m.w.must(err)
		meta := msg.GetSnapshot().GetMetadata()
		m.w.sendSnapshot(m.n, &snapshot{
			from: m.id, to: raft.ReplicaID(msg.GetTo()), sender: raft.Term(msg.GetTerm()),
			index: raft.Index(meta.GetIndex()), term: raft.Term(meta.GetTerm()), state: st,
		})
		return
	}
	to := m.w.nodeOf(raft.ReplicaID(msg.GetTo()))
	if to != 0 {
		m.w.send(&packet{from: m.n.id, to: to, theirs: proto.Clone(msg).(*pb.Message)})
	}
}

func (m *theirs) snapshotSent(to raft.ReplicaID, _ raft.Index, _ raft.Term, ok bool) {
	status := etcd.SnapshotFinish
	if !ok {
		status = etcd.SnapshotFailure
		m.sinceCut = m.w.keep + 1 // perhaps it was too old to hold the new member: the next one is fresh
	}
	m.raw.ReportSnapshot(uint64(to), status)
	m.ready()
}

func (m *theirs) describe() string {
	s := m.raw.BasicStatus()
	var b bytes.Buffer
	fmt.Fprintf(&b, "etcd/raft %v term %d lead %d commit %d applied %d", s.RaftState, s.GetTerm(), s.Lead, s.GetCommit(), m.applied)
	return b.String()
}

// quiet is a logger that says nothing and turns Panic into a panic.
type quiet struct{}

func (quiet) Debug(...any)            {}
func (quiet) Debugf(string, ...any)   {}
func (quiet) Error(...any)            {}
func (quiet) Errorf(string, ...any)   {}
func (quiet) Info(...any)             {}
func (quiet) Infof(string, ...any)    {}
func (quiet) Warning(...any)          {}
func (quiet) Warningf(string, ...any) {}
func (quiet) Fatal(v ...any)          { panic(fmt.Sprint(v...)) }
func (quiet) Fatalf(f string, v ...any) {
	panic(fmt.Sprintf(f, v...))
}
func (quiet) Panic(v ...any) { panic(fmt.Sprint(v...)) }
func (quiet) Panicf(f string, v ...any) {
	panic(fmt.Sprintf(f, v...))
}
