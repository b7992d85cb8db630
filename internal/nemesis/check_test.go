package nemesis

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/internal/sim/linear"
	"github.com/flotillakv/flotilla/shard"
)

// What a round keeps of its keys is the last read after all faults, with the
// writes of unknown outcome that may still come.
func TestKeep(t *testing.T) {
	h := linear.NewHistory()
	v := [4]linear.Value{}
	for i := range v {
		v[i] = h.Fresh()
	}
	op := func(o linear.Op, call int64) {
		o.Call, o.Return = call, call+1
		h.Add(o)
	}
	op(linear.Op{Group: 5, Write: 1, Values: linear.State{v[0]}, Outcome: shard.Applied, Held: true}, 0)
	op(linear.Op{Group: 5, Write: 2, Values: linear.State{0, v[1]}, Outcome: shard.MaybeApplied}, 2)
	op(linear.Op{Group: 5, Write: 2, Values: linear.State{0, v[2]}, Outcome: shard.NotApplied}, 4)
	op(linear.Op{Group: 5, Read: 3, Saw: linear.State{v[0], v[1]}, Outcome: shard.Applied}, 6)                // a worker's
	op(linear.Op{Group: 5, Client: workers, Read: 3, Saw: linear.State{v[0]}, Outcome: shard.Applied}, 8)     // of the end
	op(linear.Op{Group: 5, Client: workers + 1, Read: 3, Saw: linear.State{v[0]}, Outcome: shard.Applied}, 9) // of the end
	k := keep(h)
	if k.last[5] != (linear.State{v[0]}) {
		t.Errorf("the last read saw %v", k.last[5])
	}
	if l := k.later[5]; len(l[0]) != 0 || len(l[1]) != 1 || l[1][0] != v[1] {
		t.Errorf("what may still come: %v", l)
	}
}

// Options that cannot work are refused in words, and touch nothing.
func TestOptions(t *testing.T) {
	good := Options{Binary: "flotilla", Dir: t.TempDir()}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Options)
		says   string
	}{
		"no binary":     {func(o *Options) { o.Binary = "" }, "binary"},
		"two nodes":     {func(o *Options) { o.Nodes = 2 }, "3 to 7"},
		"long rounds":   {func(o *Options) { o.Storm = 1 << 40 }, "rounds take"},
		"unknown fault": {func(o *Options) { o.Faults = []string{"kil"} }, `no fault "kil"; there are`},
	} {
		o := good
		c.change(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(good.Dir+"/x", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(context.Background(), good); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a directory that is in use: %v", err)
	}
}

// Whatever a storm leaves of a shard's replicas, the mending asks for so many
// voters: those that vote first, then those that will, then learners.
func TestMissing(t *testing.T) {
	for _, c := range []struct{ is, want string }{
		{"1 voter,2 voter,3 voter", ""},
		{"1 voter,2 learner,3 voter", "1 voter,3 voter,2 voter"},
		{"1 voter,2 voter", "1 voter,2 voter"},
		{"1 outgoing,2 voter,3 voter,4 incoming", "2 voter,3 voter,4 voter,1 none"},
		{"1 voter,2 voter,3 voter,4 learner", "1 voter,2 voter,3 voter,4 none"},
	} {
		var rs []flotilla.ReplicaInfo
		for part := range strings.SplitSeq(c.is, ",") {
			var r flotilla.ReplicaInfo
			if _, err := fmt.Sscanf(part, "%d %s", &r.Node, &r.Role); err != nil {
				t.Fatal(err)
			}
			rs = append(rs, r)
		}
		var got []string
		for _, x := range missing(rs, 3) {
			got = append(got, fmt.Sprintf("%d %s", x.Node, x.Role))
		}
		if strings.Join(got, ",") != c.want {
			t.Errorf("%s: asked for %q, want %q", c.is, strings.Join(got, ","), c.want)
		}
	}
}
