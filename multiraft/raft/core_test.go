package raft

import (
	"testing"
	"time"
)

// fakeLive is a liveness table in which every node supports every other one,
// but for what is set.
type fakeLive struct {
	down map[NodeID]bool
	from map[NodeID]promise // what SupportFrom says
}

type promise struct {
	epoch Epoch
	until Time
}

func (f *fakeLive) SupportFor(n NodeID) (Epoch, bool) { return 1<<32 | 1, !f.down[n] }
func (f *fakeLive) SupportFrom(n NodeID) (Epoch, Time) {
	if p, ok := f.from[n]; ok {
		return p.epoch, p.until
	}
	if f.down[n] {
		return 1<<32 | 1, 0
	}
	return 1<<32 | 1, Never
}

func testDesc(roles ...Role) Descriptor {
	d := Descriptor{Shard: 7, ConfVer: 1, Version: 1, NextReplica: ReplicaID(len(roles) + 1)}
	for i, r := range roles {
		d.Replicas = append(d.Replicas, Replica{Node: NodeID(i + 1), ID: ReplicaID(i + 1), Role: r})
	}
	return d
}

func newTestCore(t testing.TB, node NodeID, desc Descriptor, live Liveness, tun Tuning) *Core {
	t.Helper()
	c, err := NewCore(Config{Node: node, Liveness: live, Rand: uint64(node), Tuning: tun}, State{Desc: desc}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestSingleVoter shows a group of one: it elects itself once its own vote is
// durable, commits when its own append is durable, and answers reads at once.
func TestSingleVoter(t *testing.T) {
	c := newTestCore(t, 1, testDesc(Voter), &fakeLive{}, Tuning{})
	var o Out
	now := c.Deadline()
	c.Tick(now, &o)
	c.Flush(now, &o)
	now = c.Deadline()
	c.Tick(now, &o)
	c.Flush(now, &o)
	if c.Status().Role != RoleCandidate || len(o.HardStates) != 1 {
		t.Fatalf("role %v, %d hard states; want a candidate that waits for the disk", c.Status().Role, len(o.HardStates))
	}
	o.Reset()
	c.Appended(now, LogMark{Term: 1}, &o)
	c.Flush(now, &o)
	if c.Status().Role != RoleLeader || len(o.Appends) != 1 || c.Status().Commit != 0 {
		t.Fatalf("status %+v", c.Status())
	}
	mark := o.Appends[0].Mark
	o.Reset()
	c.Appended(now, mark, &o)
	c.Flush(now, &o)
	if st := c.Status(); st.Commit != 1 || !st.Ready || len(o.Applies) != 1 {
		t.Fatalf("status %+v", st)
	}
	c.Applied(1, 1, 0, &o)
	c.ReadIndex(now, 42, &o)
	if len(o.Reads) != 1 || o.Reads[0].Index != 1 || o.Reads[0].Context != 42 {
		t.Fatalf("reads %+v", o.Reads)
	}
	if d := c.Deadline(); d < now.Add(time.Millisecond) {
		t.Fatalf("idle leader asks for a tick at %d, now %d", d, now)
	}
}
