package t1

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/liveness"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard/kv"
	"github.com/flotillakv/flotilla/snapshot"
)

const storeDir = "store"

var clusterID = [16]byte{'t', '1'}

// node is one node: its disk, and while it is up everything that runs on it.
type node struct {
	w   *World
	idx int
	id  raft.NodeID

	disk  *simfs.FS
	gen   uint32 // lives, of the process
	up    bool
	held  bool // not part of the liveness phase
	boots int

	// Of the present life.
	clock   *nodeClock
	eng     *engine.Engine
	host    *multiraft.Host
	st      *multiraft.Stepper
	live    *liveness.Manager
	snaps   *snapshot.Store
	store   *kv.Store
	custom  multiraft.Machine
	loops   []loopState
	manAt   int64
	manTok  uint64
	diskAt  bool // a DiskStep is scheduled
	yields  uint64
	tasks   []*task
	sending int
	queue   []snapJob
	died    atomic.Pointer[error] // the engine's or host's last word
	dead    chan struct{}         // closed with it
	faulty  bool                  // the disk is to fail
	lost    bool                  // a call never came back from the failed store
	// affliction is what faulty is about.
	affliction coverage.Fault
	tether     *tether
	wreck      *engine.Engine // of a life that ended with a failed store

	// The disk, over all lives: see disk.go.
	fullUntil int64  // no file can grow until then
	stops     int    // because of the disk
	full      bool   // of the present life: some files cannot
	rotten    string // the file in which a bit has rotted; "": none
	epoch     uint64 // boot epoch of the last life

	// Answers that the host owes in this life, and one that came twice.
	waiting int
	asks    uint32
	twice   string

	// What the disk holds, as told by the rounds: see shadow.go.
	shadow shadow

	pausedUntil int64
	slowUntil   int64
	slow        time.Duration
	wallJump    int64
	rng         *rand.Rand // crash images, ids
}

// loopState is the driver's side of one loop.
type loopState struct {
	at       int64 // when the next step is scheduled; 0: not
	tok      uint64
	lastDone int64
}

// templates are the fresh stores of nodes, by id, made once per process.
var templates struct {
	sync.Mutex
	by map[raft.NodeID]*simfs.FS
}

// freshDisk returns a disk with an empty store of node id on it.
func freshDisk(id raft.NodeID) *simfs.FS {
	templates.Lock()
	defer templates.Unlock()
	if fs := templates.by[id]; fs != nil {
		return fs.Image(simfs.All, 0)
	}
	fs := simfs.New()
	e, err := engine.Open(engine.Options{
		Dir: storeDir, FS: fs, Create: true, Cluster: clusterID, Node: id, CacheBytes: 1 << 20, MemTableBytes: 256 << 10,
		OnFatal: func(error) {}, Now: func() time.Time { return time.Unix(0, epochNanos) }, Nonce: func() uint64 { return uint64(id) },
	})
	if err == nil {
		err = e.Close()
	}
	if err != nil {
		panic(fmt.Sprintf("t1: a fresh store: %v", err))
	}
	if templates.by == nil {
		templates.by = map[raft.NodeID]*simfs.FS{}
	}
	templates.by[id] = fs
	return fs.Image(simfs.All, 0)
}

func newNode(w *World, i int) *node {
	n := &node{w: w, idx: i, id: raft.NodeID(i + 1)}
	n.rng = rand.New(rand.NewPCG(w.sched.Seed, 0xd15c0+uint64(i)))
	n.disk = freshDisk(n.id)
	n.disk.Keep()
	return n
}

// tether leads from what a life of a node started to the node. It is cut when the
// life ends, so that what a failed store keeps for ever is not the whole world.
type tether struct{ n atomic.Pointer[node] }

func (t *tether) onFatal(err error) {
	if n := t.n.Load(); n != nil {
		n.onFatal(err)
	}
}

func (t *tether) onDurable() {
	if n := t.n.Load(); n != nil && n.up {
		n.settle(n.disk.Syncs())
		n.shadow.synced = n.shadow.committed // a destruction behind the batch
	}
}

func (t *tether) now() time.Time {
	if n := t.n.Load(); n != nil {
		return time.Unix(0, epochNanos+n.w.now)
	}
	return time.Unix(0, epochNanos)
}

// openEngine opens the store of the disk, once.
func (n *node) openEngine() (*engine.Engine, error) {
	if !n.w.p.Reuse {
		n.disk.NoReuse()
	}
	if n.tether != nil {
		n.tether.n.Store(nil)
	}
	t := &tether{}
	t.n.Store(n)
	n.tether = t
	return engine.Open(engine.Options{
		Dir: storeDir, FS: n.disk, Cluster: clusterID, Node: n.id, Cache: n.w.cache, MemTableBytes: n.w.p.MemTable,
		DeferBytes: n.w.p.Defer, DeferLogBytes: 4 * n.w.p.Defer, FlushInline: true,
		PointDeletes: n.w.p.PointDeletes, JournalBytes: n.w.p.Journal,
		OnFatal: t.onFatal, OnDurable: t.onDurable, Now: t.now,
		Nonce: func() uint64 { return uint64(n.id)<<32 | uint64(n.gen) },
	})
}

// open opens the store of the disk. A crash may come in the middle of it. It
// reports false if the store refused, as it may where bits have rotted.
func (n *node) open() bool {
	w := n.w
	for try := 0; ; try++ {
		e, err := n.openEngine()
		if err != nil && n.rotten != "" {
			n.refused(err)
			return false
		}
		if err != nil {
			w.fail("F1", "node %d does not open its store after a crash: %v", n.id, err)
		}
		n.eng = e
		if n.boots == 0 || w.calm || try >= 2 || n.rng.Float64() >= w.p.Recovery {
			return true
		}
		// A second crash, somewhere in the recovery.
		// The boot epoch is what an opening writes that others hear of: how many
		// syncs of Pebble's there were must not decide whether it is there.
		epoch := n.disk.LastSync(simfs.ClassIdent)
		k, mode := n.disk.Syncs(), n.mode()
		switch frac := n.rng.Float64(); n.rng.IntN(3) {
		case 0: // somewhere in the recovery
			k, mode = int(frac*float64(epoch)), simfs.None
		case 1: // while it is written
			k = epoch - 1
		}
		img := n.disk.ImageAt(mode, n.rng.Uint64(), max(k, 0))
		if err := e.Close(); err != nil && n.rotten == "" {
			w.fail("F1", "node %d: close: %v", n.id, err)
		}
		n.disk = img
		n.disk.Keep()
		w.res.Images++
		w.res.Recovery++
		w.cov.Hit(coverage.CrashRecovery, coverage.Restart, coverage.Absent)
		w.log(n.idx, "recrash", uint64(try), 0)
	}
}

func (n *node) mode() simfs.Mode {
	return simfs.Mode(n.w.p.Images[n.rng.IntN(len(n.w.p.Images))])
}

// boot starts the node from its disk.
func (n *node) boot() {
	w := n.w
	defer func() {
		switch r := recover().(type) {
		case nil:
		case refusal:
			n.refused(r.err)
		default:
			panic(r)
		}
	}()
	n.gen++
	n.died.Store(nil)
	n.dead, n.faulty, n.full, n.lost = make(chan struct{}), n.rotten != "", false, false
	n.affliction = coverage.Rot
	if !n.open() {
		return
	}
	states, err := n.eng.Boot()
	if n.rotten != "" && (err != nil || !n.scrub()) {
		n.refused(err)
		return
	}
	if err != nil {
		w.fail("S8", "node %d does not boot after a crash: %v", n.id, err)
	}
	if e := n.eng.BootEpoch(); e <= n.epoch {
		w.fail("S14", "node %d boots with epoch %d after one with %d", n.id, e, n.epoch)
	} else {
		n.epoch = e
	}
	n.disk.Settle(n.disk.Syncs())
	if n.boots == 0 {
		w.res.Boots++
	} else {
		w.res.Reopens++
	}
	n.boots++
	n.shadow.booted(n, n.withUntouched(states))
	n.up = true
	n.yields = 0
	n.pausedUntil, n.manAt, n.diskAt, n.sending, n.queue, n.tasks = 0, 0, false, 0, nil, nil
	n.clock = &nodeClock{w: w, origin: raft.Time(time.Hour) + raft.Time(n.rng.Int64N(int64(time.Hour))), bootAt: w.now, rate: 1 + w.p.Drift[n.idx], wall: n.wallJump}
	w.log(n.idx, "boot", n.eng.BootEpoch(), uint64(len(states)))

	support, err := n.eng.LoadSupport()
	if err != nil {
		n.bootFail("S8", "node %d: support records: %v", n.id, err)
	}
	var recs []liveness.Record
	for _, r := range support {
		recs = append(recs, liveness.Record(r))
	}
	var peers []raft.NodeID
	for i := range w.p.Nodes {
		if i != n.idx {
			peers = append(peers, raft.NodeID(i+1))
		}
	}
	n.live, err = liveness.New(liveness.Config{
		Node: n.id, BootEpoch: n.eng.BootEpoch(), Records: recs, Peers: func() []raft.NodeID { return peers },
		Timing: liveness.Timing{Interval: w.p.Beat, Duration: w.p.Support}, Yield: w.p.Yield,
		OnChange: func(node raft.NodeID) {
			n.host.LivenessChanged(node)
			w.supportChanged(n)
		},
		Gate: func(now raft.Time) bool { return n.host.Alive(now, w.p.Support/2) },
	}, (*nodeStore)(n), (*nodeNet)(n), n.clock)
	if err != nil {
		n.bootFail("panic", "node %d: liveness: %v", n.id, err)
	}
	if w.custom != nil {
		n.custom = w.opt.Custom.Machine()
	}
	n.host, err = multiraft.New(multiraft.Config{
		Node: n.id, Engine: n.eng, Net: (*nodeNet)(n), Liveness: n.live, Clock: n.clock, Machine: machine{n},
		Snapshots: (*nodeSnaps)(n), Tuning: w.p.Tuning, Loops: w.p.Loops, Seed: n.rng.Uint64(), LogBytes: w.p.LogBytes,
		DigestEvery: compareEvery(w.p.Compare), StateEvery: compareEvery(2 * w.p.Compare), OnDiverged: func(e multiraft.DivergedError) { w.stray.told(n, &e) },
		Leases: !w.p.NoLease, Nodes: func() []raft.NodeID { return peers },
		OnDestroy: func(s raft.ShardID, r raft.ReplicaID) { n.shadow.destroyed(n, s, r) },
		OnFatal:   n.tether.onFatal,
		IdleAfter: w.p.IdleAfter, Awake: w.p.Awake,
		OnSync: n.live.NoteSync, ClockOK: n.live.ClockOK,
	})
	if err != nil {
		n.bootFail("panic", "node %d: host: %v", n.id, err)
	}
	if n.st, err = n.host.Stepper(); err != nil {
		n.bootFail("panic", "node %d: %v", n.id, err)
	}
	n.st.OnRound, n.st.OnCommit = n.onRound, n.onCommit
	n.st.OnCommitted = func(int) { n.shadow.committed = true }
	n.loops = make([]loopState, n.st.Loops())
	load := make([]raft.State, 0, len(states))
	for _, s := range states {
		load = append(load, s.State)
	}
	if err := n.host.AddGroups(load); err != nil {
		n.bootFail("S8", "node %d: %v", n.id, err)
	}
	mine := w.dealtTo(n.id)
	if w.p.Untouched {
		err = n.host.AddUntouched(mine)
	} else {
		err = n.host.CreateGroups(mine) // as at every start: those that exist are left alone
	}
	if err != nil {
		n.bootFail("F1", "node %d: %v", n.id, err)
	}
	n.disk.Settle(n.disk.Syncs())
	if n.boots == 1 {
		n.shadow.created(n, mine)
	}
	for _, v := range n.host.Views() {
		if n.shadow.visible[v.Shard] == nil {
			n.bootFail("S11", "node %d: replica %d of shard %d comes back to life", n.id, v.Replica, v.Shard)
		}
	}
	n.snaps, err = snapshot.New(snapshot.Options{
		Engine: n.eng, Node: n.id, Live: func(*raft.Descriptor) []raft.Descriptor { return n.descriptors() }, Clock: n.clock, SmallBytes: w.p.SmallBytes, TableBytes: w.p.TableBytes, Inline: true, KeepBytes: keepBytes(w.p),
		NewID: func() (id snapshot.ID) {
			for i := range id {
				id[i] = byte(n.rng.Uint32())
			}
			return id
		},
	})
	if err != nil {
		n.bootFail("F1", "node %d: snapshots: %v", n.id, err)
	}
	n.store = kv.NewStore(kv.Options{Host: door{n}, Engine: n.eng, Go: n.readLater})
	for _, p := range peers {
		n.live.AddPeer(p)
	}
	w.net.booted(n)
	n.settleDown()
}

// dealt are the first descriptors of the replicas of a node.
type dealt []raft.Descriptor

func (w *World) dealtTo(node raft.NodeID) (mine dealt) {
	for _, d := range w.descriptors() {
		if _, ok := d.ReplicaOn(node); ok {
			mine = append(mine, d)
		}
	}
	return mine
}

// Each implements multiraft.Dealt.
func (d dealt) Each(f func(raft.ShardID, []raft.Replica) bool) {
	for i := range d {
		if !f(d[i].Shard, d[i].Replicas) {
			return
		}
	}
}

// find returns the descriptor of a shard, or nil. They are in order.
func (d dealt) find(s raft.ShardID) *raft.Descriptor {
	i, ok := slices.BinarySearchFunc(d, s, func(d raft.Descriptor, s raft.ShardID) int { return cmp.Compare(d.Shard, s) })
	if !ok {
		return nil
	}
	return &d[i]
}

// Descriptor implements multiraft.Dealt.
func (d dealt) Descriptor(s raft.ShardID) (raft.Descriptor, bool) {
	if desc := d.find(s); desc != nil {
		return *desc, true
	}
	return raft.Descriptor{}, false
}

// Leader implements multiraft.Dealt.
func (d dealt) Leader(s raft.ShardID) raft.NodeID {
	if desc := d.find(s); desc != nil {
		return desc.Replicas[int(s)%len(desc.Replicas)].Node
	}
	return 0
}

// withUntouched returns what a store holds, and the replicas that it holds without a record.
func (n *node) withUntouched(states []engine.GroupState) []engine.GroupState {
	if !n.w.p.Untouched {
		return states
	}
	out := slices.Clone(states)
	for _, d := range n.w.dealtTo(n.id) {
		if slices.ContainsFunc(states, func(s engine.GroupState) bool { return s.Desc.Shard == d.Shard }) {
			continue
		}
		if _, dead, err := n.eng.Tombstone(d.Shard); err != nil || dead {
			continue
		}
		out = append(out, engine.GroupState{State: raft.State{Desc: d}})
	}
	return out
}

func (n *node) descriptors() []raft.Descriptor {
	var out []raft.Descriptor
	for _, v := range n.host.Views() {
		out = append(out, v.Desc)
	}
	return out
}

// readLater carries out a read some time after it was allowed.
func (n *node) readLater(read func()) {
	n.w.on(n, n.w.now+int64(n.w.exp(n.w.p.ReadDelay)), read)
}

// syncTime draws how long a sync of the node takes.
func (n *node) syncTime() int64 {
	w := n.w
	d := w.p.SyncMin + w.exp(w.p.SyncMean)
	if n.slowUntil > w.now && !w.calm {
		w.cover(coverage.SlowDisk, n)
		d += time.Duration(w.rng.Float64() * float64(n.slow))
	}
	return int64(d)
}

// settleDown looks, after something happened on the node, at what it has to do next.
func (n *node) settleDown() {
	if !n.up {
		return
	}
	w := n.w
	if p := n.died.Load(); p != nil {
		n.failStop(*p)
		return
	}
	for i := range n.loops {
		l := &n.loops[i]
		deadline, has, busy := n.st.Next(i)
		switch {
		case busy:
			if l.at == 0 || l.at > w.now+int64(w.p.RoundDelay)*2 {
				n.stepAt(i, w.now+1+int64(w.exp(w.p.RoundDelay)))
			}
			continue
		case has:
			if at := max(n.clock.world(deadline), w.now+1); l.at == 0 || at < l.at {
				n.stepAt(i, at)
			}
		}
		n.st.Rest(i)
	}
	at := w.now + 1
	if d := n.live.Deadline(); d != 0 {
		at = max(at, n.clock.world(d))
	}
	if n.manAt == 0 || at < n.manAt {
		n.manAt = at
		n.manTok++
		tok := n.manTok
		w.on(n, at, func() {
			if tok == n.manTok {
				n.manAt = 0
				n.live.Step()
				n.stalled()
			}
		})
	}
	if !n.diskAt && n.live.DiskPending() {
		n.diskAt = true
		n.live.DiskBegin()
		w.on(n, w.now+n.syncTime(), func() {
			n.diskAt = false
			n.live.DiskStep()
		})
	}
}

// stalled counts what the node gave back because its disk stood still.
func (n *node) stalled() {
	if y := n.live.Stats().Yields; n.w.p.Yield && y != n.yields {
		n.yields = y
		n.w.res.Yields++
		n.w.log(n.idx, "yield", y, 0)
	}
}

func (n *node) stepAt(i int, at int64) {
	l := &n.loops[i]
	l.at = at
	l.tok++
	tok := l.tok
	n.w.on(n, at, func() {
		if l.tok == tok && &n.loops[i] == l {
			l.at = 0
			n.step(i)
		}
	})
}

// step runs one round of loop i. If it committed a batch, the batch is made
// durable at once, and the loop learns of it later.
func (n *node) step(i int) {
	w := n.w
	if n.faulty {
		w.cover(n.affliction, n)
	}
	n.shadow.begin()
	n.st.Step(i, n.clock.Now())
	n.checkViews(i)
	r := n.shadow.end()
	if r == nil {
		return
	}
	if n.shadow.synced {
		n.shadow.promote(n, r)
	} else {
		n.shadow.rounds = append(n.shadow.rounds, r)
	}
	if n.st.Flush(i) != nil {
		return // the node has failed
	}
	r.marker = n.disk.Syncs()
	w.res.Batches++
	w.log(n.idx, "batch", uint64(i), r.hash)
	l := &n.loops[i]
	l.lastDone = max(l.lastDone+1, w.now+n.syncTime())
	w.on(n, l.lastDone, func() {
		n.settle(r.marker)
		n.st.Complete(i)
	})
}

// settle tells that everything synced by sync k is known to be durable.
func (n *node) settle(k int) {
	n.disk.Settle(k)
	n.shadow.settle(n, k)
}

// crash stops the node at once and leaves a disk that may lack whatever nobody
// was told to be durable.
func (n *node) crash(mode simfs.Mode) {
	if !n.up {
		return
	}
	w := n.w
	w.cover(crashFaults[mode], n)
	if n.live.DiskPending() && n.rng.IntN(4) == 0 {
		n.live.DiskStep() // durable, and nobody hears of it
		if p := n.died.Load(); p != nil {
			n.failStop(*p)
			return
		}
	}
	// The crash comes after the last sync that was told, or after any later one.
	k, r := n.disk.Settled(), 0
	if m := len(n.shadow.rounds); m > 0 {
		if r = n.rng.IntN(m + 1); r > 0 {
			k = n.shadow.rounds[r-1].marker
		}
		w.res.LostSyncs += m - r
	}
	w.log(n.idx, "crash", uint64(mode), uint64(r))
	img := n.disk.ImageAt(mode, n.rng.Uint64(), k)
	w.res.Images++
	n.shadow.crashed(r, mode != simfs.None)
	n.release()
	n.swap(img)
}

// swap puts another disk in. What a failed store still has of the old one is let go.
func (n *node) swap(disk *simfs.FS) {
	if n.wreck != nil {
		n.disk.Scrap()
		n.wreck.Discard()
		n.wreck = nil
	}
	n.disk = disk
	n.disk.Keep()
}

// failStop ends a node whose disk failed: it must have a reason.
func (n *node) failStop(err error) {
	w := n.w
	w.res.FailStops++
	w.say(n.idx, "fail-stop", "%v", err)
	w.log(n.idx, "failed", 0, 0)
	if err == nil || err.Error() == "" {
		w.fail("F1", "node %d stops without a reason", n.id)
	}
	if r := n.shadow.end(); r != nil {
		// The step failed after its batch was handed over, which may have been
		// synced: a destruction behind it syncs as well.
		n.shadow.rounds = append(n.shadow.rounds, r)
	}
	n.shadow.crashed(0, true)
	img := n.disk.ImageAt(simfs.None, n.rng.Uint64(), n.disk.Settled())
	w.res.Images++
	n.release()
	n.swap(img)
	if n.stops++; n.rotten != "" && n.stops > 3 { // whoever runs it takes it out
		n.held = true
		return
	}
	w.after(50*time.Millisecond+w.exp(100*time.Millisecond), func() { n.restart() })
}

// release ends the present life: nothing of it is heard any more.
func (n *node) release() {
	if !n.up {
		return
	}
	n.up = false
	n.gen++
	n.tether.n.Store(nil)
	n.w.net.died(n)
	if n.lost { // whatever it holds is left to it
		n.tasks, n.waiting = nil, 0
		n.asks++
		n.wreck = n.eng
		n.eng, n.host, n.st, n.live, n.snaps, n.store = nil, nil, nil, nil, nil, nil
		return
	}
	for len(n.tasks) > 0 {
		n.tasks[len(n.tasks)-1].stop()
	}
	defer func() { n.asks++ }()
	failed := n.died.Load() != nil
	n.disk.SetFaults()
	n.disk.SetSpace(0)
	n.w.res.Compared += int(n.host.Stats().Compared)
	n.countSleep()
	n.host.Close()
	if n.twice != "" {
		n.w.fail("S9", "node %d answers a %s twice", n.id, n.twice)
	}
	if n.waiting != 0 && !failed {
		n.w.fail("L1", "node %d closes its host and owes %d answers", n.id, n.waiting)
	}
	n.waiting = 0
	n.snaps.Close()
	n.live.Close()
	if k := n.eng.Metrics().Misuse; k > 0 && n.rotten == "" {
		n.w.fail("S18", "node %d: %d deletions of log entries that Pebble takes for mistakes", n.id, k)
	}
	if err := n.eng.Close(); err != nil {
		if !failed && !n.faulty {
			n.w.fail("F1", "node %d: close: %v", n.id, err)
		}
		n.wreck = n.eng
	}
	n.eng, n.host, n.st, n.live, n.snaps, n.store = nil, nil, nil, nil, nil, nil
}

// countSleep counts how often replicas of this life of the node fell asleep.
func (n *node) countSleep() {
	st := n.host.Stats()
	n.w.res.Naps += int(st.Naps)
	n.w.res.Wakes += int(st.Wakes)
}

// stop is a clean stop: everything is durable afterwards.
func (n *node) stop() {
	if !n.up {
		return
	}
	w := n.w
	w.log(n.idx, "stop", 0, 0)
	w.cover(coverage.Stop, n)
	n.live.Relinquish()
	n.shadow.crashed(len(n.shadow.rounds), true)
	n.release()
	n.swap(n.disk.Image(simfs.All, 0))
}

// nodeStore is the liveness side of a node's engine.
type nodeStore node

// SaveSupport implements liveness.Store.
func (s *nodeStore) SaveSupport(recs ...liveness.Record) error {
	out := make([]engine.SupportRecord, len(recs))
	for i, r := range recs {
		out[i] = engine.SupportRecord(r)
		s.w.log(s.idx, "support", uint64(r.Node)<<1|b2u(r.Withdrawn), uint64(r.Epoch))
	}
	return s.eng.SaveSupport(out...)
}

// SyncNow implements liveness.Store.
func (s *nodeStore) SyncNow() error { return s.eng.SyncNow() }

func b2u(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// snapJob is a snapshot that a loop asked to be sent.
type snapJob struct {
	desc  raft.Descriptor
	to    raft.NodeID
	rep   raft.ReplicaID
	image []byte     // nil: the state as it is then
	kept  raft.Index // the image that is kept, if it is of this index; zero: not that
	done  func(raft.Index, raft.Term, error)
}

// nodeSnaps sends snapshots, two at a time.
type nodeSnaps node

// SendSnapshot implements multiraft.SnapshotSender.
func (s *nodeSnaps) SendSnapshot(desc raft.Descriptor, to raft.NodeID, rep raft.ReplicaID, done func(raft.Index, raft.Term, error)) {
	n := (*node)(s)
	n.queue = append(n.queue, snapJob{desc: desc, to: to, rep: rep, done: done})
	n.w.on(n, n.w.now+1, n.sendNext)
}

// Image implements multiraft.ImageSender.
func (s *nodeSnaps) Image(desc *raft.Descriptor) ([]byte, raft.Index, error) {
	return s.snaps.Image(desc)
}

// SendImage implements multiraft.ImageSender.
func (s *nodeSnaps) SendImage(image []byte, shard raft.ShardID, to raft.NodeID, rep raft.ReplicaID, done func(raft.Index, raft.Term, error)) {
	n := (*node)(s)
	n.queue = append(n.queue, snapJob{desc: raft.Descriptor{Shard: shard}, to: to, rep: rep, image: image, done: done})
	n.w.on(n, n.w.now+1, n.sendNext)
}

// KeepImage implements multiraft.ImageKeeper.
func (s *nodeSnaps) KeepImage(desc raft.Descriptor, done func(raft.Index, int64, bool, error)) {
	n := (*node)(s)
	n.w.on(n, n.w.now+1+int64(n.w.exp(n.w.p.ReadDelay)), func() {
		index, bytes, err := n.snaps.Keep(context.Background(), &desc)
		n.w.log(n.idx, "kept", uint64(desc.Shard), uint64(index)<<1|b2u(err != nil))
		done(index, bytes, errors.Is(err, snapshot.ErrBusy), err)
	})
}

// KeptImage implements multiraft.ImageKeeper.
func (s *nodeSnaps) KeptImage(shard raft.ShardID) (raft.Index, int64, bool) {
	return s.snaps.Kept(shard)
}

// DropImage implements multiraft.ImageKeeper.
func (s *nodeSnaps) DropImage(shard raft.ShardID, below raft.Index) bool {
	return s.snaps.DropKept(shard, below)
}

// SendKept implements multiraft.ImageKeeper.
func (s *nodeSnaps) SendKept(shard raft.ShardID, index raft.Index, to raft.NodeID, rep raft.ReplicaID, done func(raft.Index, raft.Term, error)) {
	n := (*node)(s)
	n.queue = append(n.queue, snapJob{desc: raft.Descriptor{Shard: shard}, to: to, rep: rep, kept: index, done: done})
	n.w.on(n, n.w.now+1, n.sendNext)
}

// keepBytes is what the images may take that a node keeps: little in some runs.
func keepBytes(p *Params) int64 {
	if p.Tuning.Cut != raft.CutLeaderImage {
		return 0
	}
	return []int64{1 << 20, 40 << 10, 1 << 20}[p.Payload%3]
}

func (n *node) sendNext() {
	if len(n.queue) == 0 || n.sending >= 2 {
		return
	}
	job := n.queue[0]
	n.queue = n.queue[1:]
	n.sending++
	gen := n.gen
	n.w.spawn(n, func(t *task) {
		open := func(_ context.Context, header []byte) (snapshot.Stream, error) {
			return n.w.net.openSnapshot(t, job.desc.Shard, job.to, header)
		}
		var index raft.Index
		var term raft.Term
		var err error
		switch {
		case job.kept != 0:
			index, term, err = n.snaps.SendKept(context.Background(), job.desc.Shard, job.kept, job.to, job.rep, open)
			if err == nil {
				n.w.res.KeptSent++
			}
		case job.image != nil:
			index, term, err = n.snaps.SendImage(context.Background(), job.image, job.to, job.rep, open)
		default:
			index, term, err = n.snaps.Send(context.Background(), &job.desc, job.to, open)
		}
		if n.gen != gen || !n.up {
			return
		}
		n.sending--
		if errors.Is(err, snapshot.ErrStale) {
			err = nil
		}
		n.w.log(n.idx, "snap-sent", uint64(job.desc.Shard)<<32|uint64(job.to), uint64(index)<<1|b2u(err != nil))
		job.done(index, term, err)
		n.w.on(n, n.w.now+1, n.sendNext)
	})
}

// receiveSnapshot is what a node does with an incoming stream.
func (n *node) receiveSnapshot(t *task, from raft.NodeID, header []byte, next func() ([]byte, error), reply func([]byte) error) error {
	staged, err := n.snaps.Handle(from, header, next, reply)
	if err != nil || staged == nil {
		return err
	}
	defer staged.Close()
	w := n.w
	var result error
	over := false
	m := &staged.Meta
	install := func(hs raft.HardState, applied raft.AppliedState, exists, keepLog bool) (raft.State, error) {
		st, err := staged.InstallOn(hs, applied, exists, keepLog)
		if err == nil {
			w.res.SnapsSent++
			w.log(n.idx, "installed", uint64(m.Shard), uint64(m.Index))
			n.shadow.installed(n, &st, keepLog)
		}
		return st, err
	}
	wake := t.waker()
	err = n.host.InstallAside(m.Shard, m.Index, m.Term, install, func(err error) {
		result, over = err, true
		w.on(n, w.now, wake)
	})
	if err != nil {
		return err
	}
	if !t.wait() || !over {
		return errStopped
	}
	if errors.Is(result, multiraft.ErrSnapshotStale) {
		result = snapshot.Verdict(fmt.Errorf("%w: %w", snapshot.ErrStale, result))
	}
	return result
}
