package snapshot

import (
	"errors"
	"fmt"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// TestB0_A6 is the rule of the design that a snapshot which overlaps another live
// group is refused before a byte of it is taken in. The other half of it, right
// before the install, is in engine.
func TestB0_A6(t *testing.T) {
	run := func(t *testing.T) error {
		p := newPair(t, 3)
		p.recv.o.Live = func(*raft.Descriptor) []raft.Descriptor { return []raft.Descriptor{descOf(8, "p", "")} }
		meta := Meta{ID: ID{1}, Shard: p.desc.Shard, Index: 9, Term: 5, Desc: p.desc, Applied: raft.AppliedState{Applied: 9, AppliedTerm: 5}}
		asked := errors.New("asked for data")
		_, err := p.recv.Handle(1, meta.Encode(nil), func() ([]byte, error) { return nil, asked }, deaf)
		var overlap *OverlapError
		if !errors.As(err, &overlap) {
			return fmt.Errorf("a snapshot over a live group: %v", err)
		}
		return nil
	}
	if err := run(t); err != nil {
		t.Fatal(err)
	}
	withoutRule(t, "B0-A6", run)
}
