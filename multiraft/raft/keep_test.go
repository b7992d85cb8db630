package raft

import (
	"fmt"
	"testing"
	"time"
)

func TestKeepBytes(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct{ limit, data, want int64 }{
		{16 * mib, 0, 16 * mib}, // not known
		{16 * mib, -1, 16 * mib},
		{16 * mib, 1, mib},
		{16 * mib, 2*mib + 2, mib + 1},
		{16 * mib, 10 * mib, 5 * mib},
		{16 * mib, 1 << 60, 16 * mib},
		{64 << 10, 0, 64 << 10}, // the limit holds whatever the data are
		{64 << 10, 1, 64 << 10},
		{64 << 10, 1 << 60, 64 << 10},
	} {
		if got := KeepBytes(c.limit, c.data); got != c.want {
			t.Errorf("KeepBytes(%d, %d) = %d, want %d", c.limit, c.data, got, c.want)
		}
	}
}

// keepCases tell how much log a leader keeps for a member that is away.
var keepCases = []struct {
	name string
	run  func(t *testing.T) error
}{
	{"the size of the data bounds what is kept", keepBySize},
	{"a slow member may hold back more", keepForSlow},
	{"who gets a snapshot knows its leader before", snapshotLeader},
}

func TestKeep(t *testing.T) {
	for _, c := range keepCases {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(t); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// backlog is a leader with 3 MiB of log that node 3 lacks and everybody else has.
func backlog(t *testing.T) (*rig, Index) {
	r := newSteadyRig(t)
	match := r.c.log.last
	for range 12 {
		r.do(true, func(o *Out) {
			if _, err := r.c.Propose(r.now, EntryHeader{}, []Command{{Body: make([]byte, 256<<10)}}, o); err != nil {
				t.Fatal(err)
			}
		})
		r.step(Msg{Type: MsgAppResp, From: 2, Term: 1, Index: r.c.log.last, Epoch: 1<<32 | 1})
	}
	if st := r.c.Status(); st.Applied != st.Last {
		t.Fatalf("%+v", st)
	}
	return r, match
}

// asked flushes r, and returns how often it asked for the size of the data and
// through where the log was cut.
func (r *rig) asked() (asked int, cut Index) {
	r.now = r.now.Add(r.c.tun.IdleTruncate)
	if r.now >= r.c.Deadline() {
		r.c.Tick(r.now, &r.o)
	}
	r.c.Flush(r.now, &r.o)
	asked = len(r.o.Sizes)
	for _, t := range r.o.Truncates {
		cut = t.Index
		r.c.Truncated(t.Index, t.Term)
	}
	r.o.Reset()
	return asked, cut
}

func keepBySize(t *testing.T) error {
	r, match := backlog(t)
	r.live.down[3] = true
	r.c.sizeDue = 0
	r.do(true, func(o *Out) { r.c.LivenessChanged(r.now, 3, o) })
	r.c.sizeDue = 0
	if n, cut := r.asked(); n != 1 || cut > match {
		return fmt.Errorf("asked %d times for the size, cut through %d; node 3 has %d", n, cut, match)
	}
	if n, _ := r.asked(); n != 0 {
		return fmt.Errorf("asked again at once")
	}
	r.c.Sized(8 << 20)
	if !r.c.Stirred() {
		return fmt.Errorf("the size stirs nothing")
	}
	if _, cut := r.asked(); cut > match {
		return fmt.Errorf("cut through %d of 3 MiB, and the data are 8 MiB", cut)
	}
	r.now = r.now.Add(sizeEvery)
	if n, _ := r.asked(); n != 1 {
		return fmt.Errorf("asked %d times after %v", n, sizeEvery)
	}
	r.c.Sized(4 << 20)
	if _, cut := r.asked(); cut != r.c.log.last {
		return fmt.Errorf("cut through %d of %d; there are 3 MiB of log, and 4 MiB of data", cut, r.c.log.last)
	}
	return nil
}

func keepForSlow(t *testing.T) error {
	r, match := backlog(t)
	r.c.sizeDue = 0
	r.c.Sized(1)
	if _, cut := r.asked(); cut > match {
		return fmt.Errorf("cut through %d; node 3 is there, and has %d", cut, match)
	}
	r.live.down[3] = true
	r.do(true, func(o *Out) { r.c.LivenessChanged(r.now, 3, o) })
	if _, cut := r.asked(); cut != r.c.log.last {
		return fmt.Errorf("cut through %d of %d", cut, r.c.log.last)
	}
	return nil
}

// snapshotLeader: node 3 was away for so long that it needs a snapshot, and was restarted.
// It takes requests on behalf of a leader, and waits for no election, while that comes.
func snapshotLeader(t *testing.T) error {
	r, _ := backlog(t)
	r.live.down[3] = true
	r.do(true, func(o *Out) { r.c.LivenessChanged(r.now, 3, o) })
	r.c.Sized(1)
	if _, cut := r.asked(); cut != r.c.log.last {
		return fmt.Errorf("cut through %d of %d", cut, r.c.log.last)
	}
	r.live.down[3] = false
	r.now = r.now.Add(time.Second)
	r.take()
	r.c.PeerReset(r.now, 3, &r.o)
	r.c.Flush(r.now, &r.o)
	if len(r.o.Snapshots) != 1 {
		return fmt.Errorf("%d snapshots for node 3", len(r.o.Snapshots))
	}
	m := find(r.o.Msgs, MsgCommit, 3)
	if m == nil {
		return fmt.Errorf("node 3 is told nothing: %+v", r.o.Msgs)
	}
	f := newRig(t, stateOf(testDesc(Voter, Voter, Voter), HardState{Term: 1}, terms(1)))
	told := *m
	told.From, told.FromReplica = 2, 2 // the rig is node 1
	if f.step(told); f.c.Status().LeadNode != 2 {
		return fmt.Errorf("who is told that knows no leader: %+v", f.c.Status())
	}
	return nil
}
