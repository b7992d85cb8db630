package multiraft

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// TestUnknownEntryFences: an entry of a type this version does not know is not
// skipped; the replica stops at it and asks to be upgraded.
func TestUnknownEntryFences(t *testing.T) {
	r := newRig(t)
	r.follow(0, rigEntry(1, raft.EntryEmpty, ""), rigEntry(2, raft.EntryNormal, "a"), rigEntry(3, raft.EntryAdmin, "x"), rigEntry(4, raft.EntryNormal, "b"))
	v, _ := r.h.View(7)
	if v.Commit != 4 || v.Applied != 2 || !slices.Equal(r.applied, []string{"a"}) {
		t.Fatalf("committed %d, applied %d: %q", v.Commit, v.Applied, r.applied)
	}
	if v.Fenced == nil || v.Fenced.Error() != "index 3: multiraft: this version does not know entries of type 4; upgrade this node" {
		t.Fatalf("fenced: %v", v.Fenced)
	}
	r.follow(4, rigEntry(5, raft.EntryNormal, "c"))
	if st, _, err := r.e.Load(7); err != nil || st.Applied.Applied != 2 || st.Last != 5 || len(r.applied) != 1 {
		t.Fatalf("on disk %d of %d, %v; applied %q", st.Applied.Applied, st.Last, err, r.applied)
	}
}

// slippery is an error that cannot be compared.
type slippery []string

func (s slippery) Error() string { return s[0] }

// TestFenceAnswersEverybody: whoever waits when a leader is fenced learns it at
// once, as does whoever comes later, and the leadership is handed on.
func TestFenceAnswersEverybody(t *testing.T) {
	r := newRig(t)
	r.fail = slippery{"boom"}
	r.lead(2)
	r.ack(2)
	poison, behind := r.propose("poison"), r.propose("behind")
	read := r.read()
	r.turn()
	conf := &outcome{}
	r.rep().queue = append(r.rep().queue, proposal{shard: 7, done: ProposeFunc(func(_ []byte, _ raft.Index, _ uint32, err error) { conf.n++; conf.err = err })})
	r.ack(2)
	for name, o := range map[string]*outcome{"poison": poison, "behind": behind} {
		if o.n != 1 || !errors.Is(o.err, ErrAmbiguous) {
			t.Errorf("%s was told %d times: %v", name, o.n, o.err)
		}
	}
	later, laterRead := r.propose("later"), r.read()
	r.turn()
	for name, o := range map[string]*outcome{"read": read, "queued": conf, "later": later, "later read": laterRead} {
		if o.n != 1 || !errors.Is(o.err, ErrFenced) {
			t.Errorf("%s was told %d times: %v", name, o.n, o.err)
		}
	}
	if n := r.h.pending.Load(); n != 0 || len(r.applied) != 0 {
		t.Errorf("%d bytes still counted, applied %q", n, r.applied)
	}
	r.ack(2)
	r.ack(3)
	if !slices.ContainsFunc(r.sent, func(m raft.Msg) bool { return m.Type == raft.MsgTimeoutNow }) {
		t.Error("the fenced leader keeps the leadership")
	}
}

// TestFencedLeaderGoesOnTrying: nobody takes the leadership; the others are asked
// in turn, ever more seldom.
func TestFencedLeaderGoesOnTrying(t *testing.T) {
	r := newRig(t)
	r.fail = errors.New("boom")
	r.lead(2)
	r.ack(2)
	r.ack(3)
	r.propose("poison")
	var to []raft.NodeID
	r.ack(2)
	r.ack(3)
	for range 60 {
		for _, m := range r.sent {
			if m.Type == raft.MsgTimeoutNow {
				to = append(to, m.To)
			}
		}
		r.sent = r.sent[:0]
		r.now += raft.Time(500 * time.Millisecond)
		r.turn()
	}
	if len(to) < 3 || len(to) > 8 || to[0] == to[1] {
		t.Errorf("asked %v within 30 s", to)
	}
}

// TestDamagedEntryStopsTheNode: nothing behind an entry that does not decode is
// applied, and nothing of the round gets into the store.
func TestDamagedEntryStopsTheNode(t *testing.T) {
	r := newRig(t)
	r.follow(0, rigEntry(1, raft.EntryEmpty, ""))
	r.l.batch = r.e.NewBatch()
	r.l.touch(r.rep())
	good, bad := rigEntry(3, raft.EntryNormal, "a"), raft.Entry{Index: 2, Term: 1, Type: raft.EntryNormal, Value: []byte{1, 2}}
	r.rep().as.GroupTs, r.rep().asDirty = 99, true
	r.l.out.Applies = append(r.l.out.Applies, raft.ApplyTask{Shard: 7, Entries: []raft.Entry{bad, good}})
	r.l.commitRound(r.now)
	if err := <-r.fatal; !errors.Is(err, raft.ErrCorrupt) || len(r.applied) != 0 {
		t.Fatalf("%v; applied %q", err, r.applied)
	}
	if st, _, err := r.e.Load(7); err != nil || st.Applied.Applied != 1 || st.Applied.GroupTs == 99 {
		t.Fatalf("on disk: %+v, %v", st.Applied, err)
	}
	if o := r.propose("x"); !errors.Is(o.err, ErrClosed) {
		t.Fatalf("after the failure: %v", o.err)
	}
}

// TestUnreadableLogStopsTheNode: a peer needs entries that do not decode. The
// leader does not try for ever.
func TestUnreadableLogStopsTheNode(t *testing.T) {
	r := newRig(t)
	r.h.tuning.TailBytes = 1 // what is applied is on the disk alone
	r.lead(2)
	r.ack(2)
	r.propose("a")
	r.ack(2)
	r.on(func(raft.Time) {}) // memory is let go of in the round after
	last := r.rep().core.Status().Last
	b := r.e.NewBatch()
	b.Append(7, last, []raft.Entry{{Index: last, Term: 1, Value: []byte("garbage")}})
	if err := errors.Join(b.Commit(true), b.Wait()); err != nil {
		t.Fatal(err)
	}
	b.Close()
	r.in(raft.Msg{Type: raft.MsgAppResp, From: 3, Term: 1, Index: last - 1})
	select {
	case err := <-r.fatal:
		if !errors.Is(err, raft.ErrCorrupt) || !r.l.failed {
			t.Fatalf("fatal: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("the node goes on; peers %+v of %+v", r.rep().core.Peers(nil), r.rep().core.Status())
	}
}
