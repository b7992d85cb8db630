package kv

import (
	"errors"
	"testing"

	"github.com/flotillakv/flotilla/shard"
)

// TestReadLevels shows what each level of consistency asks of the host.
func TestReadLevels(t *testing.T) {
	s, h := newStore(t)
	asked := 0
	h.onRead = func() { asked++ }
	get := func(c shard.Consistency, wantAsked int, wantCalls [2]int) {
		t.Helper()
		asked, h.readCalls = 0, [2]int{}
		if r := s.Do(t.Context(), &shard.Request{Shard: 7, Keyspace: 1, Kind: shard.KindGet, Key: []byte("k"), Consistency: c}); r.Err != nil {
			t.Fatal(r.Err)
		}
		if asked != wantAsked || h.readCalls != wantCalls {
			t.Errorf("level %d: asked %d times, by %v; want %d, %v", c, asked, h.readCalls, wantAsked, wantCalls)
		}
	}
	for _, lease := range []bool{false, true} {
		h.lease = lease
		if lease {
			get(shard.Linearizable, 0, [2]int{})
		} else {
			get(shard.Linearizable, 1, [2]int{1, 0})
		}
		get(shard.NoClock, 1, [2]int{})
		get(shard.Follower, 1, [2]int{0, 1})
		get(shard.Local, 0, [2]int{})
	}
}

// TestReadOfReplacedReplica: what was read while the replica's data went away is
// not an answer, at no level.
func TestReadOfReplacedReplica(t *testing.T) {
	if err := readReplaced(t); err != nil {
		t.Fatal(err)
	}
}

func readReplaced(t *testing.T) error {
	s, h := newStore(t)
	h.lease = true
	h.onDescriptor = func() { h.gen.Add(1) }
	for _, kind := range []shard.Kind{shard.KindGet, shard.KindScan} {
		r := s.Do(t.Context(), &shard.Request{Shard: 7, Keyspace: 1, Kind: kind, Key: []byte("k")})
		var gone *shard.UnavailableError
		if !errors.As(r.Err, &gone) {
			return errors.New("answered from a replica that was replaced meanwhile")
		}
	}
	return nil
}
