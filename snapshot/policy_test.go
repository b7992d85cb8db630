package snapshot

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// TestCutTo: how far the log may be cut, one case per row.
func TestCutTo(t *testing.T) {
	log := Log{First: 100, Last: 1100, Applied: 1090, Bytes: 1000 << 10, DataBytes: 64 << 20} // 1 KiB per entry
	small := Limits{HoldBytes: 100 << 10}
	for _, tc := range []struct {
		name  string
		log   Log
		peers []PeerLog
		lim   Limits
		want  raft.Index
	}{
		{"single replica: all that is applied", log, nil, Limits{}, 1090},
		{"everybody has everything", log, []PeerLog{{Match: 1100, Live: true}, {Match: 1100, Live: true}}, Limits{}, 1090},
		{"a live follower is behind", log, []PeerLog{{Match: 700, Live: true}, {Match: 1100, Live: true}}, Limits{}, 700},
		{"a dead one is behind, within its limit", log, []PeerLog{{Match: 1050}, {Match: 1100, Live: true}}, small, 1050},
		{"a dead one is too far behind", log, []PeerLog{{Match: 900}, {Match: 1095, Live: true}}, small, 1090},
		{"a live one is as far behind: kept", log, []PeerLog{{Match: 900, Live: true}}, small, 900},
		{"a live one is beyond eight times the limit", log, []PeerLog{{Match: 200, Live: true}}, small, 1090},
		{"a dead one, by entries", log, []PeerLog{{Match: 900}}, Limits{HoldEntries: 100}, 1090},
		{"one beyond help does not hold the log", log, []PeerLog{{Match: 50, Live: true}, {Match: 800, Live: true}}, Limits{}, 800},
		{"unless its snapshot is on the way", log, []PeerLog{{Match: 50, Pinned: 600}}, Limits{}, 600},
		{"a snapshot that pins too much", log, []PeerLog{{Match: 50, Pinned: 200}}, small, 1090},
		{"a tail for all", log, []PeerLog{{Match: 1100, Live: true}}, Limits{TailEntries: 200}, 890},
		{"a tail longer than the log", log, nil, Limits{TailEntries: 5000}, 100},
		{"nothing applied yet", Log{Last: 5}, []PeerLog{{Match: 5, Live: true}}, Limits{}, 0},
		{"empty log", Log{First: 9, Last: 9, Applied: 9}, []PeerLog{{Match: 9, Live: true}}, Limits{}, 9},
	} {
		if got := CutTo(tc.log, tc.peers, tc.lim); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}

// TestCutToProperties: never above applied, never below what is cut already,
// never past an entry that a live follower within its limits misses; and more
// peers never move the cut up.
func TestCutToProperties(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		first := raft.Index(rng.IntN(1000))
		last := first + raft.Index(rng.IntN(1000))
		log := Log{First: first, Last: last, Applied: first + raft.Index(rng.IntN(int(last-first)+1)), Bytes: rng.Int64N(32 << 20), DataBytes: rng.Int64N(64 << 20)}
		lim := Limits{TailEntries: uint64(rng.IntN(20)), HoldEntries: uint64(rng.IntN(300))}
		var peers []PeerLog
		prev := CutTo(log, nil, lim)
		for range rng.IntN(5) {
			peers = append(peers, PeerLog{Match: raft.Index(rng.IntN(int(last) + 1)), Live: rng.IntN(2) == 0, Pinned: raft.Index(rng.IntN(2) * rng.IntN(int(last)+1))})
			to := CutTo(log, peers, lim)
			if to > log.Applied || to < first || to > prev {
				t.Fatalf("cut to %d (before: %d): %+v %+v", to, prev, log, peers)
			}
			prev = to
		}
		for _, p := range peers {
			held := log.bytesAbove(max(p.Match, p.Pinned))
			if p.Live && p.Match >= first && held <= 8*HoldBytesFor(log.DataBytes) && prev > max(p.Match, p.Pinned) {
				t.Fatalf("cut to %d past %+v", prev, p)
			}
		}
	}
}

func TestHoldBytesFor(t *testing.T) {
	for data, want := range map[int64]int64{0: 1 << 20, 2 << 20: 1 << 20, 10 << 20: 5 << 20, 1 << 40: 16 << 20} {
		if got := HoldBytesFor(data); got != want {
			t.Errorf("HoldBytesFor(%d) = %d, want %d", data, got, want)
		}
	}
}

func TestOverBudget(t *testing.T) {
	held := []Holding{{1, 10}, {2, 50}, {3, 50}, {4, 20}}
	for _, tc := range []struct {
		budget int64
		want   []raft.ShardID
	}{{130, nil}, {129, []raft.ShardID{2}}, {79, []raft.ShardID{2, 3}}, {15, []raft.ShardID{2, 3, 4}}, {0, []raft.ShardID{2, 3, 4, 1}}} {
		if got := OverBudget(held, tc.budget); !slices.Equal(got, tc.want) {
			t.Errorf("budget %d: %v, want %v", tc.budget, got, tc.want)
		}
	}
}

// TestCheckOverlap: half-open spans, an empty end is the end of the keyspace.
func TestCheckOverlap(t *testing.T) {
	snap := descOf(1, "c", "f")
	for _, tc := range []struct {
		name       string
		start, end string
		ks         uint32
		shard      raft.ShardID
		bad        bool
	}{
		{"left neighbour", "a", "c", 1, 2, false},
		{"right neighbour", "f", "", 1, 2, false},
		{"reaches in from the left", "a", "c\x00", 1, 2, true},
		{"reaches in from the right", "ezz", "", 1, 2, true},
		{"inside", "d", "e", 1, 2, true},
		{"around", "", "", 1, 2, true},
		{"the same span", "c", "f", 1, 2, true},
		{"another keyspace", "c", "f", 2, 2, false},
		{"the shard itself", "a", "z", 1, 1, false},
	} {
		o := descOf(tc.shard, tc.start, tc.end)
		o.Keyspace = tc.ks
		err := CheckOverlap(&snap, []raft.Descriptor{descOf(50, "x", "z"), o})
		var e *OverlapError
		if errors.As(err, &e) != tc.bad || tc.bad && (e.Shard != 1 || e.Other != 2) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	last := descOf(1, "f", "")
	if CheckOverlap(&last, []raft.Descriptor{descOf(2, "y", "z")}) == nil {
		t.Error("a span without end overlaps nothing")
	}
}

// TestLimiter: over any stretch at most burst + rate*time gets through.
func TestLimiter(t *testing.T) {
	if d := NewLimiter(0).Take(1, 1<<40); d != 0 {
		t.Fatalf("no limit waits %v", d)
	}
	l := NewLimiter(4 << 20) // burst 1 MiB
	now := raft.Time(5)
	if d := l.Take(now, 1<<20); d != 0 {
		t.Fatalf("the burst waits %v", d)
	}
	if d := l.Take(now, 1<<20); d != 250*time.Millisecond {
		t.Fatalf("1 MiB at 4 MiB/s waits %v", d)
	}
	now = now.Add(250 * time.Millisecond)
	if d := l.Take(now, 1); d <= 0 || d > time.Microsecond {
		t.Fatalf("one byte of debt waits %v", d)
	}
	now = now.Add(time.Hour) // idle time is worth one burst
	if d := l.Take(now, 1<<20); d != 0 {
		t.Fatalf("the burst after idling waits %v", d)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	start, sent := now, 0
	for range 2000 {
		n := rng.IntN(ChunkBytes)
		sent += n
		now = now.Add(l.Take(now, n))
		if limit := float64(1<<20) + float64(4<<20)*now.Sub(start).Seconds() + 1024; float64(sent) > limit {
			t.Fatalf("%d bytes after %v, at most %.0f", sent, now.Sub(start), limit)
		}
	}
}
