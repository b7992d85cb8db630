package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// journalModel is what the logs of some groups are to hold.
type journalModel struct {
	trunc map[raft.ShardID]raft.Index
	logs  map[raft.ShardID][]raft.Entry // behind trunc
}

func (m *journalModel) last(s raft.ShardID) raft.Index {
	return m.trunc[s] + raft.Index(len(m.logs[s]))
}

// TestJournalModel appends, overwrites, cuts, installs, destroys and opens again at
// random, and compares what is read with a model: entry by entry, by spans, terms,
// and as a restart loads it.
func TestJournalModel(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { must(t, journalModelRun(t, seed)) })
	}
}

// journalScript has many rounds, and groups that keep their logs for long.
func journalScript(seed uint64) *script {
	s := newScript(seed)
	for shard := raft.ShardID(1); shard <= 3; shard++ {
		s.create(shard)
	}
	for range 25 {
		s.round()
	}
	return s
}

func journalOptions(fs FS) Options {
	o := crashOptions(fs)
	o.JournalBytes = 1 << 10
	return o
}

// TestLR4Crash: entries that are moved are there once, whenever the machine stops.
func TestLR4Crash(t *testing.T) {
	seen, n, err := crashEverywhere(journalScript(6), simfs.Modes, 2, journalOptions)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d images, %d different steps", n, len(seen))
}

// TestCutsInOrder: see cutsInOrder.
func TestCutsInOrder(t *testing.T) { must(t, cutsInOrder(t)) }

// cutsInOrder: a record is not deleted on the strength of a cut that a crash can lose
// while it keeps the deletion, though two loops commit at the same time.
func cutsInOrder(t *testing.T) error {
	fs := simfs.New()
	o := crashOptions(fs)
	o.OnFatal = func(error) {} // when the machine crashes
	var e *Engine
	var image *simfs.FS
	cut := func(s raft.ShardID, to raft.Index, sync bool) error {
		b := e.NewBatch()
		defer b.Close()
		b.Truncate(s, 0, to, 1)
		b.SetApplied(s, raft.AppliedState{Applied: to, AppliedTerm: 1, TruncIndex: to, TruncTerm: 1})
		return errors.Join(b.Commit(sync), b.Wait())
	}
	o.sealed = func(b *Batch) {
		if len(b.cuts) == 0 || b.cuts[0].shard != 1 || !e.journal.gate.TryRLock() {
			return
		}
		e.journal.gate.RUnlock() // then another loop may commit now
		must(t, cut(2, 1, true))
		image = fs.Crash(simfs.None, 1)
	}
	e, err := Open(o)
	must(t, err)
	createGroup(t, e, 1)
	createGroup(t, e, 2)
	b := e.NewBatch()
	b.Append(1, 0, entries(1, 4, 1))
	b.SetApplied(1, raft.AppliedState{Applied: 4, AppliedTerm: 1})
	b.Append(2, 0, entries(1, 1, 1))
	must(t, errors.Join(b.Commit(true), b.Wait()))
	b.Close()
	must(t, cut(1, 4, false))
	if image == nil {
		must(t, cut(2, 1, true))
		image = fs.Crash(simfs.None, 1)
	}
	e, err = Open(crashOptions(image))
	if err != nil {
		return err
	}
	defer e.Close()
	_, err = e.Boot()
	return err
}

func journalModelRun(t *testing.T, seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 5))
	fs := NewMemFS()
	o := testOptions(t, fs)
	o.Node = 1
	o.MemTableBytes = 256 << 10
	o.JournalBytes = []int64{1, 4 << 10, 32 << 10, 1 << 30}[seed%4]
	e, err := Open(o)
	must(t, err)
	defer func() { must(t, e.Close()) }()
	m := journalModel{trunc: map[raft.ShardID]raft.Index{}, logs: map[raft.ShardID][]raft.Entry{}}
	const groups = 6
	replica := map[raft.ShardID]raft.ReplicaID{}
	create := func(s raft.ShardID) {
		replica[s]++
		d := testDesc(s)
		d.Replicas[0].ID = replica[s]
		b := e.NewBatch()
		defer b.Close()
		b.SetDescriptor(&d)
		b.SetApplied(s, raft.AppliedState{})
		b.SetHardState(s, raft.HardState{Term: 1})
		must(t, b.Commit(false))
		m.trunc[s], m.logs[s] = 0, nil
	}
	for s := raft.ShardID(1); s <= groups; s++ {
		create(s)
	}
	term := raft.Term(1)
	for round := range 400 {
		switch rng.IntN(40) {
		case 0:
			must(t, e.Close())
			e, err = Open(o)
			must(t, err)
			if rng.IntN(2) == 0 {
				_, err = e.Boot()
				must(t, err)
			}
		case 1:
			must(t, e.db.Flush())
		case 2: // its log begins anew behind a snapshot
			s := raft.ShardID(1 + rng.IntN(groups))
			at := m.trunc[s] + 1 + raft.Index(rng.IntN(len(m.logs[s])+3))
			d := testDesc(s)
			d.Replicas[0].ID = replica[s]
			in := Install{Desc: d, Applied: raft.AppliedState{Applied: at, AppliedTerm: term}, Hard: raft.HardState{Term: term}}
			if rng.IntN(2) == 0 {
				path := e.fs.PathJoin(e.StagingDir(), "in.sst")
				w, err := e.NewSSTWriter(path)
				must(t, err)
				must(t, w.Set(DataKey(1, []byte(userKey(s, 1))), []byte("x")))
				_, err = w.Finish()
				must(t, err)
				in.Data = []string{path}
			}
			must(t, e.InstallSnapshot(in))
			m.trunc[s], m.logs[s] = at, nil
		case 3: // another replica takes its place
			s := raft.ShardID(1 + rng.IntN(groups))
			d := testDesc(s)
			must(t, e.Destroy(s, &d, replica[s]+1))
			create(s)
		case 4: // nothing of a batch that is thrown away counts
			b := e.NewBatch()
			s := raft.ShardID(1 + rng.IntN(groups))
			b.Append(s, m.last(s), entries(m.last(s)+1, m.last(s)+3, term))
			b.Truncate(s, m.trunc[s], m.last(s), term)
			b.Close()
		default:
			b := e.NewBatch()
			for s := raft.ShardID(1); s <= groups; s++ {
				if rng.IntN(3) == 0 || s == groups && rng.IntN(20) > 0 { // the last group is slow
					continue
				}
				if n := len(m.logs[s]); n > 0 && rng.IntN(6) == 0 { // cut
					to := m.trunc[s] + 1 + raft.Index(rng.IntN(n))
					t := m.logs[s][to-m.trunc[s]-1].Term
					b.Truncate(s, m.trunc[s], to, t)
					b.SetApplied(s, raft.AppliedState{Applied: to, AppliedTerm: t, TruncIndex: to, TruncTerm: t})
					m.logs[s] = slices.Clone(m.logs[s][to-m.trunc[s]:])
					m.trunc[s] = to
				}
				last := m.last(s)
				first := last + 1
				if n := len(m.logs[s]); n > 0 && rng.IntN(8) == 0 { // overwrite
					first = last + 1 - raft.Index(1+rng.IntN(n))
					term++
				}
				ents := entries(first, first+raft.Index(rng.IntN(4)), term)
				for i := range ents {
					cmd := []raft.Command{{Body: []byte(strings.Repeat("v", rng.IntN(200)))}}
					ents[i].Value = raft.EncodeEntry(nil, ents[i].Index, term, raft.EntryNormal, raft.EntryHeader{}, cmd)
					ents[i].Type = raft.EntryNormal
				}
				b.Append(s, last, ents)
				m.logs[s] = append(m.logs[s][:first-m.trunc[s]-1:first-m.trunc[s]-1], ents...)
			}
			must(t, b.Commit(false))
			b.Close()
		}
		if round%8 == 0 { // it reads all
			if err := exactUsage(e); err != nil {
				return fmt.Errorf("round %d: %w", round, err)
			}
		}
		if e.journal.bytes.Load() > o.JournalBytes+settleStep {
			return fmt.Errorf("round %d: %d bytes in records, at most %d wanted", round, e.journal.bytes.Load(), o.JournalBytes)
		}
		if err := m.check(e, rng, groups); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
	}
	if n := e.Metrics().Misuse; n != 0 {
		return fmt.Errorf("%d suspicious deletes", n)
	}
	if o.JournalBytes <= 4<<10 && e.stats.settled.Load() == 0 {
		return errors.New("nothing was ever moved")
	}
	return nil
}

func (m *journalModel) check(e *Engine, rng *rand.Rand, groups raft.ShardID) error {
	s := 1 + raft.ShardID(rng.IntN(int(groups)))
	st, ok, err := e.Load(s)
	if err != nil || !ok || st.Last != m.last(s) {
		return fmt.Errorf("shard %d ends at %d, want %d (%v)", s, st.Last, m.last(s), err)
	}
	log := m.logs[s]
	for i, en := range log {
		if term, err := e.Term(s, en.Index); err != nil || term != en.Term {
			return fmt.Errorf("shard %d index %d: term %d, want %d (%v)", s, en.Index, term, en.Term, err)
		}
		if i > 3 {
			break
		}
	}
	if _, err := e.Term(s, m.last(s)+1); !errors.Is(err, ErrCompacted) {
		return fmt.Errorf("shard %d: an entry behind the end: %v", s, err)
	}
	if m.trunc[s] > 1 {
		if got, err := e.Entries(nil, s, m.trunc[s]-1, m.last(s), 0); !errors.Is(err, ErrCompacted) || len(got) != 0 {
			return fmt.Errorf("shard %d: %d entries from before the cut: %v", s, len(got), err)
		}
	}
	if len(log) == 0 {
		return nil
	}
	lo := rng.IntN(len(log))
	hi := lo + rng.IntN(len(log)-lo)
	got, err := e.Entries(nil, s, log[lo].Index, log[hi].Index, 0)
	if err != nil || len(got) != hi-lo+1 {
		return fmt.Errorf("shard %d: %d entries of [%d, %d]: %v", s, len(got), log[lo].Index, log[hi].Index, err)
	}
	for i := range got {
		if w := log[lo+i]; got[i].Index != w.Index || got[i].Term != w.Term || string(got[i].Value) != string(w.Value) {
			return fmt.Errorf("shard %d index %d: got %+v, want %+v", s, w.Index, got[i], w)
		}
	}
	if some, err := e.Entries(nil, s, log[lo].Index, log[hi].Index, 1); err != nil || len(some) != 1 {
		return fmt.Errorf("shard %d: %d entries of one byte: %v", s, len(some), err)
	}
	return nil
}

// TestDamagedRecord: a log record that is damaged as no checksum of a block would
// show keeps the store from being opened, with a sentence that names it.
func TestDamagedRecord(t *testing.T) {
	for name, damage := range map[string]func(b []byte) []byte{
		"a bit":         func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"first bit":     func(b []byte) []byte { b[0] ^= 128; return b },
		"checksum":      func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"short":         func(b []byte) []byte { return b[:len(b)-1] },
		"empty":         func([]byte) []byte { return nil },
		"newer version": func(b []byte) []byte { b[0] = recordVersion + 1; return b },
	} {
		t.Run(name, func(t *testing.T) {
			fs := NewMemFS()
			o := testOptions(t, fs)
			o.Node = 3
			e, err := Open(o)
			must(t, err)
			key := Key{Kind: KindRecord, Epoch: 1, Seq: 7}.Raw()
			must(t, e.setSynced(key, damage(goldenRecord())))
			must(t, e.Close())
			_, err = Open(o)
			var oe *OpenError
			if !errors.As(err, &oe) || oe.Reason != Corrupt || !errors.Is(err, raft.ErrCorrupt) {
				t.Fatalf("%v", err)
			}
			if want := `engine: cannot open store "/n1": corrupt: record 1.7 of the log: log record is damaged: raft: corrupt record`; !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), replaceN3) {
				t.Errorf("got  %v\nwant %s ... %s", err, want, replaceN3)
			}
		})
	}
	t.Run("void mark", func(t *testing.T) {
		fs := NewMemFS()
		o := testOptions(t, fs)
		o.Node = 3
		e, err := Open(o)
		must(t, err)
		createGroup(t, e, 1)
		b := e.NewBatch()
		b.Append(1, 0, entries(1, 1, 1))
		b.set(voidKey(nil, 1), []byte("x"))
		must(t, b.Commit(false))
		b.Close()
		must(t, e.Close())
		_, err = Open(o)
		var oe *OpenError
		var ge *GroupError
		if !errors.As(err, &oe) || oe.Reason != Corrupt || !errors.As(err, &ge) || ge.Shard != 1 {
			t.Fatalf("%v", err)
		}
	})
}

// TestRecordedTwice: an entry that is in a record and has a key of its own as well is
// no log that this package wrote.
func TestRecordedTwice(t *testing.T) {
	e := openTest(t, NewMemFS())
	createGroup(t, e, 1)
	b := e.NewBatch()
	b.Append(1, 0, entries(1, 3, 1))
	b.set(appendLogKey(nil, 1, 1), entry(1, 1).Value)
	must(t, b.Commit(false))
	b.Close()
	var ge *GroupError
	if _, err := e.Boot(); !errors.As(err, &ge) || ge.Shard != 1 || ge.Index != 1 || !errors.Is(err, raft.ErrCorrupt) {
		t.Fatalf("%v", err)
	}
}

// TestSlowGroup: a group whose log is never cut does not keep the entries of others:
// its own are moved, and are read as before, also after a crash.
func TestSlowGroup(t *testing.T) {
	fs := simfs.New()
	o := crashOptions(fs)
	o.JournalBytes = 16 << 10
	o.OnFatal = func(error) {} // when the machine crashes
	e, err := Open(o)
	must(t, err)
	createGroup(t, e, 1)
	createGroup(t, e, 2)
	slow := entries(1, 20, 1)
	b := e.NewBatch()
	b.Append(1, 0, slow)
	must(t, b.Commit(false))
	b.Close()
	for i := raft.Index(1); i <= 400; i++ {
		b := e.NewBatch()
		en := entry(i, 1)
		en.Value = raft.EncodeEntry(nil, i, 1, raft.EntryNormal, raft.EntryHeader{}, []raft.Command{{Body: make([]byte, 500)}})
		b.Append(2, i-1, []raft.Entry{en})
		if i > 2 {
			b.Truncate(2, i-3, i-2, 1)
			b.SetApplied(2, raft.AppliedState{Applied: i - 2, AppliedTerm: 1, TruncIndex: i - 2, TruncTerm: 1})
		}
		must(t, b.Commit(true))
		must(t, b.Wait())
		b.Close()
		if n := e.journal.bytes.Load(); n > o.JournalBytes+2<<10 {
			t.Fatalf("round %d: %d bytes in records", i, n)
		}
	}
	for range 2 {
		got, err := e.Entries(nil, 1, 1, 20, 0)
		if err != nil || len(got) != len(slow) {
			t.Fatalf("%d entries of the slow group: %v", len(got), err)
		}
		for i := range got {
			if string(got[i].Value) != string(slow[i].Value) {
				t.Fatalf("entry %d differs", i+1)
			}
		}
		e, err = Open(crashOptions(fs.Crash(simfs.None, 1)))
		must(t, err)
		defer e.Close()
	}
}

// exactUsage says what is wrong with LogUsage, which is counted, compared with the logs
// as they are read.
func exactUsage(e *Engine) error {
	u := e.LogUsage()
	n, _, err := e.CountLog()
	if err == nil && u.Records+u.Moved != n {
		err = fmt.Errorf("%+v; %d bytes of log are there", u, n)
	}
	if sum := e.LogBytes(); err == nil && sum != u.Total() {
		err = fmt.Errorf("LogBytes says %d, LogUsage %d", sum, u.Total())
	}
	var sum int64
	groups := e.GroupLogs()
	for i, g := range groups {
		sum += g.Bytes
		if i > 0 && groups[i-1].Bytes < g.Bytes {
			err = errors.Join(err, fmt.Errorf("group %d has more than the one before it", g.Shard))
		}
	}
	if err == nil && sum > u.Records+u.Moved {
		err = fmt.Errorf("the groups have %d bytes, all logs %+v", sum, u)
	}
	return err
}
