package raft

import (
	"slices"
	"unsafe"

	"github.com/flotillakv/flotilla/internal/invariants"
	"github.com/flotillakv/flotilla/internal/mutants"
)

// raftLog is a replica's log as the core knows it: the newest entries in
// memory, and the term of every index that is still on disk, so that no
// question about a term needs the disk.
//
//	        trunc          prev          applied  applying  commit   last
//	----------|--------------|---------------|---------|-------|-------|
//	 deleted  |  disk only   |  ents: memory (may begin below trunc)   |
//
// Invariants: trunc <= applied <= applying <= commit <= last; stable <= last;
// prev <= applied; runs cover (trunc, last].
type raftLog struct {
	last     Index
	lastTerm Term
	// accTerm is the term of the leader whose append was accepted last. The log
	// is a prefix of that leader's log. After a restart: the last entry's term.
	accTerm Term
	stable  Index // durable through here, as acknowledged under accTerm

	commit   Index
	applying Index // handed to the state machine
	applied  Index

	trunc     Index
	truncTerm Term
	runs      []TermRun

	prev     Index // index before ents[0]
	prevTerm Term
	ents     []Entry // contiguous; its memory is shared with Out and never rewritten
	bytes    int     // of the values in ents
	// What was evicted and is still in the memory that ents is a part of.
	deadEnts, deadBytes int

	diskBytes uint64 // estimate: bytes of (trunc, last]

	free  []byte // zeroes for values to come; nothing else refers to them
	chunk int    // size of the piece that free is of
}

// Values of small entries are cut from pieces of memory, so that not each of them
// costs an allocation. A group that starts to write begins with a small piece.
const (
	chunkMin = 256 // of thousands of groups that are awake most write little
	chunkMax = 8 << 10
)

// room returns memory for values of n bytes in all: of length zero and capacity n.
func (l *raftLog) room(n int) []byte {
	if n > len(l.free) {
		if n > chunkMax/4 {
			return make([]byte, 0, n)
		}
		l.chunk = max(min(2*l.chunk, chunkMax), chunkMin, 2*n)
		l.free = make([]byte, l.chunk)
	}
	v := l.free[:0:n]
	l.free = l.free[n:]
	return v
}

func newLog(st *State) (raftLog, error) {
	a := &st.Applied
	l := raftLog{
		trunc: a.TruncIndex, truncTerm: a.TruncTerm,
		last: max(st.Last, a.TruncIndex), lastTerm: a.TruncTerm,
		applied: a.Applied, applying: a.Applied,
		runs: slices.Clone(st.Runs),
	}
	if a.Applied < a.TruncIndex || a.Applied > l.last {
		return l, corrupt("state", "applied index outside the log")
	}
	at := l.trunc
	for i, r := range l.runs {
		if (i == 0 && r.First != at+1) || (i > 0 && r.First <= at) || r.Term <= l.lastTerm && i > 0 || r.Term < l.lastTerm || r.First > l.last {
			return l, corrupt("state", "term runs do not ascend")
		}
		at = r.First
		l.lastTerm = r.Term
	}
	if len(l.runs) == 0 && l.last > l.trunc {
		return l, corrupt("state", "log without term runs")
	}
	l.prev, l.prevTerm = l.last, l.lastTerm
	if n := len(st.Tail); n > 0 {
		l.prev = st.Tail[0].Index - 1
		if l.prev < l.trunc || l.prev > l.applied {
			return l, corrupt("state", "tail does not meet the applied index")
		}
		for i := range st.Tail {
			e := &st.Tail[i]
			if t, ok := l.term(e.Index); e.Index != l.prev+1+Index(i) || !ok || t != e.Term {
				return l, corrupt("state", "tail contradicts the log")
			}
			l.bytes += len(e.Value)
		}
		if st.Tail[n-1].Index != l.last {
			return l, corrupt("state", "tail ends before the log")
		}
		t, ok := l.term(l.prev)
		if !ok {
			return l, corrupt("state", "term before the tail is unknown")
		}
		l.prevTerm = t
		l.ents = slices.Clone(st.Tail)
		l.diskBytes = uint64(l.bytes) * uint64(l.last-l.trunc) / uint64(n)
	} else if l.applied != l.last {
		return l, corrupt("state", "unapplied entries are missing")
	}
	if c := max(l.applied, min(st.Hard.Commit, l.last)); mutants.On("B0-A2") && c < l.last && c >= l.prev {
		// As if a log had to hold nothing above what is known to be committed.
		l.ents = l.ents[:c-l.prev]
		for len(l.runs) > 0 && l.runs[len(l.runs)-1].First > c {
			l.runs = l.runs[:len(l.runs)-1]
		}
		l.last = c
		l.lastTerm = l.truncTerm
		if n := len(l.runs); n > 0 {
			l.lastTerm = l.runs[n-1].Term
		}
	}
	l.accTerm, l.stable = l.lastTerm, l.last
	if mutants.On("A5c") {
		l.accTerm = st.Hard.Term
	}
	l.commit = max(l.applied, min(st.Hard.Commit, l.last))
	return l, nil
}

// term returns the term of the entry at i, if it is known: for i in
// [trunc, last], and for what memory still holds below.
func (l *raftLog) term(i Index) (Term, bool) {
	switch {
	case i > l.last:
		return 0, false
	case i == l.last:
		return l.lastTerm, true
	case i > l.trunc:
		k := len(l.runs) - 1
		for k > 0 && l.runs[k].First > i {
			k--
		}
		return l.runs[k].Term, true
	case i == l.trunc:
		return l.truncTerm, true
	case i > l.prev:
		return l.ents[i-l.prev-1].Term, true
	case i == l.prev:
		return l.prevTerm, true
	}
	return 0, false
}

func (l *raftLog) matches(i Index, t Term) bool {
	have, ok := l.term(i)
	if mutants.On("B4") && !ok && t == 0 {
		return true
	}
	return ok && have == t
}

// hint returns the last index <= i whose term is <= t (or the first of which
// nothing is known), and its term. It is how a refused append skips a whole
// divergent term per round trip (paper section 5.3).
func (l *raftLog) hint(i Index, t Term) (Index, Term) {
	i = min(i, l.last)
	for {
		have, ok := l.term(i)
		if !ok || have <= t {
			return i, have
		}
		// Skip the run that holds i.
		k := len(l.runs) - 1
		for k > 0 && l.runs[k].First > i {
			k--
		}
		if i <= l.trunc || k < 0 {
			i--
			continue
		}
		i = l.runs[k].First - 1
	}
}

// append puts ents, which follow last, at the end. Their slice is not retained,
// their values are.
func (l *raftLog) append(ents []Entry) {
	for i := range ents {
		e := &ents[i]
		if e.Index != l.last+1 || e.Term < l.lastTerm {
			invariants.Fail("append of (%d,%d) behind (%d,%d)", e.Term, e.Index, l.lastTerm, l.last)
		}
		if e.Term != l.lastTerm || len(l.runs) == 0 {
			l.runs = append(l.runs, TermRun{First: e.Index, Term: e.Term})
		}
		if len(l.ents) == cap(l.ents) { // append makes them new memory
			l.deadEnts, l.deadBytes = 0, 0
		}
		l.ents = append(l.ents, *e)
		l.bytes += len(e.Value)
		l.diskBytes += uint64(len(e.Value))
		l.last, l.lastTerm = e.Index, e.Term
	}
}

// cutSuffix drops the entries at i and above. The memory of the dropped ones
// is not reused: it may still be on its way to disk or to a peer.
func (l *raftLog) cutSuffix(i Index) {
	invariants.Must(i > l.commit, "overwrite at %d of a log committed through %d", i, l.commit)
	keep := i - l.prev - 1
	for _, e := range l.ents[keep:] {
		l.bytes -= len(e.Value)
		l.diskBytes -= min(l.diskBytes, uint64(len(e.Value)))
	}
	switch {
	case mutants.On("B20"): // the tail in memory is not told
	case mutants.On("B21"):
		l.ents = l.ents[:keep]
	default:
		l.ents = l.ents[:keep:keep]
	}
	for len(l.runs) > 0 && l.runs[len(l.runs)-1].First >= i {
		l.runs = l.runs[:len(l.runs)-1]
	}
	t, ok := l.term(i - 1)
	invariants.Must(ok, "term of %d is unknown", i-1)
	l.last, l.lastTerm = i-1, t
	if !mutants.On("B14") {
		l.stable = min(l.stable, i-1)
	}
}

// slice returns the entries [lo, hi] that memory holds, from lo on, at most
// maxBytes of them but at least one. Nil: lo is not in memory.
func (l *raftLog) slice(lo, hi Index, maxBytes int) []Entry {
	if lo <= l.prev || lo > hi || hi > l.last {
		return nil
	}
	e := l.ents[lo-l.prev-1 : hi-l.prev]
	size := len(e[0].Value)
	n := 1
	for n < len(e) {
		size += len(e[n].Value)
		if size > maxBytes {
			break
		}
		n++
	}
	return e[:n:n]
}

// evict forgets entries in memory that are applied and durable, down to keep bytes.
func (l *raftLog) evict(keep int) {
	n := 0
	lim := min(l.applied, l.stable)
	was := l.bytes
	for n < len(l.ents) && l.bytes > keep && l.ents[n].Index <= lim {
		l.bytes -= len(l.ents[n].Value)
		n++
	}
	if n > 0 {
		l.prev, l.prevTerm = l.ents[n-1].Index, l.ents[n-1].Term
		l.ents = l.ents[n:]
		l.deadEnts += n
		l.deadBytes += was - l.bytes
	}
}

// memory is about how many bytes the entries in memory take.
func (l *raftLog) memory() int {
	return l.bytes + l.deadBytes + (cap(l.ents)+l.deadEnts)*int(unsafe.Sizeof(Entry{})) + len(l.free)
}

// compact gives back the memory of what was evicted. Whoever was handed entries keeps
// theirs.
func (l *raftLog) compact() {
	if l.deadEnts > 0 || cap(l.ents) > 2*len(l.ents) {
		l.ents = slices.Clone(l.ents)
		l.deadEnts, l.deadBytes = 0, 0
	}
}

// truncated notes that the disk holds nothing up to i any more.
func (l *raftLog) truncated(i Index, t Term) {
	if i <= l.trunc {
		return
	}
	if i > l.applied {
		invariants.Fail("log cut through %d, applied only through %d", i, l.applied)
	}
	if span := l.last - l.trunc; span > 0 {
		l.diskBytes = l.diskBytes / uint64(span) * uint64(l.last-i)
	}
	l.trunc, l.truncTerm = i, t
	n := 0
	for n+1 < len(l.runs) && l.runs[n+1].First <= i+1 {
		n++
	}
	if len(l.runs) > 0 {
		l.runs = slices.Delete(l.runs, 0, n)
		if l.runs[0].First <= i {
			l.runs[0].First = i + 1
		}
		if i == l.last {
			l.runs = l.runs[:0]
		}
	}
}

// heldBytes estimates the bytes of (i, last] on disk.
func (l *raftLog) heldBytes(i Index) uint64 {
	span := l.last - l.trunc
	if span == 0 || i >= l.last {
		return 0
	}
	return l.diskBytes / uint64(span) * uint64(l.last-max(i, l.trunc))
}
