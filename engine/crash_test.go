package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// The crash tests run a script of steps over simfs. Before and after every
// sync, whoever does it, they take images of the disk in several modes, and
// note which steps were acknowledged as durable before the image and which
// were begun after it. Each image is then opened as a store, booted, and
// printed; the print must equal the model's after some step k with
// acknowledged <= k <= begun. That is the prefix rule itself; the scripts of
// the tests differ in what they put into the steps.

// model is what a store should hold, without a store.
type model struct {
	groups map[raft.ShardID]*modelGroup
	data   map[string]string
	tombs  map[raft.ShardID]raft.ReplicaID
}

type modelGroup struct {
	desc raft.Descriptor
	hard raft.HardState
	as   raft.AppliedState
	log  []raft.Entry // (TruncIndex, last]
	sess string
	// flushed is through where the log may be cut if applying is deferred.
	flushed raft.Index
}

func (g *modelGroup) last() raft.Index { return g.as.TruncIndex + raft.Index(len(g.log)) }

func (g *modelGroup) at(i raft.Index) raft.Entry { return g.log[i-g.as.TruncIndex-1] }

func newModel() *model {
	return &model{groups: map[raft.ShardID]*modelGroup{}, data: map[string]string{}, tombs: map[raft.ShardID]raft.ReplicaID{}}
}

func keysOf[K interface{ ~string | ~uint64 }, V any](m map[K]V) []K {
	out := make([]K, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// String prints everything that a store must remember.
func (m *model) String() string {
	var b strings.Builder
	for _, s := range keysOf(m.groups) {
		g := m.groups[s]
		printGroup(&b, g.desc, g.hard, g.as, g.log, g.sess)
	}
	for _, k := range keysOf(m.data) {
		fmt.Fprintf(&b, "%s=%s\n", k, short(m.data[k]))
	}
	for _, s := range keysOf(m.tombs) {
		fmt.Fprintf(&b, "tombstone %d %d\n", s, m.tombs[s])
	}
	return b.String()
}

func printGroup(b *strings.Builder, d raft.Descriptor, hs raft.HardState, as raft.AppliedState, log []raft.Entry, sess string) {
	fmt.Fprintf(b, "group %d %q-%q replicas %v\n  hard %+v\n  applied %+v\n  session %q\n  log", d.Shard, d.Start, d.End, d.Replicas, hs, as, sess)
	for _, e := range log {
		fmt.Fprintf(b, " %d@%d", e.Index, e.Term)
	}
	b.WriteString("\n")
}

// printStore prints a store in the form of the model.
func printStore(e *Engine, groups []GroupState) (string, error) {
	var b strings.Builder
	for _, g := range groups {
		var log []raft.Entry
		var err error
		if g.Last > g.Applied.TruncIndex {
			if log, err = e.Entries(nil, g.Desc.Shard, g.Applied.TruncIndex+1, g.Last, 0); err != nil {
				return "", err
			}
		}
		sess, _, err := e.GetGroup(g.Desc.Shard, []byte("sess"))
		if err != nil {
			return "", err
		}
		printGroup(&b, g.Desc, g.Hard, g.Applied, log, string(sess))
		for i, en := range g.Tail {
			if want := log[int(g.Applied.Applied-g.Applied.TruncIndex)+i]; en.Index != want.Index || string(en.Value) != string(want.Value) {
				return "", fmt.Errorf("tail entry %d differs from the log", en.Index)
			}
		}
		if len(g.Tail) != int(g.Last-g.Applied.Applied) {
			return "", fmt.Errorf("tail of %d entries, log ends at %d, applied %d", len(g.Tail), g.Last, g.Applied.Applied)
		}
	}
	it, err := e.NewIter(1, nil, nil)
	if err != nil {
		return "", err
	}
	for ok := it.First(); ok; ok = it.Next() {
		fmt.Fprintf(&b, "%s=%s\n", it.Key(), short(string(it.Value())))
	}
	if err := it.Close(); err != nil {
		return "", err
	}
	for s := raft.ShardID(1); s <= 4; s++ {
		if r, ok, err := e.Tombstone(s); err != nil {
			return "", err
		} else if ok {
			fmt.Fprintf(&b, "tombstone %d %d\n", s, r)
		}
	}
	return b.String(), nil
}

// loadGroups reads the groups of a store that runs.
func loadGroups(e *Engine) (groups []GroupState, err error) {
	for s := raft.ShardID(1); s <= 4; s++ {
		st, ok, err := e.Load(s)
		if err != nil {
			return nil, err
		}
		if ok {
			groups = append(groups, GroupState{st})
		}
	}
	return groups, nil
}

// step is one act on a store. do returns when the step is complete; durable
// says that it is on disk then.
type step struct {
	name    string
	durable bool
	do      func(e *Engine) error
}

// script builds steps and, with them, the model's print after each.
type script struct {
	rng    *rand.Rand
	m      *model
	steps  []step
	prints []string        // prints[k]: after k steps
	def    *deferredScript // nil: applying is not deferred
}

func newScript(seed uint64) *script {
	s := &script{rng: rand.New(rand.NewPCG(seed, 1)), m: newModel()}
	s.prints = []string{s.m.String()}
	return s
}

func (s *script) add(name string, durable bool, do func(e *Engine) error) {
	s.steps = append(s.steps, step{name, durable, do})
	s.prints = append(s.prints, s.m.String())
	if s.def != nil {
		s.def.note(s.m)
	}
}

// batch adds one batch of ops as a step.
func (s *script) batch(name string, sync bool, ops []func(b *Batch)) {
	s.add(name, sync, func(e *Engine) error {
		b := e.NewBatch()
		defer b.Close()
		for _, op := range ops {
			op(b)
		}
		if err := b.Commit(sync); err != nil {
			return err
		}
		return b.Wait()
	})
}

func userKey(s raft.ShardID, i raft.Index) string { return fmt.Sprintf("s%04d/%06d", s, i) }

// body is the value that applying an entry writes: long enough that some tens
// of them fill a small memtable.
func body(e raft.Entry) string {
	return fmt.Sprintf("%d@%d", e.Index, e.Term) + bulk
}

// short is a value as it is printed: a body without its bulk.
func short(v string) string {
	if head, ok := strings.CutSuffix(v, bulk); ok {
		return head + "+"
	}
	return v
}

// bulk makes values so large that a few hundred fill a memtable.
var bulk = strings.Repeat("x", 300)

func (s *script) create(shard raft.ShardID) {
	g := &modelGroup{desc: testDesc(shard), hard: raft.HardState{Term: 1}}
	if r := s.m.tombs[shard]; r != 0 {
		g.desc.Replicas[0].ID = r
	}
	s.m.groups[shard] = g
	d := g.desc
	s.batch(fmt.Sprintf("create %d", shard), true, []func(*Batch){func(b *Batch) {
		b.SetDescriptor(&d)
		b.SetApplied(shard, raft.AppliedState{})
		b.SetHardState(shard, raft.HardState{Term: 1})
	}})
}

// appendOp extends the log, or overwrites its end in a new term.
func (s *script) appendOp(shard raft.ShardID, n int, overwrite bool) func(*Batch) {
	g := s.m.groups[shard]
	old, first := g.last(), g.last()+1
	if overwrite && g.last() > g.as.Applied {
		first = g.as.Applied + 1 + raft.Index(s.rng.IntN(int(g.last()-g.as.Applied)))
		g.hard.Term++
	}
	ents := entries(first, first+raft.Index(n)-1, g.hard.Term)
	g.log = append(slices.Clone(g.log[:first-g.as.TruncIndex-1]), ents...)
	hard := g.hard
	return func(b *Batch) {
		b.Append(shard, old, ents)
		b.SetHardState(shard, hard)
	}
}

// applyOp applies up to n entries.
func (s *script) applyOp(shard raft.ShardID, n int) func(*Batch) {
	g := s.m.groups[shard]
	from := g.as.Applied
	to := min(from+raft.Index(n), g.last())
	if to == from {
		return func(*Batch) {}
	}
	var ents []raft.Entry
	for i := from + 1; i <= to; i++ {
		ents = append(ents, g.at(i))
		s.m.data[userKey(shard, i)] = body(g.at(i))
	}
	// Sometimes an entry deletes what older ones wrote.
	var cut string
	if to > 10 && s.rng.IntN(4) == 0 {
		cut = userKey(shard, to-8)
		for _, k := range keysOf(s.m.data) {
			if k >= string(g.desc.Start) && k < cut {
				delete(s.m.data, k)
			}
		}
		if s.def != nil {
			s.def.cuts[fmt.Sprint(shard, to)] = cut
		}
	}
	g.as.Applied, g.as.AppliedTerm = to, g.at(to).Term
	g.sess = fmt.Sprint(to)
	as, start, sess := g.as, g.desc.Start, g.sess
	return func(b *Batch) {
		for _, e := range ents {
			b.Set(1, []byte(userKey(shard, e.Index)), []byte(body(e)))
		}
		if cut != "" {
			b.DeleteRange(1, start, []byte(cut))
		}
		b.SetGroup(shard, []byte("sess"), []byte(sess))
		b.SetApplied(shard, as)
	}
}

// truncateOp cuts the log behind what is applied.
func (s *script) truncateOp(shard raft.ShardID, keep int) func(*Batch) {
	g := s.m.groups[shard]
	from, to := g.as.TruncIndex, g.as.Applied
	if s.def != nil {
		to = min(to, g.flushed)
	}
	if int(to)-int(from) <= keep {
		return func(*Batch) {}
	}
	to -= raft.Index(keep)
	term := g.at(to).Term
	g.log = slices.Clone(g.log[to-from:])
	g.as.TruncIndex, g.as.TruncTerm = to, term
	as := g.as
	return func(b *Batch) {
		b.Truncate(shard, from, to, term)
		b.SetApplied(shard, as)
	}
}

// round adds a batch of what a loop does over some groups, never over not.
func (s *script) round(not ...raft.ShardID) {
	var ops []func(*Batch)
	for _, shard := range keysOf(s.m.groups) {
		if s.rng.IntN(3) == 0 || slices.Contains(not, shard) {
			continue
		}
		ops = append(ops, s.appendOp(shard, 1+s.rng.IntN(4), s.rng.IntN(5) == 0))
		ops = append(ops, s.applyOp(shard, s.rng.IntN(5)))
		if s.rng.IntN(4) == 0 {
			ops = append(ops, s.truncateOp(shard, s.rng.IntN(4)))
		}
	}
	s.batch(fmt.Sprintf("round %d", len(s.steps)), s.rng.IntN(3) == 0, ops)
}

// flush empties the memtable, so that what follows meets tables only.
func (s *script) flush() {
	s.add("flush", true, func(e *Engine) error { return e.db.Flush() })
}

func (s *script) destroy(shard raft.ShardID) {
	g := s.m.groups[shard]
	delete(s.m.groups, shard)
	for k := range s.m.data {
		if k >= string(g.desc.Start) && k < string(g.desc.End) {
			delete(s.m.data, k)
		}
	}
	s.m.tombs[shard] = g.desc.Replicas[0].ID + 1
	d, r := g.desc, s.m.tombs[shard]
	s.add(fmt.Sprintf("destroy %d", shard), true, func(e *Engine) error { return e.Destroy(shard, &d, r) })
}

// install replaces (or makes) a group by a snapshot that is ahead of it.
func (s *script) install(shard raft.ShardID, tables bool) {
	s.installAs(shard, tables, func(*raft.Descriptor, raft.Index) {})
}

// installAs is install of a snapshot of another span: change makes the descriptor. The
// subsumed shards have become parts of it.
func (s *script) installAs(shard raft.ShardID, tables bool, change func(d *raft.Descriptor, idx raft.Index), subsumed ...raft.ShardID) {
	for _, o := range subsumed {
		s.m.tombs[o] = s.m.groups[o].desc.Replicas[0].ID + 1
		delete(s.m.groups, o)
	}
	g := s.m.groups[shard]
	if g == nil {
		g = &modelGroup{desc: testDesc(shard), hard: raft.HardState{Term: 1}}
		g.desc.Replicas[0].ID = max(1, s.m.tombs[shard])
		s.m.groups[shard] = g
	}
	clearData := func() {
		for k := range s.m.data {
			if k >= string(g.desc.Start) && k < string(g.desc.End) {
				delete(s.m.data, k)
			}
		}
	}
	clearData()
	g.hard.Term++
	idx := g.last() + 10
	if at := g.as.Applied + 1; at < g.last() { // a leader's log took the place of the rest of this one
		idx = at
	}
	g.as = raft.AppliedState{Applied: idx, AppliedTerm: g.hard.Term, TruncIndex: idx, TruncTerm: g.hard.Term}
	g.log, g.sess, g.flushed = nil, fmt.Sprint("snap", idx), idx
	change(&g.desc, idx)
	clearData()
	var kvs []KV
	for i := idx - 3; i <= idx; i++ {
		k, v := userKey(shard, i), fmt.Sprintf("snap%d", i)
		if k < string(g.desc.Start) {
			continue
		}
		s.m.data[k] = v
		kvs = append(kvs, KV{[]byte(k), []byte(v)})
	}
	in := Install{Desc: g.desc, Applied: g.as, Hard: g.hard, State: []KV{{[]byte("sess"), []byte(g.sess)}}, Subsumed: subsumed}
	s.add(fmt.Sprintf("install %d tables=%v", shard, tables), true, func(e *Engine) error {
		in := in
		if !tables {
			in.SmallKVs = kvs
			return e.InstallSnapshot(in)
		}
		path := e.FS().PathJoin(e.StagingDir(), fmt.Sprintf("t%d-%d", shard, idx))
		w, err := e.NewSSTWriter(path)
		if err != nil {
			return err
		}
		for _, kv := range kvs {
			if err := w.Set(DataKey(1, kv.Key), kv.Value); err != nil {
				return err
			}
		}
		if _, err := w.Finish(); err != nil {
			return err
		}
		in.Data = []string{path}
		return e.InstallSnapshot(in)
	})
}

// shot is one image with what was known around it.
type shot struct {
	img          *simfs.FS
	what         string
	acked, begun int
	epoch        uint64 // highest boot epoch that was exposed before
}

// crashOptions make a store that rotates everything often.
func crashOptions(fs FS) Options {
	return Options{
		Dir: "/data/n1", FS: fs, Create: true, Node: 1, CacheBytes: 1 << 20, MemTableBytes: 256 << 10,
		JournalBytes: 8 << 10, // some entries move to keys of their own
		tune:         func(o *pebble.Options) { o.MaxManifestFileSize = 1 }, markAlways: true,
	}
}

// runScript runs the script over a fresh disk and returns the images. every
// says which syncs are crash points (1: all); the modes go round.
func runScript(s *script, modes []simfs.Mode, every int, opts func(FS) Options) ([]shot, error) {
	fs := simfs.New()
	var acked, begun, syncs atomic.Int64
	var epoch atomic.Uint64
	var mu sync.Mutex
	var shots []shot
	fs.OnSync(func(sy simfs.Sync) {
		n := syncs.Add(1)
		if n%int64(every) != 0 {
			return
		}
		for i, mode := range modes {
			a, ep := acked.Load(), epoch.Load()
			img := fs.Image(mode, uint64(n)*10+uint64(i))
			sh := shot{img, fmt.Sprintf("sync %d after=%v %s, image %s", sy.N, sy.After, sy.Op.Path, mode), int(a), int(begun.Load()), ep}
			mu.Lock()
			shots = append(shots, sh)
			mu.Unlock()
		}
	})
	o := opts(fs)
	var fatal error
	o.OnFatal = func(err error) { fatal = err }
	e, err := Open(o)
	if err != nil {
		return nil, err
	}
	epoch.Store(e.BootEpoch())
	for k, st := range s.steps {
		begun.Store(int64(k + 1))
		if err := st.do(e); err != nil {
			return nil, fmt.Errorf("step %d, %s: %w", k+1, st.name, err)
		}
		if st.durable {
			acked.Store(int64(k + 1))
		}
	}
	groups, err := loadGroups(e)
	if err != nil {
		return nil, err
	}
	got, err := printStore(e, groups)
	if err != nil {
		return nil, err
	}
	if want := s.prints[len(s.prints)-1]; got != want {
		return nil, fmt.Errorf("without a crash:\n%s\nwant:\n%s", got, want)
	}
	if err := e.Close(); err != nil {
		return nil, err
	}
	acked.Store(int64(len(s.steps)))
	for _, mode := range modes {
		shots = append(shots, shot{fs.Image(mode, 1), "after close, image " + mode.String(), len(s.steps), len(s.steps), epoch.Load()})
	}
	return shots, fatal
}

// recover opens an image and returns which step it holds.
func recoverShot(s *script, sh shot, opts func(FS) Options) (k int, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("crash at %s (acked %d, begun %d): %w", sh.what, sh.acked, sh.begun, err)
		}
	}()
	o := opts(sh.img)
	var fatal error
	o.OnFatal = func(err error) { fatal = err }
	e, err := Open(o)
	if err != nil {
		return 0, err
	}
	if s.def != nil {
		defer func() {
			err = errors.Join(err, e.Close(), fatal)
		}()
		if e.BootEpoch() <= sh.epoch {
			return 0, fmt.Errorf("boot epoch %d again", e.BootEpoch())
		}
		return s.def.recovered(s, sh, e)
	}
	defer func() {
		err = errors.Join(err, e.Close(), fatal)
	}()
	if e.BootEpoch() <= sh.epoch {
		return 0, fmt.Errorf("boot epoch %d again", e.BootEpoch())
	}
	groups, err := e.Boot()
	if err != nil {
		return 0, err
	}
	got, err := printStore(e, groups)
	if err != nil {
		return 0, err
	}
	for k := sh.begun; k >= sh.acked; k-- {
		if s.prints[k] == got {
			return k, nil
		}
	}
	for k := range s.prints {
		if s.prints[k] == got {
			return 0, fmt.Errorf("recovered step %d", k)
		}
	}
	return 0, fmt.Errorf("recovered a state that never was:\n%s\nafter %d steps it was:\n%s", got, sh.begun, s.prints[sh.begun])
}

// crashEverywhere runs the script, recovers all images, and returns how often
// each step was what came back.
func crashEverywhere(s *script, modes []simfs.Mode, every int, opts func(FS) Options) (map[int]int, int, error) {
	shots, err := runScript(s, modes, every, opts)
	if err != nil {
		return nil, 0, err
	}
	seen := map[int]int{}
	for _, sh := range shots {
		k, err := recoverShot(s, sh, opts)
		if err != nil {
			return nil, 0, err
		}
		seen[k]++
	}
	return seen, len(shots), nil
}

// i1Script are rounds over three groups, most of them not synced.
func i1Script(seed uint64, n int) *script {
	s := newScript(seed)
	for shard := raft.ShardID(1); shard <= 3; shard++ {
		s.create(shard)
	}
	for len(s.steps) < n {
		s.round()
		if len(s.steps)%8 == 0 {
			s.add("disk gate", true, (*Engine).SyncNow)
		}
	}
	return s
}

// TestI1Prefix: after a crash at any sync, the store holds a prefix of the
// rounds, with every acknowledged one in it.
func TestI1Prefix(t *testing.T) {
	s := i1Script(1, 60)
	seen, n, err := crashEverywhere(s, simfs.Modes, 1, crashOptions)
	if err != nil {
		t.Fatal(err)
	}
	if len(seen) < 20 {
		t.Errorf("only %d different steps came back", len(seen))
	}
	t.Logf("%d images, %d different steps", n, len(seen))
}

// orderScript are the writes of one group whose entry i sets key i: append,
// apply and truncate come in this order in the log, mostly without sync.
func orderScript(seed uint64) *script {
	s := newScript(seed)
	s.create(1)
	for len(s.steps) < 50 {
		sync := s.rng.IntN(4) == 0
		switch s.rng.IntN(3) {
		case 0:
			s.batch("append", sync, []func(*Batch){s.appendOp(1, 1+s.rng.IntN(6), s.rng.IntN(4) == 0)})
		case 1:
			s.batch("apply", sync, []func(*Batch){s.applyOp(1, 5)})
		default:
			s.batch("truncate", sync, []func(*Batch){s.truncateOp(1, 2)})
		}
	}
	return s
}

// TestI2Order: whatever comes back of a group, its log is contiguous behind
// the truncated index, truncated <= applied <= last, and the data is exactly
// what replaying the log up to applied gives, though nothing but appends was
// ever synced for its own sake.
func TestI2Order(t *testing.T) {
	s := orderScript(2)
	shots, err := runScript(s, []simfs.Mode{simfs.None, simfs.Prefix, simfs.Torn}, 1, crashOptions)
	if err != nil {
		t.Fatal(err)
	}
	applied := map[raft.Index]bool{}
	for _, sh := range shots {
		if err := checkOrder(sh, applied); err != nil {
			t.Fatalf("crash at %s: %v", sh.what, err)
		}
	}
	if len(applied) < 5 {
		t.Errorf("only these applied indexes came back: %v", applied)
	}
}

// checkOrder opens an image and checks it by itself, without the model.
func checkOrder(sh shot, applied map[raft.Index]bool) (err error) {
	e, err := Open(crashOptions(sh.img))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	groups, err := e.Boot()
	if err != nil || len(groups) == 0 {
		return err
	}
	g := groups[0]
	if as := g.Applied; as.TruncIndex > as.Applied || as.Applied > g.Last {
		return fmt.Errorf("truncated %d, applied %d, last %d", as.TruncIndex, as.Applied, g.Last)
	}
	applied[g.Applied.Applied] = true
	it, err := e.NewIter(1, nil, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	// Deletions only cut off the beginning, so the keys are a run that ends at
	// the applied index.
	var keys []string
	for ok := it.First(); ok; ok = it.Next() {
		keys = append(keys, string(it.Key()))
	}
	for i, k := range keys {
		if want := userKey(1, g.Applied.Applied-raft.Index(len(keys)-1-i)); k != want {
			return fmt.Errorf("applied %d, but key %d of %d is %s", g.Applied.Applied, i, len(keys), k)
		}
	}
	if g.Applied.Applied > 0 && len(keys) == 0 {
		return fmt.Errorf("applied %d, no data", g.Applied.Applied)
	}
	for i := g.Applied.TruncIndex + 1; i <= g.Last; i++ {
		if _, err := e.Term(1, i); err != nil {
			return err
		}
	}
	return nil
}

// TestI3ApplyBeforeDurable: entries are applied in the batch that appends
// them, unsynced, as if a quorum had committed them elsewhere. A crash loses
// entry and effect together, never one of them; both outcomes occur.
func TestI3ApplyBeforeDurable(t *testing.T) {
	s := newScript(3)
	s.create(1)
	s.create(2)
	for i := range 30 {
		s.batch("append and apply", false, []func(*Batch){s.appendOp(1, 2, false), s.applyOp(1, 2)})
		if i%5 == 4 {
			s.batch("sync of another group", true, []func(*Batch){s.appendOp(2, 1, false)})
		}
	}
	shots, err := runScript(s, []simfs.Mode{simfs.None, simfs.All, simfs.Prefix}, 1, crashOptions)
	if err != nil {
		t.Fatal(err)
	}
	lost, kept := 0, 0
	for _, sh := range shots {
		k, err := recoverShot(s, sh, crashOptions)
		if err != nil {
			t.Fatal(err)
		}
		if k < sh.begun {
			lost++
		} else {
			kept++
		}
	}
	if lost == 0 || kept == 0 {
		t.Errorf("%d images lost something, %d kept all: both must occur", lost, kept)
	}
}

// ingestScript installs snapshots, by tables and small ones, over living
// groups, new ones and destroyed ones, between unsynced rounds of others.
func ingestScript(seed uint64) *script {
	s := newScript(seed)
	s.create(1)
	s.create(2)
	for i := range 6 {
		shard := raft.ShardID(1 + i%3)
		s.round()
		if i%2 == 0 {
			// The tables overlap no memtable, so the ingest goes past the log.
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

// TestI4Ingest: a snapshot is there as a whole or not at all, is there for
// good once InstallSnapshot returned, and brings with it every write before
// it, though the tables do not go through the log.
func TestI4Ingest(t *testing.T) {
	s := ingestScript(4)
	seen, n, err := crashEverywhere(s, simfs.Modes, 2, crashOptions)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d images, %d different steps", n, len(seen))
}

// reshapeScript installs snapshots whose span is not that of the replica they replace:
// narrower ones, since the rest became another shard, which may live here already, and
// wider ones, of which other replicas here became parts.
func reshapeScript(seed uint64) *script {
	s := newScript(seed)
	for shard := raft.ShardID(1); shard <= 4; shard++ {
		s.create(shard)
	}
	for i, tables := range []bool{true, false, true, false} {
		s.round()
		if i == 2 {
			s.flush()
		}
		shard := raft.ShardID(1 + 2*(i%2))
		if i < 2 { // one becomes a part of the other
			s.installAs(shard, tables, func(d *raft.Descriptor, _ raft.Index) {
				d.End, d.Version = testDesc(shard+1).End, d.Version+1
			}, shard+1)
		} else { // what was the other is given away again, and a part of its own
			s.installAs(shard, tables, func(d *raft.Descriptor, idx raft.Index) {
				d.Start, d.End, d.Version = []byte(userKey(shard, idx-1)), testDesc(shard).End, d.Version+1
			})
		}
		s.round()
	}
	s.install(2, true) // a newer replica where the subsumed one was
	s.round()
	return s
}

// TestReshape: a snapshot of another span is there as a whole or not at all: none of the
// data outside of it remain, none of another replica's go, and those it subsumes are gone
// for good in the same step.
func TestReshape(t *testing.T) {
	s := reshapeScript(7)
	seen, n, err := crashEverywhere(s, simfs.Modes, 2, crashOptions)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d images, %d different steps", n, len(seen))
}

// destroyScript destroys groups and makes them again as newer replicas.
func destroyScript(seed uint64) *script {
	s := newScript(seed)
	for shard := raft.ShardID(1); shard <= 3; shard++ {
		s.create(shard)
	}
	for i := range 5 {
		shard := raft.ShardID(1 + i%3)
		s.round()
		if i%2 == 0 {
			s.flush()
			s.round(shard)
		}
		s.destroy(shard)
		s.round()
		if i%2 == 0 {
			s.create(shard)
		} else {
			s.install(shard, true)
		}
	}
	return s
}

// TestI6Destroy: data vanishes only after the record that makes it legal is
// durable. After a crash the group is there with all its data, or it is gone
// with all of it and its tombstone stands.
func TestI6Destroy(t *testing.T) {
	s := destroyScript(5)
	seen, n, err := crashEverywhere(s, simfs.Modes, 2, crashOptions)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d images, %d different steps", n, len(seen))
}

// TestCrashDuringRecovery crashes again while an image is being opened.
func TestCrashDuringRecovery(t *testing.T) {
	s := destroyScript(6)
	shots, err := runScript(s, []simfs.Mode{simfs.Prefix}, 17, crashOptions)
	if err != nil {
		t.Fatal(err)
	}
	images := 0
	for _, sh := range shots {
		var mu sync.Mutex
		var second []shot
		sh.img.OnSync(func(sy simfs.Sync) {
			mu.Lock()
			defer mu.Unlock()
			again := sh
			again.img = sh.img.Image(simfs.Modes[len(second)%len(simfs.Modes)], uint64(len(second)))
			again.what = fmt.Sprintf("%s, then at %s", sh.what, sy.Op.Path)
			second = append(second, again)
		})
		if _, err := recoverShot(s, sh, crashOptions); err != nil {
			t.Fatal(err)
		}
		for i, again := range second {
			if i%3 != 0 {
				continue
			}
			images++
			if _, err := recoverShot(s, again, crashOptions); err != nil {
				t.Fatal(err)
			}
		}
	}
	if images < 50 {
		t.Errorf("only %d images", images)
	}
}

// TestManifestDirectorySync: with Pebble as it is, a power cut while the
// MANIFEST is rotated can leave the marker without the MANIFEST it names, and
// the store never opens again. With the directory sync of storeFS it always
// opens. The first half is also a test of simfs: if it finds nothing, simfs is
// broken (or Pebble was fixed, and storeFS can go).
func TestManifestDirectorySync(t *testing.T) {
	// broken crashes at every sync and returns how many images did not open, or
	// came back older than what was acknowledged.
	broken := func(seed uint64, every int, noDirSync bool) (failed, n int) {
		opts := func(fs FS) Options {
			o := crashOptions(fs)
			o.noDirSync = noDirSync
			return o
		}
		s := ingestScript(seed)
		shots, err := runScript(s, []simfs.Mode{simfs.Subset, simfs.Subset, simfs.Subset}, every, opts)
		if err != nil {
			t.Fatal(err)
		}
		for _, sh := range shots {
			if _, err := recoverShot(s, sh, opts); err != nil {
				failed++
				if !noDirSync {
					t.Error(err)
				}
			}
		}
		return failed, len(shots)
	}
	found := 0
	for seed := uint64(7); found == 0 && seed < 17; seed++ {
		failed, n := broken(seed, 1, true)
		t.Logf("without the directory sync %d of %d images are broken", failed, n)
		found += failed
	}
	if found == 0 {
		t.Error("all images are fine without the directory sync")
	}
	_, n := broken(7, 3, false)
	t.Logf("with it none of %d", n)
}
