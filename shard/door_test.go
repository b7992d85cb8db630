package shard

import (
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// BenchmarkDoorCommand makes the command of a put of 128 bytes, checks it as the
// door to the store does, and decodes it as the state machine does.
func BenchmarkDoorCommand(b *testing.B) {
	key, value := []byte("user000000000001"), make([]byte, 128)
	d := &raft.Descriptor{Shard: 7, Keyspace: 1, Version: 1}
	b.Run("make", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := PutCommand(key, value); err != nil {
				b.Fatal(err)
			}
		}
	})
	cmd, err := PutCommand(key, value)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("check", func(b *testing.B) {
		r := &Request{Shard: 7, Keyspace: 1, Kind: KindWrite, Command: cmd}
		b.ReportAllocs()
		for b.Loop() {
			if err := r.Check(); err != nil {
				b.Fatal(err)
			}
			if err := CheckCommandSpan(d, r.Command); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := DecodePut(cmd.Body); err != nil {
				b.Fatal(err)
			}
		}
	})
}
