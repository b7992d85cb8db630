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
	// CutLeaderImage: what a member that is away or slow lacks is cut only under an image of
	// the whole group, which the leader's owner keeps outside the log; the leader then names
	// the cut as CutPiggyback does. What all members hold is cut without one.
	CutLeaderImage
	numCutPolicies
)

// String returns the policy's name.
func (p CutPolicy) String() string {
	return [...]string{"piggybacked", "in-log", "replica", "leader-image", "unknown"}[min(p, numCutPolicies)]
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
	if c.tun.Cut == CutLeaderImage {
		c.flushImage(now, o)
		return
	}
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
	if c.tun.Cut == CutLeaderImage {
		c.own().image.force = true
	}
}

// Images outside the log (CutLeaderImage)
//
// The owner keeps at most one image of the group, and says through Imaged of which index it
// is. Nothing rests on it: where it is missing or of no use, a fresh snapshot takes its
// place. So a core may believe in an image that is gone.

const (
	// imageShare: an image of many bytes is made anew only when the log behind the last one
	// takes this part of them, so that images are at most so many times what is written.
	imageShare = 4
	// imageFloor: up to this size one is made whenever a trigger says so.
	imageFloor = 64 << 10
	// Where no image could be made, the next is asked for after ten times Tuning.ProbeRetry,
	// then twice as much, up to imageRetries times.
	imageRetries = 7
)

// imageState is what a core knows of the image its owner keeps.
type imageState struct {
	at      Index // the image is of this index; zero: there is none
	bytes   int64 // it takes so much
	seen    Index // applied index when a quiet time was last thought about
	fails   uint8 // in a row
	making  bool  // one was asked for, and the owner has not answered
	without bool  // none can be made: the log is cut as without images
	force   bool  // one is made however large it is: the oldest entry is old
	fresh   bool  // Imaged was called since the last Flush

	// Of this Flush. wanted: a member is away or slow, and lacks what is applied here.
	// spared: all members hold what is in the image.
	wanted, spared bool
}

// Imaged says that the owner keeps an image of the group as of idx, durably; it takes so
// many bytes. One of an index that is not applied here is of no use.
func (c *Core) Imaged(idx Index, bytes int64) {
	i := &c.own().image
	i.making = false
	if idx > c.log.applied {
		return
	}
	if mutants.On("CI1") {
		idx = c.log.applied // what came while it was made
	}
	i.at, i.bytes, i.fresh = max(i.at, idx), bytes, true
	i.fails, i.without = 0, false
	c.cutRetry = 0
	c.truncNow, c.stirred = true, true
}

// ImageFailed says that no image was made. It is asked for again, ever more seldom. later:
// this was no time for it; else the log is cut as without images until there is one.
func (c *Core) ImageFailed(now Time, later bool) {
	i := &c.own().image
	i.making, i.without = false, i.without || !later
	c.cutRetry = now.Add(10 * c.tun.ProbeRetry << i.fails)
	i.fails = min(i.fails+1, imageRetries)
	i.seen = 0
	c.truncAt = min(c.truncAt, c.cutRetry)
	c.stirred = true
}

// NoImage says that the image is gone.
func (c *Core) NoImage() {
	if s := c.seldom; s != nil {
		s.image.at, s.image.bytes = 0, 0
	}
}

// SnapshotFrom says that the snapshot that is sent to a member is of idx, and not of what
// was applied when it was asked for: the log behind idx is kept for it.
func (c *Core) SnapshotFrom(to ReplicaID, idx Index) {
	if p := c.peer(to); p != nil && p.state == stateSnapshot {
		b := p.ownGap()
		b.snapIndex = min(b.snapIndex, idx)
	}
}

// cover is the part of updateCompactTo for a member that lacks what is behind pos, where
// images are made; within: it may hold so much back. It returns through where the log may
// be cut, of what could be cut but for it.
func (c *Core) cover(alive, within bool, pos, to Index) Index {
	i := &c.own().image
	if alive && within {
		return pos // it gets it from the log
	}
	i.wanted = true
	if !i.without || within {
		to = min(to, max(pos, i.at))
	}
	return to
}

// flushImage asks for an image, if it is worth it, or has one dropped that nobody needs.
func (c *Core) flushImage(now Time, o *Out) {
	i, l := &c.own().image, &c.log
	quiet := c.truncNow && !i.fresh
	i.fresh = false
	if c.role != RoleLeader || !c.ready || c.transferTo != 0 || c.pressure != PressureNone {
		return
	}
	if i.at > 0 && i.spared && !i.making {
		c.NoImage()
		o.Cuts = append(o.Cuts, CutTask{Shard: c.shard})
	}
	from := max(l.trunc, i.at)
	if i.force = i.force && i.wanted; !i.wanted || i.making || l.applied <= from || now < c.cutRetry {
		return
	}
	if quiet {
		i.seen = l.applied
	}
	n, held := l.applied-from, int64(l.heldBytes(from))-int64(l.heldBytes(l.applied))
	worth := n >= Index(c.tun.CutEntries) || held >= int64(c.tun.CutBytes) || quiet
	if size := max(i.bytes, c.dataBytes); size > imageFloor && held < size/imageShare && !i.force {
		worth = false
	}
	if !worth {
		if c.truncAt == Never && i.seen != l.applied {
			c.truncAt = now.Add(c.tun.IdleTruncate)
		}
		return
	}
	i.force, i.making = false, true
	o.Cuts = append(o.Cuts, CutTask{Shard: c.shard, Index: l.applied})
}
