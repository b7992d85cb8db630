package flotilla

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/internal/fuzzing"
)

var rewrite = flag.Bool("rewrite", false, "rewrite golden files")

// goldenFormation is a cluster of two nodes with two shards, just completed.
func goldenFormation(t testing.TB) *formation {
	members := []member{{1, "10.0.0.1:7001", "10.0.0.1:7002"}, {2, "10.0.0.2:7001", "10.0.0.2:7002"}}
	f, err := planFormation([16]byte{15: 7}, members, &Options{SplitAt: [][]byte{[]byte("m")}, Replicas: 2})
	if err != nil {
		t.Fatal(err)
	}
	f.Node, f.Confirmed, f.Complete, f.Written, f.Created = 1, []uint32{2}, true, true, true
	return f
}

// TestFormationGolden holds the layout of cluster.json.
func TestFormationGolden(t *testing.T) {
	got, err := goldenFormation(t).encode()
	if err != nil {
		t.Fatal(err)
	}
	const path = "testdata/cluster.golden"
	if *rewrite {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("cluster.json is now\n%s", got)
	}
	f, err := decodeFormation(want)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := f.plan(); err != nil || p.Len() != 3 || p.Meta.Desc.Shard != 1 || len(p.Layout.Range(1).Desc.Replicas) != 2 {
		t.Fatalf("plan %+v, %v", p, err)
	}
	// One that an earlier release wrote, with every shard's descriptor.
	if want, err = os.ReadFile("testdata/cluster-v1.golden"); err != nil {
		t.Fatal(err)
	}
	if f, err = decodeFormation(want); err != nil {
		t.Fatal(err)
	}
	old, err := f.plan()
	if err != nil || old.Len() != 3 || !f.first() {
		t.Fatalf("plan %+v, %v", old, err)
	}
	if again, err := f.encode(); err != nil || !bytes.Equal(again, want) {
		t.Fatalf("it is written back as\n%s, %v", again, err)
	}
}

// TestFormationSize: a million shards take no more room than one.
func TestFormationSize(t *testing.T) {
	members := []member{{1, "a:1", "a:2"}, {2, "b:1", "b:2"}, {3, "c:1", "c:2"}}
	f, err := planFormation([16]byte{1}, members, &Options{Shards: 1_000_000})
	if err != nil {
		t.Fatal(err)
	}
	f.Node = 1
	b, err := f.encode()
	if err != nil || len(b) > 2000 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if f, err = decodeFormation(b); err != nil {
		t.Fatal(err)
	}
	if p, err := f.plan(); err != nil || p.Len() != 1_000_001 {
		t.Fatalf("%d shards, %v", p.Len(), err)
	}
	var bad *OptionError
	if _, err := planFormation([16]byte{1}, members, &Options{Shards: MaxShards + 1}); !errors.As(err, &bad) {
		t.Error(err)
	}
	long := make([][]byte, 600)
	for i := range long {
		long[i] = append([]byte{byte(i >> 8), byte(i)}, bytes.Repeat([]byte{1}, 4000)...)
	}
	if _, err := planFormation([16]byte{1}, members, &Options{SplitAt: long[1:]}); !errors.As(err, &bad) || !strings.Contains(err.Error(), "shorter boundaries") {
		t.Error(err)
	}
}

// FuzzFormation: what does not decode is refused, what does can be used and
// comes back the same.
func FuzzFormation(tf *testing.F) {
	f := fuzzing.New(tf)
	b, err := goldenFormation(f).encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"cluster":"00000000000000000000000000000007","node":1,"members":[{"id":1}],"shards":["AA=="]}`))
	f.Fuzz(func(t testing.TB, b []byte) {
		fuzzing.Decode(t, len(b), func() { decodeFormation(b) })
		form, err := decodeFormation(b)
		if err != nil {
			return
		}
		if _, err := form.plan(); err != nil {
			t.Fatalf("accepted, but has no plan: %v", err)
		}
		enc, err := form.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeFormation(enc); err != nil {
			t.Fatalf("does not come back: %v", err)
		}
	})
}

// FuzzJoin: a node that forms a cluster answers whatever it is sent.
func FuzzJoin(tf *testing.F) {
	f := fuzzing.New(tf)
	form := goldenFormation(f)
	for _, q := range []joinRequest{
		{Kind: joinHello, From: member{ID: 2, Addr: "b"}, Bootstrap: 2},
		{Kind: joinForm, From: member{ID: 2}, Formation: form, Cluster: form.Cluster},
		{Kind: joinLate, From: member{Addr: "c"}},
	} {
		b, err := json.Marshal(q)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, true)
		f.Add(b, false)
	}
	f.Fuzz(func(t testing.TB, in []byte, formed bool) {
		fm := newFormer(member{ID: 1, Addr: "a"}, 2, "", nil)
		if formed {
			fm.set(form)
			fm.markDurable()
		}
		if out, err := fm.serve(context.Background(), in); err == nil {
			var r joinReply
			if err := json.Unmarshal(out, &r); err != nil {
				t.Fatalf("the answer does not decode: %v", err)
			}
		}
		if got := fm.current(); got != nil && !formed {
			if err := got.check(); err != nil {
				t.Fatalf("took in a formation that cannot be used: %v", err)
			}
		}
	})
}

// TestGatherBetweenOthers: a node that is not the lowest finds a higher one that
// has the formation already, and waits for its own copy.
func TestGatherBetweenOthers(t *testing.T) {
	form := &formation{Version: layoutVersion, Cluster: "c", Members: []member{{ID: 1, Addr: "n1"}, {ID: 2, Addr: "n2"}, {ID: 3, Addr: "n3"}}}
	for _, tc := range []struct {
		self uint32
		ok   bool
	}{{1, false}, {2, true}} {
		high := newFormer(member{ID: 3, Addr: "n3"}, 3, "", nil)
		high.set(form)
		var f *former
		f = newFormer(member{ID: tc.self, Addr: "self"}, 3, "", func(ctx context.Context, _ string, in []byte) ([]byte, error) {
			out, err := high.serve(ctx, in)
			if tc.ok {
				f.accept(form) // meanwhile the lowest id hands it to this node as well
			}
			return out, err
		})
		members, err := f.gather(testContext(t), []string{"n3"})
		if (err == nil) != tc.ok || members != nil {
			b, _ := json.Marshal(members)
			t.Errorf("node %d: %s, %v", tc.self, b, err)
		}
	}
}

// TestGatherBeforeNamed: a node that answers before it knows its own id is not
// counted as one more node.
func TestGatherBeforeNamed(t *testing.T) {
	other := newFormer(member{}, 2, "", nil)
	calls := 0
	f := newFormer(member{ID: 1, Addr: "n1"}, 2, "", func(ctx context.Context, _ string, in []byte) ([]byte, error) {
		if calls++; calls == 2 {
			other.setSelf(member{ID: 2, Addr: "n2"})
		}
		return other.serve(ctx, in)
	})
	members, err := f.gather(testContext(t), []string{"n2"})
	if err != nil || len(members) != 2 || members[0].ID != 1 || members[1].ID != 2 {
		t.Fatalf("%+v, %v", members, err)
	}
}

// TestFormationHalfWay: whoever forms a cluster may stop half-way, and so may
// those it hands the formation to. Nobody goes on before all have it on their
// disks, and nobody forms a second cluster out of members of the first.
func TestFormationHalfWay(t *testing.T) {
	form := goldenFormation(t)
	form.Confirmed, form.Complete, form.Written = nil, false, false
	peers := map[string]*former{}
	call := func(ctx context.Context, addr string, in []byte) ([]byte, error) {
		if p := peers[addr]; p != nil {
			return p.serve(ctx, in)
		}
		return nil, errors.New("down")
	}
	start := func(m member) *former {
		f := newFormer(m, len(form.Members), "", call)
		peers[m.Addr] = f
		return f
	}
	first, second := form.Members[0], form.Members[1]
	lowest, other := start(first), start(second)
	lowest.set(form)

	// The member has the formation, not yet on its disk: that is no confirmation.
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	err := lowest.handOut(ctx, form, func(id uint32) error {
		t.Errorf("node %d confirms what it has not made durable", id)
		return nil
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("handed out: %v", err)
	}
	if other.current() == nil {
		t.Fatal("the member was not handed the formation")
	}

	// The lowest id is gone with its disk, the member has the formation: there must
	// not be another cluster.
	delete(peers, first.Addr)
	other.markDurable()
	again := start(first)
	members, err := again.gather(testContext(t), []string{second.Addr})
	var refused *JoinError
	if !errors.As(err, &refused) || members != nil {
		t.Fatalf("the lowest id, without its disk, forms a cluster of %+v (%v)", members, err)
	}

	// It is back with its disk: the member confirms now, once.
	delete(peers, first.Addr)
	lowest = start(first)
	lowest.set(form)
	var confirmed []uint32
	if err := lowest.handOut(testContext(t), form, func(id uint32) error { confirmed = append(confirmed, id); return nil }); err != nil || len(confirmed) != 1 || confirmed[0] != second.ID {
		t.Fatalf("confirmed by %v, %v", confirmed, err)
	}

	// A member that is asked by another cluster's founder stays where it is.
	foreign := *form
	foreign.Cluster = strings.Repeat("9", 32)
	if r := other.answer(context.Background(), &joinRequest{Kind: joinForm, From: first, Formation: &foreign}); r.Refused == "" || other.current().Cluster != form.Cluster {
		t.Fatalf("taken over by another cluster: %+v", r)
	}
}
