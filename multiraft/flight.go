package multiraft

import (
	"bytes"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// flightKey names a command of a session, whatever try of it.
type flightKey struct {
	id      [16]byte
	lineage raft.ShardID
	seq     uint64
}

// flight is a command of a session between its proposal and its outcome. Tries
// that arrive meanwhile wait for the same outcome: the log gets one copy. This
// saves work only; what makes a command take effect once is its session's record
// in the state machine.
type flight struct {
	more  []Waiter
	bytes int // of the tries in more: they count as waiting on this node
}

// joinFlight reports whether p is another try of a command under way, in which
// case its caller is told the outcome of that one. Otherwise p begins a flight.
func (r *replica) joinFlight(p *proposal, l *loop) bool {
	s := p.cmd.Session
	key := flightKey{s.ID, s.Lineage, s.Seq}
	if f := r.flights[key]; f != nil && !mutants.On("F1h") {
		if mutants.On("F1f") {
			l.done.propose(p.done, nil, 0, 0, nil)
		} else {
			f.more = append(f.more, p.done)
		}
		f.bytes += p.size
		l.h.stats.joined.Add(1)
		return true
	}
	f := new(flight)
	if r.flights == nil {
		r.flights = make(map[flightKey]*flight)
	}
	r.flights[key] = f
	done := p.done
	p.done = ProposeFunc(func(data []byte, index raft.Index, slot uint32, err error) {
		if r.flights[key] == f {
			delete(r.flights, key)
		}
		if done != nil {
			done.Proposed(data, index, slot, err)
		}
		for _, d := range f.more {
			if mutants.On("F6b") {
				break
			}
			if d != nil {
				d.Proposed(bytes.Clone(data), index, slot, err)
			}
		}
		l.release(f.bytes)
		f.more, f.bytes = nil, 0
	})
	return false
}
