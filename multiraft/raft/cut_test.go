package raft

import (
	"errors"
	"fmt"
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
