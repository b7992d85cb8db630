package backup

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"

	"github.com/golang/snappy"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// Sizes of chunks, in bytes of pairs before compression. A chunk ends after the
// pair that makes it chunkMin large or more and whose key's hash says so (on
// average after chunkMean more), at the latest before the pair that would make it
// larger than ChunkMaxBytes. A single larger pair is a chunk by itself.
const (
	chunkMin      = 128 << 10
	chunkMean     = 640 << 10
	ChunkMaxBytes = 4 << 20
)

// maxObjectBytes bounds a chunk as it is stored.
const maxObjectBytes = 8 << 20

// MaxManifestBytes bounds a manifest.
const MaxManifestBytes = 256 << 20

const (
	chunkMagic   = "FLTB"
	chunkVersion = 1
	chunkSnappy  = 1
	chunkHead    = len(chunkMagic) + 2
	// snappyRatio bounds what snappy can make of a byte: 3 bytes copy at most 64.
	snappyRatio = 22

	pageVersion = 1
	pageMore    = 1
	pageHead    = 2 + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Pair is a key and its value, of a slice that its owner may reuse.
type Pair struct{ Key, Value []byte }

// AppendPair appends one pair in the form of chunks and pages:
//
//	keyLen uvarint, key, valueLen uvarint, value
func AppendPair(dst, key, value []byte) []byte {
	dst = append(binary.AppendUvarint(dst, uint64(len(key))), key...)
	return append(binary.AppendUvarint(dst, uint64(len(value))), value...)
}

// takeBytes cuts a length and that many bytes off b.
func takeBytes(b []byte) (v, rest []byte, ok bool) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) {
		return nil, nil, false
	}
	return b[w : w+int(n) : w+int(n)], b[w+int(n):], true
}

// eachPair calls f for the pairs of b, whose keys must ascend. Pairs alias b.
func eachPair(b []byte, f func(p Pair) error) error {
	var last []byte
	for n := 0; len(b) > 0; n++ {
		var p Pair
		var ok bool
		if p.Key, b, ok = takeBytes(b); ok {
			p.Value, b, ok = takeBytes(b)
		}
		switch {
		case !ok:
			return fmt.Errorf("pair %d is cut", n)
		case len(p.Key) == 0:
			return fmt.Errorf("pair %d has no key", n)
		case last != nil && bytes.Compare(last, p.Key) >= 0:
			return fmt.Errorf("the key of pair %d does not ascend", n)
		}
		last = p.Key
		if err := f(p); err != nil {
			return err
		}
	}
	return nil
}

// AppendPage appends a page of a cut as it goes over the wire:
//
//	version u8 | flags u8 (1: more follow) | crc32c u32 of flags and pairs | pairs
func AppendPage(dst, pairs []byte, more bool) []byte {
	flags := byte(0)
	if more {
		flags = pageMore
	}
	dst = append(dst, pageVersion, flags)
	sum := crc32.Update(crc32.Checksum([]byte{flags}, castagnoli), castagnoli, pairs)
	return append(binary.BigEndian.AppendUint32(dst, sum), pairs...)
}

// DecodePage returns the pairs of a page, checked, and whether more follow. The
// pairs alias b.
func DecodePage(b []byte) (pairs []Pair, more bool, err error) {
	if len(b) < pageHead || b[0] != pageVersion || b[1]&^pageMore != 0 {
		return nil, false, fmt.Errorf("backup: a page of %d bytes has a header that this version does not know", len(b))
	}
	if crc32.Update(crc32.Checksum(b[1:2], castagnoli), castagnoli, b[pageHead:]) != binary.BigEndian.Uint32(b[2:]) {
		return nil, false, fmt.Errorf("backup: a page of %d bytes was damaged on its way", len(b))
	}
	err = eachPair(b[pageHead:], func(p Pair) error { pairs = append(pairs, p); return nil })
	if err != nil {
		return nil, false, fmt.Errorf("backup: page: %w", err)
	}
	return pairs, b[1]&pageMore != 0, nil
}

// encodeChunk appends an object:
//
//	"FLTB" | version u8 | codec u8 (0: plain, 1: snappy) | pairs
func encodeChunk(dst, pairs []byte) []byte {
	dst = append(append(dst, chunkMagic...), chunkVersion)
	if c := snappy.Encode(nil, pairs); len(c) < len(pairs)-len(pairs)/8 {
		return append(append(dst, chunkSnappy), c...)
	}
	return append(append(dst, 0), pairs...)
}

// decodeChunk returns the bytes of the pairs of an object, which may alias b. It
// does not look at the pairs.
func decodeChunk(b []byte) ([]byte, error) {
	switch {
	case len(b) < chunkHead || string(b[:len(chunkMagic)]) != chunkMagic:
		return nil, fmt.Errorf("it is not a chunk of a backup")
	case b[len(chunkMagic)] != chunkVersion:
		return nil, fmt.Errorf("it has version %d, this program knows %d", b[len(chunkMagic)], chunkVersion)
	}
	payload := b[chunkHead:]
	switch b[chunkHead-1] {
	case 0:
		return payload, nil
	case chunkSnappy:
		n, err := snappy.DecodedLen(payload)
		if err != nil || n > maxObjectBytes || n > snappyRatio*len(payload) {
			return nil, fmt.Errorf("its compressed form is malformed")
		}
		out, err := snappy.Decode(nil, payload)
		if err != nil {
			return nil, fmt.Errorf("its compressed form is malformed")
		}
		return out, nil
	}
	return nil, fmt.Errorf("its codec %d is not known", b[chunkHead-1])
}

// contents is what a chunk is found to hold.
type contents struct {
	first, last []byte
	pairs       int64
	bytes       int64 // of the pairs as encoded
}

// openChunk checks an object against its name and calls f (which may be nil) for
// its pairs. Nothing of a chunk that does not have its name's hash reaches f.
func openChunk(name string, b []byte, f func(p Pair) error) (contents, error) {
	var c contents
	if hashOf(b) != name && !mutants.On("H-backup-unchecked") {
		return c, fmt.Errorf("its bytes do not have the SHA-256 of its name")
	}
	pairs, err := decodeChunk(b)
	if err != nil {
		return c, err
	}
	c.bytes = int64(len(pairs))
	err = eachPair(pairs, func(p Pair) error {
		if c.pairs == 0 {
			c.first = bytes.Clone(p.Key)
		}
		c.pairs++
		c.last = p.Key
		if f != nil {
			return f(p)
		}
		return nil
	})
	c.last = bytes.Clone(c.last)
	return c, err
}

func hashOf(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// chunkName returns the object of a hash.
func chunkName(hash string) string { return chunkDir + hash[:2] + "/" + hash }

const chunkDir = "chunks/"

// cutter gathers pairs in key order and says where chunks end. The zero value is
// ready.
type cutter struct {
	buf   []byte
	first []byte
	n     int64
	due   bool // the chunk ends behind the last pair
}

// full reports whether the chunk must be taken before a pair of these sizes.
func (c *cutter) full(key, value []byte) bool {
	return c.n > 0 && (c.due || len(c.buf)+len(key)+len(value)+2*binary.MaxVarintLen32 > ChunkMaxBytes)
}

func (c *cutter) add(key, value []byte) {
	if c.n == 0 {
		c.first = bytes.Clone(key)
	}
	c.n++
	at := len(c.buf)
	c.buf = AppendPair(c.buf, key, value)
	c.due = len(c.buf) >= chunkMin && endsChunk(key, len(c.buf)-at)
}

// reset forgets the chunk, which was taken.
func (c *cutter) reset() { c.buf, c.first, c.n, c.due = c.buf[:0], nil, 0, false }

// endsChunk decides by the key, with a probability of size/chunkMean.
func endsChunk(key []byte, size int) bool {
	h := uint64(14695981039346656037) // FNV-1a
	for _, b := range key {
		h = (h ^ uint64(b)) * 1099511628211
	}
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9 // finalizer of SplitMix64: FNV's high bits are poor
	h = (h ^ h>>27) * 0x94d049bb133111eb
	h ^= h >> 31
	return h < ^uint64(0)/chunkMean*uint64(min(size, chunkMean))
}
