package multiraft

import (
	"fmt"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// benchHost is node 1 as the leader of several groups of three, turned by hand.
type benchHost struct {
	b   *testing.B
	h   *Host
	l   *loop
	e   *engine.Engine
	now raft.Time
	n   int // groups
}

func (x *benchHost) Send(raft.NodeID, []raft.Msg)                  {}
func (x *benchHost) Now() raft.Time                                { return x.now }
func (x *benchHost) Wall() uint64                                  { return uint64(x.now) }
func (*benchHost) LeaseArm() int64                                 { return 0 }
func (x *benchHost) LeaseNow(int64) (raft.Time, bool)              { return x.now, true }
func (*benchHost) SupportFor(raft.NodeID) (raft.Epoch, bool)       { return 1 << 32, true }
func (*benchHost) SupportFrom(raft.NodeID) (raft.Epoch, raft.Time) { return 1 << 32, 1 << 61 }
func (*benchHost) Apply(b *engine.Batch, a *ApplyContext) (_ error) {
	for _, c := range a.Entry.Commands() {
		b.Set(1, c.Body[:16], c.Body[16:])
	}
	return nil
}

func newBenchHost(b *testing.B, groups int) *benchHost {
	x := &benchHost{b: b, now: raft.Time(time.Hour), n: groups}
	var err error
	x.e, err = engine.Open(engine.Options{Dir: "s", FS: engine.NewMemFS(), Create: true, NoDiskWatch: true, Node: 1,
		CacheBytes: 8 << 20, MemTableBytes: 64 << 20, OnFatal: func(err error) { b.Error(err) }})
	if err != nil {
		b.Fatal(err)
	}
	x.h, err = New(Config{Node: 1, Engine: x.e, Net: x, Liveness: x, Clock: x, Machine: x, Loops: 1, Seed: 1, Leases: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { x.h.Close(); x.e.Close() })
	descs := make([]raft.Descriptor, groups)
	for i := range descs {
		descs[i] = rigDesc()
		descs[i].Shard = raft.ShardID(i + 1)
	}
	if err := x.h.CreateGroups(descs); err != nil {
		b.Fatal(err)
	}
	x.l = x.h.loops[0]
	x.turn()
	x.h.each(func(l *loop, r *replica, now raft.Time) { r.core.Campaign(now, &l.out) })
	x.turn()
	for _, typ := range []raft.MsgType{raft.MsgPreVoteResp, raft.MsgVoteResp} {
		x.answer(func(m *raft.Msg, r *replica) { m.Type, m.Term = typ, 1 })
	}
	x.ack()
	for _, r := range x.l.order {
		if st := r.core.Status(); st.Role != raft.RoleLeader || !st.Ready {
			b.Fatalf("not leader: %+v", st)
		}
	}
	return x
}

// turn runs the loop until it rests and everything is durable.
func (x *benchHost) turn() {
	for {
		x.now += 1000
		did := x.l.step(x.now)
		if x.l.inFlight > 0 {
			x.l.syncer.step()
			continue
		}
		if !did || x.l.failed {
			return
		}
	}
}

// answer brings in one message of node 2 for each group, in one frame.
func (x *benchHost) answer(f func(m *raft.Msg, r *replica)) {
	x.l.in.mu.Lock()
	for _, r := range x.l.order {
		x.l.in.in.msgs = append(x.l.in.in.msgs, raft.Msg{Shard: r.shard, From: 2, FromReplica: 2, To: 1, ToReplica: 1})
		f(&x.l.in.in.msgs[len(x.l.in.in.msgs)-1], r)
	}
	x.l.in.mu.Unlock()
	x.turn()
}

// ack lets node 2 acknowledge everything.
func (x *benchHost) ack() {
	x.answer(func(m *raft.Msg, r *replica) {
		m.Type, m.Term, m.Index = raft.MsgAppResp, 1, r.core.Status().Last
	})
}

// BenchmarkDoorRound is what the leader's node does for proposals to many groups
// that wait together, without network and disk: one round takes them in and
// commits the log, one takes the acknowledgements in, applies and tells. ns/op and
// allocs/op are per proposal of one 128-byte value.
func BenchmarkDoorRound(b *testing.B) {
	for _, s := range []struct{ groups, each int }{{16, 1}, {16, 16}, {256, 1}} {
		b.Run(fmt.Sprintf("groups=%d/cmds=%d", s.groups, s.each), func(b *testing.B) {
			x := newBenchHost(b, s.groups)
			bodies := make([][]byte, s.groups*s.each)
			for i := range bodies {
				bodies[i] = fmt.Appendf(nil, "user%012d%0128d", i, i)
			}
			told := 0
			done := ProposeFunc(func(_ []byte, _ raft.Index, _ uint32, err error) {
				if err != nil {
					b.Error(err)
				}
				told++
			})
			b.ReportAllocs()
			b.ResetTimer()
			want := 0
			for ; want < b.N; want += len(bodies) {
				for i, body := range bodies {
					x.h.Propose(raft.ShardID(i%s.groups+1), raft.Command{Op: 1, Body: body}, done)
				}
				x.turn()
				x.ack()
			}
			if told != want {
				b.Fatalf("%d of %d told", told, want)
			}
		})
	}
}
