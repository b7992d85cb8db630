package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Quarantine is the mark of a replica whose state must not be used: neither served
// nor applied to. It goes with the next snapshot that is installed, in the same step,
// and with the replica.
type Quarantine struct {
	Why   QuarantineWhy
	Index raft.Index // what was applied when it was found
}

// QuarantineWhy says how a fault was found.
type QuarantineWhy uint8

const (
	// QuarantineDiffers: a majority of the group has another digest. Zero: there is no
	// quarantine.
	QuarantineDiffers QuarantineWhy = 1
	// QuarantineUnreadable: a part of it cannot be read from the disk.
	QuarantineUnreadable QuarantineWhy = 2
)

// ErrQuarantined: the replica's state must not be used; it waits to be rebuilt.
var ErrQuarantined = errors.New("engine: the replica is quarantined until it is rebuilt")

// A quarantine mark: version u8, crc32c u32 of what follows, why u8, index u64.
const quarantineLen = 14

func (q Quarantine) encode(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, 1, 0, 0, 0, 0, byte(q.Why))
	dst = binary.BigEndian.AppendUint64(dst, uint64(q.Index))
	binary.BigEndian.PutUint32(dst[at+1:], crc32.Checksum(dst[at+5:], castagnoli))
	return dst
}

func decodeQuarantine(b []byte) (Quarantine, error) {
	if len(b) != quarantineLen || b[0] != 1 || b[5] == 0 || binary.BigEndian.Uint32(b[1:]) != crc32.Checksum(b[5:], castagnoli) {
		return Quarantine{}, fmt.Errorf("quarantine mark %x is damaged: %w", b, raft.ErrCorrupt)
	}
	return Quarantine{Why: QuarantineWhy(b[5]), Index: raft.Index(binary.BigEndian.Uint64(b[6:]))}, nil
}

// SetQuarantine marks the replica of s. The batch must be synced before anything
// rests on it.
func (b *Batch) SetQuarantine(s raft.ShardID, q Quarantine) {
	b.key = quarantineKey(b.key[:0], s)
	b.val = q.encode(b.val[:0])
	b.set(b.key, b.val)
}

// Quarantined returns the mark of the replica of s; the zero one if it has none. A
// mark that is damaged is an error, a *GroupError.
func (e *Engine) Quarantined(s raft.ShardID) (Quarantine, error) {
	if err := e.enter(); err != nil {
		return Quarantine{}, err
	}
	defer e.leave()
	return e.quarantined(s)
}

func (e *Engine) quarantined(s raft.ShardID) (Quarantine, error) {
	b, ok, err := e.getRaw(quarantineKey(nil, s))
	if err != nil || !ok {
		return Quarantine{}, err
	}
	q, err := decodeQuarantine(b)
	if err != nil {
		return q, &GroupError{Shard: s, Err: err}
	}
	return q, nil
}
