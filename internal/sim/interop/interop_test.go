package interop

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"
)

var (
	flagSeed    = flag.Int64("interop.seed", -1, "run this one seed of every mix")
	flagFrom    = flag.Int64("interop.from", 1, "first seed")
	flagCommits = flag.Int("interop.commits", 20_000, "go on until the mixed groups have committed this many entries")
)

// mixes are numbers of nodes of ours and of theirs.
var mixes = [][2]int{{2, 1}, {1, 2}, {3, 2}, {4, 1}, {3, 1}, {2, 3}, {4, 2}}

func run(t *testing.T, seed uint64, mix [2]int, sum *Result) {
	t.Helper()
	res := Run(Options{Seed: seed, Ours: mix[0], Theirs: mix[1], Duration: 20 * time.Second})
	if res.Failure != nil {
		t.Fatalf("seed %d, %d of ours and %d of theirs, at %v: %v\n%s\nreplay: go test . -run TestMixed -interop.seed=%d",
			seed, mix[0], mix[1], res.Virtual, res.Failure, strings.Join(res.Story, "\n"), seed)
	}
	sum.Commits += res.Commits
	sum.OurTerms += res.OurTerms
	sum.TheirTerms += res.TheirTerms
	sum.Confs += res.Confs
	sum.Snaps += res.Snaps
	sum.Reads += res.Reads
	sum.Crashes += res.Crashes
	sum.Transfers += res.Transfers
	sum.Virtual += res.Virtual
}

// TestReplay shows that a seed decides everything.
func TestReplay(t *testing.T) {
	for seed := uint64(1); seed <= 3; seed++ {
		o := Options{Seed: seed, Ours: 2, Theirs: 2, Duration: 5 * time.Second}
		if a, b := Run(o), Run(o); a.summary() != b.summary() || strings.Join(a.Story, "") != strings.Join(b.Story, "") {
			t.Errorf("seed %d: %s, then %s", seed, a.summary(), b.summary())
		}
	}
}

func (r *Result) summary() string {
	return fmt.Sprintf("%d entries committed, %d terms led by ours, %d by theirs, %d configurations applied, %d snapshots, %d reads, %d crashes, %d transfers, %v virtual",
		r.Commits, r.OurTerms, r.TheirTerms, r.Confs, r.Snaps, r.Reads, r.Crashes, r.Transfers, r.Virtual)
}

// TestMixed runs groups of both implementations under faults. The long form:
//
//	go test . -run TestMixed -timeout 0 -interop.commits 1000000
func TestMixed(t *testing.T) {
	var sum Result
	if *flagSeed >= 0 {
		for _, mix := range mixes {
			run(t, uint64(*flagSeed), mix, &sum)
		}
		t.Log(sum.summary())
		return
	}
	for seed := uint64(*flagFrom); int(sum.Commits) < *flagCommits; seed++ {
		for _, mix := range mixes {
			run(t, seed, mix, &sum)
		}
	}
	t.Log(sum.summary())
	if sum.OurTerms == 0 || sum.TheirTerms == 0 || sum.Confs == 0 || sum.Snaps == 0 || sum.Reads == 0 || sum.Crashes == 0 {
		t.Errorf("the runs reached too little: %s", sum.summary())
	}
}

var flagSchedules = flag.Int("interop.schedules", 12, "schedules of TestDiffer")

// TestDiffer replays the same schedules through a group of each implementation.
func TestDiffer(t *testing.T) {
	total := 0
	for seed := uint64(*flagFrom); seed < uint64(*flagFrom+int64(*flagSchedules)); seed++ {
		n, err := Differ(seed, 3+int(seed%3), 25)
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	t.Logf("%d schedules of 25 steps: the same %d commands committed by both", *flagSchedules, total)
	if total == 0 {
		t.Error("nothing was committed")
	}
}
