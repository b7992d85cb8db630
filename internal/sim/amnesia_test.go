package sim

import "testing"

// TestAmnesia puts old disks back where somebody can tell, on one node or on a
// majority: the oracles hold throughout, all of them are found out, and without a
// majority that remembers the group stands still for good.
func TestAmnesia(t *testing.T) {
	old, found, halted, idle := 0, 0, 0, 0
	for seed := uint64(1); seed <= 60; seed++ {
		r := Run(Options{Seed: seed, Profile: "amnesia"})
		if r.Failure != nil {
			t.Fatal(r.Report(60))
		}
		old += r.Amnesias
		found += r.Forgot
		if r.Halted {
			halted++
		} else if r.Headless {
			idle++
		}
	}
	t.Logf("%d old disks, %d found out, %d groups halted, %d without a quorum for other reasons", old, found, halted, idle)
	if old < 40 || found < old*3/4 || halted < 3 {
		t.Errorf("%d old disks, %d found out, %d groups halted: too few to mean anything", old, found, halted)
	}
}
