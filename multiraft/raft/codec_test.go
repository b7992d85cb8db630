package raft

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla/internal/fuzzing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// goldenDir is apart from the scenarios, which are text.
const goldenDir = "testdata"

var (
	sampleSession = &SessionHeader{ID: [16]byte{1, 2, 3, 15: 16}, Lineage: 9, Seq: 300, AckedTo: 299, Deadline: 1 << 40}
	sampleCmds    = []Command{
		{Op: 1, Flags: 3, Body: []byte("first")},
		{Op: 128, Session: sampleSession, Body: bytes.Repeat([]byte{0xab}, 200)},
		{Op: 2},
	}
	sampleConf = ConfChange{ConfVer: 41, Steps: []ConfStep{
		{Replica: Replica{Node: 4, ID: 9, Role: Voter}},
		{Remove: true, Replica: Replica{Node: 2, ID: 2}},
	}}
	sampleHard    = HardState{Term: 7, Vote: 3, Lead: 3, LeadNode: 2, LeadEpoch: 5<<32 | 1, Leased: true, Commit: 99}
	sampleApplied = AppliedState{Applied: 90, AppliedTerm: 7, TruncIndex: 80, TruncTerm: 6, ConfIndex: 12, WrittenBytes: 1 << 33, WrittenKeys: 77, GroupTs: 1 << 60, Digest: 0x0102030405060708, DigestFrom: 5}
	sampleDesc    = Descriptor{
		Shard: 1 << 40, Keyspace: 2, Start: []byte("a\x00"), End: []byte("zz"), ConfVer: 41, Version: 300, NextReplica: 10, MergeState: 1,
		Replicas: []Replica{{1, 1, Voter}, {2, 2, VoterOutgoing}, {4, 9, VoterIncoming}, {7, 5, Learner}, {8, 6, VoterDemoting}},
	}
)

// TestGolden holds the byte layouts fixed: each record encodes to its golden
// file (hex), and the file decodes to the record.
func TestGolden(t *testing.T) {
	entry := func(typ EntryType, h EntryHeader, cmds []Command) ([]byte, func([]byte) (any, error)) {
		v := EncodeEntry(nil, 12, 7, typ, h, cmds)
		return v, func(b []byte) (any, error) {
			e, err := DecodeEntry(12, b)
			if err != nil {
				return nil, err
			}
			got, err := e.Header()
			if err != nil {
				return nil, err
			}
			var cs []Command
			for i, c := range e.Commands() {
				if i != len(cs) {
					t.Errorf("slot %d of command %d", i, len(cs))
				}
				cs = append(cs, c)
			}
			return EncodeEntry(nil, e.Index, e.Term, e.Type, got, cs), nil
		}
	}
	h := EntryHeader{DescVersion: 300, GroupTs: 1 << 60, Flags: 5}
	normal, decNormal := entry(EntryNormal, h, sampleCmds)
	empty, decEmpty := entry(EntryEmpty, EntryHeader{}, nil)
	conf, decConf := entry(EntryConf, h, []Command{{Body: sampleConf.Encode(nil)}})
	cut, decCut := entry(EntryCut, h, []Command{{Body: (&Cut{Index: 11, Image: []byte("image")}).Encode(nil)}})
	for _, c := range []struct {
		name   string
		bytes  []byte
		decode func([]byte) (any, error)
		want   any
	}{
		{"entry_normal", normal, decNormal, normal},
		{"entry_empty", empty, decEmpty, empty},
		{"entry_conf", conf, decConf, conf},
		{"entry_cut", cut, decCut, cut},
		{"hard_state", sampleHard.Encode(nil), func(b []byte) (any, error) { return DecodeHardState(b) }, sampleHard},
		{"applied_state", sampleApplied.Encode(nil), func(b []byte) (any, error) { return DecodeAppliedState(b) }, sampleApplied},
		{"descriptor", sampleDesc.Encode(nil), func(b []byte) (any, error) { return DecodeDescriptor(b) }, sampleDesc},
		{"conf_change", sampleConf.Encode(nil), func(b []byte) (any, error) { return DecodeConfChange(b) }, sampleConf},
	} {
		file := filepath.Join(goldenDir, c.name+".golden")
		if *update {
			if err := os.WriteFile(file, []byte(hex.EncodeToString(c.bytes)+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		golden, err := hex.DecodeString(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(golden, c.bytes) {
			t.Errorf("%s: encodes to %x, golden file has %x", c.name, c.bytes, golden)
		}
		got, err := c.decode(golden)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: decodes to %+v, %v; want %+v", c.name, got, err, c.want)
		}
	}
}

// TestAppliedStateVersion1: a record of the first version is read, and has no digest.
func TestAppliedStateVersion1(t *testing.T) {
	v, err := hex.DecodeString("01696b8c4f000000000000005a000000000000000700000000000000500000000000000006000000000000000c0000000200000000000000000000004d1000000000000000")
	if err != nil {
		t.Fatal(err)
	}
	want := sampleApplied
	want.Digest, want.DigestFrom = 0, NoDigest
	if got, err := DecodeAppliedState(v); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

// TestDamage shows that every cut and every flipped bit of every record is
// refused with ErrCorrupt, and so is an entry at another index.
func TestDamage(t *testing.T) {
	v := EncodeEntry(nil, 12, 7, EntryNormal, EntryHeader{DescVersion: 1}, sampleCmds)
	for _, c := range []struct {
		name   string
		bytes  []byte
		decode func([]byte) error
	}{
		{"entry", v, func(b []byte) error { _, err := DecodeEntry(12, b); return err }},
		{"hard state", sampleHard.Encode(nil), func(b []byte) error { _, err := DecodeHardState(b); return err }},
		{"applied state", sampleApplied.Encode(nil), func(b []byte) error { _, err := DecodeAppliedState(b); return err }},
		{"descriptor", sampleDesc.Encode(nil), func(b []byte) error { _, err := DecodeDescriptor(b); return err }},
		{"conf change", sampleConf.Encode(nil), func(b []byte) error { _, err := DecodeConfChange(b); return err }},
	} {
		if err := c.decode(c.bytes); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		for n := range c.bytes {
			if err := c.decode(c.bytes[:n]); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s cut to %d bytes: %v", c.name, n, err)
			}
			for bit := range 8 {
				b := bytes.Clone(c.bytes)
				b[n] ^= 1 << bit
				if err := c.decode(b); !errors.Is(err, ErrCorrupt) {
					t.Errorf("%s with bit %d of byte %d flipped: %v", c.name, bit, n, err)
				}
			}
		}
		if err := c.decode(append(bytes.Clone(c.bytes), 0)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s with a byte behind it: %v", c.name, err)
		}
	}
	if _, err := DecodeEntry(13, v); !errors.Is(err, ErrCorrupt) {
		t.Errorf("entry at another index: %v", err)
	}
}

// TestEntryShapes shows that an entry's type fixes how many commands it holds.
func TestEntryShapes(t *testing.T) {
	one := []Command{{Op: 1}}
	for _, c := range []struct {
		typ  EntryType
		cmds []Command
		ok   bool
	}{
		{EntryEmpty, nil, true}, {EntryEmpty, one, false},
		{EntryNormal, one, true}, {EntryNormal, nil, false}, {EntryNormal, sampleCmds, true},
		{EntryConf, one, false}, {EntryConf, []Command{{Body: ConfChange{}.Encode(nil)}}, true},
		{EntryAdmin, one, true}, {EntryAdmin, sampleCmds, false},
		{9, one, false},
	} {
		_, err := DecodeEntry(5, EncodeEntry(nil, 5, 2, c.typ, EntryHeader{}, c.cmds))
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("type %d with %d commands: %v", c.typ, len(c.cmds), err)
		}
	}
	if n := EntrySize(sampleCmds); n < len(EncodeEntry(nil, 1<<62, 1<<62, EntryNormal, EntryHeader{DescVersion: 1 << 62, GroupTs: 1 << 63}, sampleCmds)) {
		t.Errorf("EntrySize %d is below an encoded entry", n)
	}
}

// TestEntryNoAlloc shows that walking the commands of an entry allocates nothing.
func TestEntryNoAlloc(t *testing.T) {
	e := Entry{Index: 1, Term: 1, Type: EntryNormal, Value: EncodeEntry(nil, 1, 1, EntryNormal, EntryHeader{}, []Command{{Op: 1, Body: []byte("x")}, {Op: 2}})}
	sum := 0
	if n := testing.AllocsPerRun(100, func() {
		for _, c := range e.Commands() {
			sum += int(c.Op)
		}
	}); n != 0 {
		t.Errorf("%v allocations, sum %d", n, sum)
	}
	if e.Len() != 2 {
		t.Errorf("Len() = %d", e.Len())
	}
}

func FuzzEntry(tf *testing.F) {
	f := fuzzing.New(tf)
	f.Add(uint64(12), EncodeEntry(nil, 12, 7, EntryNormal, EntryHeader{DescVersion: 300}, sampleCmds))
	f.Add(uint64(1), EncodeEntry(nil, 1, 1, EntryEmpty, EntryHeader{}, nil))
	f.Add(uint64(12), EncodeEntry(nil, 12, 1, EntryCut, EntryHeader{}, []Command{{Body: (&Cut{Index: 11, Image: []byte("image")}).Encode(nil)}}))
	f.Add(uint64(3), EncodeEntry(nil, 3, 1, EntryConf, EntryHeader{}, []Command{{Body: sampleConf.Encode(nil)}}))
	f.Fuzz(func(t testing.TB, index uint64, b []byte) {
		// Bytes that pass the checksum only by being repaired are looked at as well.
		for _, v := range [][]byte{b, repairEntry(index, b)} {
			fuzzing.Decode(t, len(v), func() { DecodeEntry(Index(index), v) })
			e, err := DecodeEntry(Index(index), v)
			if err != nil {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("error %v", err)
				}
				continue
			}
			h, err := e.Header()
			if err != nil {
				t.Fatal(err)
			}
			var cs []Command
			for _, c := range e.Commands() {
				cs = append(cs, c)
			}
			if got := EncodeEntry(nil, e.Index, e.Term, e.Type, h, cs); !bytes.Equal(got, v) {
				t.Fatalf("%x decodes, but encodes to %x", v, got)
			}
		}
	})
}

func repairEntry(index uint64, b []byte) []byte {
	if len(b) < entryFixed {
		return nil
	}
	v := bytes.Clone(b)
	c := entryCRC(Index(index), v)
	v[3], v[4], v[5], v[6] = byte(c>>24), byte(c>>16), byte(c>>8), byte(c)
	return v
}

func repairRecord(kind byte, b []byte) []byte {
	if len(b) < recordFixed {
		return nil
	}
	return endRecord(bytes.Clone(b), 0, kind)
}

func FuzzRecords(tf *testing.F) {
	f := fuzzing.New(tf)
	f.Add(sampleHard.Encode(nil))
	f.Add(sampleApplied.Encode(nil))
	f.Add(sampleDesc.Encode(nil))
	f.Add(sampleConf.Encode(nil))
	f.Fuzz(func(t testing.TB, b []byte) {
		check := func(v, again []byte, err error) {
			if err != nil {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("error %v", err)
				}
			} else if !bytes.Equal(v, again) {
				t.Fatalf("%x decodes, but encodes to %x", v, again)
			}
		}
		fuzzing.Decode(t, len(b), func() {
			DecodeHardState(b)
			DecodeAppliedState(b)
			DecodeDescriptor(repairRecord('d', b))
			DecodeConfChange(repairRecord('c', b))
		})
		v := repairRecord('h', b)
		h, err := DecodeHardState(v)
		check(v, h.Encode(nil), err)
		v = repairRecord('a', b)
		a, err := DecodeAppliedState(v)
		if len(v) == 0 || v[0] != 1 { // version 1 is read only
			check(v, a.Encode(nil), err)
		} else if err == nil && (a.DigestFrom != NoDigest || a.Digest != 0) {
			t.Fatalf("%x has a digest: %+v", v, a)
		}
		v = repairRecord('d', b)
		d, err := DecodeDescriptor(v)
		check(v, d.Encode(nil), err)
		v = repairRecord('c', b)
		c, err := DecodeConfChange(v)
		check(v, c.Encode(nil), err)
		_, err = DecodeDescriptor(b)
		check(nil, nil, err)
	})
}
