package snapshot

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Both ends of a transfer tell how far it has come, from the order to send to the
// installation, and of one that was interrupted; afterwards there is none.
func TestTransfers(t *testing.T) {
	p := newPair(t, 2000)
	var seen []Transfer
	look := func(sender *Sender) {
		for _, v := range slices.Concat(sender.Transfers(), p.recv.Transfers()) {
			if n := len(seen); n > 0 && seen[n-1].State == v.State && v.Done < seen[n-1].Done {
				t.Errorf("%+v after %+v", v, seen[n-1])
			}
			if v.Shard != shard1 || v.Done > v.Bytes || (v.Index != 2100) != (v.State == TransferPreparing) {
				t.Errorf("%+v", v)
			}
			seen = append(seen, v)
		}
	}
	gate, entered := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	sender := NewSender(p.send, func(ctx context.Context, to raft.NodeID, h []byte) (Stream, error) {
		if to != 2 {
			t.Errorf("a stream to node %d", to)
		}
		if once.CompareAndSwap(false, true) {
			close(entered)
			<-gate
		}
		return p.link.open(ctx, h)
	})
	defer sender.Close()
	p.link.change = func(_ int, b []byte) []byte { look(sender); return b }
	install := p.link.install
	p.link.install = func(g *Staged) error { look(sender); return install(g) }
	// Two others hold the slots: the third waits.
	p.send.slots <- struct{}{}
	p.send.slots <- struct{}{}
	done := make(chan error, 1)
	sender.SendSnapshot(p.desc, 2, 2, func(_ raft.Index, _ raft.Term, err error) { done <- err })
	look(sender)
	<-p.send.slots
	<-entered
	look(sender)
	close(gate)
	check(t, <-done)
	<-p.send.slots
	var states []TransferState
	for _, v := range seen {
		if !slices.Contains(states, v.State) {
			states = append(states, v.State)
		}
	}
	if want := []TransferState{TransferPreparing, TransferSending, TransferReceiving, TransferInstalling}; !slices.Equal(states, want) {
		t.Errorf("states %v, want %v", states, want)
	}
	if last := seen[len(seen)-1]; last.State != TransferInstalling || last.Done != last.Bytes || last.Peer != 1 || last.Bytes < 1<<20 {
		t.Errorf("at last %+v", last)
	}
	if left := slices.Concat(sender.Transfers(), p.recv.Transfers()); len(left) > 0 {
		t.Errorf("afterwards %+v", left)
	}

	q := newPair(t, 2000)
	rec := record(t, q.send, q.desc)
	rec.meta.Estimate, rec.meta.Files = rec.meta.Bytes(), nil
	if _, err := q.recv.Handle(1, rec.meta.Encode(nil), giving(rec.msgs[:4]), deaf); !errors.Is(err, ErrTruncated) {
		t.Fatal(err)
	}
	list := q.recv.Transfers()
	if len(list) != 1 || list[0].State != TransferInterrupted || list[0].Done < ChunkBytes || list[0].Done >= list[0].Bytes {
		t.Errorf("interrupted: %+v", list)
	}
}
