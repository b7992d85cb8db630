package raft

import (
	"encoding/binary"
	"math/bits"
)

// Digest sums up everything that a replica has applied, in order: of each entry its
// place in the log and what came of it (what was written and what was answered), so
// that replicas whose state machines do not do the same differ from there on. It is
// no protection against somebody who wants two of them to be equal.
//
// A chain has an identity, the index at which it was begun: digests are comparable
// if both are of one chain. A group's first chain begins at index 0 with the digest 0.
//
// The arithmetic is that of wyhash (Wang Yi; public domain): 16 bytes per
// multiplication to 128 bits. Its values are on disks and on the wire.
type Digest uint64

// NoDigest is AppliedState.DigestFrom of a replica that has no digest: what it has
// applied was written by a release that kept none.
const NoDigest = ^Index(0)

const (
	digestA = 0xa0761d6478bd642f
	digestB = 0xe7037ed1a0b428db
	digestC = 0x8ebc6af09c88c6e3
)

func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// Entry returns the digest behind an entry, before what came of it is added.
func (d Digest) Entry(i Index, t Term, typ EntryType) Digest {
	return Digest(fold(fold(uint64(d)^digestA, uint64(i)^digestB), uint64(t)<<8^uint64(typ)^digestC))
}

// Add returns the digest with b behind what it sums up. The length of b counts.
func (d Digest) Add(b []byte) Digest {
	h, n := uint64(d)+digestB, uint64(len(b)) // no sum of short inputs is behind a factor of zero
	for len(b) >= 32 {                        // two lanes, so that multiplications overlap
		x := fold(binary.LittleEndian.Uint64(b)^digestA, binary.LittleEndian.Uint64(b[8:])^h)
		y := fold(binary.LittleEndian.Uint64(b[16:])^digestB, binary.LittleEndian.Uint64(b[24:])^bits.RotateLeft64(h, 29))
		h = x ^ bits.RotateLeft64(y, 17)
		b = b[32:]
	}
	for len(b) >= 8 {
		h = fold(binary.LittleEndian.Uint64(b)^digestA, h^digestB)
		b = b[8:]
	}
	var last uint64
	for i, c := range b {
		last |= uint64(c) << (8 * i)
	}
	return Digest(fold(fold(last^digestB, h^digestA)^n, h^digestC))
}
