package multiraft

import (
	"context"
	"errors"
	"testing"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// put installs a snapshot of (index, 1) into the store, as package snapshot does.
func (r *rig) put(index raft.Index, hs raft.HardState) error {
	hs.Term, hs.Commit = max(hs.Term, 1), index
	return r.e.InstallSnapshot(engine.Install{Desc: rigDesc(), Applied: raft.AppliedState{Applied: index, AppliedTerm: 1}, Hard: hs})
}

// TestInstallNotNeeded: a snapshot that the log has overtaken is refused by type,
// and so is one for a leader; nothing is installed.
func TestInstallNotNeeded(t *testing.T) {
	r := newRig(t)
	r.follow(0, rigEntry(1, raft.EntryEmpty, ""), rigEntry(2, raft.EntryNormal, "a"))
	never := func(raft.HardState, raft.AppliedState, bool, bool) (raft.State, error) {
		t.Error("install was called")
		return raft.State{}, nil
	}
	if err := r.l.install(r.now, 7, 2, 1, never); !errors.Is(err, ErrSnapshotStale) {
		t.Errorf("as far already: %v", err)
	}
	r.lead(2)
	if err := r.l.install(r.now, 7, 50, 1, never); !errors.Is(err, ErrSnapshotStale) {
		t.Errorf("on a leader: %v", err)
	}
}

// TestInstallFails: an install that fails and leaves the old state whole changes
// nothing. One that fails behind its commit stops the node, since the store
// and the loop hold different states from then on.
func TestInstallFails(t *testing.T) {
	boom := errors.New("boom")
	r := newRig(t)
	r.follow(0, rigEntry(1, raft.EntryEmpty, ""), rigEntry(2, raft.EntryNormal, "a"))
	err := r.l.install(r.now, 7, 9, 1, func(raft.HardState, raft.AppliedState, bool, bool) (raft.State, error) { return raft.State{}, boom })
	if !errors.Is(err, boom) || r.h.Fatal() != nil {
		t.Fatalf("refused: %v, fatal %v", err, r.h.Fatal())
	}
	r.follow(2, rigEntry(3, raft.EntryNormal, "b"))
	if len(r.applied) != 2 {
		t.Fatalf("applied %q", r.applied)
	}
	err = r.l.install(r.now, 7, 9, 1, func(hs raft.HardState, _ raft.AppliedState, _, _ bool) (raft.State, error) {
		if err := r.put(9, hs); err != nil {
			t.Fatal(err)
		}
		return raft.State{}, boom
	})
	if !errors.Is(err, boom) || !errors.Is(<-r.fatal, boom) || !r.l.failed {
		t.Fatalf("installed, not loaded: %v", err)
	}
}

// TestRefusedProposals: what Raft does not take in is refused with a type that
// says so.
func TestRefusedProposals(t *testing.T) {
	r := newRig(t)
	r.lead(2)
	r.ack(2)
	var large *TooLargeError
	if o := r.propose(string(make([]byte, raft.MaxEntryBytes))); o.n != 1 || !errors.As(o.err, &large) || large.Bytes <= large.Limit || large.Limit != raft.MaxEntryBytes {
		t.Fatalf("too large: %v", o.err)
	}
	conf := func(cc raft.ConfChange) (err error) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- r.h.ChangeConf(ctx, 7, cc, nil) }()
		until(t, "handed in", func() bool { r.l.in.mu.Lock(); defer r.l.in.mu.Unlock(); return len(r.l.in.in.funcs) > 0 })
		r.turn()
		err = <-done
		cancel()
		return err
	}
	var refused *RefusedError
	if err := conf(raft.ConfChange{ConfVer: 99}); !errors.As(err, &refused) || !errors.Is(err, raft.ErrConfVersion) {
		t.Fatalf("outdated change: %v", err)
	}
	r.in(raft.Msg{Type: raft.MsgApp, From: 3, Term: 2, Index: 0})
	var other *NotLeaderError
	if err := conf(raft.ConfChange{ConfVer: 1}); !errors.As(err, &other) || other.Leader != 3 {
		t.Fatalf("a change at a follower: %v", err)
	}
}
