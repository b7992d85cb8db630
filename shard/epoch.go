package shard

import (
	"bytes"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Span is a set of neighbouring keys: one key (Point, End unused) or the range
// [Start, End), where an empty Start means the first key and an empty End the
// end of the keyspace.
type Span struct {
	Start, End []byte
	Point      bool
}

// HoldsKey reports whether key lies in [d.Start, d.End).
func HoldsKey(d *Descriptor, key []byte) bool {
	return bytes.Compare(key, d.Start) >= 0 && (len(d.End) == 0 || bytes.Compare(key, d.End) < 0)
}

// HoldsRange reports whether [start, end) lies in [d.Start, d.End). An empty end
// means the end of the keyspace.
func HoldsRange(d *Descriptor, start, end []byte) bool {
	if bytes.Compare(start, d.Start) < 0 {
		return false
	}
	if len(d.End) == 0 {
		return true
	}
	return len(end) > 0 && bytes.Compare(end, d.End) <= 0
}

// HoldsSpan reports whether s lies in [d.Start, d.End).
func HoldsSpan(d *Descriptor, s Span) bool {
	if s.Point {
		return HoldsKey(d, s.Start)
	}
	return HoldsRange(d, s.Start, s.End)
}

// CheckKey returns nil when key lies in the shard of d, else an *EpochError that
// carries d. Nothing has been done then; the caller routes again.
func CheckKey(d *Descriptor, key []byte) error {
	if HoldsKey(d, key) {
		return nil
	}
	return epochErrorOf(d)
}

// CheckRange returns nil when [start, end) lies in the shard of d, else an
// *EpochError that carries d. Nothing has been done then; the caller cuts the
// range at the shard's bounds and routes again.
func CheckRange(d *Descriptor, start, end []byte) error {
	if HoldsRange(d, start, end) {
		return nil
	}
	return epochErrorOf(d)
}

// CheckVersion returns nil when the sender's descriptor version (zero: it does
// not say) is d's, else an *EpochError that carries d.
func CheckVersion(d *Descriptor, version uint64) error {
	if version == 0 || version == d.Version {
		return nil
	}
	return epochErrorOf(d)
}

// CheckCommandSpan returns nil when every key of the command lies in the shard
// of d. A command of which one part lies inside and another outside is a
// *CrossShardError that names the boundary; one that lies outside altogether is
// an *EpochError that carries d. The body must have passed CheckCommand.
func CheckCommandSpan(d *Descriptor, c raft.Command) error {
	in, out, low := 0, 0, false
	err := VisitSpans(c, func(s Span) error {
		if HoldsSpan(d, s) {
			in++
			return nil
		}
		out++
		low = low || bytes.Compare(s.Start, d.Start) < 0
		if touches(d, s) {
			in++
		}
		return nil
	})
	if err != nil || out == 0 {
		return err
	}
	if in == 0 {
		return epochErrorOf(d)
	}
	at := d.End
	if low {
		at = d.Start
	}
	return &CrossShardError{At: bytes.Clone(at)}
}

// touches reports whether the range s has keys in common with d.
func touches(d *Descriptor, s Span) bool {
	if s.Point {
		return HoldsKey(d, s.Start)
	}
	return (len(d.End) == 0 || bytes.Compare(s.Start, d.End) < 0) &&
		(len(s.End) == 0 || bytes.Compare(s.End, d.Start) > 0)
}

func epochErrorOf(d *Descriptor) error {
	return &EpochError{Shard: d.Shard, Descriptors: []Descriptor{*d}}
}
