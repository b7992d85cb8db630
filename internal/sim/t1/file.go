package t1

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
)

// fileVersion is the version of schedule files.
const fileVersion = 1

// file is a schedule with what it once showed.
type file struct {
	Version  int      `json:"version"`
	Oracle   string   `json:"oracle,omitempty"` // which check it violated
	Why      string   `json:"why,omitempty"`    // for people
	Schedule Schedule `json:"schedule"`
}

// WriteFile writes a schedule, and what it showed, to a file.
func WriteFile(path string, s *Schedule, oracle, why string) error {
	b, err := json.MarshalIndent(file{fileVersion, oracle, why, *s}, "", " ")
	if err != nil {
		return fmt.Errorf("t1: %w", err)
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// ReadFile reads a schedule and refuses one that cannot be run.
func ReadFile(path string) (s *Schedule, oracle string, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, "", err
	}
	var f file
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, "", fmt.Errorf("t1: %s: %w", path, err)
	}
	if f.Version != fileVersion {
		return nil, "", fmt.Errorf("t1: %s is of version %d, this program knows %d", path, f.Version, fileVersion)
	}
	if err := f.Schedule.Validate(); err != nil {
		return nil, "", fmt.Errorf("t1: %s: %w", path, err)
	}
	return &f.Schedule, f.Oracle, nil
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
		in("nodes", p.Nodes, 3, maxNodes), in("replicas", p.Replicas, 1, p.Nodes), in("shards", p.Shards, 1, 24),
		in("groups", p.Groups, p.Shards, 1000), in("loops", p.Loops, 1, 16), in("clients", p.Clients, 1, 1000),
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
		if a.Kind < ActOp || int(a.Kind) >= len(actionNames) || a.Node < 0 || a.Peer < 0 || a.At < 0 || a.Dur < 0 {
			return fmt.Errorf("action %d makes no sense: %+v", i, *a)
		}
	}
	return nil
}
