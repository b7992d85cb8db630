package multiraft

import (
	"math"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// ImageKeeper is what a SnapshotSender can do besides, for logs that are cut under images
// that leaders keep outside of them (raft.CutLeaderImage). Of a shard at most one image
// is kept, over restarts.
type ImageKeeper interface {
	// KeepImage has an image of the shard of desc made and kept, in the background, in
	// place of the one before. done is called once, from any goroutine, with the index it is of
	// and the bytes it takes, once it is durable; later: there was no time for it now.
	KeepImage(desc raft.Descriptor, done func(index raft.Index, bytes int64, later bool, err error))
	// KeptImage tells of the image of a shard. It must not block.
	KeptImage(shard raft.ShardID) (index raft.Index, bytes int64, ok bool)
	// DropImage drops the image of a shard if it is of an index below below, and reports
	// whether it did. It must not block.
	DropImage(shard raft.ShardID, below raft.Index) bool
	// SendKept sends the image of a shard, if it is of index, in place of a snapshot; see SendSnapshot.
	SendKept(shard raft.ShardID, index raft.Index, to raft.NodeID, toReplica raft.ReplicaID, done func(index raft.Index, term raft.Term, err error))
}

// keepImage carries out a CutTask under raft.CutLeaderImage.
func (l *loop) keepImage(now raft.Time, t raft.CutTask) {
	r := l.byID[t.Shard]
	if r == nil || r.removed {
		return
	}
	k := l.h.keeper
	if t.Index == 0 {
		l.dropImage(r, anyIndex)
		return
	}
	l.touch(r)
	if k == nil || r.fenced != nil || r.out != nil { // what a machine keeps elsewhere is sent as it is now
		r.core.ImageFailed(now, false)
		return
	}
	if at, bytes, ok := k.KeptImage(r.shard); ok && at > r.imaged().kept && l.usable(r, at) { // of before a restart
		r.images.kept = at
		r.core.Imaged(at, bytes)
		return
	}
	life := r.imaged().life
	k.KeepImage(r.desc.Clone(), func(index raft.Index, bytes int64, later bool, err error) {
		l.in.put(func(it *items) {
			it.funcs = append(it.funcs, func(now raft.Time) { l.imageMade(now, r, life, index, bytes, later, err) })
		})
	})
}

// imageMade takes note of an image that r asked for.
func (l *loop) imageMade(now raft.Time, r *replica, life uint32, index raft.Index, bytes int64, later bool, err error) {
	if l.byID[r.shard] != r || r.removed || r.images.life != life {
		// What it shows is not to be trusted any more, or is of no use.
		l.h.keeper.DropImage(r.shard, anyIndex)
		if l.byID[r.shard] == r && !r.removed {
			r.core.ImageFailed(now, true)
			l.touch(r)
		}
		return
	}
	l.touch(r)
	if err != nil {
		l.h.logger.Debug("no image of a shard", "shard", r.shard, "err", err)
		r.core.ImageFailed(now, later)
		return
	}
	r.images.kept = index
	r.core.Imaged(index, bytes)
}

// anyIndex is above all indexes.
const anyIndex raft.Index = math.MaxUint64

// dropImage drops the image of r if it is of an index below below.
func (l *loop) dropImage(r *replica, below raft.Index) {
	k := l.h.keeper
	if k == nil {
		return
	}
	if k.DropImage(r.shard, below) || below == anyIndex {
		if r.images != nil {
			r.images.kept = 0
		}
		r.core.NoImage()
	}
}

// voidImage drops the image of r, and the one that is being made: it may show what is not so.
func (l *loop) voidImage(r *replica) {
	if r.images != nil && !mutants.On("CI7") { // else none is being made
		r.images.life++
	}
	l.dropImage(r, anyIndex)
}

// usable reports whether an image of r's shard as of at serves a member that lags: the log
// goes on behind it, and its descriptor is the one in force.
func (l *loop) usable(r *replica, at raft.Index) bool {
	return at >= r.as.TruncIndex && at >= r.as.ConfIndex && at <= r.as.Applied
}

// sendKept sends the image of r in place of a snapshot, if it will do.
func (l *loop) sendKept(r *replica, t raft.SnapshotTask, finish func(raft.Index, raft.Term, error)) bool {
	k := l.h.keeper
	if k == nil || t.Fresh && !mutants.On("CI6") {
		return false
	}
	at, _, ok := k.KeptImage(r.shard)
	if !ok || !l.usable(r, at) {
		return false
	}
	l.h.stats.images.Add(1)
	r.core.SnapshotFrom(t.ToReplica, at)
	k.SendKept(r.shard, at, t.To, t.ToReplica, finish)
	return true
}
