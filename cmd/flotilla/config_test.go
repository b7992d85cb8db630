package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/flotillakv/flotilla"
)

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func origins(t *testing.T, c *command, args ...string) map[string][2]string {
	t.Helper()
	out := c.mustRun(t, append([]string{"config", "show", "--origin", "-o", "json"}, args...)...)
	var rows []struct {
		Setting, Origin string
		Value           any
	}
	if err := json.Unmarshal([]byte(out), &rows); err != nil {
		t.Fatal(err)
	}
	m := make(map[string][2]string)
	for _, r := range rows {
		v, _ := json.Marshal(r.Value)
		m[r.Setting] = [2]string{string(v), r.Origin}
	}
	return m
}

// A flag wins over the environment, that over the file, that over the default,
// and each value knows where it comes from.
func TestPrecedence(t *testing.T) {
	file := writeFile(t, "flotilla.toml", "[raft]\nheartbeat = \"1s\"\nsupport = \"9s\"\nelection_rank = \"70ms\"\n[cluster]\njoin = [\"a:1\", \"b:2\"]\n[limits]\nmemory = \"64MiB\"\n")
	c := newCommand()
	c.env["FLOTILLA_HEARTBEAT"] = "2s"
	c.env["FLOTILLA_SUPPORT"] = "20s"
	c.env["FLOTILLA_NODE_ID"] = "7"
	got := origins(t, c, "--config", file, "--heartbeat", "3s", "--dir", "/data")
	for setting, want := range map[string][2]string{
		"raft.heartbeat":     {`"3s"`, "flag --heartbeat"},
		"raft.support":       {`"20s"`, "environment FLOTILLA_SUPPORT"},
		"raft.election_rank": {`"70ms"`, "file " + file},
		"cluster.join":       {`["a:1","b:2"]`, "file " + file},
		"limits.memory":      {`"64MiB"`, "file " + file},
		"limits.proposals":   {`"0"`, "default"},
		"node.id":            {`7`, "environment FLOTILLA_NODE_ID"},
		"node.dir":           {`"/data"`, "flag --dir"},
	} {
		if got[setting] != want {
			t.Errorf("%s is %v, want %v", setting, got[setting], want)
		}
	}
	c.env["FLOTILLA_CONFIG"] = file
	if got := origins(t, c)["raft.election_rank"]; got[1] != "file "+file {
		t.Errorf("FLOTILLA_CONFIG is not read: %v", got)
	}
	table := c.mustRun(t, "config", "show", "--origin")
	if !strings.Contains(table, "SETTING") || !strings.Contains(table, "raft.support") || !strings.Contains(table, "environment FLOTILLA_SUPPORT") {
		t.Errorf("config show --origin printed\n%s", table)
	}
	c.mustRun(t, "config", "show", "--join", " x:1, y:2,")
	if got := origins(t, c, "--join", " x:1, y:2,")["cluster.join"]; got[0] != `["x:1","y:2"]` {
		t.Errorf("--join gives %v", got)
	}
}

// The file that config default prints is accepted and changes nothing.
func TestDefaultFileRoundTrip(t *testing.T) {
	c := newCommand()
	text := c.mustRun(t, "config", "default")
	golden(t, "default.toml", text)
	before := origins(t, c)
	after := origins(t, c, "--config", writeFile(t, "flotilla.toml", text))
	if len(before) != len(settings) {
		t.Errorf("%d of %d settings are shown", len(before), len(settings))
	}
	for k, v := range before {
		if after[k][0] != v[0] && !(v[0] == "null" && after[k][0] == "[]") {
			t.Errorf("%s is %s after the default file, %s before", k, after[k][0], v[0])
		}
		if !strings.HasPrefix(after[k][1], "file ") {
			t.Errorf("%s is not in the default file", k)
		}
	}
}

// A file that is wrong is refused with its line, the place underlined, and what
// was probably meant.
func TestFilesThatAreWrong(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"[raft]\nsupport = \"5s\"\nheartbaet = \"1s\"\n", ":3: unknown key \"heartbaet\" in [raft]; did you mean \"heartbeat\"?\n  3| heartbaet = \"1s\"\n   | ~~~~~~~~~\n"},
		{"[rfat]\nheartbeat = \"1s\"\n", ":1: unknown section or key \"rfat\"; did you mean \"raft\"?"},
		{"heartbeat = \"1s\"\n", ":1: unknown key \"heartbeat\" outside of a section; it belongs in [raft]"},
		{"[raft]\nheartbeat = 5\n", ":2: raft.heartbeat is a duration, written in quotes like \"500ms\" or \"10s\""},
		{"[raft]\nheartbeat = \"5 parsecs\"\n", ":2: raft.heartbeat: \"5 parsecs\" is not a duration"},
		{"[limits]\nmemory = 64.5\n", ":2: limits.memory is a size, written in quotes like \"64MiB\""},
		{"[node]\nid = \"one\"\n", ":2: node.id is a whole number"},
		{"[cluster]\njoin = \"a:1\"\n", ":2: cluster.join is a list"},
		{"[raft\n", ":1: "},
		{"[node]\nid = 1\nid = 2\n", "id"},
	} {
		cmd := newCommand()
		file := writeFile(t, "flotilla.toml", c.text)
		if code := cmd.run(t, "serve", "--config", file, "--dir", "d"); code != exitUsage {
			t.Errorf("%q: exit code %d", c.text, code)
		}
		if got := cmd.errOut.String(); !strings.HasPrefix(got, "error: "+file) || !strings.Contains(got, c.want) {
			t.Errorf("%q:\n%s\ndoes not say\n%s", c.text, got, c.want)
		}
	}
	cmd := newCommand()
	if code := cmd.run(t, "serve", "--config", "nowhere.toml"); code != exitUsage || !strings.Contains(cmd.errOut.String(), "nowhere.toml") {
		t.Errorf("exit code %d: %s", code, cmd.errOut.String())
	}
}

// What the node would refuse is told in the words of the settings, all faults
// at once, each with its source.
func TestFaultsOfOptions(t *testing.T) {
	c := newCommand()
	c.env["FLOTILLA_REPLICAS"] = "9"
	if code := c.run(t, "serve", "--heartbeat", "1s", "--support", "2s", "--dir", "d", "--cluster-id", "xyz"); code != exitUsage {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"raft.support = 2s (flag --support): must be at least four heartbeats", "cluster.replicas = 9 (environment FLOTILLA_REPLICAS)", "cluster.id = xyz (flag --cluster-id)"} {
		if !strings.Contains(c.errOut.String(), want) {
			t.Errorf("%s does not say %q", c.errOut.String(), want)
		}
	}
	if _, err := os.Stat("d"); err == nil {
		t.Error("a refused command made its directory")
	}
}

// The node gets the compaction policy and each of its triggers, from wherever they are set.
func TestCompactionSettings(t *testing.T) {
	env := map[string]string{"FLOTILLA_COMPACTION_IMAGES": "32MiB", "FLOTILLA_COMPACTION": "in-log", "FLOTILLA_COMPACTION_BYTES": "3MiB"}
	file := writeFile(t, "flotilla.toml", "[compaction]\npolicy = \"replica\"\nentries = 7\nage = \"5m\"\n")
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	addSettings(fs)
	if err := fs.Parse([]string{"--dir", "d", "--config", file, "--compaction-idle", "9s"}); err != nil {
		t.Fatal(err)
	}
	r, err := resolve(fs, func(name string) (string, bool) { v, ok := env[name]; return v, ok })
	if err != nil {
		t.Fatal(err)
	}
	o, err := r.options()
	if want := (flotilla.Compaction{Policy: flotilla.CompactInLog, Entries: 7, Bytes: 3 << 20, Age: 5 * time.Minute, Idle: 9 * time.Second, ImageBytes: 32 << 20}); err != nil || o.Compaction != want {
		t.Errorf("%+v, %v; want %+v", o.Compaction, err, want)
	}
}

func TestSplitFile(t *testing.T) {
	keys, err := readSplits(writeFile(t, "s", "b\nm\tx\nz"))
	if err != nil || len(keys) != 3 || string(keys[1]) != "m\tx" {
		t.Errorf("%q, %v", keys, err)
	}
	for _, text := range []string{"b\na\n", "a\na\n", "a\n\nb\n", ""} {
		if _, err := readSplits(writeFile(t, "s", text)); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}

func TestUnits(t *testing.T) {
	for text, want := range map[string]size{"0": 0, "17": 17, "64MiB": 64 << 20, "1 GiB": 1 << 30, "2KiB": 2048, "3MB": 3e6, "5B": 5} {
		var s size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%q is %d, %v; want %d", text, s, err, want)
		}
	}
	for _, text := range []string{"", "x", "-1", "1.5MiB", "9999999TiB"} {
		if err := new(size).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("size %q was accepted", text)
		}
	}
	for s, want := range map[size]string{0: "0", 1000: "1000", 64 << 20: "64MiB", 1 << 40: "1TiB"} {
		if got := s.String(); got != want {
			t.Errorf("size %d prints as %q, want %q", int64(s), got, want)
		}
	}
	for d, want := range map[time.Duration]string{0: "0s", 500 * time.Millisecond: "500ms", 2 * time.Minute: "2m", time.Hour: "1h", 90 * time.Second: "1m30s", 10 * time.Second: "10s"} {
		if got := (duration{d}).String(); got != want {
			t.Errorf("%v prints as %q, want %q", d, got, want)
		}
	}
}
