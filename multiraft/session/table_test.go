package session

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// memStore is a Store in memory.
type memStore map[string][]byte

func (m memStore) Get(k []byte) ([]byte, bool, error) { v, ok := m[string(k)]; return v, ok, nil }
func (m memStore) Set(k, v []byte)                    { m[string(k)] = bytes.Clone(v) }
func (m memStore) Delete(k []byte)                    { delete(m, string(k)) }

func (m memStore) String() string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&b, "%x=%x\n", k, m[k])
	}
	return b.String()
}

const second = uint64(1e9)

// header names command seq of session id, with a deadline in seconds.
func header(id byte, seq, acked, deadline uint64) *raft.SessionHeader {
	return &raft.SessionHeader{ID: [16]byte{id, 15: 1}, Lineage: 7, Seq: seq, AckedTo: acked, Deadline: deadline * second}
}

// rig applies commands one entry each, as a state machine does.
type rig struct {
	Table
	m     memStore
	index raft.Index
	runs  map[string]int // how often each command was executed
}

func newRig() *rig {
	m := memStore{}
	return &rig{Table: Table{Store: m}, m: m, runs: map[string]int{}}
}

// do applies a command at a group time in seconds and returns what the client
// is told. The result of a command is its index, padded to size bytes.
func (r *rig) do(now uint64, h *raft.SessionHeader, size int) (string, error) {
	r.index++
	r.Now = max(r.Now, now*second)
	j, err := r.Judge(h)
	if err != nil {
		return "", err
	}
	switch j.Verdict {
	case Replay:
		return fmt.Sprintf("again %d cut=%v %d", j.Result.Index, j.Result.Cut, len(j.Result.Bytes)), nil
	case Settled:
		return fmt.Sprintf("settled %v", j.Executed), nil
	case Expired:
		return fmt.Sprintf("expired %v", j.Known), nil
	case Full:
		return "full", nil
	case Invalid:
		return "invalid " + j.Reason, nil
	}
	r.runs[fmt.Sprint(h.ID, h.Seq)]++
	return fmt.Sprintf("run %d", r.index), r.Record(h, Result{Lineage: 7, Index: r.index, Bytes: make([]byte, size)}, []byte{1})
}

// step is one line of a scenario: a command and what it must be told.
type step struct {
	now  uint64
	h    *raft.SessionHeader
	size int
	want string
}

func run(r *rig, steps []step) error {
	for i, s := range steps {
		got, err := r.do(s.now, s.h, s.size)
		if err != nil || got != s.want {
			return fmt.Errorf("step %d, %+v at %d: %q, %v; want %q", i+1, *s.h, s.now, got, err, s.want)
		}
	}
	return nil
}

var scenarios = []struct {
	name  string
	limit int
	steps []step
}{
	{"a retry is answered with the first result", 0, []step{
		{10, header(1, 1, 0, 60), 3, "run 1"},
		{11, header(1, 1, 0, 60), 3, "again 1 cut=false 3"},
		{12, header(2, 1, 0, 60), 0, "run 3"},
		{13, header(1, 2, 0, 60), 4, "run 4"},
		{14, header(1, 2, 0, 60), 4, "again 4 cut=false 4"},
		{15, header(1, 1, 0, 60), 3, "again 1 cut=false 3"},
	}},
	{"commands may overtake each other", 0, []step{
		{10, header(1, 3, 0, 60), 0, "run 1"},
		{10, header(1, 1, 0, 60), 0, "run 2"},
		{10, header(1, 3, 0, 60), 0, "again 1 cut=false 0"},
		{10, header(1, 2, 0, 60), 0, "run 4"},
		{10, header(1, 1, 0, 60), 0, "again 2 cut=false 0"},
	}},
	{"what is acknowledged is not run again, whether it ran or not", 0, []step{
		{10, header(1, 1, 0, 60), 0, "run 1"},
		{10, header(1, 3, 2, 60), 0, "run 2"},
		{10, header(1, 1, 0, 60), 0, "settled true"},
		{10, header(1, 2, 0, 60), 0, "settled false"},
	}},
	{"the edges of the window", 0, []step{
		{10, header(1, 1, 0, 60), 0, "run 1"},
		{10, header(1, 64, 0, 60), 0, "run 2"},
		{10, header(1, 2, 0, 60), 0, "run 3"},
		{10, header(1, 1, 0, 60), 0, "again 1 cut=false 0"},
		{10, header(1, 2, 0, 60), 0, "again 3 cut=false 0"},
		{10, header(1, 65, 1, 60), 0, "run 6"},
		{10, header(1, 1, 0, 60), 0, "settled false"},
		{10, header(1, 2, 0, 60), 0, "again 3 cut=false 0"},
		{10, header(1, 3, 0, 60), 0, "run 9"},
		{10, header(1, 64, 0, 60), 0, "again 2 cut=false 0"},
		{10, header(1, 66, 1, 60), 0, "invalid more than 64 commands are not acknowledged"},
		{10, header(1, 200, 190, 60), 0, "run 12"},
		{10, header(1, 136, 100, 60), 0, "settled false"},
		{10, header(1, 137, 100, 60), 0, "settled false"},
		{10, header(1, 191, 190, 60), 0, "run 15"},
	}},
	{"expiry is by group time, and a known answer is still given", 0, []step{
		{10, header(1, 1, 0, 60), 0, "run 1"},
		{60, header(1, 2, 0, 60), 0, "run 2"},
		{61, header(1, 1, 0, 60), 0, "again 1 cut=false 0"},
		{61, header(1, 3, 0, 60), 0, "expired true"},
		{61, header(2, 1, 0, 60), 0, "expired false"},
		{61, header(3, 1, 0, 7300), 0, "invalid the deadline is more than two hours ahead of the group's time"},
		{61, header(3, 1, 0, 7261), 0, "run 7"},
	}},
	{"a session whose record went may come back, and its old commands are not run", 2, []step{
		{10, header(1, 1, 0, 60), 0, "run 1"},
		{10, header(2, 1, 0, 200), 0, "run 2"},
		{11, header(3, 1, 0, 200), 0, "full"},
		{61, header(3, 1, 0, 200), 0, "run 4"}, // in the place of 1
		{61, header(1, 1, 0, 60), 0, "expired false"},
		{61, header(1, 2, 1, 200), 0, "full"},
		{201, header(1, 2, 0, 300), 0, "run 7"},
		{201, header(1, 1, 0, 60), 0, "expired false"}, // of before the record's birth
	}},
	{"a full table evicts nobody", 3, []step{
		{10, header(1, 1, 0, 60), 0, "run 1"},
		{10, header(2, 1, 0, 60), 0, "run 2"},
		{10, header(3, 1, 0, 60), 0, "run 3"},
		{11, header(4, 1, 0, 60), 0, "full"},
		{11, header(5, 1, 0, 60), 0, "full"},
		{12, header(1, 1, 0, 60), 0, "again 1 cut=false 0"},
		{12, header(2, 1, 0, 60), 0, "again 2 cut=false 0"},
		{12, header(3, 1, 0, 60), 0, "again 3 cut=false 0"},
	}},
	{"results too large to keep are cut", 0, []step{
		{10, header(1, 1, 0, 60), 4000, "run 1"},
		{10, header(1, 2, 0, 60), 96, "run 2"},
		{10, header(1, 3, 0, 60), 1, "run 3"},
		{10, header(1, 1, 0, 60), 0, "again 1 cut=false 4000"},
		{10, header(1, 2, 0, 60), 0, "again 2 cut=false 96"},
		{10, header(1, 3, 0, 60), 0, "again 3 cut=true 0"},
		{10, header(1, 4, 1, 60), 5000, "run 7"},
		{10, header(1, 4, 1, 60), 5000, "again 7 cut=true 1"},
	}},
	{"headers that cannot be right", 0, []step{
		{10, header(1, 0, 0, 60), 0, "invalid the sequence number is zero"},
		{10, header(1, 1, 1, 60), 0, "invalid the command itself is acknowledged already"},
		{10, header(1, 65, 0, 60), 0, "invalid more than 64 commands are not acknowledged"},
		{10, header(1, 1, 0, 0), 0, "invalid there is no deadline"},
		{10, &raft.SessionHeader{Lineage: 7, Seq: 1, Deadline: 1}, 0, "invalid the id is zero"},
		{10, &raft.SessionHeader{ID: [16]byte{1}, Seq: 1, Deadline: 1}, 0, "invalid the lineage is zero"},
	}},
}

func checkScenarios() error {
	for _, sc := range scenarios {
		r := newRig()
		r.limit = sc.limit
		if err := run(r, sc.steps); err != nil {
			return fmt.Errorf("%s: %w", sc.name, err)
		}
	}
	return nil
}

// Shows command by command what a record answers: each scenario is a run of
// commands at group times, over one table.
func TestScenarios(t *testing.T) {
	if err := checkScenarios(); err != nil {
		t.Fatal(err)
	}
}

// fate is the truth about one command of the model.
type fate struct {
	h       *raft.SessionHeader
	ran     string // what the first execution answered
	settled bool   // by the client, in a later command that was executed
}

// checkModel applies random commands and copies of old ones at random times to a
// small table, and compares each answer with the truth, which forgets nothing.
func checkModel(seed uint64) error {
	rnd := rand.New(rand.NewPCG(seed, 1))
	r := newRig()
	r.limit = 6
	type clientState struct {
		Client
		open []*fate
	}
	clients := make([]*clientState, 9)
	for i := range clients {
		clients[i] = &clientState{Client: Client{ID: [16]byte{byte(i + 1), 15: 1}}}
	}
	var all []*fate
	now := uint64(100)
	for range 3000 {
		if rnd.IntN(4) == 0 {
			now += rnd.Uint64N(20)
		}
		c := clients[rnd.IntN(len(clients))]
		var f *fate
		switch {
		case rnd.IntN(3) == 0 && len(all) > 0: // a copy of something old, or a retry
			f = all[len(all)-1-rnd.IntN(min(len(all), 300))]
		default:
			h, ok := c.Begin(7, (now+1+rnd.Uint64N(60))*second)
			if !ok {
				e := c.open[0]
				c.open = c.open[1:]
				c.End(e.h)
				continue
			}
			f = &fate{h: h}
			all = append(all, f)
			c.open = append(c.open, f)
			if rnd.IntN(3) == 0 { // lost on the way, or late
				continue
			}
		}
		got, err := r.do(now, f.h, rnd.IntN(300))
		if err != nil {
			return err
		}
		word, _, _ := strings.Cut(got, " ")
		late := now*second > f.h.Deadline
		switch word {
		case "run":
			if f.ran != "" || late || f.settled {
				return fmt.Errorf("command %+v of before (%q), late %v, settled %v: %s", *f.h, f.ran, late, f.settled, got)
			}
			f.ran = got
			for _, o := range all {
				if o.h.ID == f.h.ID && o.h.Seq <= f.h.AckedTo {
					o.settled = true
				}
			}
		case "again":
			if f.ran == "" || strings.Fields(got)[1] != strings.Fields(f.ran)[1] {
				return fmt.Errorf("command %+v was answered %q, the first time %q", *f.h, got, f.ran)
			}
		case "expired":
			if !late || got == "expired true" && f.ran != "" {
				return fmt.Errorf("command %+v at %d, which ran as %q, was answered %q", *f.h, now, f.ran, got)
			}
		case "full":
			if late || f.ran != "" {
				return fmt.Errorf("command %+v, which ran as %q, was answered %q", *f.h, f.ran, got)
			}
			if n, err := r.Live(); err != nil || n != r.limit {
				return fmt.Errorf("full with %d of %d sessions: %v", n, r.limit, err)
			}
		case "settled":
			if got == "settled true" && f.ran == "" {
				return fmt.Errorf("command %+v never ran and was answered %q", *f.h, got)
			}
			if !f.settled && f.ran == "" {
				return fmt.Errorf("command %+v, which nobody settled, was answered %q", *f.h, got)
			}
		default:
			return errors.New(got)
		}
		if got == "settled true" || word == "run" || word == "again" {
			if k := slices.Index(c.open, f); k >= 0 && rnd.IntN(2) == 0 {
				c.open = slices.Delete(c.open, k, k+1)
				c.End(f.h)
			}
		}
		if err := r.consistent(); err != nil {
			return err
		}
	}
	return nil
}

// consistent checks the table's own structure: one slot per record, none left over.
func (r *rig) consistent() error {
	live, _, err := r.head()
	if err != nil {
		return err
	}
	records, slots := map[string]bool{}, 0
	for k := range r.m {
		switch {
		case k[0] == tagSlot:
			slots++
		case len(k) > 1:
			records[k] = true
		}
	}
	for i := range live {
		key, err := r.slot(i)
		if err != nil {
			return fmt.Errorf("slot %d of %d: %w", i, live, err)
		}
		if !records[string(key)] {
			return fmt.Errorf("slot %d of %d names %x, which has no record or two slots", i, live, key)
		}
		delete(records, string(key))
	}
	if len(records) > 0 || slots != int(live) {
		return fmt.Errorf("%d records without a slot, %d slots for %d sessions", len(records), slots, live)
	}
	return nil
}

// Shows over random histories that no command runs twice, late, or after it was
// settled, and that every answer about the past is true.
func TestModel(t *testing.T) {
	for seed := range uint64(60) {
		if err := checkModel(seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// Shows that expired records make room by and by, with bounded work per command.
func TestSweep(t *testing.T) {
	r := newRig()
	for i := range uint64(1000) {
		h := &raft.SessionHeader{ID: [16]byte{1, byte(i), byte(i >> 8)}, Lineage: 7, Seq: 1, Deadline: (i + 50) * second}
		if got, err := r.do(i, h, 0); err != nil || !strings.HasPrefix(got, "run") {
			t.Fatal(got, err)
		}
	}
	n, err := r.Live()
	if err != nil || n > 120 || n < 50 {
		t.Fatalf("%d sessions left of 1000, of which 50 are not expired: %v", n, err)
	}
	if err := r.consistent(); err != nil {
		t.Fatal(err)
	}
}

// Shows that the end of a session drops its results and still recognises copies.
func TestEnd(t *testing.T) {
	r := newRig()
	for seq := uint64(1); seq <= 3; seq++ {
		if _, err := r.do(10, header(1, seq, 0, 60), 1000); err != nil {
			t.Fatal(err)
		}
	}
	h := header(1, 4, 3, 60)
	if j, err := r.Judge(h); err != nil || j.Verdict != Execute {
		t.Fatal(j, err)
	}
	if err := r.Record(End(h), Result{}, nil); err != nil {
		t.Fatal(err)
	}
	if n := len(r.m[string(r.key[:])]); n > 40 {
		t.Fatalf("the record has %d bytes after the end", n)
	}
	for seq := uint64(1); seq <= 4; seq++ {
		if got, err := r.do(11, header(1, seq, 0, 60), 0); err != nil || got != "settled true" {
			t.Fatal(got, err)
		}
	}
}

// Shows how a client counts: per shard, in order, with 64 commands open at most,
// counted from the oldest.
func TestClient(t *testing.T) {
	c := Client{ID: [16]byte{1}}
	var open []*raft.SessionHeader
	for i := range uint64(Window) {
		h, ok := c.Begin(7, 99)
		if !ok || *h != (raft.SessionHeader{ID: c.ID, Lineage: 7, Seq: i + 1, Deadline: 99}) || Check(h) != "" {
			t.Fatalf("%d: %+v, %v", i, h, ok)
		}
		open = append(open, h)
	}
	if _, ok := c.Begin(7, 99); ok {
		t.Fatal("one more than the window")
	}
	if h, ok := c.Begin(3, 99); !ok || h.Seq != 1 {
		t.Fatalf("another shard: %+v, %v", h, ok)
	}
	for _, h := range open[1:] {
		c.End(h)
	}
	if _, ok := c.Begin(7, 99); ok {
		t.Fatal("the oldest is still open")
	}
	c.End(open[0])
	c.End(open[0])
	c.End(&raft.SessionHeader{Lineage: 99})
	h, ok := c.Begin(7, 99)
	if !ok || h.Seq != Window+1 || h.AckedTo != Window {
		t.Fatalf("%+v, %v", h, ok)
	}
	if got := c.Lineages(); !slices.Equal(got, []raft.ShardID{3, 7}) {
		t.Fatal(got)
	}
}
