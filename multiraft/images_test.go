package multiraft

import (
	"errors"
	"fmt"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// imageCases tell how a leader cuts its log under images outside of it.
var imageCases = []struct {
	name string
	run  func(t *testing.T) error
}{
	{"a cut under an image", imageCut},
	{"an image of before", imageBefore},
	{"in quarantine", imageVoid},
}

func TestImages(t *testing.T) {
	for _, c := range imageCases {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(t); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// fakeKeeper notes what is asked of it.
type fakeKeeper struct {
	made  []func(index raft.Index, bytes int64, later bool, err error)
	kept  raft.Index // zero: none
	drops int
	sent  []raft.Index // images; zero: a fresh snapshot
}

func (f *fakeKeeper) KeepImage(_ raft.Descriptor, done func(raft.Index, int64, bool, error)) {
	f.made = append(f.made, done)
}

func (f *fakeKeeper) KeptImage(raft.ShardID) (raft.Index, int64, bool) {
	return f.kept, 100, f.kept > 0
}

func (f *fakeKeeper) DropImage(_ raft.ShardID, below raft.Index) bool {
	if f.kept == 0 || f.kept >= below {
		return false
	}
	f.kept = 0
	f.drops++
	return true
}

func (f *fakeKeeper) SendKept(_ raft.ShardID, index raft.Index, _ raft.NodeID, _ raft.ReplicaID, _ func(raft.Index, raft.Term, error)) {
	f.sent = append(f.sent, index)
}

func (f *fakeKeeper) SendSnapshot(raft.Descriptor, raft.NodeID, raft.ReplicaID, func(raft.Index, raft.Term, error)) {
	f.sent = append(f.sent, 0)
}

// imageRig leads a group of which node 3 says nothing and may hold back 16 entries. Thirty
// are applied.
func imageRig(t *testing.T, kept raft.Index) (*rig, *fakeKeeper) {
	r, f := newRig(t), &fakeKeeper{kept: kept}
	r.h.keeper, r.h.snaps = f, f
	tun := &r.h.tuning
	tun.Cut, tun.CutEntries, tun.LogKeepEntries = raft.CutLeaderImage, 20, 1
	r.lead(2)
	r.ack(2)
	r.write(30)
	return r, f
}

func (r *rig) write(n int) {
	for i := range n {
		r.propose(fmt.Sprint(i))
		r.ack(2)
	}
}

func imageCut(t *testing.T) error {
	r, f := imageRig(t, 0)
	at := raft.Index(25)
	if len(f.made) != 1 || r.rep().as.TruncIndex != 0 {
		return fmt.Errorf("%d images are asked for, cut through %d", len(f.made), r.rep().as.TruncIndex)
	}
	f.kept = at
	f.made[0](at, 100, false, nil)
	r.turn()
	if cut := r.rep().as.TruncIndex; cut != at {
		return fmt.Errorf("the image is of %d, cut through %d", at, cut)
	}
	r.in(raft.Msg{Type: raft.MsgNeedSnapshot, From: 3, Term: r.rep().core.Status().Term})
	if len(f.sent) != 1 || f.sent[0] != at {
		return fmt.Errorf("node 3 is sent %d, not the image of %d", f.sent, at)
	}
	if r.l.sendKept(r.rep(), raft.SnapshotTask{Shard: 7, To: 3, ToReplica: 3, Fresh: true}, nil) {
		return errors.New("a replica that is rebuilt is sent what was made before")
	}
	return nil
}

func imageBefore(t *testing.T) error {
	for _, c := range []struct {
		kept  raft.Index
		makes int
	}{{15, 0}, {1000, 1}} { // that is of an index that is not applied here
		r, f := imageRig(t, c.kept)
		want := c.kept
		if c.makes > 0 {
			want = 0
		}
		if cut := r.rep().as.TruncIndex; len(f.made) != c.makes || cut != want {
			return fmt.Errorf("an image of %d is there: %d are made, cut through %d", c.kept, len(f.made), cut)
		}
	}
	return nil
}

func imageVoid(t *testing.T) error {
	r, f := imageRig(t, 0)
	f.kept = 25
	f.made[0](25, 100, false, nil)
	r.turn()
	r.write(30)
	if len(f.made) != 2 {
		return fmt.Errorf("%d images are asked for", len(f.made))
	}
	r.on(func(raft.Time) {
		r.l.quarantine(r.rep(), &DivergedError{Shard: 7, Node: 1, Replica: 1, Index: 40, Why: "test"}, false)
	})
	if f.kept != 0 || f.drops != 1 {
		return fmt.Errorf("the replica is not to be trusted, and keeps an image of %d", f.kept)
	}
	f.kept = 50
	f.made[1](50, 100, false, nil)
	r.turn()
	if f.kept != 0 || r.rep().images.kept != 0 {
		return fmt.Errorf("an image of %d is kept that was made before the replica was found faulty", f.kept)
	}
	return nil
}
