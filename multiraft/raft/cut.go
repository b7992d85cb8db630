package raft

import (
	"encoding/binary"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// CutPolicy says who decides how far logs are cut, and how the others get to know it.
// The strategies besides the default are those of the literature (Raft thesis,
// chapter 5). Under each of them nothing is cut that is not
// applied and durable here, and pressure on the node's logs (Press) cuts more.
type CutPolicy uint8

const (
	// CutPiggyback: the leader says with each append what all live members hold, and each
	// replica cuts through that when it is worth it, or after IdleTruncate.
	CutPiggyback CutPolicy = iota
	// CutInLog: the leader proposes an entry that names the cut. Each replica cuts when it
	// has applied that entry.
	CutInLog
	// CutAlone: each replica cuts its own log, through what is applied and durable; a leader
	// spares what live members need. Nobody is told.
	CutAlone
	numCutPolicies
)

// String returns the policy's name.
func (p CutPolicy) String() string {
	return [...]string{"piggybacked", "in-log", "replica", "unknown"}[min(p, numCutPolicies)]
}

// Cut is what an EntryCut carries.
type Cut struct {
	// Index: the log is cut through here. It lies below the entry's own index.
	Index Index
	// Image is the whole state of the group as of Index or later, for replicas whose logs
	// end before; in a form of the owner's. Nil: none.
	Image []byte
}

const cutVersion = 1

// Encode appends the form of c (docs/formats.md) to dst.
func (c *Cut) Encode(dst []byte) []byte {
	dst = binary.AppendUvarint(append(dst, cutVersion), uint64(c.Index))
	return append(dst, c.Image...)
}

// DecodeCut decodes what Encode wrote; Image aliases b. An error wraps ErrCorrupt.
func DecodeCut(b []byte) (Cut, error) {
	if len(b) < 1 || b[0] != cutVersion {
		return Cut{}, corrupt("cut", "too short or of an unknown version")
	}
	r := reader{b: b[1:]}
	c := Cut{Index: Index(r.uvarint())}
	if r.bad || c.Index == 0 {
		return Cut{}, corrupt("cut", "malformed index")
	}
	if len(r.b) > 0 {
		c.Image = r.b
	}
	return c, nil
}

// Cut returns what an EntryCut carries.
func (e Entry) Cut() (Cut, error) {
	if e.Type == EntryCut {
		for _, c := range e.Commands() {
			return DecodeCut(c.Body)
		}
	}
	return Cut{}, corrupt("entry", "not a cut")
}

// ProposeCut appends an EntryCut. Errors, with nothing proposed: ErrNotLeader,
// ErrTransferring, ErrTooLarge, *BusyError. The cut is asked for again then, by a later CutTask.
func (c *Core) ProposeCut(now Time, h EntryHeader, cut *Cut, o *Out) (LogMark, error) {
	c.touch(now)
	cmds := []Command{{Body: cut.Encode(nil)}}
	size := EntrySize(cmds)
	var err error
	switch {
	case !c.leads():
		err = ErrNotLeader
	case c.transferTo != 0:
		err = ErrTransferring
	case size > MaxEntryBytes || cut.Index > c.log.applied:
		err = ErrTooLarge
	case c.uncommitted > 0 && c.uncommitted+size > c.tun.UncommittedBytes:
		err = &BusyError{Uncommitted: c.uncommitted, RetryAfter: c.tun.CommitDelay}
	default:
		return c.appendOwn(EntryCut, h, cmds, o), nil
	}
	c.cutFailed(now)
	return LogMark{}, err
}

// CutApplied says that the entry at at was applied, which cuts the log through idx. It is
// called behind Applied.
func (c *Core) CutApplied(idx, at Index) {
	if mutants.On("CP1") {
		idx = at // all that is applied: but somebody may need what is between
	}
	c.cutTo, c.cutEntry = max(c.cutTo, min(idx, c.log.applied)), at
	c.truncNow, c.stirred = true, true
}

// cutFailed lets the cut be asked for again, after a while.
func (c *Core) cutFailed(now Time) {
	c.cutAsked, c.cutRetry = 0, now.Add(10*c.tun.ProbeRetry)
	c.truncAt = min(c.truncAt, c.cutRetry)
}

// flushCut asks for the cut that the leader wishes, if it is worth it.
func (c *Core) flushCut(now Time, o *Out) {
	if c.tun.Cut != CutInLog || c.role != RoleLeader || !c.ready || c.transferTo != 0 || now < c.cutRetry {
		return
	}
	l := &c.log
	from := max(l.trunc, c.cutTo, c.cutAsked)
	if c.wish <= from {
		return
	}
	n := c.wish - from
	if n == 1 && c.wish == c.cutEntry {
		return // only the entry of the last cut: else an idle group would go on for ever
	}
	if mutants.On("CP2") && n < Index(c.tun.CutEntries) {
		return // entries alone count, as in engines that filled disks with large or few ones
	}
	held := int64(l.heldBytes(from)) - int64(l.heldBytes(c.wish))
	if n < Index(c.tun.CutEntries) && held < int64(c.tun.CutBytes) && !c.truncNow && c.pressure == PressureNone {
		if c.truncAt == Never {
			c.truncAt = now.Add(c.tun.IdleTruncate)
		}
		return
	}
	c.cutAsked = c.wish
	o.Cuts = append(o.Cuts, CutTask{Shard: c.shard, Index: c.wish})
}

// CutNow has the log cut as far as it may be, though little is to be gained: its oldest
// entry is old.
func (c *Core) CutNow() {
	c.truncNow, c.due = true, true
}
