package explore

import (
	"fmt"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft/liveness"
)

var (
	sharp  = liveness.Timing{Interval: 250 * time.Second, Duration: 1000 * time.Second, Rho: 0.01}
	normal = liveness.Timing{Interval: 500 * time.Millisecond, Duration: 2500 * time.Millisecond, Rho: 0.01}
)

// leaseScopes are the scopes of TestLease; the first one is explored without
// flags, too.
var leaseScopes = []struct {
	name string
	PairScope
}{
	{"plain", PairScope{Beats: 2}},
	{"asker-crash", PairScope{Beats: 2, AskerCrashes: 1}},
	{"supporter-crash", PairScope{Beats: 2, SupporterCrashes: 1}},
	{"relinquish", PairScope{Beats: 2, Relinquish: true}},
	{"dup", PairScope{Beats: 2, Dups: 1}},
	{"both-crash", PairScope{Beats: 2, AskerCrashes: 1, SupporterCrashes: 1}},
	{"beats", PairScope{Beats: 3}},
	{"all", PairScope{Beats: 3, AskerCrashes: 1, SupporterCrashes: 1, Dups: 1, Idles: 1, Relinquish: true}},
}

// TestLease explores a promise between two nodes whose clocks drift apart. At
// the bound of 0.5 % for each clock, with rho of 1 %, no promise is counted that
// is withdrawn, whatever is lost, late, repeated or crashes. With -explore.states
// all scopes are explored, with clocks at both ends of the bound.
func TestLease(t *testing.T) {
	for i, c := range leaseScopes {
		if *flagStates == 0 && i > 0 || *flagScope != "" && *flagScope != c.name {
			continue
		}
		for _, timing := range []liveness.Timing{sharp, normal} {
			if *flagStates == 0 && timing != sharp {
				break
			}
			for k, ppm := range [][2]int64{{-5000, 5000}, {5000, -5000}, {0, 0}, {5000, 5000}, {-5000, -5000}} {
				if *flagStates == 0 && k > 0 {
					break
				}
				t.Run(fmt.Sprintf("%s,D=%v,%+d,%+d", c.name, timing.Duration, ppm[0], ppm[1]), func(t *testing.T) {
					s := c.PairScope
					s.Timing, s.AskerPPM, s.SupporterPPM = timing, ppm[0], ppm[1]
					m := NewPair(s)
					r := Run(m, options(t))
					t.Logf("scope %s D=%v clocks %+d %+d ppm: %v; %d states of a node", c.name, timing.Duration, ppm[0], ppm[1], r, len(m.halfs))
					if r.Failure != nil {
						t.Fatalf("%v\n%s", r.Failure, r.Trace())
					}
					if *flagStates == 0 && !r.Exhausted {
						t.Error("not exhausted")
					}
				})
			}
		}
	}
}

// TestLeaseBeyondTheBound shows that the exploration can fail: with clocks just
// beyond what rho allows it finds a promise that is withdrawn and still counted.
// The promise holds while (1-rho)(1+d) <= 1-d, which for rho = 1 % is d <= 0.5025 %;
// the slack of 5 ms adds 0.1 % where D is 2.5 s.
func TestLeaseBeyondTheBound(t *testing.T) {
	for _, c := range []struct {
		timing liveness.Timing
		ppm    int64
	}{{sharp, 6000}, {sharp, 5030}, {normal, 6100}} {
		s := PairScope{Timing: c.timing, AskerPPM: -c.ppm, SupporterPPM: c.ppm, Beats: 2}
		m := NewPair(s)
		r := Run(m, Options{})
		t.Logf("D=%v, clocks %d ppm: %v", c.timing.Duration, c.ppm, r)
		if r.Failure == nil || r.Failure.Rule != "S14" {
			t.Errorf("no violation found")
			continue
		}
		t.Logf("\n%s", r.Trace())
		if took, _, f := Replay[PairWorld](m, r.Acts); f == nil || len(took) != len(r.Acts) {
			t.Error("the way does not replay")
		}
	}
}
