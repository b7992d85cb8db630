package multiraft

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

func TestFeed(t *testing.T) {
	if err := feedWindow(t); err != nil {
		t.Fatal(err)
	}
}

// feedWindow: a node lacks 2 MiB of the log, most of it not in memory. No more than its
// window is on its way to it at a time, and in the end it has everything.
func feedWindow(t *testing.T) error {
	r := newRig(t)
	r.l.window = 256 << 10
	r.lead(2)
	r.ack(2)
	away := r.rep().core.Status().Last
	for i := range 64 {
		r.propose(fmt.Sprint(i) + strings.Repeat("x", 32<<10))
		r.ack(2)
	}
	last := r.rep().core.Status().Last
	r.sent = nil
	r.l.in.put(func(it *items) {
		it.funcs = append(it.funcs, func(now raft.Time) {
			r.rep().core.PeerReset(now, 3, &r.l.out)
			r.l.touch(r.rep())
		})
	})
	r.turn()
	// It refuses the probe, and says how far it is.
	s := r.rep().core.Status()
	at := away
	r.in(raft.Msg{Type: raft.MsgAppResp, From: 3, Term: s.Term, Index: at})
	most := 0
	for range 1000 {
		bytes := 0
		end := at
		for i := range r.sent {
			m := &r.sent[i]
			if m.Type != raft.MsgApp || m.To != 3 || len(m.Entries) == 0 || m.Index != end {
				continue
			}
			end = m.Index + raft.Index(len(m.Entries))
			for _, e := range m.Entries {
				bytes += len(e.Value)
			}
		}
		r.sent = nil
		most = max(most, bytes)
		if end == at {
			break
		}
		at = end
		r.in(raft.Msg{Type: raft.MsgAppResp, From: 3, Term: s.Term, Index: at})
	}
	if at != last {
		return fmt.Errorf("it has entries through %d of %d", at, last)
	}
	if limit := r.l.window + 2*r.h.tuning.MaxMsgBytes; most > limit {
		return fmt.Errorf("%d bytes on their way at a time, at most %d", most, limit)
	}
	if most == 0 || len(r.l.feeds) != 1 || len(r.l.feeds[0].tasks) != 0 {
		return errors.New("nothing was read from the log")
	}
	return nil
}
