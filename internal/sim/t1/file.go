package t1

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
)

// fileVersion is the version of schedule files. Version 1 named actions and
// crash images by numbers; it is still read.
const fileVersion = 2

// maxFileBytes bounds a schedule file.
const maxFileBytes = 32 << 20

// File is a schedule on disk: a run that found something once, kept so that it
// is run again for ever. It is JSON; an action is one line of it.
type File struct {
	// Tier is "t1"; schedules of the Raft cores alone (sim.File) have another.
	Tier    string `json:"tier"`
	Version int    `json:"version"`
	// Oracle is what the run violated when it was kept.
	Oracle string `json:"oracle,omitempty"`
	// Mutant is the planted bug with which it does so still. Without that bug
	// the run must pass.
	Mutant   string   `json:"mutant,omitempty"`
	Note     string   `json:"note,omitempty"`
	Schedule Schedule `json:"schedule"`
}

// IsFile reports whether data looks like a schedule of this package, and not
// like one of the Raft cores alone.
func IsFile(data []byte) bool {
	var f struct {
		Tier     string `json:"tier"`
		Schedule struct {
			Params struct {
				Shards *int `json:"shards"`
			} `json:"params"`
		} `json:"schedule"`
	}
	_ = json.Unmarshal(data, &f) // what does not decode is told by whoever reads it
	return f.Tier == "t1" || f.Tier == "" && f.Schedule.Params.Shards != nil
}

// ReadFile reads a schedule file and refuses one that cannot be run. An error
// names the file and what is wrong with it.
func ReadFile(path string) (File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return File{}, err
	}
	f, err := DecodeFile(data)
	if err != nil {
		return File{}, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// DecodeFile decodes and checks a schedule file.
func DecodeFile(data []byte) (File, error) {
	if len(data) > maxFileBytes {
		return File{}, fmt.Errorf("schedule of %d bytes, at most %d are read", len(data), maxFileBytes)
	}
	var head struct{ Version int }
	if err := json.Unmarshal(data, &head); err != nil {
		return File{}, fmt.Errorf("not a schedule: %w", err)
	}
	var f File
	switch head.Version {
	case 1:
		var old fileV1
		if err := json.Unmarshal(data, &old); err != nil {
			return File{}, fmt.Errorf("not a schedule: %w", err)
		}
		f = old.file()
	case fileVersion:
		d := json.NewDecoder(bytes.NewReader(data))
		d.DisallowUnknownFields()
		if err := d.Decode(&f); err != nil {
			return File{}, fmt.Errorf("not a schedule: %w", err)
		}
		if f.Tier != "t1" {
			return File{}, fmt.Errorf("a schedule of tier %q, not of whole nodes", f.Tier)
		}
	default:
		return File{}, fmt.Errorf("version %d of schedules is not known, only 1 and %d", head.Version, fileVersion)
	}
	return f, f.Schedule.Validate()
}

// Encode returns the file's content.
func (f File) Encode() []byte {
	f.Tier, f.Version = "t1", fileVersion
	actions := f.Schedule.Actions
	f.Schedule.Actions = nil
	head, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		panic(err) // plain data
	}
	var list bytes.Buffer
	list.WriteString("[")
	for i := range actions {
		line, err := json.Marshal(&actions[i])
		if err != nil {
			panic(err)
		}
		if i > 0 {
			list.WriteString(",")
		}
		list.WriteString("\n    ")
		list.Write(line)
	}
	list.WriteString("\n    ]")
	out := bytes.Replace(head, []byte(`"actions": null`), append([]byte(`"actions": `), list.Bytes()...), 1)
	return append(out, '\n')
}

// wireAction is an action in a file; nodes count from 1, as in traces.
type wireAction struct {
	At   string `json:"at"`
	Do   string `json:"do"`
	Node int    `json:"node"`
	Peer int    `json:"peer"`
	For  string `json:"for,omitempty"`
	R    uint64 `json:"r"`
	On   string `json:"on,omitempty"`
}

// MarshalJSON is json.Marshaler.
func (a *Action) MarshalJSON() ([]byte, error) {
	w := wireAction{At: time.Duration(a.At).String(), Do: a.Kind.String(), Node: a.Node + 1, Peer: a.Peer + 1, R: a.R}
	if a.Dur != 0 {
		w.For = a.Dur.String()
	}
	if a.On != coverage.Idle {
		w.On = a.On.String()
	}
	return json.Marshal(&w)
}

// UnmarshalJSON is json.Unmarshaler.
func (a *Action) UnmarshalJSON(data []byte) error {
	var w wireAction
	if err := json.Unmarshal(data, &w); err != nil {
		return err
	}
	at, err := time.ParseDuration(w.At)
	if err != nil {
		return err
	}
	var dur time.Duration
	if w.For != "" {
		if dur, err = time.ParseDuration(w.For); err != nil {
			return err
		}
	}
	k, ok := parseAction(w.Do)
	if !ok {
		return fmt.Errorf("no action %q", w.Do)
	}
	on, ok := coverage.ParseOp(w.On)
	if !ok && w.On != "" {
		return fmt.Errorf("no operation %q", w.On)
	}
	*a = Action{At: int64(at), Kind: k, Node: w.Node - 1, Peer: w.Peer - 1, Dur: dur, R: w.R, On: on}
	return nil
}

func parseAction(name string) (ActionKind, bool) {
	for k, s := range actionNames {
		if s == name && s != "" {
			return ActionKind(k), true
		}
	}
	return 0, false
}

// images are simfs modes; in a file they have names.
type images []uint8

// MarshalJSON is json.Marshaler.
func (m images) MarshalJSON() ([]byte, error) {
	names := make([]string, len(m))
	for i, k := range m {
		if int(k) >= len(simfs.Modes) {
			return nil, fmt.Errorf("there is no image mode %d", k)
		}
		names[i] = simfs.Mode(k).String()
	}
	return json.Marshal(names)
}

// UnmarshalJSON is json.Unmarshaler.
func (m *images) UnmarshalJSON(data []byte) error {
	var names []string
	if err := json.Unmarshal(data, &names); err != nil {
		return err
	}
	*m = nil
	for _, s := range names {
		k, ok := simfs.ParseMode(s)
		if !ok {
			return fmt.Errorf("no image mode %q", s)
		}
		*m = append(*m, uint8(k))
	}
	return nil
}

// fileV1 is the layout of version 1.
type fileV1 struct {
	Oracle, Why string
	Schedule    struct {
		Seed     uint64
		Profile  string
		Duration time.Duration
		Params   paramsV1
		Actions  []struct {
			At         int64
			Kind       int
			Node, Peer int
			Dur        time.Duration
			R          uint64
		}
	}
}

// paramsV1 are Params whose images are numbers.
type paramsV1 struct{ Params }

// UnmarshalJSON is json.Unmarshaler.
func (p *paramsV1) UnmarshalJSON(data []byte) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return err
	}
	var modes []byte
	if err := json.Unmarshal(fields["images"], &modes); err != nil {
		return errors.New("images: " + err.Error())
	}
	delete(fields, "images")
	rest, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(rest, &p.Params); err != nil {
		return err
	}
	p.Images = modes
	return nil
}

// actionsV1 are the actions in the order of their numbers in version 1.
var actionsV1 = [...]string{1: "op", "crash", "crash-some", "crash-all", "kill-leader", "isolate", "deaf", "mute", "split", "cut", "cut-both",
	"flap", "isolate-leader", "clog", "swizzle", "reset", "drop-type", "storm", "pause", "slow-disk", "wall", "transfer", "campaign", "stop",
	"disk-fault", "", "old-frames", "conf", "suspend"}

func (o *fileV1) file() File {
	f := File{Tier: "t1", Version: fileVersion, Oracle: o.Oracle, Note: o.Why}
	s := &o.Schedule
	f.Schedule = Schedule{Seed: s.Seed, Profile: s.Profile, Duration: s.Duration, Params: s.Params.Params}
	for _, a := range s.Actions {
		kind := ActionKind(0) // refused by Validate
		if a.Kind > 0 && a.Kind < len(actionsV1) {
			kind, _ = parseAction(actionsV1[a.Kind])
		}
		f.Schedule.Actions = append(f.Schedule.Actions, Action{At: a.At, Kind: kind, Node: a.Node, Peer: a.Peer, Dur: a.Dur, R: a.R})
	}
	return f
}

// Validate says why a schedule cannot be run.
func (s *Schedule) Validate() error {
	p := &s.Params
	in := func(what string, v, lo, hi int) error {
		if v < lo || v > hi {
			return fmt.Errorf("%s is %d, not in %d..%d", what, v, lo, hi)
		}
		return nil
	}
	for _, err := range []error{
		in("nodes", p.Nodes, 3, maxNodes), in("replicas", p.Replicas, 1, p.Nodes), in("shards", p.Shards, 1, maxShards),
		in("groups", p.Groups, p.Shards, maxShards), in("loops", p.Loops, 1, 16), in("clients", p.Clients, 1, 1000),
		in("payload", p.Payload, 1, 1<<20), in("images", len(p.Images), 1, 100), in("actions", len(s.Actions), 0, 1_000_000),
		in("duration, in ms", int(s.Duration/time.Millisecond), 1, 3_600_000), in("support, in ms", int(p.Support/time.Millisecond), 10, 60_000),
		in("beat, in us", int(p.Beat/time.Microsecond), 1000, int(p.Support/time.Microsecond)/2),
	} {
		if err != nil {
			return err
		}
	}
	for _, m := range p.Images {
		if int(m) >= len(simfs.Modes) {
			return fmt.Errorf("there is no image mode %d", m)
		}
	}
	for i := range s.Actions {
		a := &s.Actions[i]
		switch {
		case a.Kind < ActOp || int(a.Kind) >= len(actionNames) || actionNames[a.Kind] == "" || a.Node < 0 || a.Peer < 0 || a.At < 0 || a.Dur < 0 || a.Dur > time.Duration(1)<<52:
			return fmt.Errorf("action %d makes no sense: %+v", i, *a)
		case i > 0 && a.At < s.Actions[i-1].At:
			return fmt.Errorf("action %d comes before the one in front of it", i)
		}
	}
	return nil
}
