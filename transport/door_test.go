package transport

import (
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// BenchmarkDoorFrame is the cost of a frame of 32 appends of one 128-byte value
// each: packed and sealed by the sender, and decoded by the receiver.
func BenchmarkDoorFrame(b *testing.B) {
	var msgs []raft.Msg
	for i := range 32 {
		msgs = append(msgs, raft.Msg{Type: raft.MsgApp, Shard: raft.ShardID(i), From: 1, To: 2, Index: 9, Entries: []raft.Entry{testEntry(10, 1, make([]byte, 128))}})
	}
	b.Run("encode", func(b *testing.B) {
		q := newQueue(8 << 20)
		q.setAccept(true)
		b.ReportAllocs()
		for b.Loop() {
			q.push(msgs)
			bt, _, _, _ := q.take(nil)
			f := seal(testHeader, bt, nil, 0, false)
			frameBufs.Put(f.body)
		}
	})
	b.Run("decode", func(b *testing.B) {
		v, err := EncodeFrame(nil, testHeader, nil, msgs, false)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := DecodeFrame(v); err != nil {
				b.Fatal(err)
			}
		}
	})
}
