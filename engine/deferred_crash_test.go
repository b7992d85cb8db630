package engine

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// deferredScript is what the crash tests know besides when applying is deferred.
// After a crash the applied side of a group is as it was at an earlier moment, the
// rest as after step k; applying the log between the two must give step k.
type deferredScript struct {
	cuts map[string]string // what an entry deletes besides: by shard and index
	// applied[k] are the applied sides after k steps, by shard.
	applied []map[raft.ShardID]string
	// at[k] is through which index the groups are applied after k steps.
	at []map[raft.ShardID]raft.AppliedState
}

// side prints the applied side of a group.
func side(as raft.AppliedState, sess string, data map[string]string, d raft.Descriptor) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d@%d %q replicas %v", as.Applied, as.AppliedTerm, sess, d.Replicas)
	for _, k := range keysOf(data) {
		if k >= string(d.Start) && k < string(d.End) {
			fmt.Fprintf(&b, " %s=%.12s", k, data[k])
		}
	}
	return b.String()
}

func (ds *deferredScript) note(m *model) {
	sides, at := map[raft.ShardID]string{}, map[raft.ShardID]raft.AppliedState{}
	for id, g := range m.groups {
		sides[id], at[id] = side(g.as, g.sess, m.data, g.desc), g.as
	}
	ds.applied, ds.at = append(ds.applied, sides), append(ds.at, at)
}

func newDeferredScript(seed uint64) *script {
	s := newScript(seed)
	s.def = &deferredScript{cuts: map[string]string{}}
	s.def.note(s.m)
	return s
}

// deferredOptions are crashOptions with applying deferred; few bytes fill memory.
func deferredOptions(fs FS) Options {
	o := crashOptions(fs)
	o.DeferBytes, o.DeferLogBytes, o.FlushInline = 24<<10, 1<<30, true
	return o
}

// recovered checks an opened image and returns which step it holds.
func (ds *deferredScript) recovered(s *script, sh shot, e *Engine) (int, error) {
	groups, err := e.Boot()
	if err != nil {
		return 0, err
	}
	if _, err := printStore(e, groups); err != nil { // it checks the logs
		return 0, err
	}
	data := map[string]string{}
	it, err := e.NewIter(1, nil, nil)
	if err != nil {
		return 0, err
	}
	for ok := it.First(); ok; ok = it.Next() {
		data[string(it.Key())] = string(it.Value())
	}
	if err := it.Close(); err != nil {
		return 0, err
	}
	var why []string
	for k := sh.begun; k >= sh.acked; k-- {
		m := newModel()
		m.data = maps.Clone(data)
		for id := raft.ShardID(1); id <= 4; id++ {
			if r, ok, err := e.Tombstone(id); err != nil {
				return 0, err
			} else if ok {
				m.tombs[id] = r
			}
		}
		miss := ""
		for _, g := range groups {
			id := g.Desc.Shard
			sess, _, err := e.GetGroup(id, []byte("sess"))
			if err != nil {
				return 0, err
			}
			was := side(g.Applied, string(sess), data, g.Desc)
			known := false
			for j := k; j >= 0 && !known; j-- {
				known = ds.applied[j][id] == was
			}
			if !known {
				miss = fmt.Sprintf("group %d is applied as it never was up to then: %s", id, was)
				break
			}
			mg := &modelGroup{desc: g.Desc, hard: g.Hard, as: g.Applied, sess: string(sess)}
			if g.Last > g.Applied.TruncIndex {
				if mg.log, err = e.Entries(nil, id, g.Applied.TruncIndex+1, g.Last, 0); err != nil {
					return 0, err
				}
			}
			to := ds.at[k][id].Applied
			if to < g.Applied.Applied || to > g.Last {
				miss = fmt.Sprintf("group %d came back applied through %d, its log ends at %d, after step %d it was applied through %d", id, g.Applied.Applied, g.Last, k, to)
				break
			}
			for i := g.Applied.Applied + 1; i <= to; i++ {
				en := mg.at(i)
				m.data[userKey(id, i)] = body(en)
				if cut := ds.cuts[fmt.Sprint(id, i)]; cut != "" {
					for _, key := range keysOf(m.data) {
						if key >= string(g.Desc.Start) && key < cut {
							delete(m.data, key)
						}
					}
				}
				mg.as.Applied, mg.as.AppliedTerm, mg.sess = i, en.Term, fmt.Sprint(i)
			}
			m.groups[id] = mg
		}
		if miss == "" {
			if m.String() == s.prints[k] {
				return k, nil
			}
			miss = fmt.Sprintf("with its log applied:\n%s\nit was:\n%s", m.String(), s.prints[k])
		}
		why = append(why, fmt.Sprintf("step %d: %s", k, miss))
	}
	return 0, fmt.Errorf("recovered none of the steps: %.4000s", strings.Join(why, "\n"))
}

// flushDeferred brings what is in memory into tables, so that logs may be cut.
func (s *script) flushDeferred() {
	for _, g := range s.m.groups {
		g.flushed = g.as.Applied
	}
	s.add("flush what was applied", true, (*Engine).flushAll)
}

// describe changes the descriptor of a group, with it a batch that applies.
func (s *script) describe(shard raft.ShardID, sync bool) {
	g := s.m.groups[shard]
	apply := s.applyOp(shard, 3)
	g.desc = g.desc.Clone()
	g.desc.ConfVer++
	g.desc.NextReplica++
	g.desc.Replicas = append(g.desc.Replicas, raft.Replica{Node: raft.NodeID(10 + g.desc.ConfVer), ID: g.desc.NextReplica - 1, Role: raft.Learner})
	if len(g.desc.Replicas) > 5 {
		g.desc.Replicas = append(g.desc.Replicas[:1:1], g.desc.Replicas[2:]...)
	}
	g.flushed = g.as.Applied
	d, as := g.desc.Clone(), g.as
	s.batch("descriptor", sync, []func(*Batch){apply, func(b *Batch) {
		b.SetDescriptor(&d)
		b.SetApplied(shard, as)
	}})
}

func deferredRounds(seed uint64, n int) *script {
	s := newDeferredScript(seed)
	for shard := raft.ShardID(1); shard <= 3; shard++ {
		s.create(shard)
	}
	for len(s.steps) < n {
		s.round()
		switch s.rng.IntN(10) {
		case 0, 1:
			s.flushDeferred()
		case 2:
			s.describe(raft.ShardID(1+s.rng.IntN(3)), s.rng.IntN(2) == 0)
		case 3:
			s.add("disk gate", true, (*Engine).SyncNow)
		}
	}
	return s
}

func deferredInstalls(seed uint64) *script {
	s := newDeferredScript(seed)
	s.create(1)
	s.create(2)
	for i := range 6 {
		shard := raft.ShardID(1 + i%3)
		s.round()
		if i%2 == 0 {
			s.flushDeferred()
			s.flush()
			s.round(shard)
			s.round(shard)
		}
		s.install(shard, i%2 == 0)
		s.round()
		s.add("disk gate", true, (*Engine).SyncNow)
	}
	return s
}

func deferredDestroys(seed uint64) *script {
	s := newDeferredScript(seed)
	for shard := raft.ShardID(1); shard <= 3; shard++ {
		s.create(shard)
	}
	for i := range 5 {
		shard := raft.ShardID(1 + i%3)
		s.round()
		if i%2 == 0 {
			s.flushDeferred()
			s.round(shard)
		}
		s.destroy(shard)
		s.round()
		if i%2 == 0 {
			s.create(shard)
		} else {
			s.install(shard, true)
		}
		s.round()
	}
	return s
}

// thinned is every nth crash, fewer of them in short runs (the race detector needs
// the code to run, not each crash).
func thinned(n int) int {
	if testing.Short() {
		return 16 * n
	}
	return n
}

func deferredEverywhere(every int, scripts ...*script) error {
	every = thinned(every)
	for _, s := range scripts {
		if _, _, err := crashEverywhere(s, simfs.Modes, every, deferredOptions); err != nil {
			return err
		}
	}
	return nil
}

// TestJ1Flush: what comes back of the applied side is of one moment of its group,
// and the log behind that moment makes it what it was.
func TestJ1Flush(t *testing.T) {
	s := deferredRounds(1, 60)
	seen, n, err := crashEverywhere(s, simfs.Modes, thinned(3), deferredOptions)
	if err != nil {
		t.Fatal(err)
	}
	if len(seen) < 20 && !testing.Short() {
		t.Errorf("only %d different steps came back", len(seen))
	}
	t.Logf("%d images, %d different steps", n, len(seen))
	withoutRule(t, "J1", func(*testing.T) error { return deferredEverywhere(2, deferredRounds(1, 60), deferredRounds(2, 60)) })
}

// TestJ2LogFirst: no applied state outlives the entries it stands on.
func TestJ2LogFirst(t *testing.T) {
	run := func(*testing.T) error { return deferredEverywhere(5, deferredRounds(3, 60), deferredRounds(4, 60)) }
	if err := run(t); err != nil {
		t.Fatal(err)
	}
	withoutRule(t, "J2", run)
}

// TestJ4Elsewhere: descriptors, snapshots and the ends of replicas take what memory
// holds of their group with them.
func TestJ4Elsewhere(t *testing.T) {
	for seed := uint64(5); seed < 7; seed++ {
		if err := deferredEverywhere(6, deferredInstalls(seed), deferredDestroys(seed)); err != nil {
			t.Fatal(err)
		}
	}
	withoutRule(t, "J4b", func(*testing.T) error { return deferredEverywhere(2, deferredInstalls(5), deferredDestroys(5)) })
}

// TestJ4UnderWay: what is taken out of memory while a flush of it is being written
// does not come back with the flush.
func TestJ4UnderWay(t *testing.T) {
	run := func(t *testing.T) error {
		e, err := Open(deferredOptions(simfs.New()))
		must(t, err)
		defer e.Close()
		s := newDeferredScript(9)
		s.create(1)
		s.create(2)
		for range 12 {
			s.round()
		}
		for _, st := range s.steps {
			must(t, st.do(e))
		}
		d := e.def
		d.mu.Lock()
		d.imm, d.mem = d.mem, newTable(e.opts.Now())
		d.mu.Unlock()
		_, paths, taken, err := e.buildTables(e.fs.PathJoin(e.StagingDir(), "under-way"))
		must(t, err)
		if len(paths) < 2 {
			t.Fatalf("%d tables", len(paths))
		}
		n := len(s.steps)
		s.destroy(1)
		must(t, s.steps[n].do(e))
		d.flushMu.Lock()
		ok, err := e.ingestTables(paths, taken)
		d.flushMu.Unlock()
		if err != nil {
			t.Fatal(err)
		} else if !ok { // written anew, without what was taken
			_, err = e.flushTable()
			must(t, err)
		}
		d.mu.Lock()
		d.imm = nil
		d.mu.Unlock()
		groups, err := loadGroups(e)
		must(t, err)
		got, err := printStore(e, groups)
		must(t, err)
		if want := s.prints[n+1]; got != want {
			return fmt.Errorf("holds:\n%s\nwant:\n%s", got, want)
		}
		return nil
	}
	if err := run(t); err != nil {
		t.Fatal(err)
	}
	withoutRule(t, "J4", run)
}
