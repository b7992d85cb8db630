package multiraft

import (
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// ImageSender is what a SnapshotSender can do besides, for logs that are cut by entries
// of their own (raft.CutInLog).
type ImageSender interface {
	// Image returns the state of the shard of desc as of an index, if it is small enough
	// to travel in an entry; nil: it is not. It is called on a loop.
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

func (l *loop) carryCut(now raft.Time, t raft.CutTask) {
	r := l.byID[t.Shard]
	if r == nil || r.removed || r.fenced != nil {
		return
	}
	l.touch(r)
	cut := raft.Cut{Index: t.Index}
	if s, ok := l.h.snaps.(ImageSender); ok {
		image, index, err := s.Image(&r.desc)
		switch {
		case err != nil:
			l.h.logger.Warn("no image for a cut of the log", "shard", t.Shard, "err", err)
		case index >= t.Index && l.h.roomForImage(len(image)): // else the cut would take what follows the image
			cut.Image = image
		}
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
		r.imageAt = e.Index
	}
}

// image returns the newest image in the log of r, if the log goes on behind it. nil:
// there is none.
func (h *Host) image(r *replica) []byte {
	if r.imageAt <= r.as.TruncIndex {
		return nil
	}
	ents, err := h.engine.Entries(nil, r.shard, r.imageAt, r.imageAt, raft.MaxEntryBytes)
	if err != nil || len(ents) != 1 {
		return nil
	}
	cut, err := ents[0].Cut()
	if err != nil || cut.Index < r.as.TruncIndex {
		return nil // what lies between is gone
	}
	if cut.Index < r.as.ConfIndex {
		return nil // its descriptor may not know the one who needs it
	}
	return cut.Image
}

// cutOld has the log of r cut if its oldest entry is old: it looks at it now and then,
// when the group is at work. An idle one is cut anyway.
func (l *loop) cutOld(now raft.Time, r *replica, wall time.Time) {
	age := l.h.cutAge
	if l.h.tuning.Cut == raft.CutPiggyback || now < r.ageAt {
		return
	}
	r.ageAt = now.Add(max(age/8, time.Millisecond))
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
