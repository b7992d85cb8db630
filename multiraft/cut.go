package multiraft

import (
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// ImageSender is what a SnapshotSender can do besides, for logs that are cut by entries
// of their own (raft.CutInLog).
type ImageSender interface {
	// Image returns the state of the shard of desc as of an index, if it is small enough
	// to travel in an entry; nil: it is not. It is called for one shard of a loop at a
	// time, aside from the loop; on it, if the host is stepped by hand.
	Image(desc *raft.Descriptor) (image []byte, index raft.Index, err error)
	// SendImage sends an image in place of a snapshot; see SendSnapshot.
	SendImage(image []byte, shard raft.ShardID, to raft.NodeID, toReplica raft.ReplicaID, done func(index raft.Index, term raft.Term, err error))
}

// DefaultCutAge is how old the oldest entry of a log becomes before it is cut, where
// logs are not cut by what rides on appends.
const DefaultCutAge = time.Hour

// carryCuts carries out what leaders ask for, in the next round: what this one applied
// is readable then.
func (l *loop) carryCuts() {
	for _, t := range l.out.Cuts {
		l.in.put(func(it *items) {
			it.funcs = append(it.funcs, func(now raft.Time) { l.carryCut(now, t) })
		})
	}
}

// cutImage is the image for a cut of a log.
type cutImage struct {
	bytes []byte
	index raft.Index
	err   error
}

func (l *loop) carryCut(now raft.Time, t raft.CutTask) {
	if l.h.tuning.Cut == raft.CutLeaderImage {
		l.keepImage(now, t)
		return
	}
	s, ok := l.h.snaps.(ImageSender)
	if r := l.byID[t.Shard]; r != nil && r.out != nil {
		ok = false // the state is outside of the store
	}
	switch {
	case !ok:
		l.proposeCut(now, t, cutImage{})
	case l.h.stepper != nil:
		if r := l.byID[t.Shard]; r != nil && !r.removed && r.fenced == nil {
			l.proposeCut(now, t, imageOf(s, r.desc))
		}
	default: // up to 256 KiB are read
		l.cuts = append(l.cuts, t)
		l.nextCut(s)
	}
}

func imageOf(s ImageSender, desc *raft.Descriptor) (i cutImage) {
	i.bytes, i.index, i.err = s.Image(desc)
	return i
}

// nextCut has the next image made aside, one at a time. Of each group at most one cut is
// asked for, so l.cuts holds no more than there are groups.
func (l *loop) nextCut(s ImageSender) {
	for !l.cutting && len(l.cuts) > 0 {
		t := l.cuts[0]
		l.cuts = l.cuts[:copy(l.cuts, l.cuts[1:])]
		r := l.byID[t.Shard]
		if r == nil || r.removed || r.fenced != nil {
			continue
		}
		desc := r.desc.Clone()
		l.cutting = true
		l.h.spawn(func() {
			image := imageOf(s, &desc)
			l.in.put(func(it *items) {
				it.funcs = append(it.funcs, func(now raft.Time) {
					l.cutting = false
					l.proposeCut(now, t, image)
					l.nextCut(s)
				})
			})
		})
	}
}

// proposeCut proposes a cut, with its image if that is of use: what follows a cut has to
// follow the image, so the image is of the cut's index or a later one.
func (l *loop) proposeCut(now raft.Time, t raft.CutTask, image cutImage) {
	r := l.byID[t.Shard]
	if r == nil || r.removed || r.fenced != nil {
		return
	}
	l.touch(r)
	cut := raft.Cut{Index: t.Index}
	switch {
	case image.err != nil:
		l.h.logger.Warn("no image for a cut of the log", "shard", t.Shard, "err", image.err)
	case (image.index >= t.Index) && l.h.roomForImage(len(image.bytes)):
		cut.Image = image.bytes
	}
	ts := max(r.lastTs+1, l.h.clock.Wall())
	if _, err := r.core.ProposeCut(now, raft.EntryHeader{GroupTs: ts}, &cut, &l.out); err != nil {
		return // it is asked for again
	}
	r.lastTs = ts
	l.h.stats.entries.Add(1)
}

// roomForImage reports whether an image of n bytes may go into a log: it is not counted
// with the proposals, so it has to leave the logs far from their cap, which could hold
// nothing else then.
func (h *Host) roomForImage(n int) bool {
	c := &h.logCap
	return c.limit == 0 || h.logBytes()+2*h.pending.Load()+2*int64(n) < c.limit/100*zoneFrom[ZoneSoft]
}

// applyCut applies an entry that cuts the log. It changes nothing of the state.
func (l *loop) applyCut(r *replica, e raft.Entry) {
	cut, err := e.Cut()
	if err != nil { // it was decoded before
		return
	}
	r.core.CutApplied(cut.Index, e.Index)
	if len(cut.Image) > 0 {
		r.imaged().at = e.Index
	}
}

// image returns the newest image in the log of r, if the log goes on behind it, and the
// index of the cut that it came with. nil: there is none.
func (h *Host) image(r *replica) ([]byte, raft.Index) {
	if r.images == nil || r.images.at <= r.as.TruncIndex {
		return nil, 0
	}
	ents, err := h.engine.Entries(nil, r.shard, r.images.at, r.images.at, raft.MaxEntryBytes)
	if err != nil || len(ents) != 1 {
		return nil, 0
	}
	cut, err := ents[0].Cut()
	if err != nil || cut.Index < r.as.TruncIndex {
		return nil, 0 // what lies between is gone
	}
	if cut.Index < r.as.ConfIndex {
		return nil, 0 // its descriptor may not know the one who needs it
	}
	return cut.Image, cut.Index
}

// cutOld has the log of r cut if its oldest entry is old: it looks at it now and then,
// when the group is at work. An idle one is cut anyway.
func (l *loop) cutOld(now raft.Time, r *replica, wall time.Time) {
	age := l.h.cutAge
	if l.h.tuning.Cut == raft.CutPiggyback || r.images != nil && now < r.images.ageAt {
		return
	}
	r.imaged().ageAt = now.Add(max(age/8, time.Millisecond))
	first := r.as.TruncIndex + 1
	if first > r.as.Applied {
		return
	}
	ents, err := l.h.engine.Entries(nil, r.shard, first, first, 1)
	if err != nil || len(ents) != 1 {
		return
	}
	hdr, err := ents[0].Header()
	if err == nil && hdr.GroupTs > 0 && wall.Sub(time.Unix(0, int64(hdr.GroupTs))) >= age {
		r.core.CutNow()
	}
}
