package flotilla

import (
	"context"
	"encoding/json"
	"testing"
)

// TestGatherBetweenOthers: a node that is not the lowest finds a higher one that
// has the formation already, and waits for its own copy.
func TestGatherBetweenOthers(t *testing.T) {
	form := &formation{Version: formationVersion, Cluster: "c", Members: []member{{ID: 1, Addr: "n1"}, {ID: 2, Addr: "n2"}, {ID: 3, Addr: "n3"}}}
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
