package catalog

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla/internal/fuzzing"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

var goldenRoute = Route{
	Desc: raft.Descriptor{
		Shard: 300, Keyspace: 1, Start: []byte("g"), End: []byte("p\x00"), ConfVer: 3, Version: 2, NextReplica: 5,
		Replicas: []raft.Replica{{Node: 1, ID: 1, Role: raft.Voter}, {Node: 2, ID: 2, Role: raft.Voter}, {Node: 70000, ID: 4, Role: raft.Learner}},
	},
	Leader: 2, Term: 1 << 40,
}

var goldenNode = NodeInfo{ID: 70000, Addr: "10.1.2.3:7101", ClientAddr: "[::1]:7100", Name: "häuschen", JoinedAt: 1700000000123456789, Version: "v0.1.0"}

// TestGolden holds the layout of keys and records: what was written once is
// read for ever. Each line of the file is a name and bytes in hex.
func TestGolden(t *testing.T) {
	lines := []struct {
		name  string
		bytes []byte
	}{
		{"key cluster", []byte(clusterKey)},
		{"key next node", []byte(nextNodeKey)},
		{"key next shard", []byte(nextShardKey)},
		{"key node 258", nodeKey(258)},
		{"key route 1 p", routeKey(1, []byte("p"))},
		{"key route 1 open", routeKey(1, nil)},
		{"key seek 1 p", seekKey(1, []byte("p"))},
		{"key layout 1", layoutKey(1)},
		{"record route", goldenRoute.Encode(nil)},
		{"record node", goldenNode.Encode(nil)},
		{"record cluster", testCluster.Encode(nil)},
		{"record counter", encodeCounter(10000)},
		{"record layout", goldenLayout.Encode(nil)},
	}
	var got strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&got, "%-16s %s\n", l.name, hex.EncodeToString(l.bytes))
	}
	const file = "testdata/records.golden"
	if *rewrite {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("got\n%swant\n%s", got.String(), want)
	}
}

// TestRecordsRoundTrip encodes and decodes every record, zero values included.
func TestRecordsRoundTrip(t *testing.T) {
	for _, r := range []Route{goldenRoute, {Desc: raft.Descriptor{Shard: 1}}} {
		if got, err := DecodeRoute(r.Encode([]byte("junk"))[4:]); err != nil || !bytes.Equal(got.Encode(nil), r.Encode(nil)) {
			t.Errorf("route %+v became %+v, %v", r, got, err)
		}
	}
	for _, n := range []NodeInfo{goldenNode, {}} {
		if got, err := DecodeNode(n.Encode(nil)); err != nil || got != n {
			t.Errorf("node %+v became %+v, %v", n, got, err)
		}
	}
	for _, c := range []Cluster{testCluster, {}} {
		if got, err := DecodeCluster(c.Encode(nil)); err != nil || got != c {
			t.Errorf("cluster %+v became %+v, %v", c, got, err)
		}
	}
	for _, n := range []uint64{0, 1, 1<<64 - 1} {
		if got, err := decodeCounter(encodeCounter(n)); err != nil || got != n {
			t.Errorf("counter %d became %d, %v", n, got, err)
		}
	}
	long := NodeInfo{Name: strings.Repeat("x", maxStringBytes+9)}
	if got, err := DecodeNode(long.Encode(nil)); err != nil || len(got.Name) != maxStringBytes {
		t.Errorf("a name that is too long: %d bytes, %v", len(got.Name), err)
	}
}

// TestDamage flips every bit and cuts at every length: always ErrCorrupt. A
// record of a later version says so.
func TestDamage(t *testing.T) {
	decoders := map[string]func([]byte) error{
		string(goldenRoute.Encode(nil)):  func(b []byte) error { _, err := DecodeRoute(b); return err },
		string(goldenNode.Encode(nil)):   func(b []byte) error { _, err := DecodeNode(b); return err },
		string(testCluster.Encode(nil)):  func(b []byte) error { _, err := DecodeCluster(b); return err },
		string(encodeCounter(10000)):     func(b []byte) error { _, err := decodeCounter(b); return err },
		string(goldenLayout.Encode(nil)): func(b []byte) error { _, err := DecodeLayout(b); return err },
	}
	for rec, decode := range decoders {
		for i := range rec {
			if err := decode([]byte(rec[:i])); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("cut to %d of %d bytes: %v", i, len(rec), err)
			}
			for bit := range 8 {
				b := []byte(rec)
				b[i] ^= 1 << bit
				if err := decode(b); !errors.Is(err, ErrCorrupt) {
					t.Fatalf("bit %d of byte %d flipped: %v", bit, i, err)
				}
			}
		}
		b := []byte(rec)
		b[0]++
		b = seal(b[:len(b)-4], 0)
		if err := decode(b); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "upgrade") {
			t.Errorf("a later version: %v", err)
		}
	}
	if _, err := DecodeNode(testCluster.Encode(nil)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a cluster record taken for a node: %v", err)
	}
}

// FuzzRecords feeds every decoder with arbitrary bodies under a right checksum:
// no panic, and what decodes encodes to something that decodes to the same.
func FuzzRecords(tf *testing.F) {
	f := fuzzing.New(tf)
	for _, rec := range [][]byte{goldenRoute.Encode(nil), goldenNode.Encode(nil), testCluster.Encode(nil), encodeCounter(7)} {
		f.Add(rec[:len(rec)-4])
	}
	f.Fuzz(func(t testing.TB, body []byte) {
		rec := seal(bytes.Clone(body), 0)
		fuzzing.Decode(t, len(rec), func() { DecodeRoute(rec); DecodeNode(rec); DecodeCluster(rec) })
		if r, err := DecodeRoute(rec); err == nil {
			again, err := DecodeRoute(r.Encode(nil))
			if err != nil || !reflect.DeepEqual(again, r) {
				t.Errorf("route %+v became %+v, %v", r, again, err)
			}
		}
		if n, err := DecodeNode(rec); err == nil {
			if again, err := DecodeNode(n.Encode(nil)); err != nil || again != n {
				t.Errorf("node %+v became %+v, %v", n, again, err)
			}
		}
		if c, err := DecodeCluster(rec); err == nil {
			if again, err := DecodeCluster(c.Encode(nil)); err != nil || again != c {
				t.Errorf("cluster %+v became %+v, %v", c, again, err)
			}
		}
		if n, err := decodeCounter(rec); err == nil {
			if again, err := decodeCounter(encodeCounter(n)); err != nil || again != n {
				t.Errorf("counter %d became %d, %v", n, again, err)
			}
		}
	})
}
