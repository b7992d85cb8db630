//go:build mutants

package score

import (
	"context"
	"fmt"
	"strings"

	"github.com/flotillakv/flotilla/internal/sim/t1"
)

// t1p is a bug that runs of the simulator of whole nodes find; attempts go
// through the profiles and seeds as those of t0 do.
func t1p(id, ledger, title string, profiles ...string) plant {
	return plant{id: id, ledger: ledger, title: title, tier: "T1",
		try: func(_ context.Context, _ *Options, n int) (*catch, error) {
			seed, profile := uint64(n/len(profiles))+1, profiles[n%len(profiles)]
			r := t1.Run(t1.Options{Seed: seed, Profile: profile})
			if r.Failure == nil {
				return nil, nil
			}
			detail, _, _ := strings.Cut(r.Failure.Detail, "\n")
			return &catch{oracle: r.Failure.Oracle, where: fmt.Sprintf("%s/%d", profile, seed), detail: detail}, nil
		}}
}

// nodePlants are planted in the owners of cores and below; runs of whole nodes
// on a real store find them.
func nodePlants() []plant {
	out := []plant{
		t1p("F2", "F2", "the applied index is not written with what it covers", "crash", "swarm"),
		t1p("F4", "F4", "what is in the log is applied once more at a start", "crash", "swarm"),
		t1p("F8", "F8", "a key deleted in a batch is found by what comes behind it", "swarm"),
		t1p("E7", "E7", "a snapshot names the leader's term, not its last entry's", "swarm"),
	}
	for _, p := range t1.Plants {
		out = append(out, t1p(p.ID, p.Ledger, p.Title, p.Profiles...))
	}
	return out
}
