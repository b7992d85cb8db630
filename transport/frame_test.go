package transport

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/golang/snappy"

	"github.com/flotillakv/flotilla/internal/fuzzing"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

var rewrite = flag.Bool("rewrite", false, "rewrite golden files")

// golden compares b with testdata/name.golden, which holds hex with 32 bytes a line.
func golden(t *testing.T, name string, b []byte) {
	t.Helper()
	var s strings.Builder
	for line := b; len(line) > 0; {
		n := min(32, len(line))
		s.WriteString(hex.EncodeToString(line[:n]) + "\n")
		line = line[n:]
	}
	path := filepath.Join("testdata", name+".golden")
	if *rewrite {
		if err := os.WriteFile(path, []byte(s.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if s.String() != string(want) {
		t.Fatalf("%s changed; a change of the format needs a new version\ngot:\n%swant:\n%s", path, s.String(), want)
	}
}

func readGolden(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".golden"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(string(text), "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var testHeader = FrameHeader{From: 1, To: 2, BootEpoch: 3, Seq: 4}

func testCtls() []raft.Ctl {
	return []raft.Ctl{
		{Kind: raft.CtlHeartbeat, Score: 7, Epoch: 3<<32 | 1, Seq: 9, Wall: 1234567890},
		{Kind: raft.CtlReply, Refused: true, Epoch: 2<<32 | 5, Seq: 8, Echo: 10},
	}
}

func testMsgs(from, to raft.NodeID) []raft.Msg {
	return []raft.Msg{
		{Type: raft.MsgApp, Flags: raft.FlagFortify, Shard: 0x0102030405060708, From: from, To: to, FromReplica: 11, ToReplica: 12,
			Term: 13, Index: 14, LogTerm: 15, Commit: 16, CompactTo: 17, Epoch: 18, Round: 19,
			Entries: []raft.Entry{testEntry(15, 13, []byte("hello")), testEntry(16, 13, nil)}},
		{Type: raft.MsgAppResp, Flags: raft.FlagReject, Shard: 2, From: from, To: to, Term: 3, Index: 4},
		{Type: raft.MsgReadResp, Shard: 1, From: from, To: to, Round: 1 << 60},
	}
}

// inBoot sets the boot epoch of messages, which a decoder takes from the frame.
func inBoot(msgs []raft.Msg, boot uint64) []raft.Msg {
	for i := range msgs {
		msgs[i].Boot = boot
	}
	return msgs
}

// The bytes of a frame are those of the golden files, plain and packed.
func TestFrameGolden(t *testing.T) {
	b, err := EncodeFrame(nil, testHeader, testCtls(), testMsgs(1, 2), false)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "frame", b)
	empty, err := EncodeFrame(nil, testHeader, nil, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "frame_empty", empty)
	msgs := []raft.Msg{{Type: raft.MsgApp, Shard: 5, From: 1, To: 2, Entries: []raft.Entry{testEntry(1, 1, bytes.Repeat([]byte("flotilla"), 1000))}}}
	packed, err := EncodeFrame(nil, testHeader, nil, msgs, true)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "frame_snappy", packed)
	f, err := DecodeFrame(readGolden(t, "frame_snappy"))
	if err != nil || !reflect.DeepEqual(f.Msgs, inBoot(msgs, testHeader.BootEpoch)) {
		t.Fatalf("decoded %+v, %v", f.Msgs, err)
	}
}

// What is encoded is decoded again, equal in every field.
func TestFrameRoundTrip(t *testing.T) {
	for _, compress := range []bool{false, true} {
		in := Frame{FrameHeader: testHeader, Ctl: testCtls(), Msgs: testMsgs(1, 2)}
		if compress { // enough to be packed
			for i := range 200 {
				in.Msgs = append(in.Msgs, raft.Msg{Type: raft.MsgCommit, Shard: raft.ShardID(i), From: 1, To: 2})
			}
		}
		inBoot(in.Msgs, in.BootEpoch)
		b, err := EncodeFrame([]byte("prefix"), in.FrameHeader, in.Ctl, in.Msgs, compress)
		if err != nil {
			t.Fatal(err)
		}
		b = b[len("prefix"):]
		if packed := b[3]&frameFlagSnappy != 0; packed != compress {
			t.Fatalf("packed: %v, want %v", packed, compress)
		}
		out, err := DecodeFrame(b)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(in, out) {
			t.Fatalf("in  %+v\nout %+v", in, out)
		}
	}
}

// The queue's way to a frame gives the same bytes as EncodeFrame.
func TestQueueSealsTheSameFrame(t *testing.T) {
	for _, compress := range []bool{false, true} {
		ctl, msgs := testCtls(), testMsgs(1, 2)
		for i := range 100 {
			msgs = append(msgs, raft.Msg{Type: raft.MsgCommit, Shard: raft.ShardID(i), From: 1, To: 2})
		}
		q := newQueue(1 << 20)
		q.setAccept(true)
		q.push(msgs)
		for i := range ctl {
			q.pushCtl(&ctl[i])
		}
		b, c, n, ok := q.take(nil)
		if !ok || n != len(ctl) || b.n != len(msgs) {
			t.Fatalf("took %d messages and %d control records", b.n, n)
		}
		f := seal(testHeader, b, c, n, compress)
		got := append(append([]byte(nil), f.head...), *f.body...)
		want, err := EncodeFrame(nil, testHeader, ctl, msgs, compress)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("compress %v: got\n%x\nwant\n%x", compress, got, want)
		}
		if q.size() != 0 {
			t.Fatalf("%d bytes left in an empty queue", q.size())
		}
	}
}

// Every cut and every flipped bit of a frame is refused, with ErrFrame.
func TestFrameCutAndFlipped(t *testing.T) {
	good := readGolden(t, "frame")
	for n := range good {
		if _, err := DecodeFrame(good[:n]); !errors.Is(err, ErrFrame) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	if _, err := DecodeFrame(append(bytes.Clone(good), 0)); !errors.Is(err, ErrFrame) {
		t.Fatalf("one byte more: %v", err)
	}
	for bit := range len(good) * 8 {
		b := bytes.Clone(good)
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := DecodeFrame(b); !errors.Is(err, ErrFrame) {
			t.Fatalf("bit %d flipped: %v", bit, err)
		}
	}
}

// resum makes the checksum of a tampered frame right.
func resum(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[32:], uint32(len(b)-frameHeaderBytes))
	crc := crc32.Update(0, castagnoli, b[:36])
	binary.LittleEndian.PutUint32(b[36:], crc32.Update(crc, castagnoli, b[frameHeaderBytes:]))
	return b
}

// Frames whose checksum is right but whose content is not are refused by name.
func TestFrameTampered(t *testing.T) {
	le := binary.LittleEndian
	body := frameHeaderBytes + 2*ctlRecordBytes // the first message
	for _, c := range []struct {
		name, want string
		tamper     func(b []byte) []byte
	}{
		{"version", "version 9", func(b []byte) []byte { b[2] = 9; return b }},
		{"flags", "unknown flags", func(b []byte) []byte { b[3] = 0x80; return b }},
		{"more messages than bytes", "in ", func(b []byte) []byte { le.PutUint16(b[30:], 60000); return b }},
		{"one message too many", "is cut", func(b []byte) []byte {
			le.PutUint16(b[30:], 4)
			return append(b, make([]byte, msgRecordBytes-1)...)
		}},
		{"one message too few", "after the last message", func(b []byte) []byte { le.PutUint16(b[30:], 2); return b }},
		{"entry bytes beyond the frame", "bytes of entries", func(b []byte) []byte { le.PutUint32(b[body+20:], 1<<31); return b }},
		{"an entry beyond its message", "an entry of", func(b []byte) []byte { le.PutUint32(b[body+80:], 1<<30); return b }},
		{"fewer entries than bytes", "after its entries", func(b []byte) []byte { le.PutUint16(b[body+10:], 1); return b }},
		{"more entries than bytes", "entries are cut", func(b []byte) []byte { le.PutUint16(b[body+10:], 3); return b }},
		{"entries past the last index", "entries after index", func(b []byte) []byte { le.PutUint64(b[body+32:], 1<<63+1); return b }},
		{"an entry's version", "entry 15", func(b []byte) []byte { b[body+84] = 0xee; return b }},
		{"snappy garbage", "snappy", func(b []byte) []byte { b[3] = frameFlagSnappy; return b }},
		{"snappy bomb", "decompressed", func(b []byte) []byte {
			b[3] = frameFlagSnappy
			return append(b[:frameHeaderBytes], 0xff, 0xff, 0xff, 0xff, 0x0f)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := DecodeFrame(resum(c.tamper(readGolden(t, "frame"))))
			if !errors.Is(err, ErrFrame) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want it to name %q", err, c.want)
			}
		})
	}
	if _, err := DecodeFrame(make([]byte, MaxFrameBytes+1)); !errors.Is(err, ErrFrame) {
		t.Fatalf("too large: %v", err)
	}
}

// Records of a later version are skipped, those around them are delivered.
func TestFrameSkipsUnknownKinds(t *testing.T) {
	b := readGolden(t, "frame")
	b[frameHeaderBytes] = 99                      // first control record
	b[frameHeaderBytes+2*ctlRecordBytes+8] = 0xc8 // first message, with entries
	f, err := DecodeFrame(resum(b))
	if err != nil {
		t.Fatal(err)
	}
	if f.Skipped != 2 || len(f.Ctl) != 1 || len(f.Msgs) != 2 || f.Msgs[0].Shard != 2 {
		t.Fatalf("got %+v", f)
	}
}

// What fits into no frame is refused by the encoder, and leaves dst as it was.
func TestFrameEncodeRefuses(t *testing.T) {
	huge := []raft.Msg{{Type: raft.MsgApp, Index: 1, Entries: []raft.Entry{{Index: 2, Value: make([]byte, MaxFrameBytes)}}}}
	gap := []raft.Msg{{Type: raft.MsgApp, Index: 1, Entries: []raft.Entry{testEntry(3, 1, nil)}}}
	for _, msgs := range [][]raft.Msg{huge, gap} {
		dst, err := EncodeFrame([]byte{1}, testHeader, nil, msgs, false)
		if err == nil || len(dst) != 1 {
			t.Fatalf("got %d bytes, %v", len(dst), err)
		}
	}
	if _, err := EncodeFrame(nil, testHeader, make([]raft.Ctl, maxCtlPerFrame+1), nil, false); err == nil {
		t.Fatal("too many control records were taken")
	}
	largest := raft.Entry{Index: 2, Value: append(testEntry(2, 1, nil).Value, make([]byte, raft.MaxEntryBytes-len(testEntry(2, 1, nil).Value))...)}
	if _, err := EncodeFrame(nil, testHeader, make([]raft.Ctl, maxCtlPerFrame), []raft.Msg{{Type: raft.MsgApp, Index: 1, Entries: []raft.Entry{largest}}}, false); err != nil {
		t.Fatalf("the largest entry does not fit: %v", err)
	}
}

// The queue splits what is more than a frame's target, keeps order, and is
// emptied as a whole when it overflows.
func TestQueueSplitsAndOverflows(t *testing.T) {
	q := newQueue(1 << 20)
	if res := q.push(testMsgs(1, 2)); res.dropped != 3 {
		t.Fatalf("a closed queue took messages: %+v", res)
	}
	q.setAccept(true)
	val := make([]byte, 100<<10)
	send := func(shard int) pushResult {
		return q.push([]raft.Msg{{Type: raft.MsgApp, Shard: raft.ShardID(shard), Entries: []raft.Entry{testEntry(1, 1, val)}}})
	}
	for i := range 10 {
		if res := send(i); res.queued != 1 {
			t.Fatalf("message %d: %+v", i, res)
		}
	}
	next := raft.ShardID(0)
	for frames := 0; ; frames++ {
		b, _, _, ok := q.take(nil)
		if !ok {
			if frames != 5 {
				t.Fatalf("%d frames", frames)
			}
			break
		}
		if len(*b.buf) > FrameTargetBytes {
			t.Fatalf("a frame of %d bytes", len(*b.buf))
		}
		f, err := DecodeFrame(*seal(testHeader, b, nil, 0, false).body)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range f.Msgs {
			if m.Shard != next {
				t.Fatalf("message of shard %d where %d was due", m.Shard, next)
			}
			next++
		}
	}
	for i := range 10 {
		send(i)
	}
	if res := send(10); !res.overflow || res.dropped != 11 || q.size() != 0 {
		t.Fatalf("%+v, %d bytes left", res, q.size())
	}
	for i := range maxCtlPerFrame + 10 {
		q.pushCtl(&raft.Ctl{Kind: raft.CtlHeartbeat, Seq: uint64(i)})
	}
	b, ctl, n, _ := q.take(nil)
	f, err := DecodeFrame(seal(testHeader, b, ctl, n, false).head)
	if err != nil || len(f.Ctl) != maxCtlPerFrame || f.Ctl[0].Seq != 10 {
		t.Fatalf("%d control records, the first has number %d, %v", len(f.Ctl), f.Ctl[0].Seq, err)
	}
}

// FuzzDecodeFrame: never panics; allocates no more than a few times the input's
// decompressed size; what decodes is encoded again to something that decodes to
// the same.
func FuzzDecodeFrame(tf *testing.F) {
	f := fuzzing.New(tf)
	for _, name := range []string{"frame", "frame_empty", "frame_snappy"} {
		f.Add(readGolden(f, name), false)
		f.Add(readGolden(f, name), true)
	}
	bomb := append(make([]byte, frameHeaderBytes), 0x80, 0x80, 0x80, 0x02, 0) // claims four mebibytes
	bomb[3] = frameFlagSnappy
	f.Add(bomb, true)
	f.Fuzz(func(t testing.TB, b []byte, fix bool) {
		if fix && len(b) >= frameHeaderBytes { // reach behind the checksum
			b = bytes.Clone(b)
			binary.LittleEndian.PutUint16(b, frameMagic)
			b[2] = frameVersion
			b[3] &= frameFlagSnappy
			resum(b)
		}
		n := len(b)
		if n > 3 && b[3]&frameFlagSnappy != 0 {
			n *= maxSnappyRatio
		}
		fuzzing.Decode(t, n, func() { DecodeFrame(b) })
		fr, err := DecodeFrame(b)
		if err != nil {
			if !errors.Is(err, ErrFrame) {
				t.Fatalf("not an ErrFrame: %v", err)
			}
			return
		}
		size := len(b)
		if b[3]&frameFlagSnappy != 0 {
			n, _ := snappy.DecodedLen(b[frameHeaderBytes:])
			size += n
		}
		ents := 0
		for i := range fr.Msgs {
			ents += len(fr.Msgs[i].Entries)
		}
		if len(fr.Ctl)*ctlRecordBytes > size || len(fr.Msgs)*msgRecordBytes+ents*entryPrefixBytes > size {
			t.Fatalf("%d records, %d messages and %d entries from %d bytes", len(fr.Ctl), len(fr.Msgs), ents, size)
		}
		if len(fr.Ctl) > maxCtlPerFrame {
			return // accepted, but this build never sends so many
		}
		again, err := EncodeFrame(nil, fr.FrameHeader, fr.Ctl, fr.Msgs, b[3]&frameFlagSnappy != 0)
		if err != nil {
			t.Fatal(err)
		}
		fr2, err := DecodeFrame(again)
		fr.Skipped = 0
		if len(fr.Ctl) == 0 {
			fr.Ctl = nil // all skipped
		}
		if len(fr.Msgs) == 0 {
			fr.Msgs = nil
		}
		if err != nil || !reflect.DeepEqual(fr, fr2) {
			t.Fatalf("%v\n%+v\n%+v", err, fr, fr2)
		}
	})
}

// Random frames survive the way there and back.
func TestFrameRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(42, 0))
	for range 300 {
		in := Frame{FrameHeader: FrameHeader{From: raft.NodeID(rng.Uint32()), To: raft.NodeID(rng.Uint32()), BootEpoch: rng.Uint64(), Seq: rng.Uint64()}}
		for range rng.IntN(4) {
			in.Ctl = append(in.Ctl, raft.Ctl{Kind: raft.CtlKind(1 + rng.IntN(4)), Refused: rng.IntN(2) == 0, Score: uint8(rng.Uint32()),
				Epoch: raft.Epoch(rng.Uint64()), Seq: rng.Uint64(), Echo: rng.Uint64(), Wall: rng.Uint64()})
		}
		for range rng.IntN(20) {
			m := raft.Msg{Type: raft.MsgType(1 + rng.IntN(20)), Flags: uint8(rng.Uint32()), Shard: raft.ShardID(rng.Uint64()), From: in.From, To: in.To,
				FromReplica: raft.ReplicaID(rng.Uint32()), ToReplica: raft.ReplicaID(rng.Uint32()), Term: raft.Term(rng.Uint64()),
				Index: raft.Index(rng.Uint64() >> 2), LogTerm: raft.Term(rng.Uint64()), Commit: raft.Index(rng.Uint64()),
				CompactTo: raft.Index(rng.Uint64()), Epoch: raft.Epoch(rng.Uint64()), Round: rng.Uint64()}
			for i := range rng.IntN(3) {
				m.Entries = append(m.Entries, testEntry(m.Index+1+raft.Index(i), raft.Term(1+rng.IntN(9)), make([]byte, rng.IntN(900))))
			}
			in.Msgs = append(in.Msgs, m)
		}
		inBoot(in.Msgs, in.BootEpoch)
		b, err := EncodeFrame(nil, in.FrameHeader, in.Ctl, in.Msgs, rng.IntN(2) == 0)
		if err != nil {
			t.Fatal(err)
		}
		if out, err := DecodeFrame(b); err != nil || !reflect.DeepEqual(in, out) {
			t.Fatalf("%v\nin  %+v\nout %+v", err, in, out)
		}
	}
}

func BenchmarkFrameEncodeDecode(b *testing.B) {
	var msgs []raft.Msg
	for i := range 32 {
		msgs = append(msgs, raft.Msg{Type: raft.MsgApp, Shard: raft.ShardID(i), From: 1, To: 2, Index: 9, Entries: []raft.Entry{testEntry(10, 1, make([]byte, 128))}})
	}
	q := newQueue(8 << 20)
	q.setAccept(true)
	b.ReportAllocs()
	for b.Loop() {
		q.push(msgs)
		bt, _, _, _ := q.take(nil)
		f := seal(testHeader, bt, nil, 0, false)
		if _, err := DecodeFrame(*f.body); err != nil {
			b.Fatal(err)
		}
		frameBufs.Put(f.body)
	}
}

// Entries are checked whole before anybody gets to store them: a frame with one
// that is damaged, of an unknown type, out of its place or too large is refused,
// though the checksum of the frame itself is right.
func TestFrameRefusesBadEntries(t *testing.T) {
	good := testEntry(10, 1, []byte("payload"))
	flip := func(at int) []byte {
		v := bytes.Clone(good.Value)
		v[at] ^= 1
		return v
	}
	for name, v := range map[string][]byte{
		"damaged body":  flip(len(good.Value) - 1),
		"damaged term":  flip(7),
		"other index":   testEntry(11, 1, []byte("payload")).Value,
		"unknown type":  raft.EncodeEntry(nil, 10, 1, 77, raft.EntryHeader{}, nil),
		"no term":       raft.EncodeEntry(nil, 10, 0, raft.EntryEmpty, raft.EntryHeader{}, nil),
		"empty command": raft.EncodeEntry(nil, 10, 1, raft.EntryNormal, raft.EntryHeader{}, nil),
		"too large":     testEntry(10, 1, make([]byte, raft.MaxEntryBytes)).Value,
		"nothing":       nil,
	} {
		m := []raft.Msg{{Type: raft.MsgApp, Shard: 5, From: 1, To: 2, Index: 9, Entries: []raft.Entry{good}}}
		if b, err := EncodeFrame(nil, testHeader, nil, m, false); err != nil {
			t.Fatal(err)
		} else if _, err := DecodeFrame(b); err != nil {
			t.Fatalf("the good entry: %v", err)
		}
		m[0].Entries = []raft.Entry{{Index: 10, Value: v}}
		b, err := EncodeFrame(nil, testHeader, nil, m, false)
		if err != nil {
			t.Fatal(err)
		}
		if f, err := DecodeFrame(b); !errors.Is(err, ErrFrame) || f.Msgs != nil {
			t.Errorf("%s: %v, %d messages", name, err, len(f.Msgs))
		}
	}
}
