package liveness

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expected output in testdata/*.txt")

// TestScripts plays the scenarios of testdata/*.txt against one node's Rules.
// A scenario is a list of commands, each followed by "----" and what it makes
// the node do; lines that start with # tell the story. Commands:
//
//	boot epoch=7                    a node (id 1) boots with what its disk holds
//	peer N                          AddPeer
//	at 500ms                        the clock shows this much since boot
//	tick [beat=no] [self=no]        Tick, with the gate closed where said
//	heartbeat from=2 epoch=3.1 seq=1 [recv=1s]
//	reply from=2 epoch=7.1 seq=1 [refused] [duration=750ms]
//	withdrawn from=2 epoch=7.1
//	relinquished from=2 epoch=3.1   the peer gives our promise back
//	relinquish                      this node gives back everything
//	done                            the oldest write in flight becomes durable
//	show                            the table
//	crash                           writes in flight are lost, the process ends
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) { runScript(t, f) })
	}
}

type scripted struct {
	rules   *Rules
	disk    map[raft.NodeID]Record
	pending []Persist
	now     raft.Time
	origin  raft.Time
	fx      Effects
}

func runScript(t *testing.T, file string) {
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{disk: map[raft.NodeID]Record{}}
	var out strings.Builder
	lines := strings.Split(strings.TrimRight(string(raw), "\n"), "\n")
	for i := 0; i < len(lines); {
		line := lines[i]
		i++
		out.WriteString(line + "\n")
		if strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "" {
			continue
		}
		var want []string
		if i < len(lines) && lines[i] == "----" {
			i++
			for i < len(lines) && lines[i] != "" {
				want = append(want, lines[i])
				i++
			}
		}
		got := s.do(t, line)
		out.WriteString("----\n")
		for _, g := range got {
			out.WriteString(g + "\n")
		}
		if !*rewrite && !slices.Equal(got, want) {
			t.Fatalf("%s:%d: %s\ngot:\n  %s\nwant:\n  %s", file, i, line, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
		}
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *scripted) do(t *testing.T, line string) []string {
	t.Helper()
	f := strings.Fields(line)
	arg := map[string]string{}
	for _, a := range f[1:] {
		k, v, _ := strings.Cut(a, "=")
		arg[k] = v
	}
	num := func(k string) uint64 {
		n, err := strconv.ParseUint(arg[k], 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		return n
	}
	s.fx.Reset()
	at := At{Now: s.now, Wall: uint64(s.now)}
	ctl := func(kind raft.CtlKind) {
		c := raft.Ctl{Kind: kind, Epoch: parseEpoch(t, arg["epoch"])}
		if arg["seq"] != "" {
			c.Seq = num("seq")
		}
		_, c.Refused = arg["refused"]
		if arg["duration"] != "" {
			c.Wall = uint64(parseDuration(t, arg["duration"]))
		}
		recv := s.now
		if arg["recv"] != "" {
			recv = s.origin.Add(parseDuration(t, arg["recv"]))
		}
		s.rules.Step(at, raft.NodeID(num("from")), recv, c, &s.fx)
	}
	switch f[0] {
	case "boot":
		s.origin += raft.Time(1000 * time.Hour) // another boot, another clock
		s.now = s.origin
		var recs []Record
		for n := raft.NodeID(2); n < 10; n++ {
			if r, ok := s.disk[n]; ok {
				recs = append(recs, r)
			}
		}
		r, err := NewRules(RulesConfig{Node: 1, BootEpoch: num("epoch")}, recs, s.now, &s.fx)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		s.rules = r
	case "peer":
		n, err := strconv.Atoi(f[1])
		if err != nil {
			t.Fatal(err)
		}
		s.rules.AddPeer(s.now, raft.NodeID(n), &s.fx)
	case "at":
		s.now = s.origin.Add(parseDuration(t, f[1]))
		return nil
	case "tick":
		s.rules.Tick(at, Gate{Beat: arg["beat"] != "no", Self: arg["self"] != "no"}, &s.fx)
	case "heartbeat":
		ctl(raft.CtlHeartbeat)
	case "reply":
		ctl(raft.CtlReply)
	case "withdrawn":
		ctl(raft.CtlWithdrawn)
	case "relinquished":
		ctl(raft.CtlRelinquish)
	case "relinquish":
		s.rules.Relinquish(s.now, &s.fx)
	case "done":
		p := s.pending[0]
		s.pending = s.pending[1:]
		s.disk[p.Record.Node] = p.Record
		s.rules.Done(at, p.Token, &s.fx)
	case "crash":
		s.pending, s.rules = nil, nil
		return nil
	case "show":
		var out []string
		for _, n := range []raft.NodeID{1, 2, 3} {
			fe, live := s.rules.SupportFor(n)
			te, until := s.rules.SupportFrom(n)
			out = append(out, fmt.Sprintf("node %d: for %s %s, from %s %s", n, showEpoch(fe), liveWord(live), showEpoch(te), s.showUntil(until)))
		}
		return append(out, "next tick at "+s.showTime(s.rules.Deadline()))
	default:
		t.Fatalf("unknown command %q", line)
	}
	s.pending = append(s.pending, s.fx.Persists...)
	return s.effects()
}

func (s *scripted) effects() []string {
	var out []string
	for _, en := range s.fx.Table {
		line := fmt.Sprintf("publish node %d: for %s %s, from %s %s", en.Node, showEpoch(en.For), liveWord(en.ForLive), showEpoch(en.From), s.showUntil(en.Until))
		if en.Ahead {
			line += ", old copy"
		}
		if en.Notify {
			line += " (notify)"
		}
		out = append(out, line)
	}
	for _, x := range s.fx.Sends {
		line := fmt.Sprintf("send to %d: ", x.To)
		switch x.Ctl.Kind {
		case raft.CtlHeartbeat:
			line += fmt.Sprintf("heartbeat %s seq %d", showEpoch(x.Ctl.Epoch), x.Ctl.Seq)
		case raft.CtlReply:
			line += fmt.Sprintf("reply %s seq %d", showEpoch(x.Ctl.Epoch), x.Ctl.Seq)
			if x.Ctl.Refused {
				line += " refused"
			}
		case raft.CtlWithdrawn:
			line += "withdrawn " + showEpoch(x.Ctl.Epoch)
		case raft.CtlRelinquish:
			line += "relinquish " + showEpoch(x.Ctl.Epoch)
		}
		out = append(out, line)
	}
	for _, p := range s.fx.Persists {
		w := "supported"
		if p.Record.Withdrawn {
			w = "withdrawn"
		}
		out = append(out, fmt.Sprintf("persist node %d: %s %s", p.Record.Node, showEpoch(p.Record.Epoch), w))
	}
	return out
}

func liveWord(live bool) string {
	if live {
		return "live"
	}
	return "not live"
}

func showEpoch(e raft.Epoch) string {
	if e == 0 {
		return "none"
	}
	return fmt.Sprintf("%d.%d", uint64(e)>>32, uint64(e)&0xffffffff)
}

func (s *scripted) showTime(u raft.Time) string {
	if u == FarFuture {
		return "never"
	}
	return u.Sub(s.origin).String()
}

func (s *scripted) showUntil(u raft.Time) string {
	switch u {
	case 0:
		return "not live"
	case FarFuture:
		return "for ever"
	}
	return "until " + u.Sub(s.origin).String()
}

func parseEpoch(t *testing.T, v string) raft.Epoch {
	t.Helper()
	boot, n, ok := strings.Cut(v, ".")
	b, err1 := strconv.ParseUint(boot, 10, 31)
	k, err2 := strconv.ParseUint(n, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		t.Fatalf("bad epoch %q", v)
	}
	return raft.Epoch(b<<32 | k)
}

func parseDuration(t *testing.T, v string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
