package workload

import (
	"encoding/binary"
	"encoding/hex"
	"math/bits"
)

// KeySize is the size of every key, in bytes.
const KeySize = 16

// mix is a permutation of the 64-bit integers (the finaliser of splitmix64),
// so distinct record numbers give distinct keys.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// fnv is the 64-bit FNV-1a hash of the eight bytes of x, low byte first: the
// hash with which YCSB scatters ranks over records.
func fnv(x uint64) uint64 {
	h := uint64(0xcbf29ce484222325)
	for range 8 {
		h = (h ^ x&0xff) * 0x100000001b3
		x >>= 8
	}
	return h
}

// AppendKey appends the key of a record to dst: KeySize hexadecimal digits.
func AppendKey(dst []byte, record uint64) []byte {
	return appendHex(dst, mix(record))
}

func appendHex(dst []byte, x uint64) []byte {
	var raw [8]byte
	binary.BigEndian.PutUint64(raw[:], x)
	return hex.AppendEncode(dst, raw[:])
}

// Splits returns the n-1 keys that cut the space of keys into n ranges of
// equal width, in order. It returns nil when n < 2.
func Splits(n int) [][]byte {
	if n < 2 {
		return nil
	}
	keys := make([][]byte, 0, n-1)
	for i := 1; i < n; i++ {
		at, _ := bits.Div64(uint64(i), 0, uint64(n)) // i * 2^64 / n
		keys = append(keys, appendHex(nil, at))
	}
	return keys
}
