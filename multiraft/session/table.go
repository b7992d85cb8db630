package session

import (
	"encoding/binary"
	"fmt"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Store is the group's part of the batch under way. Get sees the writes made
// through the same Store before; its value is valid until the batch ends.
type Store interface {
	Get(suffix []byte) (val []byte, ok bool, err error)
	Set(suffix, val []byte)
	Delete(suffix []byte)
}

// Keys under a group's prefix 03 shard:
//
//	's'                        the table's head: ver u8, live uvarint, hand uvarint
//	's' client(16) lineage(8)  a record (record.go)
//	't' slot(4)                ver u8, client(16) lineage(8): the record in a slot
//
// The slots [0, live) are in use, without gaps. They let a sweep go round the
// records by reads of single keys: hand is the slot it looks at next.
const (
	tagRecord = 's'
	tagSlot   = 't'

	headVersion = 1
	slotVersion = 1
)

// A sweep looks at so many slots when a session registers, and at so many when
// the table is full.
const (
	sweepSlots     = 4
	sweepSlotsFull = 128
)

// Verdict says what is to be done with a command.
type Verdict uint8

const (
	// Execute: it is new. Execute it and call Table.Record, unless the command
	// turns out to belong to another shard.
	Execute Verdict = iota
	// Replay: it was executed before, with Judgement.Result.
	Replay
	// Settled: it must not be executed, and there is no result: the client has
	// said that it does not wait for it. Judgement.Executed if it was.
	Settled
	// Expired: its deadline has passed. Judgement.Known says that no earlier try
	// was executed either; otherwise that cannot be told any more.
	Expired
	// Full: the group has as many sessions as it may have. Not executed, and no
	// earlier try was.
	Full
	// Invalid: the header cannot be right (Judgement.Reason). Not executed.
	Invalid
)

// Judgement is the answer of Table.Judge.
type Judgement struct {
	Verdict  Verdict
	Result   Result // of Replay
	Executed bool   // of Settled
	Known    bool   // of Expired
	Reason   string // of Invalid
}

// Table is the sessions of one group during the application of one entry. Zero
// value plus Store, Now: ready. It is reused by setting them again.
type Table struct {
	Store Store
	// Now is the group time of the entry, nanoseconds.
	Now uint64

	rec   Record // of the command under judgement
	found bool
	key   [1 + 16 + 8]byte
	buf   []byte
	limit int // zero: MaxSessions; for tests
}

// Check validates what can be said of a header by itself. Reasons begin with the
// field concerned; the empty string means that nothing is wrong.
func Check(h *raft.SessionHeader) string {
	switch {
	case h.ID == [16]byte{}:
		return "the id is zero"
	case h.Lineage == 0:
		return "the lineage is zero"
	case h.Seq == 0:
		return "the sequence number is zero"
	case h.AckedTo >= h.Seq:
		return "the command itself is acknowledged already"
	case h.Seq-h.AckedTo > Window:
		return fmt.Sprintf("more than %d commands are not acknowledged", Window)
	case h.Deadline == 0:
		return "there is no deadline"
	}
	return ""
}

// Judge decides about a command before it is executed. An error means that the
// store cannot be read or holds what this version does not understand.
func (t *Table) Judge(h *raft.SessionHeader) (Judgement, error) {
	if why := Check(h); why != "" {
		return Judgement{Verdict: Invalid, Reason: why}, nil
	}
	t.key[0] = tagRecord
	copy(t.key[1:], h.ID[:])
	binary.BigEndian.PutUint64(t.key[17:], uint64(h.Lineage))
	b, ok, err := t.Store.Get(t.key[:])
	if err != nil {
		return Judgement{}, err
	}
	if t.found = ok; ok {
		if err := t.rec.decode(b); err != nil {
			return Judgement{}, err
		}
		switch {
		case mutants.On("F1"):
		case t.rec.executed(h.Seq):
			if res, ok := t.rec.result(h.Seq); ok {
				return Judgement{Verdict: Replay, Result: res}, nil
			}
			return Judgement{Verdict: Settled, Executed: true}, nil
		case t.rec.settled(h.Seq):
			return Judgement{Verdict: Settled}, nil
		}
	} else {
		t.rec = Record{born: t.Now, results: t.rec.results[:0]}
	}
	switch {
	case t.Now > h.Deadline:
		return Judgement{Verdict: Expired, Known: t.found && h.Deadline >= t.rec.born}, nil
	case h.Deadline-t.Now > MaxAheadNanos:
		return Judgement{Verdict: Invalid, Reason: "the deadline is more than two hours ahead of the group's time"}, nil
	case t.found:
		return Judgement{Verdict: Execute}, nil
	}
	room, err := t.room()
	if err != nil || room {
		return Judgement{Verdict: Execute}, err
	}
	return Judgement{Verdict: Full}, nil
}

// Record notes that the command judged last was executed. short is the form of
// the result that is kept if the full one is too large; it must decide as much
// as a client needs to know, in a few bytes.
func (t *Table) Record(h *raft.SessionHeader, res Result, short []byte) error {
	t.rec.note(h, res, short)
	t.buf = t.rec.appendTo(t.buf[:0])
	t.Store.Set(t.key[:], t.buf)
	if t.found {
		return nil
	}
	live, hand, err := t.head()
	if err != nil {
		return err
	}
	t.Store.Set(slotKey(live), append([]byte{slotVersion}, t.key[1:]...))
	live++
	return t.sweep(live, hand, sweepSlots)
}

// End returns the header under which to record the command that ends a session:
// everything is settled with it. The record stays until its deadline, to
// recognise late copies, but holds no results.
func End(h *raft.SessionHeader) *raft.SessionHeader {
	e := *h
	e.AckedTo = e.Seq
	return &e
}

// Live returns the number of sessions of the group.
func (t *Table) Live() (int, error) {
	live, _, err := t.head()
	return int(live), err
}

// room reports whether one more session may register, and makes room if records
// have expired.
func (t *Table) room() (bool, error) {
	limit := uint32(MaxSessions)
	if t.limit > 0 {
		limit = uint32(t.limit)
	}
	live, hand, err := t.head()
	if err != nil || live < limit {
		return live < limit, err
	}
	if err := t.sweep(live, hand, sweepSlotsFull); err != nil {
		return false, err
	}
	live, hand, err = t.head()
	if err == nil && live >= limit && mutants.On("F1e") {
		err = t.drop(&live, hand)
		t.setHead(live, hand)
	}
	return live < limit, err
}

// sweep looks at n slots from hand on, removes the records whose deadline has
// passed, and writes the head.
func (t *Table) sweep(live, hand uint32, n int) error {
	var rec Record
	for range n {
		if hand >= live {
			hand = 0
		}
		if live == 0 {
			break
		}
		key, err := t.slot(hand)
		if err != nil {
			return err
		}
		b, ok, err := t.Store.Get(key)
		if err != nil {
			return err
		}
		if !ok {
			return ErrBadRecord
		}
		if err := rec.decode(b); err != nil {
			return err
		}
		if t.Now <= rec.deadline {
			hand++
			continue
		}
		if err := t.drop(&live, hand); err != nil {
			return err
		}
	}
	t.setHead(live, hand)
	return nil
}

// drop removes the record in a slot and moves the last one there.
func (t *Table) drop(live *uint32, slot uint32) error {
	key, err := t.slot(slot)
	if err != nil {
		return err
	}
	t.Store.Delete(key)
	*live--
	last, err := t.slot(*live)
	if err != nil {
		return err
	}
	if slot != *live {
		t.Store.Set(slotKey(slot), append([]byte{slotVersion}, last[1:]...))
	}
	t.Store.Delete(slotKey(*live))
	return nil
}

// slot returns the key of the record in a slot.
func (t *Table) slot(i uint32) ([]byte, error) {
	b, ok, err := t.Store.Get(slotKey(i))
	if err != nil {
		return nil, err
	}
	if !ok || len(b) != len(t.key) || b[0] != slotVersion {
		return nil, ErrBadRecord
	}
	return append([]byte{tagRecord}, b[1:]...), nil
}

func (t *Table) head() (live, hand uint32, err error) {
	b, ok, err := t.Store.Get([]byte{tagRecord})
	if err != nil || !ok {
		return 0, 0, err
	}
	c := cursor{b: b}
	ver, l, h := c.u8(), c.uvarint(), c.uvarint()
	if c.bad || len(c.b) > 0 || ver != headVersion || l > 1<<32-1 || h > 1<<32-1 {
		return 0, 0, ErrBadRecord
	}
	return uint32(l), uint32(h), nil
}

func (t *Table) setHead(live, hand uint32) {
	t.Store.Set([]byte{tagRecord}, appendHead(nil, live, hand))
}

func appendHead(dst []byte, live, hand uint32) []byte {
	dst = binary.AppendUvarint(append(dst, headVersion), uint64(live))
	return binary.AppendUvarint(dst, uint64(hand))
}

func slotKey(i uint32) []byte { return binary.BigEndian.AppendUint32([]byte{tagSlot}, i) }
