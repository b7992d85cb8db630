package shard

import (
	"bytes"
	"encoding/binary"
	"math/bits"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Descriptor tells which keys [Start, End) of which keyspace a shard holds and
// who replicates it. It is declared in package raft, because a group stores it.
type Descriptor = raft.Descriptor

// MaxSplits bounds the number of ranges EvenSplits and EvenSplitsBetween plan.
const MaxSplits = 1 << 24

// EvenSplits returns the n-1 ascending split keys that cut the space of all
// keys into n ranges of equal width, seen as binary fractions. n below 2 gives
// none; n above MaxSplits is cut to it. Keys that share a long prefix all land
// in one of these ranges: use EvenSplitsBetween for those.
func EvenSplits(n int) [][]byte { return EvenSplitsBetween(nil, nil, n) }

// EvenSplitsBetween returns ascending split keys strictly inside (start, end)
// that cut [start, end) into n ranges of about equal width. An empty end means
// the end of the key space. There are n-1 of them, or fewer when [start, end) is
// too narrow to hold that many keys a few bytes longer than the common prefix
// of its bounds. The result is the same on every machine.
func EvenSplitsBetween(start, end []byte, n int) [][]byte {
	if n > MaxSplits {
		n = MaxSplits
	}
	if n < 2 || (len(end) > 0 && bytes.Compare(start, end) >= 0) {
		return nil
	}
	prefix := commonPrefix(start, end)
	lo := fraction(start[len(prefix):])
	widthHi, width := uint64(0), -lo // up to 2^64, in 128 bits
	if len(end) > 0 {
		width = fraction(end[len(prefix):]) - lo
	} else if lo == 0 {
		widthHi = 1
	}
	out := make([][]byte, 0, n-1)
	last := start
	for i := uint64(1); i < uint64(n); i++ {
		mulHi, mul := bits.Mul64(width, i)
		at, _ := bits.Div64(mulHi+widthHi*i, mul, uint64(n)) // width*i/n, below 2^64
		k := splitKey(prefix, lo+at)
		if bytes.Compare(k, last) <= 0 || (len(end) > 0 && bytes.Compare(k, end) >= 0) {
			continue
		}
		out = append(out, k)
		last = k
	}
	return out
}

// commonPrefix returns the bytes that start and end share. With an empty end it
// is empty.
func commonPrefix(start, end []byte) []byte {
	i := 0
	for i < len(start) && i < len(end) && start[i] == end[i] {
		i++
	}
	return start[:i]
}

// fraction reads the first eight bytes of b as a binary fraction.
func fraction(b []byte) uint64 {
	var w [8]byte
	copy(w[:], b)
	return binary.BigEndian.Uint64(w[:])
}

// splitKey returns prefix and the four leading bytes of f, without trailing
// zero bytes.
func splitKey(prefix []byte, f uint64) []byte {
	k := make([]byte, 0, len(prefix)+4)
	k = append(k, prefix...)
	k = binary.BigEndian.AppendUint32(k, uint32(f>>32))
	for len(k) > len(prefix)+1 && k[len(k)-1] == 0 {
		k = k[:len(k)-1]
	}
	return k
}

// SplitRanges turns ascending split keys into the key ranges between them, from
// the first key to the last. It refuses keys that are empty, too long or not
// strictly ascending with an *ArgumentError or *LimitError.
func SplitRanges(splits [][]byte) ([]Span, error) {
	out := make([]Span, 0, len(splits)+1)
	var last []byte
	for _, k := range splits {
		if err := CheckKeySize(k); err != nil {
			return nil, err
		}
		if bytes.Compare(k, last) <= 0 {
			return nil, &ArgumentError{Field: "split keys", Reason: "they are not strictly ascending at " + quoteKey(k)}
		}
		out = append(out, Span{Start: last, End: k})
		last = k
	}
	return append(out, Span{Start: last}), nil
}
