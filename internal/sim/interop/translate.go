package interop

import (
	"encoding/binary"
	"fmt"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// group is the id of the one group.
const group raft.ShardID = 9

// packet is what travels from node to node: a message in its sender's form, a
// snapshot, or a heartbeat between the nodes.
type packet struct {
	from, to raft.NodeID
	ours     *raft.Msg
	theirs   *pb.Message
	snap     *snapshot
	beat     bool
	heard    bool // beat: the sender has heard the receiver lately
}

// snapshot is a member's state at an index.
type snapshot struct {
	from, to raft.ReplicaID
	sender   raft.Term // of the sender
	index    raft.Index
	term     raft.Term
	state    state
}

// state is the replicated state machine: a digest over all entries, and the
// configuration.
type state struct {
	digest    uint64
	confIndex raft.Index
	desc      raft.Descriptor
}

func (s *state) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, s.digest)
	b = binary.BigEndian.AppendUint64(b, uint64(s.confIndex))
	return s.desc.Encode(b)
}

func decodeState(b []byte) (state, error) {
	if len(b) < 16 {
		return state{}, fmt.Errorf("a state of %d bytes", len(b))
	}
	d, err := raft.DecodeDescriptor(b[16:])
	return state{
		digest:    binary.BigEndian.Uint64(b),
		confIndex: raft.Index(binary.BigEndian.Uint64(b[8:])),
		desc:      d,
	}, err
}

// rawCommand marks a command that the reference's leader proposed: its entry
// becomes one of ours only when index and term are known.
const rawCommand = 0x7f

// canonical returns the entry of ours that stands for e.
func canonical(e *pb.Entry) (raft.Entry, error) {
	index, term := raft.Index(e.GetIndex()), raft.Term(e.GetTerm())
	data := e.GetData()
	encode := func(typ raft.EntryType, cmds []raft.Command) (raft.Entry, error) {
		v := raft.EncodeEntry(nil, index, term, typ, raft.EntryHeader{}, cmds)
		return raft.Entry{Index: index, Term: term, Type: typ, Value: v}, nil
	}
	if len(data) == 0 {
		return encode(raft.EntryEmpty, nil)
	}
	if data[0] == rawCommand {
		return encode(raft.EntryNormal, []raft.Command{{Op: 1, Body: data[1:]}})
	}
	ours, err := raft.DecodeEntry(index, data)
	if err != nil && e.GetType() == pb.EntryConfChangeV2 {
		var cc pb.ConfChangeV2
		if proto.Unmarshal(data, &cc) == nil && len(cc.Context) > 0 {
			return encode(raft.EntryConf, []raft.Command{{Body: cc.Context}})
		}
	}
	if err == nil && ours.Term != term {
		err = fmt.Errorf("entry %d of term %d carries one of term %d", index, term, ours.Term)
	}
	return ours, err
}

// opaque returns the entry of theirs that carries e.
func opaque(e raft.Entry) *pb.Entry {
	out := &pb.Entry{Index: new(uint64(e.Index)), Term: new(uint64(e.Term)), Type: pb.EntryNormal.Enum(), Data: e.Value}
	if e.Type == raft.EntryConf {
		out.Type = pb.EntryConfChangeV2.Enum()
	}
	return out
}

// noContext is the read round that stands for a heartbeat without a context.
const noContext = 1 << 63

func contextOf(round uint64) []byte {
	if round == 0 || round == noContext {
		return nil
	}
	return binary.BigEndian.AppendUint64(nil, round)
}

func roundOf(context []byte) uint64 {
	if len(context) != 8 {
		return noContext
	}
	return binary.BigEndian.Uint64(context)
}

var transferContext = []byte("CampaignTransfer")

// toTheirs translates a message of ours for a member of theirs that has
// acknowledged the log through acked in the message's term. What has no
// counterpart gives nothing.
func toTheirs(m *raft.Msg, acked raft.Index) []*pb.Message {
	t := func(typ pb.MessageType) *pb.Message {
		return &pb.Message{Type: typ.Enum(), From: new(uint64(m.FromReplica)), To: new(uint64(m.ToReplica)), Term: new(uint64(m.Term))}
	}
	beat := func() *pb.Message {
		h := t(pb.MsgHeartbeat)
		h.Commit = new(uint64(min(m.Commit, acked)))
		h.Context = contextOf(m.Round)
		return h
	}
	switch m.Type {
	case raft.MsgApp:
		a := t(pb.MsgApp)
		a.Index, a.LogTerm, a.Commit = new(uint64(m.Index)), new(uint64(m.LogTerm)), new(uint64(m.Commit))
		for _, e := range m.Entries {
			a.Entries = append(a.Entries, opaque(e))
		}
		if m.Round != 0 {
			return []*pb.Message{a, beat()}
		}
		return []*pb.Message{a}
	case raft.MsgAppResp:
		a := t(pb.MsgAppResp)
		a.Index = new(uint64(m.Index))
		if m.Reject() {
			a.Reject = new(true)
			a.Index, a.RejectHint, a.LogTerm = new(uint64(m.Commit)), new(uint64(m.Index)), new(uint64(m.LogTerm))
		}
		return []*pb.Message{a}
	case raft.MsgVote, raft.MsgPreVote:
		v := t(pb.MsgVote)
		if m.Type == raft.MsgPreVote {
			v.Type = pb.MsgPreVote.Enum()
		}
		v.Index, v.LogTerm = new(uint64(m.Index)), new(uint64(m.LogTerm))
		if m.Flags&raft.FlagGrant != 0 {
			v.Context = transferContext
		}
		return []*pb.Message{v}
	case raft.MsgVoteResp, raft.MsgPreVoteResp:
		v := t(pb.MsgVoteResp)
		if m.Type == raft.MsgPreVoteResp {
			v.Type = pb.MsgPreVoteResp.Enum()
		}
		v.Reject = new(m.Reject())
		return []*pb.Message{v}
	case raft.MsgTimeoutNow:
		return []*pb.Message{t(pb.MsgTimeoutNow)}
	case raft.MsgCommit:
		return []*pb.Message{beat()}
	case raft.MsgCommitResp:
		h := t(pb.MsgHeartbeatResp)
		h.Context = contextOf(m.Round)
		return []*pb.Message{h}
	}
	return nil
}

// toOurs translates a message of theirs for a member of ours on node to.
func toOurs(m *pb.Message, from, to raft.NodeID) (*raft.Msg, error) {
	o := &raft.Msg{
		Shard: group, From: from, To: to, FromReplica: raft.ReplicaID(m.GetFrom()), ToReplica: raft.ReplicaID(m.GetTo()),
		Term: raft.Term(m.GetTerm()), Index: raft.Index(m.GetIndex()), LogTerm: raft.Term(m.GetLogTerm()), Commit: raft.Index(m.GetCommit()),
	}
	if m.GetReject() {
		o.Flags = raft.FlagReject
	}
	switch m.GetType() {
	case pb.MsgApp:
		o.Type = raft.MsgApp
		for _, e := range m.Entries {
			ours, err := canonical(e)
			if err != nil {
				return nil, err
			}
			o.Entries = append(o.Entries, ours)
		}
	case pb.MsgAppResp:
		o.Type, o.Commit, o.LogTerm = raft.MsgAppResp, 0, 0
		if m.GetReject() {
			o.Commit, o.Index, o.LogTerm = raft.Index(m.GetIndex()), raft.Index(m.GetRejectHint()), raft.Term(m.GetLogTerm())
		}
	case pb.MsgVote, pb.MsgPreVote:
		o.Type = raft.MsgVote
		if m.GetType() == pb.MsgPreVote {
			o.Type = raft.MsgPreVote
		}
		if string(m.GetContext()) == string(transferContext) {
			o.Flags |= raft.FlagGrant
		}
		o.Commit = 0
	case pb.MsgVoteResp, pb.MsgPreVoteResp:
		o.Type = raft.MsgVoteResp
		if m.GetType() == pb.MsgPreVoteResp {
			o.Type = raft.MsgPreVoteResp
		}
		o.Index, o.Commit, o.LogTerm = 0, 0, 0
	case pb.MsgHeartbeat:
		o.Type, o.Round = raft.MsgCommit, roundOf(m.GetContext())
	case pb.MsgHeartbeatResp:
		o.Type, o.Round = raft.MsgCommitResp, roundOf(m.GetContext())
		if o.Round == noContext {
			return nil, nil // of a heartbeat that the adapter made
		}
	case pb.MsgTimeoutNow:
		o.Type, o.Flags = raft.MsgTimeoutNow, raft.FlagGrant
	default:
		return nil, nil
	}
	return o, nil
}

// confState says a descriptor's configuration in their words.
func confState(d *raft.Descriptor) *pb.ConfState {
	cs := &pb.ConfState{}
	for _, r := range d.Replicas {
		id := uint64(r.ID)
		switch r.Role {
		case raft.Voter:
			cs.Voters = append(cs.Voters, id)
			if d.IsJoint() {
				cs.VotersOutgoing = append(cs.VotersOutgoing, id)
			}
		case raft.Learner:
			cs.Learners = append(cs.Learners, id)
		case raft.VoterIncoming:
			cs.Voters = append(cs.Voters, id)
		case raft.VoterOutgoing:
			cs.VotersOutgoing = append(cs.VotersOutgoing, id)
		case raft.VoterDemoting:
			cs.VotersOutgoing = append(cs.VotersOutgoing, id)
			cs.LearnersNext = append(cs.LearnersNext, id)
		}
	}
	return cs
}

// confChange says the step from one configuration to the next in their words.
func confChange(old, next *raft.Descriptor) *pb.ConfChangeV2 {
	cc := &pb.ConfChangeV2{Transition: pb.ConfChangeTransitionAuto.Enum()}
	if old.IsJoint() {
		return cc // leave
	}
	if next.IsJoint() {
		cc.Transition = pb.ConfChangeTransitionJointExplicit.Enum()
	}
	add := func(typ pb.ConfChangeType, id raft.ReplicaID) {
		cc.Changes = append(cc.Changes, &pb.ConfChangeSingle{Type: typ.Enum(), NodeId: new(uint64(id))})
	}
	for _, r := range next.Replicas {
		was, _ := old.Replica(r.ID)
		switch {
		case r.Role == was.Role:
		case r.Role == raft.Voter || r.Role == raft.VoterIncoming:
			add(pb.ConfChangeAddNode, r.ID)
		case r.Role == raft.Learner || r.Role == raft.VoterDemoting:
			add(pb.ConfChangeAddLearnerNode, r.ID)
		case r.Role == raft.VoterOutgoing:
			add(pb.ConfChangeRemoveNode, r.ID)
		}
	}
	for _, r := range old.Replicas {
		if _, stays := next.Replica(r.ID); !stays {
			add(pb.ConfChangeRemoveNode, r.ID)
		}
	}
	return cc
}
