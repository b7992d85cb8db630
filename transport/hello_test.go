package transport

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"reflect"
	"testing"

	"github.com/flotillakv/flotilla/internal/fuzzing"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

func testHello() Hello {
	return Hello{MinVersion: 1, MaxVersion: 1, Cluster: testCluster, Node: 2, To: 3, BootEpoch: 4, Incarnation: 5, Before: 7, Features: 6,
		Addr: "10.0.0.2:7400", ClientAddr: "node2.example:7401"}
}

// The hello's bytes are those of the golden file, and decode to what they were.
func TestHelloGolden(t *testing.T) {
	h := testHello()
	golden(t, "hello", h.Encode(nil))
	got, err := DecodeHello(readGolden(t, "hello"))
	if err != nil || !reflect.DeepEqual(got, h) {
		t.Fatalf("%+v, %v", got, err)
	}
	c := Hello{MinVersion: 1, MaxVersion: 1, Client: true}
	golden(t, "hello_client", c.Encode(nil))
}

// Each reason to refuse a peer, and none.
func TestHelloCheck(t *testing.T) {
	id := Identity{Cluster: testCluster, Node: 3, BootEpoch: 9}
	for _, c := range []struct {
		name   string
		change func(h *Hello)
		want   Reason
	}{
		{"good", func(*Hello) {}, 0},
		{"whoever answers", func(h *Hello) { h.To = 0 }, 0},
		{"later versions only", func(h *Hello) { h.MinVersion, h.MaxVersion = 2, 3 }, RefusedVersion},
		{"overlapping versions", func(h *Hello) { h.MaxVersion = 7 }, 0},
		{"versions the wrong way round", func(h *Hello) { h.MinVersion, h.MaxVersion = 1, 0 }, RefusedVersion},
		{"other cluster", func(h *Hello) { h.Cluster[0]++ }, RefusedCluster},
		{"no cluster", func(h *Hello) { h.Cluster = [16]byte{} }, RefusedCluster},
		{"a client", func(h *Hello) { h.Client = true }, RefusedNode},
		{"no node id", func(h *Hello) { h.Node = 0 }, RefusedNode},
		{"meant for another node", func(h *Hello) { h.To = 4 }, RefusedNode},
		{"another node than expected", func(h *Hello) { h.Node = 8 }, RefusedNode},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := testHello()
			c.change(&h)
			var got Reason
			if r := h.checkPeer(&id, 2); r != nil {
				got = r.Reason
			}
			if got != c.want {
				t.Fatalf("got %d, want %d", got, c.want)
			}
		})
	}
	h := testHello()
	h.Node, h.To = 3, 0
	if r := h.checkPeer(&id, 0); r == nil || r.Reason != RefusedDuplicate {
		t.Fatalf("a peer with the own node id: %v", r)
	}
}

// The newest boot epoch of a node id wins; equal ones of two processes clash.
func TestInboundIncarnations(t *testing.T) {
	tab := inboundTable{byID: map[raft.NodeID]*inbound{}}
	hello := func(boot, inc uint64) Hello { return Hello{Node: 7, BootEpoch: boot, Incarnation: inc} }
	first, r := tab.admit(hello(5, 1))
	if r != nil {
		t.Fatal(r)
	}
	if _, r := tab.admit(hello(5, 2)); r == nil || r.Reason != RefusedDuplicate {
		t.Fatalf("a second process with the same boot epoch: %v", r)
	}
	again, r := tab.admit(hello(5, 1))
	if r != nil || tab.isLive(first) {
		t.Fatalf("the same process again: %v, the old stream lives: %v", r, tab.isLive(first))
	}
	if why := <-first.end; why.Reason != RefusedReplaced {
		t.Fatalf("the old stream ended by %v", why)
	}
	if _, r := tab.admit(hello(4, 3)); r == nil || r.Reason != RefusedStale {
		t.Fatalf("an older boot epoch: %v", r)
	}
	if _, r := tab.admit(hello(6, 4)); r != nil {
		t.Fatal(r)
	}
	if why := <-again.end; why.Reason != RefusedStale {
		t.Fatalf("the older incarnation ended by %v", why)
	}
	tab.remember(9, 4) // on record from an earlier life of this process
	if _, r := tab.admit(Hello{Node: 9, BootEpoch: 3, Incarnation: 1}); r == nil || r.Reason != RefusedStale {
		t.Fatalf("an older boot epoch than the one on record: %v", r)
	}
	if _, r := tab.admit(Hello{Node: 9, BootEpoch: 5, Incarnation: 1}); r != nil {
		t.Fatal(r)
	}
	old := hello(5, 1)
	if !tab.stale(&old) {
		t.Fatal("the older incarnation does not count as stale")
	}
}

// A copy of a store that was made before its last boot reaches the same boot epoch
// with another number, or the next one with another boot before it. It is told that
// it is stale, whether the first one still runs or not.
func TestInboundForks(t *testing.T) {
	seen := Hello{Node: 7, BootEpoch: 5, Incarnation: 50, Before: 40}
	for _, c := range []struct {
		name   string
		h      Hello
		reason Reason // zero: admitted
	}{
		{"the same process", seen, 0},
		{"a copy in the same boot", Hello{Node: 7, BootEpoch: 5, Incarnation: 51, Before: 40}, RefusedStale},
		{"its next boot", Hello{Node: 7, BootEpoch: 6, Incarnation: 61, Before: 51}, RefusedStale},
		{"the next boot", Hello{Node: 7, BootEpoch: 6, Incarnation: 60, Before: 50}, 0},
		{"a boot after one that was not seen", Hello{Node: 7, BootEpoch: 7, Incarnation: 70, Before: 60}, 0},
		{"a store that does not know the boot before", Hello{Node: 7, BootEpoch: 6, Incarnation: 60}, 0},
	} {
		tab := inboundTable{byID: map[raft.NodeID]*inbound{}}
		first, r := tab.admit(seen)
		if r != nil {
			t.Fatal(r)
		}
		tab.gone(first)
		if stale := tab.stale(&c.h); stale != (c.reason == RefusedStale) {
			t.Errorf("%s: met by the own call it counts as stale: %v", c.name, stale)
		}
		_, r = tab.admit(c.h)
		switch {
		case c.reason == 0 && r != nil:
			t.Errorf("%s: %v", c.name, r)
		case c.reason != 0 && (r == nil || r.Reason != c.reason):
			t.Errorf("%s: %v, want reason %d", c.name, r, c.reason)
		}
	}
}

// A hello of a release that did not say which boot was in front is taken as one
// that does not know.
func TestHelloWithoutBefore(t *testing.T) {
	h := testHello()
	b := h.Encode(nil)
	b = b[:len(b)-12]
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	h.Before = 0
	if got, err := DecodeHello(b); err != nil || got != h {
		t.Fatalf("%+v, %v; want %+v", got, err, h)
	}
}

// A refusal survives its trailer.
func TestRefusalRoundTrip(t *testing.T) {
	in := &RefusedError{Reason: RefusedCluster, Detail: "x"}
	out := decodeRefusal(in.encode(), "addr")
	if out == nil || out.Reason != in.Reason || out.Detail != "x" || out.Addr != "addr" {
		t.Fatalf("got %+v", out)
	}
	if decodeRefusal("", "a") != nil {
		t.Fatal("an empty refusal is one")
	}
}

// FuzzDecodeHello: never panics, and what decodes has an encoding that decodes to the same.
func FuzzDecodeHello(tf *testing.F) {
	f := fuzzing.New(tf)
	f.Add(readGolden(f, "hello"))
	f.Add(readGolden(f, "hello_client"))
	f.Fuzz(func(t testing.TB, b []byte) {
		fuzzing.Decode(t, len(b), func() { DecodeHello(b) })
		h, err := DecodeHello(b)
		if err != nil {
			if !errors.Is(err, ErrHello) {
				t.Fatalf("not an ErrHello: %v", err)
			}
			return
		}
		h2, err := DecodeHello(h.Encode(nil))
		if err != nil || h != h2 {
			t.Fatalf("%v\n%+v\n%+v", err, h, h2)
		}
	})
}
