package engine

import (
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// logIndex says in which records the entries of the groups are.
type logIndex struct {
	groups map[raft.ShardID]*locs
	from   uint64 // oldest record it knows
	next   uint64 // first record it does not know
}

// loc says where the entries [first, last] of a group are.
type loc struct {
	first, last raft.Index
	rec         uint64
	off         uint32
}

// locs are the places of a group's entries, by index, and so by record.
type locs []loc

// add notes a run (LR1).
func (l *locs) add(rec uint64, r *run) {
	s := *l
	var old []loc
	for n := len(s); n > 0 && s[n-1].last >= r.first; n = len(s) {
		if mutants.On("B17b") && s[n-1].last > r.last() {
			o := s[n-1]
			o.first = max(o.first, r.last()+1)
			old = append(old, o)
		}
		if s[n-1].first < r.first {
			s[n-1].last = r.first - 1
			break
		}
		s = s[:n-1]
	}
	s = append(s, loc{r.first, r.last(), rec, r.off})
	slices.Reverse(old)
	*l = append(s, old...)
}

// find returns the place of entry i, or of the next one that has one.
func (l locs) find(i raft.Index) (loc, bool) {
	n := sort.Search(len(l), func(n int) bool { return l[n].last >= i })
	if n == len(l) {
		return loc{}, false
	}
	return l[n], true
}

// extend lets the index know more of the runs, some at a time: nobody shall be kept
// waiting. It reports whether it knows all. Called with mu held.
func (j *journal) extend() bool {
	if j.index == nil {
		j.index = &logIndex{groups: make(map[raft.ShardID]*locs), from: j.head}
	}
	x := j.index
	if x.next < j.head {
		x.next = j.head
	}
	for left := indexStep; x.next < j.head+uint64(len(j.recs)); x.next++ {
		runs := j.recs[x.next-j.head].runs
		if left -= len(runs); left < 0 && left != indexStep-len(runs) {
			return false
		}
		for k := range runs {
			r := &runs[k]
			if x.next < j.groups[r.shard].void {
				continue
			}
			l := x.groups[r.shard]
			if l == nil {
				l = new(locs)
				x.groups[r.shard] = l
			}
			l.add(x.next, r)
		}
	}
	return true
}

// indexStep is how many runs the index takes at a time.
const indexStep = 1 << 13

// find looks for entry i of s, or the next one that is in a record, and returns where
// it is, the record's key, and what is known of the group's log.
func (j *journal) find(s raft.ShardID, i raft.Index) (l loc, id recordID, ok bool, g groupLog) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for !j.extend() {
		j.mu.Unlock()
		j.mu.Lock()
	}
	g = j.groups[s]
	if of := j.index.groups[s]; of != nil {
		// Records before the oldest one are gone, and what of them counted has moved.
		n := sort.Search(len(*of), func(n int) bool { return (*of)[n].rec >= j.head })
		if l, ok = (*of)[n:].find(max(i, g.trunc+1)); ok {
			id = j.recs[l.rec-j.head].id
		}
	}
	return l, id, ok, g
}

// dropIndex frees the memory of the index.
func (j *journal) dropIndex() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.index = nil
}

// eachEntry calls f with the entries of the log of s behind index after, ascending as
// they are: it is for the caller to find gaps. moved is positioned anywhere over the
// keys of prefix 01; read returns a record, which counts until the next call.
func (e *Engine) eachEntry(s raft.ShardID, after raft.Index, moved *pebble.Iterator, read func(rec uint64, id recordID) ([]byte, error), f func(i raft.Index, v []byte) error) error {
	var kb [logKeyLen]byte
	last := raft.Index(0)
	for ok := moved.SeekGE(appendLogKey(kb[:0], s, 0)); ok; ok = moved.Next() {
		k, err := ParseKey(moved.Key())
		if err != nil {
			return err
		}
		if k.Shard != s {
			break
		}
		v, err := moved.ValueAndErr()
		if err != nil {
			return err
		}
		if err := f(k.Index, v); err != nil {
			return err
		}
		last = k.Index
	}
	if err := moved.Error(); err != nil { // it ended there, not the log
		return e.iterError(err)
	}
	j := &e.journal
	for i := after + 1; ; {
		l, id, ok, _ := j.find(s, i)
		if !ok {
			return nil
		}
		val, err := read(l.rec, id)
		if err != nil {
			return err
		}
		if l.first <= last {
			return &GroupError{Shard: s, Index: l.first, Err: fmt.Errorf("entry %d is in a record and below a key of its own: %w", l.first, raft.ErrCorrupt)}
		}
		bad := eachOf(val, l.off, func(at raft.Index, v []byte) bool {
			if at > l.last {
				return false
			}
			if at >= i {
				err = f(at, v)
			}
			return err == nil
		})
		if err = errors.Join(err, bad); err != nil {
			return err
		}
		i = l.last + 1
	}
}

// readRecord returns the value of a record; the caller closes c.
func (e *Engine) readRecord(id recordID) (val []byte, c func(), err error) {
	var kb [logKeyLen]byte
	putRecordKey(kb[:], id)
	v, closer, err := e.db.Get(kb[:])
	if err != nil {
		return nil, nil, err
	}
	return v, func() { _ = closer.Close() }, nil
}

// lookEntries calls f with the entries [lo, hi] of the log of s until one is not
// there or f reports false. v counts during the call.
func (e *Engine) lookEntries(s raft.ShardID, lo, hi raft.Index, f func(i raft.Index, v []byte) bool) error {
	j := &e.journal
	more := true
	take := func(i raft.Index, v []byte) bool {
		if more = i <= hi && f(i, v); more {
			lo = i + 1
		}
		return more
	}
	for tries := 0; more && lo <= hi; {
		l, id, ok, g := j.find(s, lo)
		switch {
		case lo <= g.trunc:
			return nil
		case ok && l.first <= lo:
			val, done, err := e.readRecord(id)
			if errors.Is(err, pebble.ErrNotFound) && tries < 3 {
				// It was moved, or is being committed, between the look and the read.
				tries++
				j.pass()
				continue
			}
			if err != nil {
				return e.iterError(err)
			}
			tries = 0
			err = eachOf(val, l.off, func(i raft.Index, v []byte) bool { return i < lo || i <= l.last && take(i, v) })
			done()
			if err != nil {
				return &GroupError{Shard: s, Index: lo, Err: err}
			}
			if lo <= l.last {
				return nil
			}
		case g.hi >= lo && g.hi != 0:
			was := lo
			if err := e.lookMoved(s, lo, min(hi, g.hi), take); err != nil || lo == was {
				return err
			}
		default:
			return nil
		}
	}
	return nil
}

// pass waits for the commits that are under way.
func (j *journal) pass() {
	j.gate.Lock()
	defer j.gate.Unlock()
}

// lookMoved is lookEntries for those below keys of their own.
func (e *Engine) lookMoved(s raft.ShardID, lo, hi raft.Index, f func(i raft.Index, v []byte) bool) error {
	var kb [2][logKeyLen]byte
	putLogKey(kb[0][:], s, lo)
	putLogKey(kb[1][:], s, hi+1)
	return e.eachRaw(kb[0][:], kb[1][:], func(k Key, v []byte) (bool, error) {
		more := k.Index == lo && f(k.Index, v)
		lo++
		return more, nil
	})
}
