package engine

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"hash/crc32"
	"os"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla/internal/fuzzing"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// goldenKeys are one key of each kind.
func goldenKeys() []Key {
	return []Key{
		{Kind: KindStore, Rest: []byte{tagIdent}},
		{Kind: KindIntent, Shard: 0x0102030405060708},
		{Kind: KindRequester},
		{Kind: KindSupporter, Node: 0x0a0b0c0d},
		{Kind: KindTombstone, Shard: 7},
		{Kind: KindEntry, Shard: 7, Index: 0x1122334455667788},
		{Kind: KindHard, Shard: 7},
		{Kind: KindApplied, Shard: 7},
		{Kind: KindDesc, Shard: 7},
		{Kind: KindGroup, Shard: 7, Rest: []byte("sess")},
		{Kind: KindData, Keyspace: 0x01020304, Rest: []byte("key")},
		{Kind: KindTrunc, Shard: 7},
		{Kind: KindVoid, Shard: 7},
		{Kind: KindRecord, Epoch: 4, Seq: 0x1122334455667788},
		{Kind: KindQuarantine, Shard: 7},
		{Kind: KindSkipped, Shard: 7, Index: 300},
	}
}

// goldenDealt stands for a layout, of which the engine knows nothing.
var goldenDealt = []byte("a layout")

func goldenIdent() identRecord {
	return identRecord{
		Ident: Ident{Cluster: [16]byte{1, 2, 3, 15: 16}, Node: 5, Layout: LayoutVersion, CreatedAt: 1700000000000000000},
		State: stateReady, Seq: 9, BootEpoch: 4, Nonce: 0x1112131415161718, Before: 0x2122232425262728,
	}
}

// TestGolden compares the layouts with the golden file: a difference is a
// format change, which needs a new version.
func TestGolden(t *testing.T) {
	var b strings.Builder
	line := func(name string, v []byte) { fmt.Fprintf(&b, "%s %s\n", name, hex.EncodeToString(v)) }
	for _, k := range goldenKeys() {
		line(fmt.Sprintf("key/%d", k.Kind), k.Raw())
	}
	line("ident-slot", goldenIdent().encode(nil))
	line("ident", goldenIdent().Ident.encode(nil))
	line("requester", encodeRequester(nil, 4))
	line("support", SupportRecord{Node: 1, Epoch: 3<<32 | 2, Withdrawn: true}.encode(nil))
	line("tombstone", encodeTombstone(nil, 6))
	line("trunc", encodeTrunc(nil, 9, 3))
	line("void", encodeVoid(nil, recordID{4, 9}))
	line("quarantine", Quarantine{Why: QuarantineUnreadable, Index: 9}.encode(nil))
	line("skipped", (&Skipped{Index: 300, Slots: []uint32{0, 1, 130}}).encode(nil))
	line("dealt-key", dealtKey(nil))
	line("dealt", encodeDealt(nil, goldenDealt))
	line("record", goldenRecord())
	line("intent", intent{Keyspace: 1, Replica: 6, Start: []byte("a"), End: []byte("b")}.encode(nil))
	line("watermark", watermark{Seq: 100, BootEpoch: 4}.encode(nil))
	line("checksum", manifestSum{Seq: 9, Number: 11, Length: 300, CRC: 0x01020304}.encode(nil))
	const name = "testdata/layout.golden"
	if *rewrite {
		must(t, os.WriteFile(name, []byte(b.String()), 0o644))
	}
	want, err := os.ReadFile(name)
	must(t, err)
	if b.String() != string(want) {
		t.Errorf("layout changed:\n%s\nwant:\n%s", b.String(), want)
	}
}

// TestKeyOrder: byte order is the order of shards and indexes, and a prefix's
// end bounds its keys.
func TestKeyOrder(t *testing.T) {
	prev := LogPrefix(1)
	for _, k := range []struct {
		s raft.ShardID
		i raft.Index
	}{{1, 0}, {1, 255}, {1, 256}, {1, 1 << 40}, {2, 1}, {256, 1}, {1 << 40, 0}} {
		raw := appendLogKey(nil, k.s, k.i)
		if bytes.Compare(prev, raw) >= 0 {
			t.Errorf("%x is not before %x", prev, raw)
		}
		if p := LogPrefix(k.s); bytes.Compare(raw, p) < 0 || bytes.Compare(raw, PrefixEnd(p)) >= 0 {
			t.Errorf("%x is not within its prefix", raw)
		}
		prev = raw
	}
	for _, ks := range []uint32{0, 1, 255, 1<<32 - 1} {
		lo, hi := DataSpan(ks, nil, nil)
		last := DataKey(ks, bytes.Repeat([]byte{255}, 20))
		if bytes.Compare(lo, last) >= 0 || bytes.Compare(last, hi) >= 0 || len(hi) == 0 {
			t.Errorf("keyspace %d: [%x, %x)", ks, lo, hi)
		}
	}
	if PrefixEnd([]byte{255, 255}) != nil || !bytes.Equal(PrefixEnd([]byte{1, 255}), []byte{2}) {
		t.Error("PrefixEnd")
	}
}

// FuzzParseKey: taking a key apart never panics, and only keys of the table
// are taken; those come back the same.
func FuzzParseKey(tf *testing.F) {
	f := fuzzing.New(tf)
	for _, k := range goldenKeys() {
		f.Add(k.Raw())
	}
	f.Fuzz(func(t testing.TB, raw []byte) {
		fuzzing.Decode(t, len(raw), func() { ParseKey(raw) })
		k, err := ParseKey(raw)
		if err == nil && !bytes.Equal(k.Raw(), raw) {
			t.Fatalf("%x became %+v, %x", raw, k, k.Raw())
		}
	})
}

// FuzzIdentFile: reading an identity file never panics, and a record that was
// taken is one that the encoder writes.
func FuzzIdentFile(tf *testing.F) {
	f := fuzzing.New(tf)
	slot := make([]byte, identSlot)
	copy(slot, goldenIdent().encode(nil))
	f.Add(slot)
	f.Add(append(make([]byte, identSlot), slot...))
	f.Add([]byte{})
	f.Fuzz(func(t testing.TB, b []byte) {
		fuzzing.Decode(t, len(b), func() { decodeIdentFile(b) })
		rec, err := decodeIdentFile(b)
		if err != nil {
			return
		}
		enc := rec.encode(nil)
		if !bytes.HasPrefix(b, enc) && !(len(b) > identSlot && bytes.HasPrefix(b[identSlot:], enc)) {
			t.Fatalf("%+v is in neither slot", rec)
		}
	})
}

// FuzzRecords: the small records never panic and come back the same.
func FuzzRecords(tf *testing.F) {
	f := fuzzing.New(tf)
	f.Add(goldenIdent().Ident.encode(nil))
	f.Add(encodeRequester(nil, 4))
	f.Add(SupportRecord{Epoch: 5, Withdrawn: true}.encode(nil))
	f.Add(encodeTombstone(nil, 6))
	f.Add(encodeTrunc(nil, 9, 3))
	f.Add(encodeVoid(nil, recordID{4, 9}))
	f.Add(Quarantine{Why: QuarantineDiffers, Index: 9}.encode(nil))
	f.Add((&Skipped{Slots: []uint32{0, 1, 130}}).encode(nil))
	f.Add(encodeDealt(nil, goldenDealt))
	f.Add(watermark{Seq: 100, BootEpoch: 4}.encode(nil))
	f.Add(manifestSum{Seq: 9, Number: 11, Length: 300, CRC: 0x01020304}.encode(nil))
	f.Add(intent{Keyspace: 1, Replica: 6, Start: []byte("a"), End: []byte("b")}.encode(nil))
	f.Fuzz(func(t testing.TB, b []byte) {
		same := func(name string, err error, enc func() []byte) {
			if err == nil && !bytes.Equal(enc(), b) {
				t.Fatalf("%s: %x became %x", name, b, enc())
			}
		}
		fuzzing.Decode(t, len(b), func() { decodeIdent(b); decodeSupport(1, b); decodeWatermark(b); decodeManifestSum(b); decodeIntent(b) })
		id, err := decodeIdent(b)
		same("ident", err, func() []byte { return id.encode(nil) })
		epoch, err := decodeRequester(b)
		same("requester", err, func() []byte { return encodeRequester(nil, epoch) })
		sup, err := decodeSupport(1, b)
		same("support", err, func() []byte { return sup.encode(nil) })
		r, err := decodeTombstone(b)
		same("tombstone", err, func() []byte { return encodeTombstone(nil, r) })
		if w, err := decodeWatermark(b); err == nil && len(b) == markLen && [7]byte(b[9:16]) == [7]byte{} {
			same("watermark", nil, func() []byte { return w.encode(nil) })
		}
		if s, err := decodeManifestSum(b); err == nil && len(b) == sumLen && [7]byte(b[9:16]) == [7]byte{} {
			same("checksum", nil, func() []byte { return s.encode(nil) })
		}
		i, term, err := decodeTrunc(b)
		same("truncation", err, func() []byte { return encodeTrunc(nil, i, term) })
		id2, err := decodeVoid(b)
		same("void mark", err, func() []byte { return encodeVoid(nil, id2) })
		q, err := decodeQuarantine(b)
		same("quarantine mark", err, func() []byte { return q.encode(nil) })
		k, err := decodeSkipped(9, b)
		same("skipped commands", err, func() []byte { return k.encode(nil) })
		dealt, err := decodeDealt(b)
		same("dealt groups", err, func() []byte { return encodeDealt(nil, dealt) })
		in, err := decodeIntent(b)
		same("intent", err, func() []byte { return in.encode(nil) })
	})
}

// goldenRecord has two runs of one group and one of another.
func goldenRecord() []byte {
	b := []byte{recordVersion}
	b = appendRun(b, 7, []raft.Entry{{Index: 5, Value: []byte("five")}, {Index: 6, Value: []byte("six")}})
	b = appendRun(b, 1<<40, []raft.Entry{{Index: 1, Value: []byte("one")}})
	b = appendRun(b, 7, []raft.Entry{{Index: 6, Value: []byte("again")}})
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// FuzzRecord: taking a log record apart never panics nor asks for much memory, and
// what was taken is what the encoder writes.
func FuzzRecord(tf *testing.F) {
	f := fuzzing.New(tf)
	f.Add(goldenRecord())
	f.Add([]byte{recordVersion})
	f.Fuzz(func(t testing.TB, b []byte) {
		if len(b) >= 4 { // behind the checksum there is more to find
			b = binary.BigEndian.AppendUint32(b[:len(b)-4:len(b)-4], crc32.Checksum(b[:len(b)-4], castagnoli))
		}
		fuzzing.Decode(t, len(b), func() { _, _ = parseRecord(nil, b) })
		runs, err := parseRecord(nil, b)
		if err != nil {
			return
		}
		again := []byte{recordVersion}
		for _, r := range runs {
			var ents []raft.Entry
			if err := eachOf(b, r.off, func(i raft.Index, v []byte) bool {
				ents = append(ents, raft.Entry{Index: i, Value: v})
				return true
			}); err != nil {
				t.Fatalf("%x: run %+v: %v", b, r, err)
			}
			if len(ents) != int(r.n) || ents[0].Index != r.first {
				t.Fatalf("%x: run %+v holds %d entries from %d", b, r, len(ents), ents[0].Index)
			}
			again = appendRun(again, r.shard, ents)
		}
		if again = binary.BigEndian.AppendUint32(again, crc32.Checksum(again, castagnoli)); !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}

// TestIdentSlots: writes go round the slots, and a torn or rotten one leaves
// the previous record.
func TestIdentSlots(t *testing.T) {
	fs := NewMemFS()
	rec := goldenIdent()
	rec.Seq = 0
	for i := range uint64(5) {
		rec.BootEpoch = i
		must(t, writeIdentFile(fs, "/id", &rec))
		got, err := readIdentFile(fs, "/id")
		if err != nil || got != rec {
			t.Fatalf("%+v %v, want %+v", got, err, rec)
		}
	}
	// Damage the newer slot.
	f, err := fs.OpenReadWrite("/id", "")
	must(t, err)
	_, err = f.WriteAt([]byte{0xff, 0xff}, int64(rec.Seq%2)*identSlot+40)
	must(t, err)
	must(t, f.Close())
	if got, err := readIdentFile(fs, "/id"); err != nil || got.BootEpoch != rec.BootEpoch-1 {
		t.Fatalf("%+v %v", got, err)
	}
}
