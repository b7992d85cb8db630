package backup

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/internal/fuzzing"
)

var rewrite = flag.Bool("rewrite", false, "rewrite testdata/*.golden")

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name + ".golden"
	if *rewrite {
		check(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	check(t, err)
	if got != string(want) {
		t.Fatalf("the format of %s changed:\n%s\nwant:\n%s", name, got, want)
	}
}

func samplePairs() []byte {
	return AppendPair(AppendPair(nil, []byte("a"), nil), []byte("b"), []byte("value"))
}

func sampleManifest() *Manifest {
	at := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	return &Manifest{Kind: Backup, ID: "20260102t150405z-1a2b3c4d", Cluster: strings.Repeat("5", 32), Release: "0.1.0", Started: at, Ended: at.Add(time.Second), Shards: []Shard{
		{ShardCut: ShardCut{Shard: 2, Keyspace: 1, Start: []byte{}, End: []byte("m"), Index: 77, Term: 3, Time: 1 << 60},
			Chunks: []Chunk{{Hash: hashOf([]byte("x")), Stored: 20, Bytes: 30, Pairs: 2, First: []byte("a")}, {Hash: hashOf([]byte("y")), Stored: 4, Bytes: 5, Pairs: 1, First: []byte("b\xff")}}},
		{ShardCut: ShardCut{Shard: 3, Keyspace: 1, Start: []byte("m"), End: []byte{}, Index: 5, Term: 2}, Chunks: nil},
	}}
}

// sampleSnapshot is of one shard in the middle.
func sampleSnapshot() *Manifest {
	m := sampleManifest()
	m.Kind, m.Shards = Snapshot, m.Shards[:1]
	m.Shards[0].Start = []byte("Z")
	return m
}

// The bytes of chunk, page and manifest are fixed and decode to what was encoded.
func TestFormats(t *testing.T) {
	plain := encodeChunk(nil, samplePairs())
	golden(t, "chunk", hex.Dump(plain))
	packed := encodeChunk(nil, AppendPair(nil, []byte("k"), bytes.Repeat([]byte("v"), 200)))
	golden(t, "chunk-snappy", hex.Dump(packed))
	page := AppendPage(nil, samplePairs(), true)
	golden(t, "page", hex.Dump(page))
	pairs, more, err := DecodePage(page)
	if err != nil || !more || len(pairs) != 2 || string(pairs[1].Value) != "value" {
		t.Errorf("page: %v, %v, %v", pairs, more, err)
	}
	for _, b := range [][]byte{plain, packed} {
		if c, err := openChunk(hashOf(b), b, nil); err != nil || c.pairs == 0 {
			t.Errorf("%+v, %v", c, err)
		}
	}
	m := sampleManifest()
	b, err := m.encode()
	check(t, err)
	golden(t, "manifest", string(b))
	got, err := decodeManifest(Backup, m.ID, b)
	check(t, err)
	if !reflect.DeepEqual(got, m) {
		t.Errorf("decoded %+v\nwant %+v", got, m)
	}
	snap, err := sampleSnapshot().encode()
	check(t, err)
	golden(t, "snapshot", string(snap))
	if _, err := decodeManifest(Snapshot, m.ID, b); err == nil {
		t.Error("a backup is taken for a snapshot")
	}
	if _, err := decodeManifest(Backup, m.ID, snap); err == nil {
		t.Error("a snapshot is taken for a backup")
	}
	if m.Pairs() != 3 || m.Bytes() != 35 || m.Chunks() != 2 || m.Stored() != 24 {
		t.Errorf("%d pairs, %d bytes, %d chunks, %d stored", m.Pairs(), m.Bytes(), m.Chunks(), m.Stored())
	}
}

// What cannot be in a manifest is refused, when written and when read.
func TestManifestRefuses(t *testing.T) {
	for name, spoil := range map[string]func(m *Manifest){
		"no shards":               func(m *Manifest) { m.Shards = nil },
		"a hole":                  func(m *Manifest) { m.Shards[1].Start = []byte("n") },
		"an overlap":              func(m *Manifest) { m.Shards[1].Start = []byte("l") },
		"a missing first shard":   func(m *Manifest) { m.Shards = m.Shards[1:] },
		"a missing last shard":    func(m *Manifest) { m.Shards = m.Shards[:1] },
		"a shard twice":           func(m *Manifest) { m.Shards = append(m.Shards, m.Shards[1]) },
		"nothing applied":         func(m *Manifest) { m.Shards[0].Index = 0 },
		"another keyspace":        func(m *Manifest) { m.Shards[1].Keyspace = 2 },
		"chunks out of order":     func(m *Manifest) { c := m.Shards[0].Chunks; c[0], c[1] = c[1], c[0] },
		"a chunk elsewhere":       func(m *Manifest) { m.Shards[0].Chunks[1].First = []byte("m") },
		"a name that leads away":  func(m *Manifest) { m.Shards[0].Chunks[0].Hash = "../" + strings.Repeat("a", 61) },
		"an id that leads away":   func(m *Manifest) { m.ID = "../x" },
		"no pairs":                func(m *Manifest) { m.Shards[0].Chunks[0].Pairs = 0 },
		"more pairs than bytes":   func(m *Manifest) { m.Shards[0].Chunks[0].Pairs = 31 },
		"a chunk that is too big": func(m *Manifest) { m.Shards[0].Chunks[0].Stored = 1 << 40 },
	} {
		m := sampleManifest()
		spoil(m)
		if _, err := m.encode(); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
	for name, spoil := range map[string]func(m *Manifest){
		"no shards":     func(m *Manifest) { m.Shards = nil },
		"a shard twice": func(m *Manifest) { m.Shards = append(m.Shards, m.Shards[0]) },
		"an overlap": func(m *Manifest) {
			s := m.Shards[0]
			s.Start, s.End, s.Chunks = []byte("l"), nil, nil
			m.Shards = append(m.Shards, s)
		},
		"behind the last key": func(m *Manifest) {
			m.Shards = append(m.Shards, m.Shards[0])
			m.Shards[0].End = nil
		},
		"an end before the start": func(m *Manifest) { m.Shards[0].End, m.Shards[0].Chunks = []byte("A"), nil },
	} {
		m := sampleSnapshot()
		spoil(m)
		if _, err := m.encode(); err == nil {
			t.Errorf("a snapshot with %s: encoded", name)
		}
	}
	b, err := sampleManifest().encode()
	check(t, err)
	if _, err := decodeManifest(Backup, "20260102t150405z-ffffffff", b); err == nil {
		t.Error("a manifest under another one's name is taken")
	}
}

// Every bit of a manifest, a chunk and a page counts.
func TestEveryBitCounts(t *testing.T) {
	m := sampleManifest()
	manifest, err := m.encode()
	check(t, err)
	chunk := encodeChunk(nil, AppendPair(samplePairs(), []byte("k"), bytes.Repeat([]byte("v"), 200)))
	name := hashOf(chunk)
	page := AppendPage(nil, samplePairs(), false)
	for what, c := range map[string]struct {
		b    []byte
		read func(b []byte) error
	}{
		"manifest": {manifest, func(b []byte) error { _, err := decodeManifest(Backup, m.ID, b); return err }},
		"chunk":    {chunk, func(b []byte) error { _, err := openChunk(name, b, nil); return err }},
		"page":     {page, func(b []byte) error { _, _, err := DecodePage(b); return err }},
	} {
		check(t, c.read(c.b))
		for i := range 8 * len(c.b) {
			bad := bytes.Clone(c.b)
			bad[i/8] ^= 1 << (i % 8)
			if c.read(bad) == nil {
				t.Fatalf("%s: bit %d of byte %d flipped, and nobody noticed", what, i%8, i/8)
			}
		}
		for n := range c.b {
			if c.read(c.b[:n]) == nil {
				t.Fatalf("%s: cut to %d bytes, and nobody noticed", what, n)
			}
		}
		if c.read(append(bytes.Clone(c.b), '\n')) == nil {
			t.Errorf("%s: a byte more, and nobody noticed", what)
		}
	}
}

// chunksOf cuts pairs and returns the hash of each chunk.
func chunksOf(keys [][]byte, value func(key []byte) []byte) (hashes []string, sizes []int) {
	var c cutter
	take := func() {
		hashes, sizes = append(hashes, hashOf(c.buf)), append(sizes, len(c.buf))
		c.reset()
	}
	for _, k := range keys {
		v := value(k)
		if c.full(k, v) {
			take()
		}
		c.add(k, v)
	}
	if c.n > 0 {
		take()
	}
	return hashes, sizes
}

// Chunks have the sizes that were promised, for small and large values; a pair
// that is added, removed or changed changes the chunk it is in, and few others.
func TestCutting(t *testing.T) {
	for _, size := range []int{20, 3000, 100_000} {
		n := min(150_000, 24<<20/(size+20))
		r := rand.New(rand.NewPCG(7, uint64(size)))
		fill := make([]byte, size)
		for i := range fill {
			fill[i] = byte(r.Uint32())
		}
		keys := make([][]byte, n)
		for i := range keys {
			keys[i] = fmt.Appendf(nil, "user/%08d", i*10)
		}
		plain := func(k []byte) []byte { return append(bytes.Clone(fill), k...) }
		old, sizes := chunksOf(keys, plain)
		total := 0
		for i, s := range sizes {
			total += s
			if s > ChunkMaxBytes || s < chunkMin && i < len(sizes)-1 {
				t.Fatalf("values of %d bytes: chunk %d has %d bytes", size, i, s)
			}
		}
		if mean := total / len(sizes); mean < 400<<10 || mean > 1400<<10 {
			t.Errorf("values of %d bytes: chunks have %d bytes on average", size, mean)
		}
		have := map[string]bool{}
		for _, h := range old {
			have[h] = true
		}
		at := n / 3
		added := append(append(append([][]byte{}, keys[:at]...), fmt.Appendf(nil, "user/%08d", at*10-5)), keys[at:]...)
		removed := append(append([][]byte{}, keys[:at]...), keys[at+1:]...)
		changed := func(k []byte) []byte {
			if bytes.Equal(k, keys[at]) {
				return append(plain(k), "changed"...)
			}
			return plain(k)
		}
		for what, c := range map[string]struct {
			keys  [][]byte
			value func([]byte) []byte
		}{"added": {added, plain}, "removed": {removed, plain}, "changed": {keys, changed}} {
			now, _ := chunksOf(c.keys, c.value)
			fresh := 0
			for _, h := range now {
				if !have[h] {
					fresh++
				}
			}
			if fresh < 1 || fresh > 4 {
				t.Errorf("values of %d bytes, a pair %s: %d of %d chunks are new", size, what, fresh, len(now))
			}
		}
	}
}

func FuzzChunk(f *testing.F) {
	f.Add(encodeChunk(nil, samplePairs()))
	f.Add(encodeChunk(nil, AppendPair(nil, []byte("k"), bytes.Repeat([]byte("v"), 900))))
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzing.DecodeList(t, len(b), snappyRatio+1, func() {
			pairs := []byte(nil)
			c, err := openChunk(hashOf(b), b, func(p Pair) error { pairs = AppendPair(pairs[:0], p.Key, p.Value); return nil })
			if err == nil && c.pairs > c.bytes {
				t.Fatalf("%d pairs in %d bytes", c.pairs, c.bytes)
			}
		})
	})
}

func FuzzPage(f *testing.F) {
	f.Add(AppendPage(nil, samplePairs(), true))
	f.Add(AppendPage(nil, nil, false))
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzing.DecodeList(t, len(b), 64, func() {
			pairs, more, err := DecodePage(b)
			if err != nil {
				return
			}
			var again []byte
			for _, p := range pairs {
				again = AppendPair(again, p.Key, p.Value)
			}
			back, m, err := DecodePage(AppendPage(nil, again, more))
			if err != nil || m != more || len(back) != len(pairs) {
				t.Fatalf("%d pairs became %d: %v", len(pairs), len(back), err)
			}
		})
	})
}

func FuzzManifest(f *testing.F) {
	b, err := sampleManifest().encode()
	check(f, err)
	_, body, _ := bytes.Cut(b, []byte("\n"))
	f.Add(body)
	b, err = sampleSnapshot().encode()
	check(f, err)
	_, body, _ = bytes.Cut(b, []byte("\n"))
	f.Add(body)
	f.Fuzz(func(t *testing.T, body []byte) { // with the right hash, else nothing gets far
		for _, kind := range kinds {
			b := append([]byte(kind.magic()+hashOf(body)+"\n"), body...)
			m, err := decodeManifest(kind, sampleManifest().ID, b)
			if err != nil {
				continue
			}
			again, err := m.encode()
			if err != nil {
				t.Fatalf("what was decoded cannot be encoded: %v", err)
			}
			if back, err := decodeManifest(kind, m.ID, again); err != nil || !reflect.DeepEqual(back, m) {
				t.Fatalf("%+v became %+v: %v", m, back, err)
			}
		}
	})
}
