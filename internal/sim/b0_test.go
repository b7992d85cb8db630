package sim

import "testing"

// The tests of this file are named for the binding rules of the design. Each is
// a scenario, in the form of profiles, that needs its rule: without it, which the
// build tag mutants makes possible, some seed violates an oracle
// (b0_mutants_test.go). Rules that other rules stand in for are shown one by one
// in multiraft/raft (TestB0), those of leases there and in multiraft
// (TestMutants), those of the store in engine (TestMutants and the crash tests).

// A restart keeps acknowledged entries above the known commit index.
func TestB0_A2(t *testing.T) { b0(t, []string{"swarm", "log"}, "B0-A2") }

// A commit record counts only if the log is a prefix of that leader's.
func TestB0_A5(t *testing.T) { b0(t, []string{"elect", "stall"}, "A5b", "A5c") }

// The candidate's own vote waits for the disk like everybody's.
func TestB0_A7(t *testing.T) { b0(t, []string{"elect"}, "K14", "K13") }

// The end of support is shown when it is durable; a withdrawn epoch never returns.
func TestB0_B2(t *testing.T) { b0(t, []string{"swarm", "conf"}, "D14", "D14b", "D14e") }

// Pair epochs never repeat, over restarts either.
func TestB0_B3(t *testing.T) { b0(t, []string{"log"}, "B0-B3") }

// Support that is given back is not counted any more when that is said.
func TestB0_B6(t *testing.T) { b0(t, []string{"log"}, "B0-B6") }

// A live node that leads no more does not hold up its group: by its grant, and
// by being asked.
func TestB0_C1(t *testing.T) { b0(t, []string{"elect"}, "B0-C1b", "B0-C1e") }

// On links that work one way support is not asked for in the same epoch for ever.
func TestB0_C2(t *testing.T) { b0(t, []string{"swarm"}, "B0-C2") }

// Nothing that was dropped stays dropped.
func TestB0_C3(t *testing.T) { b0(t, []string{"conf"}, "B0-C3b") }

// No heartbeats leave while the disk stands still.
func TestB0_C4(t *testing.T) { b0(t, []string{"swarm"}, "B0-C4") }

// A restarted leader does not wait for itself.
func TestB0_C5(t *testing.T) { b0(t, []string{"swarm"}, "B0-C5") }

// b0 runs a few seeds of each profile, which must pass, and takes out the rule.
func b0(t *testing.T, profiles []string, mutants ...string) {
	t.Helper()
	for _, p := range profiles {
		for seed := uint64(1); seed <= 3; seed++ {
			if r := Run(Options{Seed: seed, Profile: p}); r.Failure != nil {
				t.Fatal(r.Report(40))
			}
		}
	}
	for _, id := range mutants {
		withoutRule(t, profiles, id)
	}
}
