package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla"
)

// Orders that change members: what is printed, the exit code, and that nothing
// that deletes happens without --yes.
func TestMembershipCommands(t *testing.T) {
	c := newCommand()
	c.kv.status.Nodes = []flotilla.NodeInfo{{ID: 1}, {ID: 2}, {ID: 3}}
	fresh := func() {
		c.kv.shards = []flotilla.ShardInfo{{ID: 5, Leader: 1, ConfVer: 1, Replicas: []flotilla.ReplicaInfo{
			{Node: 1, Role: "voter"}, {Node: 2, Role: "voter"}, {Node: 3, Role: "voter"}}}}
	}
	for _, x := range []struct {
		line    string
		fail    error
		code    int
		out     string // part of standard output
		err     string // part of standard error
		confVer uint64 // of the shard afterwards
	}{
		{line: "shard replicas 5", out: "NODE", confVer: 1},
		{line: "shard replicas 5 --add n4", out: "shard 5  n1* n2 n3 n4  (was n1* n2 n3, ", confVer: 2},
		{line: "shard replicas 5 --add 2", out: "shard 5  n1* n2 n3  (unchanged)", confVer: 1},
		{line: "shard replicas 5 --learner 4", out: "n4(learner)", confVer: 2},
		{line: "shard replicas 5 --replace n3=n4", code: exitUsage, err: "shard 5, now n1* n2 n3: adds n4 as a voter, removes n3; a replica that is removed is deleted\n  try: --yes", confVer: 1},
		{line: "shard replicas 5 --replace n3=n4 --dry-run", out: "adds n4 as a voter, removes n3", confVer: 1},
		{line: "shard replicas 5 --replace n3=n4 --yes", out: "shard 5  n1* n2 n4", confVer: 3},
		{line: "shard replicas 5 --remove 3 --yes", out: "shard 5  n1* n2  (was", confVer: 2},
		{line: "shard replicas 5 --replace n3 --yes", code: exitUsage, err: "must be OLD=NEW", confVer: 1},
		{line: "shard replicas 5 --add x4", code: exitUsage, err: `node id "x4"`, confVer: 1},
		{line: "shard replicas 6 --add 4", code: exitNotFound, err: "shard 6 does not exist", confVer: 1},
		{line: "shard replicas 0", code: exitUsage, err: "shard id", confVer: 1},
		{line: "shard replicas 5 --add 4", fail: &flotilla.MembershipError{Shard: 5, Reason: "no"}, code: exitConflict, err: "shard 5: no", confVer: 1},
		{line: "shard replicas 5 --add 4", fail: &flotilla.MembershipError{Shard: 5, Reason: "the time is up", Unfinished: true}, code: exitUnreachable, err: "the same command again", confVer: 1},
		{line: "shard transfer 5 --to n2", out: "shard 5  led by n2", confVer: 1},
		{line: "shard transfer 5 --to n9", code: exitNotFound, err: "there is no shard 5 with a replica on n9", confVer: 1},
		{line: "shard transfer 5", code: exitUsage, err: "--to is missing", confVer: 1},
		{line: "node remove n3", code: exitUsage, err: "n3 would be removed for good, and its 1 replicas moved\n  try: --yes", confVer: 1},
		{line: "node remove n3 --dry-run", out: "n3 would be removed, and 1 replicas moved\nSHARD  FROM  TO\n", confVer: 1},
		{line: "node remove n3 --yes", out: "n3 removed, 1 replicas moved in", confVer: 1},
		{line: "node remove n7 --yes", out: "n7 is no member of the cluster", confVer: 1},
	} {
		fresh()
		c.kv.fail = nil
		if x.fail != nil {
			c.kv.fail = []fault{{err: x.fail}}
		}
		code := c.run(t, strings.Fields(x.line)...)
		if code != x.code || !strings.Contains(c.out.String(), x.out) || !strings.Contains(c.errOut.String(), x.err) || c.kv.shards[0].ConfVer != x.confVer {
			t.Errorf("%s: exit code %d, membership version %d\n%s%s", x.line, code, c.kv.shards[0].ConfVer, c.out.String(), c.errOut.String())
		}
	}
	fresh()
	c.mustRun(t, "node", "remove", "n3", "--yes", "-o", "json")
	var r flotilla.Removal
	if err := json.Unmarshal(c.out.Bytes(), &r); err != nil || !r.Gone || len(r.Moves) != 1 || !r.Moves[0].Done {
		t.Errorf("node remove -o json: %v\n%s", err, c.out.String())
	}
}
