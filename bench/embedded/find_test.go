package embedded

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// The quick search finds what a plain one finds, whatever the boundaries have in common.
func TestFind(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 200 {
		prefix := []string{"", "user", "a/long/common/prefix/"}[round%3]
		table := &leaderTable{starts: [][]byte{nil}}
		for range rng.IntN(40) {
			table.starts = append(table.starts, fmt.Appendf(nil, "%s%0*d", prefix, 1+rng.IntN(12), rng.IntN(300)))
		}
		slices.SortFunc(table.starts, bytes.Compare)
		table.starts = slices.CompactFunc(table.starts, bytes.Equal)
		table.prepare()
		for range 200 {
			key := fmt.Appendf(nil, "%s%0*d", prefix[:rng.IntN(len(prefix)+1)], rng.IntN(14), rng.IntN(300))
			if rng.IntN(3) == 0 {
				key = slices.Clone(table.starts[rng.IntN(len(table.starts))])
			}
			want := 0
			for i, s := range table.starts {
				if bytes.Compare(s, key) <= 0 {
					want = i
				}
			}
			if got := table.find(key); got != want {
				t.Fatalf("%q is in range %d of %q, got %d", key, want, table.starts, got)
			}
		}
	}
}
