package rafttest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// TestRandomHistories draws histories of proposals, elections, partitions,
// losses and crashes and checks after every command: one leader per term (paper
// section 5.2), log matching (5.3: same index and term, same entries up to
// there), and state machine safety (5.4.3: same commands in the same order).
// At the end everything heals, and all nodes get to the same state.
func TestRandomHistories(t *testing.T) {
	applied, terms, naps := 0, 0, 0
	for seed := uint64(1); seed <= 60; seed++ {
		rng := rand.New(rand.NewPCG(seed, 7))
		n := 3 + rng.IntN(3)
		e := New()
		e.Run("tune tail=100 msg=150 keep=6")
		e.Run(fmt.Sprintf("nodes %d", n))
		e.Run("quiet on")
		leaders := map[raft.Term]raft.NodeID{}
		var history []string
		for i := range 300 {
			a, b := 1+rng.IntN(n), 1+rng.IntN(n)
			cmd := "settle"
			if l := e.someLeader(rng.IntN(n)); l > 0 && rng.IntN(3) > 0 {
				a = l // proposals mostly go to a leader, perhaps an old one
			}
			switch rng.IntN(20) {
			case 0:
				cmd = fmt.Sprintf("campaign %d", a)
			case 1, 2:
				cmd = fmt.Sprintf("propose %d c%d", a, i)
			case 3:
				cmd = fmt.Sprintf("propose %d d%d x3", a, i)
			case 4, 5, 6:
				cmd = "frame"
			case 7:
				cmd = fmt.Sprintf("drop %d->%d", a, b)
			case 8:
				groups := ""
				for k := 1; k <= n; k++ {
					groups += fmt.Sprint(k) + ",,,|"[rng.IntN(4):][:1]
				}
				cmd = "partition " + groups[:len(groups)-1]
			case 9:
				cmd = "heal"
			case 10:
				cmd = "lapse"
			case 11:
				if e.nodes[a-1].down {
					cmd = fmt.Sprintf("restart %d", a)
				} else if rng.IntN(2) == 0 {
					cmd = fmt.Sprintf("crash %d", a)
				}
			case 12:
				cmd = fmt.Sprintf("wait %dms", 1+rng.IntN(400))
			case 13:
				cmd = fmt.Sprintf("transfer %d %d", a, b)
			case 14: // until the logs are cut
				cmd = "heal\nwait 3s"
				for k := range n {
					cmd += fmt.Sprintf("\nnap %d", k+1)
				}
			}
			if i%3 == 0 { // whoever has nothing to do may be away for a while
				cmd += fmt.Sprintf("\nnap %d", 1+rng.IntN(n))
			}
			history = append(history, cmd)
			if out := e.Run(cmd); strings.Contains(out, "error: raft: ") {
				t.Fatalf("seed %d: %s after\n%s", seed, out, slices.Compact(history))
			}
			if err := e.check(leaders); err != nil {
				t.Fatalf("seed %d: %v after\nnodes %d\n%s", seed, err, n, slices.Compact(history))
			}
		}
		for k := 1; k <= n; k++ {
			if e.nodes[k-1].down {
				e.Run(fmt.Sprintf("restart %d", k))
			}
		}
		e.Run("heal\nwait 8s")
		for _, m := range e.nodes {
			if m.core == nil || !slices.Equal(m.visible.data, e.nodes[0].visible.data) {
				t.Fatalf("seed %d: %v and %v differ after healing", seed, m.visible.data, e.nodes[0].visible.data)
			}
		}
		if err := e.check(leaders); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		applied += len(e.nodes[0].visible.data)
		terms += len(leaders)
		naps += e.naps
	}
	t.Logf("%d commands applied, %d terms with a leader, %d naps", applied, terms, naps)
	if applied < 1000 || terms < 300 || naps < 300 {
		t.Error("the histories reach too little")
	}
}

// someLeader returns a node that believes to lead, looking from node i on.
func (e *Env) someLeader(i int) int {
	for k := range e.nodes {
		n := e.nodes[(i+k)%len(e.nodes)]
		if n.core != nil && n.core.Status().Role == raft.RoleLeader {
			return int(n.id)
		}
	}
	return 0
}

func (e *Env) check(leaders map[raft.Term]raft.NodeID) error {
	for _, n := range e.nodes {
		if n.core != nil {
			if st := n.core.Status(); st.Role == raft.RoleLeader {
				if l, ok := leaders[st.Term]; ok && l != n.id {
					return fmt.Errorf("term %d has leaders %d and %d", st.Term, l, n.id)
				}
				leaders[st.Term] = n.id
			}
		}
	}
	for i, a := range e.nodes {
		for _, b := range e.nodes[:i] {
			x, y := &a.visible, &b.visible
			k := min(len(x.data), len(y.data))
			if !slices.Equal(x.data[:k], y.data[:k]) {
				return fmt.Errorf("nodes %d and %d applied %v and %v", a.id, b.id, x.data, y.data)
			}
			same := false
			for idx := min(x.last(), y.last()); idx > max(x.as.TruncIndex, y.as.TruncIndex); idx-- {
				p, q := x.ents[idx-x.as.TruncIndex-1], y.ents[idx-y.as.TruncIndex-1]
				same = same || p.Term == q.Term
				if same && (p.Term != q.Term || string(p.Value) != string(q.Value)) {
					return fmt.Errorf("logs of %d and %d agree above %d and differ there", a.id, b.id, idx)
				}
			}
		}
	}
	return nil
}
