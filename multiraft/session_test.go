package multiraft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/multiraft/session"
)

// proposeIn proposes a command of a session without turning the loop.
func (r *rig) proposeIn(seq uint64, body string) *outcome {
	o := &outcome{}
	s := &raft.SessionHeader{ID: [16]byte{1}, Lineage: 7, Seq: seq, Deadline: 1 << 60}
	r.h.Propose(7, raft.Command{Op: 1, Session: s, Body: []byte(body)}, func(data []byte, _ raft.Index, _ uint32, err error) {
		o.n++
		if o.err = err; err == nil && string(data) != body {
			o.err = fmt.Errorf("answer %q", data)
		}
	})
	return o
}

// checkFlights shows that tries of one command that meet at the leader make one
// entry, that all of them are told its outcome once, and none before it is applied.
func checkFlights(t *testing.T) error {
	r := newRig(t)
	r.lead(2)
	r.ack(2)
	last := r.rep().core.Status().Last
	tries := []*outcome{r.proposeIn(1, "a"), r.proposeIn(1, "a")} // both in the queue
	r.turn()
	tries = append(tries, r.proposeIn(1, "a")) // one in the log
	other := r.proposeIn(2, "b")
	plain := r.proposeOnly("a")
	r.turn()
	for i, o := range append(slices.Clone(tries), other, plain) {
		if o.n != 0 {
			return fmt.Errorf("try %d was told %v before a commit", i, o.err)
		}
	}
	if got := r.h.Stats(); got.JoinedTries != 2 || got.Commands != 3 || r.rep().core.Status().Last != last+2 {
		return fmt.Errorf("%+v, last index %d after %d", got, r.rep().core.Status().Last, last)
	}
	if n := r.h.Stats().PendingBytes; n < 5*32 { // tries that only wait are bounded like the others
		return fmt.Errorf("five tries wait, and %d bytes are counted", n)
	}
	r.ack(2)
	for i, o := range append(tries, other, plain) {
		if o.n != 1 || o.err != nil {
			return fmt.Errorf("try %d: told %d times, %v", i, o.n, o.err)
		}
	}
	if got := strings.Join(r.applied, " "); got != "a b a" {
		return fmt.Errorf("applied %s", got)
	}
	if n := len(r.rep().flights); n != 0 {
		return fmt.Errorf("%d flights are left", n)
	}
	// The leader is deposed with a command in the log: both tries are told so.
	tries = []*outcome{r.proposeIn(3, "c"), r.proposeIn(3, "c")}
	r.turn()
	r.h.Close()
	for i, o := range tries {
		if o.n != 1 || !errors.Is(o.err, ErrAmbiguous) {
			return fmt.Errorf("try %d at the end: told %d times, %v", i, o.n, o.err)
		}
	}
	if n := r.h.Stats().PendingBytes; n != 0 {
		return fmt.Errorf("%d bytes are still counted as pending", n)
	}
	return nil
}

func TestFlights(t *testing.T) {
	if err := checkFlights(t); err != nil {
		t.Error(err)
	}
}

// checkGroupTime shows that the state machine's time comes with the entries and
// never goes back, whatever clock this node has.
func checkGroupTime(t *testing.T) error {
	r := newRig(t)
	for i, ts := range []uint64{5000, 4000, 6000} {
		h := raft.EntryHeader{GroupTs: ts}
		index := raft.Index(i + 1)
		v := raft.EncodeEntry(nil, index, 1, raft.EntryNormal, h, []raft.Command{{Op: 1, Body: []byte("x")}})
		r.follow(index-1, raft.Entry{Index: index, Term: 1, Type: raft.EntryNormal, Value: v})
	}
	if !slices.Equal(r.times, []uint64{5000, 5000, 6000}) {
		return fmt.Errorf("times %v", r.times)
	}
	return nil
}

func TestGroupTime(t *testing.T) {
	if err := checkGroupTime(t); err != nil {
		t.Error(err)
	}
}

// Shows that commands of a custom state machine take effect once per number of
// their session: the machine adds, so a second execution would show in the sum.
func TestCustomSession(t *testing.T) {
	r := newRig(t)
	c := NewCustom(counter{})
	r.h.machine = c
	r.lead(2)
	r.ack(2)
	client := session.Client{ID: [16]byte{9}}
	propose := func(h *raft.SessionHeader, cmd []byte) (string, error) {
		type result struct {
			data []byte
			err  error
		}
		ch := make(chan result, 1)
		go func() {
			data, err := c.ProposeIn(context.Background(), r.h, 7, h, cmd)
			ch <- result{data, err}
		}()
		for {
			select {
			case got := <-ch:
				return fmt.Sprintf("%x", got.data), got.err
			default:
				r.turn()
				r.ack(2)
			}
		}
	}
	deadline := uint64(r.now) + uint64(time.Hour)
	first, _ := client.Begin(7, deadline)
	second, _ := client.Begin(7, deadline)
	for range 3 {
		if got, err := propose(first, add(5, "k")); got != "0000000000000005" || err != nil {
			t.Fatal(got, err)
		}
	}
	var refused *MachineError
	for range 2 {
		if _, err := propose(second, add(-1, "k")); !errors.As(err, &refused) || refused.Text != "negative" {
			t.Fatal(err)
		}
	}
	if got, err := propose(nil, add(2, "k")); got != "0000000000000007" || err != nil {
		t.Fatal(got, err)
	}
	client.End(first)
	client.End(second)
	third, _ := client.Begin(7, deadline)
	if got, err := propose(third, add(1, "k")); got != "0000000000000008" || err != nil {
		t.Fatal(got, err)
	}
	var s *SessionError
	if _, err := propose(first, add(5, "k")); !errors.As(err, &s) || s.Verdict != session.Settled || s.Known {
		t.Fatal(err)
	}
	late, _ := client.Begin(7, 1)
	if _, err := propose(late, add(5, "k")); !errors.As(err, &s) || s.Verdict != session.Expired || !strings.Contains(err.Error(), "deadline") {
		t.Fatal(err)
	}
	far, _ := client.Begin(7, 1<<62)
	if _, err := propose(far, add(5, "k")); !errors.As(err, &s) || s.Verdict != session.Invalid || !s.Known || s.Reason == "" {
		t.Fatal(err)
	}
	if got, err := propose(nil, add(0, "k")); got != "0000000000000008" || err != nil {
		t.Fatal(got, err)
	}
}

// Shows that answers which do not decode are unknown outcomes, and that a result
// that was too large to keep says that it took effect.
func TestDecodeResult(t *testing.T) {
	for _, b := range [][]byte{nil, {9}, {resultReplay}, {resultReplay, 0}, {resultReplay, 0, resultReplay, 0, 0}, {resultSession, 1}} {
		if _, err := decodeResult(b); !errors.Is(err, ErrAmbiguous) {
			t.Errorf("%x: %v", b, err)
		}
	}
	var s *SessionError
	if _, err := decodeResult([]byte{resultReplay, 1, resultOK}); !errors.As(err, &s) || s.Verdict != session.Replay || !s.Known {
		t.Error(err)
	}
}
