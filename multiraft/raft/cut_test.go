package raft

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// cutCases tell when and how far logs are cut under the policies besides the default.
var cutCases = []struct {
	name string
	run  func(t *testing.T) error
}{
	{"a cut is an entry", cutByEntry},
	{"an idle group asks once", cutIdle},
	{"each trigger alone is enough", cutTriggers},
	{"a replica cuts alone", cutAlone},
	{"an image covers a cut", cutUnderImage},
	{"without an image", cutWithoutImage},
	{"large images are made seldom", cutLargeImage},
}

func TestCut(t *testing.T) {
	for _, c := range cutCases {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(t); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// asked flushes the core, and returns the cut it asks for and the one it makes.
func (r *rig) askedCut() (ask, cut Index) {
	r.t.Helper()
	r.c.Flush(r.now, &r.o)
	for _, t := range r.o.Cuts {
		ask = t.Index
	}
	for _, t := range r.o.Truncates {
		cut = t.Index
		r.c.Truncated(t.Index, t.Term)
	}
	r.o.Cuts, r.o.Truncates = r.o.Cuts[:0], r.o.Truncates[:0]
	return ask, cut
}

// under gives the core another policy.
func (r *rig) under(p CutPolicy, entries, bytes int) {
	tun := *r.c.tun
	tun.Cut, tun.CutEntries, tun.CutBytes = p, entries, bytes
	r.c.tun = &tun
}

// proposeCut carries an entry with a cut through the log, acknowledged by node 2.
func (r *rig) proposeCut(to Index) error {
	var mark LogMark
	var err error
	r.do(true, func(o *Out) { mark, err = r.c.ProposeCut(r.now, EntryHeader{}, &Cut{Index: to}, o) })
	if err != nil {
		return err
	}
	r.step(Msg{Type: MsgAppResp, From: 2, Term: 1, Index: mark.Index, Epoch: 1<<32 | 1})
	if a := r.c.Status().Applied; a != mark.Index {
		return fmt.Errorf("applied %d of %d", a, mark.Index)
	}
	for _, e := range r.done {
		if cut, err := e.Cut(); err == nil {
			r.c.CutApplied(cut.Index, e.Index)
		}
	}
	return nil
}

func cutByEntry(t *testing.T) error {
	r := heldUp(t) // node 3 lacks ten entries, and is alive
	match := r.c.log.last - 10
	r.under(CutInLog, 1, 1<<20)
	ask, cut := r.askedCut()
	if ask != match || cut != 0 {
		return fmt.Errorf("asks for %d, cuts through %d; node 3 has %d, and nothing is agreed", ask, cut, match)
	}
	if again, _ := r.askedCut(); again != 0 {
		return fmt.Errorf("asks for %d a second time", again)
	}
	if _, err := r.c.ProposeCut(r.now, EntryHeader{}, &Cut{Index: r.c.log.applied + 1}, &r.o); err == nil {
		return errors.New("takes a cut of what is not applied")
	}
	r.under(CutInLog, 1<<20, 1<<30) // no other is asked for meanwhile
	if err := r.proposeCut(ask); err != nil {
		return err
	}
	if _, cut := r.askedCut(); cut != ask {
		return fmt.Errorf("the entry names %d, cut is %d", ask, cut)
	}
	return nil
}

func cutIdle(t *testing.T) error {
	r := newSteadyRig(t)
	r.under(CutInLog, 1<<20, 1<<30)
	r.step(Msg{Type: MsgAppResp, From: 3, Term: 1, Index: r.c.log.last, Epoch: 1<<32 | 1})
	quiet := func() (ask Index) {
		for range 8 {
			r.now = r.now.Add(time.Second)
			r.c.Tick(r.now, &r.o)
			if a, _ := r.askedCut(); a != 0 {
				ask = a
			}
		}
		return ask
	}
	ask := quiet()
	if ask != r.c.log.last {
		return fmt.Errorf("an idle group asks for %d of %d", ask, r.c.log.last)
	}
	if err := r.proposeCut(ask); err != nil {
		return err
	}
	r.step(Msg{Type: MsgAppResp, From: 3, Term: 1, Index: r.c.log.last, Epoch: 1<<32 | 1})
	if again := quiet(); again != 0 {
		return fmt.Errorf("asks for %d, where nothing but the entry of the last cut is", again)
	}
	return nil
}

func cutTriggers(t *testing.T) error {
	for _, c := range []struct {
		name           string
		entries, bytes int
		now            bool
		want           bool
	}{
		{"none", 1 << 20, 1 << 30, false, false},
		{"entries", 2, 1 << 30, false, true},
		{"bytes", 1 << 20, 10, false, true},
		{"age", 1 << 20, 1 << 30, true, true},
	} {
		r := heldUp(t)
		r.step(Msg{Type: MsgAppResp, From: 3, Term: 1, Index: r.c.log.last, Epoch: 1<<32 | 1})
		r.under(CutInLog, c.entries, c.bytes)
		r.c.truncNow = false
		if c.now {
			r.c.CutNow()
		}
		if ask, _ := r.askedCut(); (ask != 0) != c.want {
			return fmt.Errorf("%s: asks for %d", c.name, ask)
		}
	}
	return nil
}

func cutAlone(t *testing.T) error {
	r := newRig(t, stateOf(three, HardState{Term: 1}, terms(1, 1, 1, 1)))
	r.under(CutAlone, 2, 1<<20)
	r.step(Msg{Type: MsgCommit, From: 2, Term: 1, Commit: 3})
	r.step(Msg{Type: MsgApp, From: 2, Term: 1, Index: 4, LogTerm: 1, Commit: 3})
	r.c.Hold(2)
	if _, cut := r.askedCut(); cut != 2 {
		return fmt.Errorf("a follower that has applied 3, and 2 durably, cuts through %d", cut)
	}
	l := heldUp(t)
	l.under(CutAlone, 1, 1<<20)
	if _, cut := l.askedCut(); cut > l.c.log.last-10 {
		return fmt.Errorf("a leader cuts through %d, and a live replica has %d", cut, l.c.log.last-10)
	}
	return nil
}

// flushed flushes the core and returns what it asks for: images, and snapshots for members.
func (r *rig) flushed() (cuts []CutTask, snaps []SnapshotTask, cut Index) {
	r.t.Helper()
	r.c.Flush(r.now, &r.o)
	cuts, snaps = slices.Clone(r.o.Cuts), slices.Clone(r.o.Snapshots)
	for _, t := range r.o.Truncates {
		cut = t.Index
		r.c.Truncated(t.Index, t.Term)
	}
	r.o.Reset()
	return cuts, snaps, cut
}

// dies tells the core that a node is down, or up again.
func (r *rig) dies(node NodeID, down bool) {
	r.live.down[node] = down
	r.c.LivenessChanged(r.now, node, &r.o)
}

func cutUnderImage(t *testing.T) error {
	r := heldUp(t)
	match := r.c.log.last - 10
	r.under(CutLeaderImage, 2, 1<<30)
	if cuts, _, cut := r.flushed(); len(cuts) != 0 || cut > match {
		return fmt.Errorf("asks for %v, cuts through %d, and node 3 is alive and has %d", cuts, cut, match)
	}
	r.dies(3, true)
	cuts, _, cut := r.flushed()
	if len(cuts) != 1 || cuts[0].Index != r.c.log.applied || cut > match {
		return fmt.Errorf("asks for %v, cuts through %d; node 3 is away, and has %d", cuts, cut, match)
	}
	image := cuts[0].Index
	for range 3 { // while it is made
		r.do(true, func(o *Out) { _, _ = r.c.Propose(r.now, EntryHeader{}, []Command{{Body: []byte("x")}}, o) })
		r.step(Msg{Type: MsgAppResp, From: 2, Term: 1, Index: r.c.log.last, Epoch: 1<<32 | 1})
	}
	if cuts, _, cut := r.flushed(); len(cuts) != 0 || cut > match {
		return fmt.Errorf("asks for %v, cuts through %d while the image is made", cuts, cut)
	}
	r.c.Imaged(image, 100)
	if cuts, _, cut = r.flushed(); cut != image || len(cuts) != 1 || cuts[0].Index != r.c.log.applied {
		return fmt.Errorf("the image is of %d, cut through %d, asks for %v", image, cut, cuts)
	}
	r.c.ImageFailed(r.now, true) // no time for another one
	r.c.Evict(0)
	r.dies(3, false)
	r.now = r.now.Add(time.Minute)
	r.c.Tick(r.now, &r.o) // node 3 is silent
	_, snaps, _ := r.flushed()
	if len(snaps) != 1 || snaps[0].ToReplica != 3 {
		return fmt.Errorf("node 3 is back, and is sent %v", snaps)
	}
	r.c.SnapshotFrom(3, image)
	r.c.truncNow = true
	if _, _, cut := r.flushed(); cut > image {
		return fmt.Errorf("cut through %d while an image of %d is sent", cut, image)
	}
	r.c.ImageFailed(r.now, true)
	r.c.SnapshotSent(r.now, 3, image, 1, true, &r.o)
	acks := func(idx Index) {
		m := Msg{Type: MsgAppResp, From: 3, Shard: 7, To: 1, ToReplica: 1, FromReplica: 3, Term: 1, Index: idx, Epoch: 1<<32 | 1}
		r.c.Step(r.now, &m, &r.o)
	}
	acks(image)
	if cuts, _, _ = r.flushed(); len(cuts) != 1 || cuts[0].Index != 0 {
		return fmt.Errorf("all have what is in the image, and %v is asked for", cuts)
	}
	acks(r.c.log.last)
	r.c.truncNow = true
	if _, _, cut := r.flushed(); cut != r.c.log.last {
		return fmt.Errorf("all have the whole log through %d, cut through %d", r.c.log.last, cut)
	}
	return nil
}

func cutWithoutImage(t *testing.T) error {
	r := heldUp(t)
	match := r.c.log.last - 10
	r.under(CutLeaderImage, 2, 1<<30)
	r.dies(3, true)
	if cuts, _, _ := r.flushed(); len(cuts) != 1 {
		return fmt.Errorf("asks for %v", cuts)
	}
	r.c.ImageFailed(r.now, false)
	if cuts, _, cut := r.flushed(); len(cuts) != 0 || cut > match {
		return fmt.Errorf("asks for %v at once, cuts through %d; node 3 may hold back what is behind %d", cuts, cut, match)
	}
	tun := *r.c.tun
	tun.LogKeepEntries = 5
	r.c.tun = &tun
	r.c.truncNow = true
	if _, _, cut := r.flushed(); cut != r.c.log.last {
		return fmt.Errorf("cut through %d of %d: there can be no image, and more is held back than may be", cut, r.c.log.last)
	}
	r.do(true, func(o *Out) { _, _ = r.c.Propose(r.now, EntryHeader{}, []Command{{Body: []byte("x")}}, o) })
	r.step(Msg{Type: MsgAppResp, From: 2, Term: 1, Index: r.c.log.last, Epoch: 1<<32 | 1})
	r.now = r.now.Add(time.Minute)
	r.c.Tick(r.now, &r.o)
	if cuts, _, _ := r.flushed(); len(cuts) != 1 {
		return fmt.Errorf("asks for %v after a while", cuts)
	}
	return nil
}

func cutLargeImage(t *testing.T) error {
	r := heldUp(t)
	r.under(CutLeaderImage, 2, 1)
	r.dies(3, true)
	r.c.Sized(100 << 20)
	for range 3 { // entries, bytes and a quiet time are reached
		if cuts, _, _ := r.flushed(); len(cuts) != 0 {
			return fmt.Errorf("asks for an image of 100 MiB for some bytes of log: %v", cuts)
		}
		r.now = r.now.Add(2 * time.Second)
		r.c.Tick(r.now, &r.o)
	}
	if d := r.c.truncAt; d != Never {
		return fmt.Errorf("a quiet core looks again at %d", d)
	}
	r.c.CutNow()
	if cuts, _, _ := r.flushed(); len(cuts) != 1 {
		return fmt.Errorf("the oldest entry is old, and %v is asked for", cuts)
	}
	return nil
}
