package kv

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// scanAll follows Resume over the shards of a host until nothing more comes, and
// returns the keys and the number of pages.
func scanAll(t *testing.T, s *Store, h *fakeHost, req shard.Request) (keys []string, pages int) {
	t.Helper()
	req.Kind, req.Keyspace = shard.KindScan, 1
	for {
		d := shardAt(h, &req)
		req.Shard, req.DescVersion = d.Shard, d.Version
		r := s.Do(bg, &req)
		if r.Err != nil {
			t.Fatalf("[%q,%q): %v", req.Start, req.End, r.Err)
		}
		for _, p := range r.Pairs {
			if string(p.Value) != "v"+string(p.Key) || p.Version.Lineage != d.Shard {
				t.Fatalf("%s has value %q of %v", p.Key, p.Value, p.Version)
			}
			keys = append(keys, string(p.Key))
		}
		pages++
		if !r.More {
			return keys, pages
		}
		if pages > 200 {
			t.Fatal("the pages do not end")
		}
		if req.Reverse {
			req.End = r.Resume
		} else {
			req.Start = r.Resume
		}
	}
}

// shardAt returns the shard in which the scan begins.
func shardAt(h *fakeHost, req *shard.Request) raft.Descriptor {
	i := slices.IndexFunc(h.descs, func(d raft.Descriptor) bool { return checkScan(&d, req.Start, req.End, req.Reverse) == nil })
	return h.descs[i]
}

// Shows that pages, of any size, in both directions, within one shard and over
// three, give exactly the keys of the range in order; and that the last page of
// a range says so.
func TestScanPages(t *testing.T) {
	three := []raft.Descriptor{
		{Shard: 1, Keyspace: 1, Version: 1, End: bs("g")},
		{Shard: 2, Keyspace: 1, Version: 5, Start: bs("g"), End: bs("p")},
		{Shard: 3, Keyspace: 1, Version: 2, Start: bs("p")},
	}
	for _, descs := range [][]raft.Descriptor{{{Shard: 1, Keyspace: 1, Version: 1}}, three} {
		s, h := newStore(t, descs...)
		var all []string
		for c := 'a'; c <= 'z'; c++ {
			key := string(c)
			all = append(all, key)
			d := shardAt(h, &shard.Request{Start: bs(key)})
			if _, err := applyEntry(h.e, h.m, &d, d.Version, raft.Index(c), put(key, "v"+key)); err != nil {
				t.Fatal(err)
			}
		}
		for _, r := range [][2]string{{"", ""}, {"c", "t"}, {"a", "b"}, {"b", "b"}, {"g", "p"}, {"f~", "g"}, {"g", ""}, {"", "g"}, {"zz", ""}, {"", "A"}} {
			var want []string
			for _, k := range all {
				if k >= r[0] && (r[1] == "" || k < r[1]) {
					want = append(want, k)
				}
			}
			back := slices.Clone(want)
			slices.Reverse(back)
			for _, size := range []struct{ limit, bytes int }{{0, 0}, {1, 0}, {2, 0}, {5, 0}, {0, 1}, {0, 6}, {0, 9}, {3, 6}, {100, 1 << 20}} {
				name := fmt.Sprintf("%d shards [%q,%q) limit %d bytes %d", len(descs), r[0], r[1], size.limit, size.bytes)
				req := shard.Request{Start: bs(r[0]), End: bs(r[1]), Limit: size.limit, MaxBytes: size.bytes}
				got, pages := scanAll(t, s, h, req)
				if !slices.Equal(got, want) {
					t.Errorf("%s: %v", name, got)
				}
				per := max(1, min(orAll(size.limit), orAll(size.bytes)/3))
				if exact := max(1, (len(want)+per-1)/per); len(descs) == 1 && pages != exact {
					t.Errorf("%s: %d pages, want %d", name, pages, exact)
				}
				req.Reverse = true
				if got, _ := scanAll(t, s, h, req); !slices.Equal(got, back) {
					t.Errorf("%s, reverse: %v", name, got)
				}
			}
		}
	}
}

func orAll(n int) int {
	if n == 0 {
		return 1 << 20
	}
	return n
}

// Shows that a page is cut by its bytes after the first pair, that the default
// bounds hold, and that returned pairs own their memory.
func TestScanLimits(t *testing.T) {
	s, h := newStore(t)
	d := h.descs[0]
	big := strings.Repeat("x", 600<<10)
	if _, err := applyEntry(h.e, h.m, &d, 1, 1, put("a", big), put("b", big), put("c", "small")); err != nil {
		t.Fatal(err)
	}
	req := shard.Request{Shard: 7, Keyspace: 1, Kind: shard.KindScan}
	r := s.Do(bg, &req)
	if len(r.Pairs) != 1 || !r.More || string(r.Resume) != "b" || len(r.Pairs[0].Value) != len(big) {
		t.Errorf("default bytes: %d pairs, more %v, resume %q", len(r.Pairs), r.More, r.Resume)
	}
	req.MaxBytes = shard.MaxScanBytes
	if r := s.Do(bg, &req); len(r.Pairs) != 3 || r.More || r.Resume != nil {
		t.Errorf("all bytes: %d pairs, more %v, resume %q", len(r.Pairs), r.More, r.Resume)
	}
	r = s.Do(bg, &shard.Request{Shard: 7, Keyspace: 1, Kind: shard.KindScan, Start: bs("c")})
	_ = append(r.Pairs[0].Key, "overflow"...)
	if want := []shard.Pair{{Key: bs("c"), Value: bs("small"), Version: at(1, 2)}}; !reflect.DeepEqual(r.Pairs, want) {
		t.Errorf("got %v", r.Pairs)
	}
	var b shard.Batch
	for i := range shard.MaxScanPairs + 1 {
		b.Put(fmt.Appendf(nil, "k%06d", i), nil)
	}
	if _, err := applyEntry(h.e, h.m, &d, 1, 2, cmd(b.Command())); err != nil {
		t.Fatal(err)
	}
	r = s.Do(bg, &shard.Request{Shard: 7, Keyspace: 1, Kind: shard.KindScan, Start: bs("k"), Limit: 1 << 30})
	if len(r.Pairs) != shard.MaxScanPairs || !r.More || string(r.Resume) != fmt.Sprintf("k%06d", shard.MaxScanPairs) {
		t.Errorf("default pairs: %d, more %v, resume %q", len(r.Pairs), r.More, r.Resume)
	}
}

// Shows that a page is one state of the shard: a write between two pages shows in
// the next page, never within one.
func TestScanResumeSeesLaterWrites(t *testing.T) {
	s, h := newStore(t)
	d := h.descs[0]
	if _, err := applyEntry(h.e, h.m, &d, 1, 1, put("a", ""), put("c", "")); err != nil {
		t.Fatal(err)
	}
	req := &shard.Request{Shard: 7, Keyspace: 1, Kind: shard.KindScan, Limit: 1}
	r := s.Do(bg, req)
	if len(r.Pairs) != 1 || string(r.Resume) != "c" {
		t.Fatalf("%+v", r)
	}
	if _, err := applyEntry(h.e, h.m, &d, 1, 2, del("c"), put("d", "")); err != nil {
		t.Fatal(err)
	}
	req.Start = r.Resume
	if r := s.Do(bg, req); len(r.Pairs) != 1 || string(r.Pairs[0].Key) != "d" || r.More {
		t.Errorf("%+v", r)
	}
}
