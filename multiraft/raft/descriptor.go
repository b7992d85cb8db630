package raft

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/flotillakv/flotilla/internal/mutants"
)

var (
	// ErrConfVersion: the change was validated against a configuration that is
	// not the applied one. Nothing changed.
	ErrConfVersion = errors.New("raft: configuration version does not match")
	// ErrConfInvalid: the change makes no sense for the configuration it meets
	// (a duplicate, an unknown or reused replica, no voter left, a change within
	// a joint configuration). Nothing changed.
	ErrConfInvalid = errors.New("raft: invalid configuration change")
)

// Clone returns a copy that shares no memory with d.
func (d *Descriptor) Clone() Descriptor {
	n := *d
	n.Start = bytes.Clone(d.Start)
	n.End = bytes.Clone(d.End)
	n.Replicas = slices.Clone(d.Replicas)
	return n
}

// Contains reports whether key is in [Start, End).
func (d *Descriptor) Contains(key []byte) bool {
	return bytes.Compare(key, d.Start) >= 0 && (len(d.End) == 0 || bytes.Compare(key, d.End) < 0)
}

// Replica returns the replica with this id.
func (d *Descriptor) Replica(id ReplicaID) (Replica, bool) {
	for _, r := range d.Replicas {
		if r.ID == id {
			return r, true
		}
	}
	return Replica{}, false
}

// ReplicaOn returns the replica that lives on node.
func (d *Descriptor) ReplicaOn(node NodeID) (Replica, bool) {
	for _, r := range d.Replicas {
		if r.Node == node {
			return r, true
		}
	}
	return Replica{}, false
}

// IsJoint reports whether the configuration is joint.
func (d *Descriptor) IsJoint() bool {
	for _, r := range d.Replicas {
		if r.Role > Learner {
			return true
		}
	}
	return false
}

// inNew reports whether a replica of this role votes in the new half (in a
// configuration that is not joint: votes).
func (r Role) inNew() bool { return r == Voter || r == VoterIncoming }

// inOld is inNew for the old half.
func (r Role) inOld() bool { return r == Voter || r == VoterOutgoing || r == VoterDemoting }

// IsVoter reports whether a replica of this role votes in some half.
func (r Role) IsVoter() bool { return r.inNew() || r.inOld() }

// Apply returns the descriptor after the change; d stays as it is. The result
// depends on d and cc alone, so every replica that applies the same entry
// decides alike. A change of at most one voter takes effect directly; one of
// more voters enters a joint configuration, which an empty change leaves. A
// step with replica id zero gets the next unused id when it adds, and means the
// node's present replica otherwise. Errors: ErrConfVersion, ErrConfInvalid;
// then nothing changed.
func (d *Descriptor) Apply(cc ConfChange) (Descriptor, error) {
	if cc.ConfVer != d.ConfVer {
		return Descriptor{}, fmt.Errorf("raft: change for version %d meets %d: %w", cc.ConfVer, d.ConfVer, ErrConfVersion)
	}
	n := d.Clone()
	n.ConfVer++
	if len(cc.Steps) == 0 {
		if !d.IsJoint() {
			return Descriptor{}, invalidConf("nothing to leave: not joint")
		}
		n.leaveJoint()
		return n, nil
	}
	if d.IsJoint() {
		return Descriptor{}, invalidConf("the configuration is joint")
	}
	if err := n.takeSteps(cc.Steps); err != nil {
		return Descriptor{}, err
	}
	if changed := d.voterChanges(&n); changed > 1 {
		n.enterJoint(d)
	}
	if !slices.ContainsFunc(n.Replicas, func(r Replica) bool { return r.Role.inNew() }) && !mutants.On("C10b") {
		return Descriptor{}, invalidConf("no voter would be left")
	}
	if len(n.Replicas) > MaxReplicas {
		return Descriptor{}, invalidConf("too many replicas")
	}
	return n, nil
}

func invalidConf(why string) error { return fmt.Errorf("raft: %s: %w", why, ErrConfInvalid) }

// takeSteps brings n to the wanted roles, without a joint phase.
func (n *Descriptor) takeSteps(steps []ConfStep) error {
	for i, s := range steps {
		for _, t := range steps[:i] {
			if t.Node == s.Node {
				return invalidConf(fmt.Sprintf("node %d twice in one change", s.Node))
			}
		}
		if s.Node == 0 {
			return invalidConf("a step without a node")
		}
		k := slices.IndexFunc(n.Replicas, func(r Replica) bool { return r.Node == s.Node })
		if k >= 0 && s.ID != 0 && n.Replicas[k].ID != s.ID {
			return invalidConf(fmt.Sprintf("node %d holds another replica", s.Node))
		}
		if s.Remove {
			if k < 0 && mutants.On("C15b") {
				continue
			}
			if k < 0 {
				return invalidConf(fmt.Sprintf("node %d holds no replica", s.Node))
			}
			n.Replicas = slices.Delete(n.Replicas, k, k+1)
			continue
		}
		if s.Role != Voter && s.Role != Learner {
			return invalidConf(fmt.Sprintf("role %d cannot be asked for", s.Role))
		}
		if k >= 0 {
			if n.Replicas[k].Role == s.Role {
				return invalidConf(fmt.Sprintf("node %d has this role already", s.Node))
			}
			n.Replicas[k].Role = s.Role
			continue
		}
		id := s.ID
		if id == 0 {
			id = n.NextReplica
		}
		if id < n.NextReplica && !mutants.On("G12c") || id == 0 || id+1 == 0 {
			return invalidConf(fmt.Sprintf("replica id %d was used before", id))
		}
		n.NextReplica = max(n.NextReplica, id+1)
		n.Replicas = append(n.Replicas, Replica{Node: s.Node, ID: id, Role: s.Role})
	}
	slices.SortFunc(n.Replicas, func(a, b Replica) int { return int(int64(a.Node) - int64(b.Node)) })
	return nil
}

// voterChanges counts the replicas whose right to vote differs between d and n.
func (d *Descriptor) voterChanges(n *Descriptor) int {
	c := 0
	for _, r := range d.Replicas {
		now, _ := n.Replica(r.ID)
		if (r.Role == Voter) != (now.Role == Voter) {
			c++
		}
	}
	for _, r := range n.Replicas {
		if _, was := d.Replica(r.ID); !was && r.Role == Voter {
			c++
		}
	}
	return c
}

// enterJoint turns n, the wanted configuration, into the joint one that leads
// there from d.
func (n *Descriptor) enterJoint(d *Descriptor) {
	for i := range n.Replicas {
		r := &n.Replicas[i]
		was, _ := d.Replica(r.ID)
		switch {
		case r.Role == Voter && was.Role != Voter:
			r.Role = VoterIncoming
		case r.Role == Learner && was.Role == Voter:
			r.Role = VoterDemoting
		}
	}
	for _, was := range d.Replicas {
		if _, stays := n.Replica(was.ID); !stays && was.Role == Voter {
			was.Role = VoterOutgoing
			n.Replicas = append(n.Replicas, was)
		}
	}
	slices.SortFunc(n.Replicas, func(a, b Replica) int { return int(int64(a.Node) - int64(b.Node)) })
}

func (n *Descriptor) leaveJoint() {
	n.Replicas = slices.DeleteFunc(n.Replicas, func(r Replica) bool { return r.Role == VoterOutgoing })
	for i := range n.Replicas {
		switch n.Replicas[i].Role {
		case VoterIncoming:
			n.Replicas[i].Role = Voter
		case VoterDemoting:
			n.Replicas[i].Role = Learner
		}
	}
}
