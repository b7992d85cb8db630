package sim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
)

// fileVersion is the version of schedule files. Version 1, which is still read,
// did not name the tier.
const fileVersion = 2

// maxFileBytes bounds a schedule file.
const maxFileBytes = 16 << 20

// File is a schedule on disk: a run that found something once, kept so that it
// is run again for ever. It is JSON; an action is one line of it.
type File struct {
	// Tier is "t0"; schedules of whole nodes (package t1) have another.
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

// ReadFile reads a schedule file. An error names the file and what is wrong
// with it.
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
	var f File
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return File{}, fmt.Errorf("not a schedule: %w", err)
	}
	switch {
	case f.Version != 1 && f.Version != fileVersion:
		return File{}, fmt.Errorf("version %d of schedules is not known, only 1 and %d", f.Version, fileVersion)
	case f.Tier != "t0" && (f.Version > 1 || f.Tier != ""):
		return File{}, fmt.Errorf("a schedule of tier %q, not of Raft cores alone", f.Tier)
	}
	f.Tier, f.Version = "t0", fileVersion
	return f, f.Schedule.Validate()
}

// Encode returns the file's content.
func (f File) Encode() []byte {
	f.Tier, f.Version = "t0", fileVersion
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

// Validate reports the first thing in s that no run could carry out.
func (s *Schedule) Validate() error {
	p := &s.Params
	switch {
	case p.Nodes < 2 || p.Nodes > maxNodes:
		return fmt.Errorf("schedule: %d nodes, 2 to %d are possible", p.Nodes, maxNodes)
	case p.Voters < 1 || p.Voters > p.Nodes:
		return fmt.Errorf("schedule: %d voters on %d nodes", p.Voters, p.Nodes)
	case s.Duration <= 0 || s.Duration > 1<<52:
		return fmt.Errorf("schedule: duration %v", s.Duration)
	case p.Payload < 1 || p.Payload > 1<<20:
		return fmt.Errorf("schedule: payload of %d bytes, 1 to %d are possible", p.Payload, 1<<20)
	case p.Support < 50*time.Millisecond || p.Support > time.Hour || p.Beat < time.Millisecond || p.Beat > p.Support/4:
		return fmt.Errorf("schedule: support for %v with a heartbeat each %v", p.Support, p.Beat)
	}
	for _, f := range p.ApplyFactor {
		if f < 0 || f > 1000 {
			return fmt.Errorf("schedule: a node that applies %d times slower", f)
		}
	}
	for _, d := range []time.Duration{p.DelayMin, p.DelayMean, p.SyncMin, p.SyncMean, p.StallMean, p.LateMean, p.SnapMean, p.RoundDelay, p.ApplyDelay} {
		if d < 0 || d > time.Minute {
			return fmt.Errorf("schedule: a delay of %v", d)
		}
	}
	for _, x := range p.Drift {
		if !(x > -0.5 && x < 0.5) {
			return errors.New("schedule: a clock that is off by half")
		}
	}
	if err := p.Tuning.WithDefaults().Validate(); err != nil {
		return fmt.Errorf("schedule: %w", err)
	}
	for i := range s.Actions {
		a := &s.Actions[i]
		switch {
		case a.Node < 0 || a.Node >= p.Nodes || a.Peer < 0 || a.Peer >= p.Nodes:
			return fmt.Errorf("schedule: action %d concerns nodes %d and %d of %d", i, a.Node+1, a.Peer+1, p.Nodes)
		case a.At < 0 || a.At > int64(s.Duration) || a.Dur < 0 || a.Dur > time.Duration(1)<<52:
			return fmt.Errorf("schedule: action %d at %d for %v", i, a.At, a.Dur)
		case i > 0 && a.At < s.Actions[i-1].At:
			return fmt.Errorf("schedule: action %d comes before the one in front of it", i)
		}
	}
	return nil
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
	on, ok := coverage.ParseOp(w.On)
	if !ok && w.On != "" {
		return fmt.Errorf("no operation %q", w.On)
	}
	for k, name := range actionNames {
		if name == w.Do && name != "" {
			*a = Action{At: int64(at), Kind: ActionKind(k), Node: w.Node - 1, Peer: w.Peer - 1, Dur: dur, R: w.R, On: on}
			return nil
		}
	}
	return fmt.Errorf("no action %q", w.Do)
}
