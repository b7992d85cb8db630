package snapshot

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/fuzzing"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

var rewrite = flag.Bool("rewrite", false, "rewrite testdata/*.golden")

func sampleMeta() Meta {
	m := Meta{ID: ID{1, 2, 3, 0xff}, Desc: descOf(7, "a", "q"),
		Applied:  raft.AppliedState{Applied: 1000, AppliedTerm: 5, TruncIndex: 900, TruncTerm: 4, ConfIndex: 17, WrittenBytes: 1 << 30, WrittenKeys: 12345, GroupTs: 1 << 60},
		Estimate: 3 << 20,
		Files: []File{
			{Kind: FileTable, Size: 2*ChunkBytes + 1, First: engine.DataKey(1, []byte("a1")), Last: engine.DataKey(1, []byte("b9")), Sums: []uint32{1, 2, 3}},
			{Kind: FileTable, Size: ChunkBytes, First: engine.DataKey(1, []byte("c")), Last: engine.DataKey(1, []byte("p")), Sums: []uint32{0xdeadbeef}},
			{Kind: FileState, Size: 20, Sums: []uint32{9}},
		}}
	m.Shard, m.Index, m.Term = 7, 1000, 5
	return m
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := "testdata/" + name + ".golden"
	if *rewrite {
		check(t, os.WriteFile(path, []byte(hex.Dump(got)), 0o644))
	}
	want, err := os.ReadFile(path)
	check(t, err)
	if hex.Dump(got) != string(want) {
		t.Fatalf("the format of %s changed:\n%s\nwant:\n%s", name, hex.Dump(got), want)
	}
}

// TestManifestFormat: the bytes are fixed, and decode to what was encoded.
func TestManifestFormat(t *testing.T) {
	m := sampleMeta()
	b := m.Encode([]byte("before"))[6:]
	golden(t, "manifest", b)
	got, err := DecodeMeta(b)
	check(t, err)
	clear(b) // the result must not alias it
	if !reflect.DeepEqual(got, m) {
		t.Fatalf("decoded %+v\nwant %+v", got, m)
	}
	if m.Bytes() != 3*ChunkBytes+21 || m.Chunks() != 5 || !strings.Contains(m.String(), "shard 7 at index 1000") {
		t.Fatalf("%d bytes, %d chunks, %s", m.Bytes(), m.Chunks(), m.String())
	}
}

// TestManifestEveryBit: no flipped bit and no cut passes.
func TestManifestEveryBit(t *testing.T) {
	m := sampleMeta()
	b := m.Encode(nil)
	for i := range len(b) * 8 {
		c := bytes.Clone(b)
		c[i/8] ^= 1 << (i % 8)
		if _, err := DecodeMeta(c); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit %d: %v", i, err)
		}
	}
	for n := range b {
		if _, err := DecodeMeta(b[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d: %v", n, err)
		}
	}
}

// TestMessageFormat: the bytes of each message are fixed, and decode to what was
// encoded; table chunks travel as they are, lists compressed if that helps. No flipped
// bit and no cut passes.
func TestMessageFormat(t *testing.T) {
	list := bytes.Repeat([]byte("flotilla "), 100)
	table := &File{Kind: FileTable, Size: 5, First: engine.DataKey(1, []byte("a1")), Last: engine.DataKey(1, []byte("b9")), Sums: []uint32{sum([]byte("table"))}}
	lists := &File{Kind: FileData, Size: int64(len(list)), Sums: []uint32{sum(list)}}
	y, e := ready{asks: true, files: 3}, end{files: 4, bytes: 1 << 33, records: 0xdeadbeef}
	o := offer{file: 1, have: 2, may: []offered{{3, hash{1, 2, 31: 9}}, {5, hash{0xff}}}}
	msgs := [][]byte{
		encodeFile(nil, 1, table), encodeKeep(nil, 1, []int{3, 5}), encodeChunk(nil, FileTable, 1, 0, []byte("table")),
		encodeChunk(nil, FileData, 2, 0, list), e.encode(nil), y.encode(nil), o.encode(nil),
	}
	golden(t, "messages", bytes.Join(msgs, nil))
	if len(msgs[3]) > len(list)/4 {
		t.Fatalf("a list of %d bytes travels as %d", len(list), len(msgs[3]))
	}
	decode := func(i int, b []byte) (any, error) {
		kind, body, err := open(b)
		if err != nil {
			return nil, err
		}
		switch {
		case i == 0 && kind == msgFile:
			n, f, err := decodeFile(body)
			if err == nil && n != 1 {
				err = corrupt("file %d", n) // the number is held against the next one
			}
			return f, err
		case i == 1 && kind == msgKeep:
			_, chunks, err := decodeKeep(b)
			return chunks, err
		case i == 2 && kind == msgChunk:
			return table.decodeChunk(body, 1, 0)
		case i == 3 && kind == msgChunk:
			return lists.decodeChunk(body, 2, 0)
		case i == 4 && kind == msgEnd:
			return decodeEnd(b)
		case i == 5:
			return decodeReady(b)
		case i == 6:
			return decodeOffer(b)
		}
		return nil, corrupt("kind %d", kind)
	}
	for i, want := range []any{table, []int{3, 5}, []byte("table"), list, e, y, o} {
		if got, err := decode(i, msgs[i]); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("message %d: %+v, %v; want %+v", i, got, err, want)
		}
		for bit := range len(msgs[i]) * 8 {
			b := bytes.Clone(msgs[i])
			b[bit/8] ^= 1 << (bit % 8)
			if got, err := decode(i, b); err == nil && !(i == 3 && bytes.Equal(got.([]byte), list)) || err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatalf("message %d, bit %d: %v", i, bit, err)
			}
		}
		for n := range msgs[i] {
			if _, err := decode(i, msgs[i][:n]); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("message %d cut to %d: %v", i, n, err)
			}
		}
	}
}

func TestListFormat(t *testing.T) {
	b := appendKV(appendKV(nil, []byte("a"), nil), []byte("b"), []byte("value"))
	golden(t, "list", b)
	kvs, err := decodeKVs(b)
	if err != nil || len(kvs) != 2 || string(kvs[1].Value) != "value" {
		t.Fatalf("%v %v", kvs, err)
	}
	for _, bad := range [][]byte{b[:len(b)-1], appendKV(bytes.Clone(b), []byte("b"), nil), {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}} {
		if _, err := decodeKVs(bad); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%x: %v", bad, err)
		}
	}
}

func FuzzDecodeMeta(tf *testing.F) {
	f := fuzzing.New(tf)
	m := sampleMeta()
	f.Add(m.Encode(nil))
	m.Files = nil
	f.Add(m.Encode(nil))
	f.Fuzz(func(t testing.TB, b []byte) {
		if len(b) > manifestHead { // look behind the checksum
			fixed := bytes.Clone(b)
			fixed[0] = manifestVersion
			s := sum(fixed[manifestHead:])
			fixed[1], fixed[2], fixed[3], fixed[4] = byte(s>>24), byte(s>>16), byte(s>>8), byte(s)
			b = fixed
		}
		fuzzing.Decode(t, len(b), func() { DecodeMeta(b) })
		m, err := DecodeMeta(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again, err := DecodeMeta(m.Encode(nil))
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Fatalf("%v\n%+v\n%+v", err, m, again)
		}
	})
}

func FuzzDecodeMessage(tf *testing.F) {
	f := fuzzing.New(tf)
	list := bytes.Repeat([]byte("flotilla "), 100)
	rec := &File{Kind: FileData, Size: int64(len(list)), Sums: []uint32{sum(list)}}
	f.Add(encodeChunk(nil, FileData, 0, 0, list))
	f.Add(encodeChunk(nil, FileTable, 0, 0, list))
	f.Add(encodeFile(nil, 0, rec))
	f.Add(encodeKeep(nil, 0, []int{1, 2, 3}))
	f.Add([]byte("0\x020000\x00\x00\x00\x030000000000000000")) // of another version
	f.Add(end{files: 1}.encode(nil))
	f.Add(ready{files: 1}.encode(nil))
	f.Add((&offer{may: []offered{{chunk: 1}}}).encode(nil))
	var dense []byte
	for i := range 1 << 16 {
		dense = appendKV(dense, []byte{byte(i >> 8), byte(i)}, nil)
	}
	f.Add(dense)
	f.Fuzz(func(t testing.TB, b []byte) {
		// The shortest pair takes four bytes and becomes an engine.KV.
		fuzzing.DecodeList(t, len(b), 16, func() {
			kind, body, err := open(b)
			if err == nil && kind == msgFile {
				decodeFile(body)
			}
			decodeKeep(b)
			decodeEnd(b)
			decodeReady(b)
			decodeOffer(b)
			rec.decodeChunk(body, 0, 0)
			decodeKVs(b)
		})
		if kind, body, err := open(b); err == nil && kind == msgChunk {
			if p, err := rec.decodeChunk(body, 0, 0); err == nil && !bytes.Equal(p, list) {
				t.Fatal("another payload passed its checksum")
			}
		}
		if n := len(b); n > messageHead+4 { // look behind the checksum
			fixed := sealed(bytes.Clone(b[:n-4]), 0)
			if o, err := decodeOffer(fixed); err == nil && !bytes.Equal(o.encode(nil), fixed) {
				t.Fatalf("an offer is encoded in another way: %x", fixed)
			}
			if n, chunks, err := decodeKeep(fixed); err == nil && fixed[1] == msgKeep && !bytes.Equal(encodeKeep(nil, n, chunks), fixed) {
				t.Fatalf("a list of chunks is encoded in another way: %x", fixed)
			}
		}
		if kvs, err := decodeKVs(b); err == nil {
			var again []byte
			for _, p := range kvs {
				again = appendKV(again, p.Key, p.Value)
			}
			if got, err := decodeKVs(again); err != nil || len(got) != len(kvs) {
				t.Fatalf("%v: %d pairs, then %d", err, len(kvs), len(got))
			}
		}
	})
}
