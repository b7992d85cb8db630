package engine

import (
	"errors"
	"fmt"
	"testing"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// The tests of this file are named for the binding rules of the design that rest
// on the store. Each is a scenario that needs its rule: with the rule taken out
// (b0_mutants_test.go) it fails.

// A destroyed replica's data go after the record that makes it legal, and never
// what belongs to a live neighbour.
func TestB0_A1(t *testing.T) {
	b0(t, func(t *testing.T) error {
		_, _, err := crashEverywhere(destroyScript(5), simfs.Modes, 3, crashOptions)
		return errors.Join(err, intentBesideLiveGroup(t))
	}, "E-destroy-unsynced", "E-intent-all")
}

// A snapshot that overlaps another live group is refused, right before it would
// be installed.
func TestB0_A6(t *testing.T) { b0(t, overlapInstalled, "B0-A6b") }

// What a small install wrote is durable when it returns.
func TestB0_A7(t *testing.T) { b0(t, smallInstallLost, "B0-A7") }

// A small group is viewed through an iterator, not through a snapshot that holds
// up what all groups have in memory.
func TestB0_D1(t *testing.T) { b0(t, smallView, "B0-D1") }

// No table of an install spans two prefixes: it would overlap every group.
func TestB0_D3(t *testing.T) { b0(t, tablePrefixes, "B0-D3") }

// An ingest does not outlive what was written before it.
func TestB0_E2(t *testing.T) { b0(t, ingestOutlives, "E-ingest-unsynced") }

// Entries that this process did not write get plain deletions.
func TestB0_E3(t *testing.T) { b0(t, oldEntriesDeleted, "B0-E3") }

// The log is on, and a clean stop leaves everything on the disk.
func TestB0_E4(t *testing.T) { b0(t, writesInTheLog, "B0-E4") }

// A fresh store is opened again before it is used, so that damage in its first
// log is found.
func TestB0_E5(t *testing.T) { b0(t, flippedBit, "E-no-reopen") }

// b0 runs a scenario, and again without its rule.
func b0(t *testing.T, run func(*testing.T) error, without ...string) {
	t.Helper()
	if err := run(t); err != nil {
		t.Fatal(err)
	}
	for _, id := range without {
		withoutRule(t, id, run)
	}
}

func overlapInstalled(t *testing.T) error {
	e := openTest(t, NewMemFS())
	createGroup(t, e, 1)
	in := Install{Desc: testDesc(1), Applied: raft.AppliedState{Applied: 9, AppliedTerm: 5}, Hard: raft.HardState{Term: 5}}
	in.Desc.Shard = 3
	if err := e.InstallSnapshot(in); !errors.Is(err, ErrOverlap) {
		return fmt.Errorf("a snapshot over a live group: %v", err)
	}
	return nil
}

func smallInstallLost(t *testing.T) error {
	fs := simfs.New()
	o := crashOptions(fs)
	o.OnFatal = func(error) {} // when the machine crashes
	e, err := Open(o)
	must(t, err)
	in := Install{Desc: testDesc(1), Applied: raft.AppliedState{Applied: 9, AppliedTerm: 5}, Hard: raft.HardState{Term: 5},
		SmallKVs: []KV{{Key: []byte("s0001/a"), Value: []byte("x")}}}
	must(t, e.InstallSnapshot(in))
	e, err = Open(crashOptions(fs.Crash(simfs.None, 1)))
	must(t, err)
	defer e.Close()
	if st, ok, err := e.Load(1); err != nil || !ok || st.Applied.Applied != 9 {
		return fmt.Errorf("after a crash the installed group is %+v, %v (%v)", st.Applied, ok, err)
	}
	return nil
}

func smallView(t *testing.T) error {
	e := openTest(t, NewMemFS())
	d := createGroup(t, e, 1)
	b := e.NewBatch()
	b.Set(1, []byte("s0001/a"), make([]byte, 1000))
	must(t, errors.Join(b.Commit(true), b.Wait()))
	b.Close()
	v, err := e.View(&d)
	must(t, err)
	defer v.Close()
	if v.efos != nil || v.base == nil {
		return errors.New("a snapshot of the store is taken for one small group")
	}
	return nil
}

// oneKeyTable stages a table for an install of shard 1.
func oneKeyTable(t *testing.T, e *Engine) string {
	path := e.fs.PathJoin(e.StagingDir(), "in.sst")
	w, err := e.NewSSTWriter(path)
	must(t, err)
	must(t, w.Set(DataKey(1, []byte("s0001/a")), []byte("x")))
	_, err = w.Finish()
	must(t, err)
	return path
}

func ingestOutlives(t *testing.T) error {
	fs := simfs.New()
	o := crashOptions(fs)
	o.OnFatal = func(error) {} // when the machine crashes
	e, err := Open(o)
	must(t, err)
	createGroup(t, e, 2)
	must(t, e.db.Flush()) // the tables overlap no memtable: the ingest goes past the log
	b := e.NewBatch()
	b.Set(1, []byte("s0002/x"), []byte("x"))
	must(t, b.Commit(false))
	b.Close()
	must(t, e.InstallSnapshot(Install{Desc: testDesc(1), Applied: raft.AppliedState{Applied: 9, AppliedTerm: 5}, Hard: raft.HardState{Term: 5}, Data: []string{oneKeyTable(t, e)}}))
	e, err = Open(crashOptions(fs.Crash(simfs.None, 1)))
	must(t, err)
	defer e.Close()
	_, installed, err := e.Load(1)
	must(t, err)
	if _, ok, err := e.Get(1, []byte("s0002/x"), nil); err != nil || ok != installed || !installed {
		return fmt.Errorf("after a crash the install is there: %v, the write before it: %v (%v)", installed, ok, err)
	}
	return nil
}

func tablePrefixes(t *testing.T) error {
	e := openTest(t, NewMemFS())
	createGroup(t, e, 2)
	must(t, e.db.Flush())
	path := oneKeyTable(t, e)
	before := map[string]bool{}
	each := func(f func(name string, lo, hi byte)) {
		levels, err := e.db.SSTables()
		must(t, err)
		for _, l := range levels {
			for _, s := range l {
				f(s.FileNum.String(), s.Smallest.UserKey[0], s.Largest.UserKey[0])
			}
		}
	}
	each(func(name string, _, _ byte) { before[name] = true })
	must(t, e.InstallSnapshot(Install{Desc: testDesc(1), Applied: raft.AppliedState{Applied: 9, AppliedTerm: 5}, Hard: raft.HardState{Term: 5}, Data: []string{path}}))
	n := 0
	var err error
	each(func(name string, lo, hi byte) {
		if before[name] {
			return
		}
		n++
		if hi != lo {
			err = fmt.Errorf("a table of the install goes from prefix %d to %d", lo, hi)
		}
	})
	if n == 0 {
		t.Fatal("no tables were installed")
	}
	return err
}

func oldEntriesDeleted(t *testing.T) error {
	e := openTest(t, NewMemFS())
	createGroup(t, e, 1)
	moved(t, e, 1, entries(1, 3, 1))
	b := e.NewBatch()
	defer b.Close()
	b.Append(1, 3, entries(3, 4, 2))
	b.Truncate(1, 0, 2, 1)
	must(t, b.Commit(false))
	if got := kinds(b); got != "SET:record DEL:3 DEL:1 DEL:2" {
		return fmt.Errorf("entries with keys of their own: %s", got)
	}
	return nil
}

// moved writes entries as they are when they have moved out of their record, or come
// from a store of an older layout.
func moved(t *testing.T, e *Engine, s raft.ShardID, ents []raft.Entry) {
	t.Helper()
	b := e.NewBatch()
	defer b.Close()
	for _, en := range ents {
		b.set(appendLogKey(nil, s, en.Index), en.Value)
	}
	must(t, b.Commit(false))
	must(t, e.findMoved())
}

func writesInTheLog(t *testing.T) error {
	fs := simfs.New()
	e, err := Open(crashOptions(fs))
	if err != nil {
		return err
	}
	if o := e.po; o.NoSyncOnClose || o.DisableWAL {
		return fmt.Errorf("NoSyncOnClose %v, DisableWAL %v", o.NoSyncOnClose, o.DisableWAL)
	}
	b := e.NewBatch()
	b.Set(1, []byte("k"), []byte("v"))
	must(t, b.Commit(false))
	b.Close()
	must(t, e.Close())
	e, err = Open(crashOptions(fs.Crash(simfs.None, 1)))
	must(t, err)
	defer e.Close()
	if _, ok, err := e.Get(1, []byte("k"), nil); err != nil || !ok {
		return fmt.Errorf("a write from before a clean stop is there: %v (%v)", ok, err)
	}
	return nil
}
