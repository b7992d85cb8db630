package flotilla

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/liveness"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/router"
	"github.com/flotillakv/flotilla/router/catalog"
	"github.com/flotillakv/flotilla/shard/kv"
	"github.com/flotillakv/flotilla/snapshot"
	"github.com/flotillakv/flotilla/transport"
)

// Node is one node of a cluster, embedded in this process. It implements KV for
// the whole cluster: keys of shards on other nodes are served through them.
type Node struct {
	access // KV

	o       Options
	dir     string
	log     *slog.Logger
	clock   *systemClock
	eng     *engine.Engine
	live    *liveness.Manager
	host    *multiraft.Host
	syncing atomic.Pointer[multiraft.Host] // host, for the log's writer
	store   *kv.Store
	net     netRef
	addr    member
	former  *former
	senders *senders
	router  *router.Router
	events  *events
	snaps   *snapshot.Store
	sending *snapshot.Sender
	watch   busyWatch
	cuts    cuts
	started time.Time
	disk    diskWatch
	gov     governor

	form   atomic.Pointer[formation]
	formMu sync.Mutex // one writer of the formation file at a time, once the doors are open
	book   addressBook

	ready     chan struct{}
	stop      chan struct{} // closed first at Close
	scrubbed  atomic.Int64  // bytes
	closing   sync.Once
	quiet     chan struct{} // closed when transport and loops have ended
	closed    chan struct{} // closed when Close is through
	closeErr  error
	wg        sync.WaitGroup // "reporter"
	requests  sync.WaitGroup // requests that this node's router carries out for others
	roles     chan struct{}  // capacity 1: a replica's view of its leadership changed
	reports   chan struct{}  // capacity 1: there is news
	news      news
	table     *keptCatalog
	tls       *transport.TLS // nil: none
	fatal     atomic.Pointer[error]
	collector *collector
	fresh     bool         // the cluster is being formed in this run
	alone     bool         // without peers, now and later; written by Open alone
	using     sync.RWMutex // held shared by readers of the engine that Close has to wait for
	serving   bool         // doors were opened; written by Open alone
}

var _ KV = (*Node)(nil)

// Open starts a node, or restarts the one whose directory Options.Dir is. It
// returns when the node serves, or with an error when ctx ends before; then
// nothing keeps running. A directory that is locked, damaged, of another cluster
// or node, or of a newer release is refused with *OpenError and left as it is.
func Open(ctx context.Context, o Options) (_ *Node, err error) {
	if err := o.Validate(); err != nil {
		closeListeners(&o)
		return nil, err
	}
	n := &Node{
		o: o, dir: o.Dir, log: o.logger(), clock: newSystemClock(), started: time.Now(),
		ready: make(chan struct{}), stop: make(chan struct{}), closed: make(chan struct{}), quiet: make(chan struct{}), reports: make(chan struct{}, 1), roles: make(chan struct{}, 1),
		disk: diskWatch{look: make(chan struct{}, 1)}, gov: governor{plan: planMemory(&o.Limits)},
	}
	defer func() {
		if err != nil {
			n.Close()
			closeListeners(&n.o)
		}
	}()
	if err := n.loadTLS(); err != nil {
		return nil, err
	}
	if err := n.openNet(); err != nil { // first: a port in use leaves no trace on the disk
		return nil, err
	}
	if err := n.openEngine(); err != nil {
		return nil, err
	}
	if err := n.openCluster(ctx); err != nil {
		return nil, err
	}
	if err := n.checkTLS(); err != nil {
		return nil, err
	}
	if err := n.openGroups(); err != nil {
		return nil, err
	}
	if err := n.openDoors(ctx); err != nil {
		return nil, err
	}
	if err := n.awaitReady(ctx); err != nil {
		return nil, err
	}
	if err := n.register(); err != nil {
		return nil, err
	}
	close(n.ready)
	return n, nil
}

func closeListeners(o *Options) {
	for _, l := range []net.Listener{o.PeerListener, o.ClientListener} {
		if l != nil {
			l.Close()
		}
	}
}

// openEngine opens the store of the node.
func (n *Node) openEngine() error {
	o := &n.o
	if o.InMemory {
		if o.FS == nil {
			o.FS = engine.NewMemFS()
		}
		if n.dir == "" {
			n.dir = "flotilla"
		}
	}
	if o.FS == nil {
		o.FS = engine.OSFS()
	}
	log, plan := o.Limits.log(), &n.gov.plan
	form, err := readFormation(o.FS, n.dir)
	if err != nil {
		return err
	}
	eo := engine.Options{
		Rebuild: true,
		Dir:     n.dir, Create: true, CacheBytes: plan.cache, Cache: o.Cache, Logger: n.log, OnFatal: n.onFatal,
		MemTableBytes: plan.memtable, DeferBytes: plan.deferred,
	}
	eo.SpaceLimit, eo.BallastBytes = o.Limits.Disk, o.Limits.Ballast
	eo.MinSyncInterval = func() time.Duration {
		if h := n.syncing.Load(); h != nil {
			return h.SyncInterval()
		}
		return 0
	}
	// Of the logs' budget: three memtables' worth of write-ahead log, and the same again
	// in records, are what it takes when nobody lags.
	eo.DeferLogLimit = min(256<<20, log/4)
	eo.DeferLogBytes = min(eo.MemTableBytes*5/8, eo.DeferLogLimit/2)
	eo.JournalBytes = min(4*eo.DeferLogBytes, log/4)
	if o.FS != engine.OSFS() {
		eo.FS = o.FS
	}
	if form != nil { // else the store gets its identity once a cluster has taken the node in
		eo.Node = raft.NodeID(o.NodeID)
		if o.ClusterID != "" {
			eo.Cluster, _ = parseClusterID(o.ClusterID)
		}
	}
	e, err := engine.Open(eo)
	if err != nil {
		return err
	}
	n.eng = e
	if s, _, err := e.LookAtSpace(); err == nil {
		n.disk.state.Store(uint32(s.State))
		n.disk.tight.Store(s.State >= engine.SpaceFull)
	}
	return nil
}

// alone says that the node has no peers and never will in this run.
func (o *Options) alone() bool {
	return o.Listen == "" && o.PeerListener == nil && o.Network == nil
}

// openNet opens the sockets. Until the node knows its cluster they serve
// nothing but the forming of one.
func (n *Node) openNet() error {
	o := &n.o
	n.alone = o.alone()
	n.former = newFormer(member{}, o.Bootstrap, o.ClusterID, nil)
	switch {
	case o.Network != nil:
		// An in-process network knows nodes by their ids.
		n.addr = member{Addr: pick(o.Advertise, fmt.Sprintf("n%d", o.NodeID))}
		n.addr.ClientAddr = n.addr.Addr
		n.net.set(o.Network.JoinWith(transport.Options{
			Identity: transport.Identity{Node: raft.NodeID(o.NodeID), Addr: n.addr.Addr, ClientAddr: n.addr.ClientAddr}, OnJoin: n.onJoin, Logger: n.log,
		}))
		n.former.call = o.Network.JoinCall
		return nil
	case n.alone && o.ClientListen == "" && o.ClientListener == nil:
		n.net.set(silentNet{})
		return nil
	}
	to := transport.Options{
		Listen: o.Listen, Listener: o.PeerListener, ClientListen: o.ClientListen, ClientListener: o.ClientListener,
		OnJoin: n.onJoin, Logger: n.log, Compress: o.Compress, TLS: n.tls,
		QueueBytes: n.gov.plan.queue, WindowBytes: n.gov.plan.window, ClientWindowBytes: n.gov.plan.clientWindow, RequestBytes: n.gov.plan.requests,
		OnRefused: func(node raft.NodeID, err *transport.RefusedError) {
			if err.Reason == transport.RefusedStale && !err.ByUs {
				n.oldCopy(node)
			}
		},
	}
	if to.ClientListen == "" && to.ClientListener == nil {
		host := o.Listen
		if o.PeerListener != nil {
			host = o.PeerListener.Addr().String()
		}
		h, _, err := net.SplitHostPort(host)
		if err != nil {
			return &OptionError{Field: "Listen", Value: host, Reason: "must be host:port"}
		}
		to.ClientListen = net.JoinHostPort(h, "0")
	}
	g, err := transport.NewGRPC(to)
	if err != nil {
		return err
	}
	// The transport owns the listeners from here on.
	o.PeerListener, o.ClientListener = nil, nil
	n.net.set(g)
	n.addr = member{Addr: pick(o.Advertise, g.Addr()), ClientAddr: pick(o.ClientAdvertise, g.ClientAddr())}
	n.former.call = transport.JoinCall
	if n.tls != nil {
		n.former.call = n.tls.JoinCall
	}
	return nil
}

func (n *Node) onJoin(ctx context.Context, _ string, in []byte) ([]byte, error) {
	return n.former.serve(ctx, in)
}

// dialClient makes the way to another node's client door.
func (n *Node) dialClient(node raft.NodeID, addr string) transport.Caller {
	if n.o.Network != nil {
		return n.o.Network.Caller(raft.NodeID(n.ID()), node)
	}
	cluster, _ := parseClusterID(n.Cluster())
	return transport.NewClient(addr, transport.ClientOptions{Cluster: cluster, Node: node, TLS: n.tls})
}

func pick(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// openCluster makes the node a member of a cluster: the one of its directory,
// one that it forms with others, or one that it joins.
func (n *Node) openCluster(ctx context.Context) error {
	o := &n.o
	form, err := readFormation(o.FS, n.dir)
	if err != nil {
		return err
	}
	id := n.eng.Ident()
	if form != nil && id.Cluster != [16]byte{} && form.Cluster != hex.EncodeToString(id.Cluster[:]) {
		return &OpenError{Path: n.dir, Reason: engine.Corrupt, Hint: formationHint,
			Err: fmt.Errorf("%s names cluster %s, and the store beside it is of cluster %x", formationFile, form.Cluster, id.Cluster)}
	}
	if form == nil && id.Cluster != [16]byte{} {
		return &OpenError{Path: n.dir, Reason: engine.Corrupt, Hint: formationHint,
			Err: fmt.Errorf("%s is missing, and the store beside it is of node %d of cluster %x", formationFile, id.Node, id.Cluster)}
	}
	n.addr.ID = o.NodeID
	n.fresh = form == nil
	switch {
	case form != nil:
		if o.NodeID != 0 && o.NodeID != form.Node {
			return &OpenError{Path: n.dir, Reason: engine.OtherNode, Err: fmt.Errorf("it is of node %d, not %d", form.Node, o.NodeID)}
		}
		n.addr.ID = form.Node
		n.former.setSelf(n.addr)
		n.former.set(form)
	case (n.alone || o.Bootstrap == 1) && !o.Rejoin:
		if n.addr.ID == 0 {
			n.addr.ID = 1
		}
		n.former.setSelf(n.addr)
		cluster := n.newCluster()
		if form, err = planFormation(cluster, []member{n.addr}, o); err != nil {
			return err
		}
		form.Node = n.addr.ID
		n.former.set(form)
	case o.Bootstrap > 1 && !o.Rejoin:
		if n.addr.ID == 0 {
			if n.addr.ID, err = idByAddress(n.addr.Addr, o.Join); err != nil {
				return err
			}
		}
		n.former.setSelf(n.addr)
		members, err := n.former.gather(ctx, o.Join)
		if err != nil {
			return err
		}
		if members != nil { // this node has the lowest id
			if form, err = planFormation(n.newCluster(), members, o); err != nil {
				return err
			}
			form.Node = n.addr.ID
			n.former.set(form)
		}
		form = n.former.current()
	default:
		if len(o.Join) == 0 {
			return &OptionError{Field: "Join", Value: "[]", Reason: "the directory belongs to no cluster yet: name members to join, or set Bootstrap to form one"}
		}
		n.former.setSelf(n.addr)
		if form, err = n.former.joinExisting(ctx, o.Join); err != nil {
			return err
		}
		n.addr.ID = form.Node
		n.former.setSelf(n.addr)
		n.former.set(form)
	}
	return n.settle(ctx, form)
}

func (n *Node) newCluster() [16]byte {
	if id := n.eng.Ident().Cluster; id != [16]byte{} {
		return id
	}
	if id, err := parseClusterID(n.o.ClusterID); err == nil {
		return id
	}
	return newClusterID()
}

// settle makes the formation durable here, step by step, so that a crash in
// between is resumed: file, identity, groups; then, on the lowest id, everybody else.
func (n *Node) settle(ctx context.Context, form *formation) error {
	cluster, err := parseClusterID(form.Cluster)
	if err != nil {
		return fmt.Errorf("flotilla: %s: %w", formationFile, err)
	}
	if err := writeFormation(n.o.FS, n.dir, form); err != nil {
		return err
	}
	if id := n.eng.Ident(); id.Cluster == [16]byte{} || id.Node == 0 {
		if err := n.eng.SetIdent(cluster, raft.NodeID(form.Node)); err != nil {
			return err
		}
	}
	n.form.Store(form)
	for _, m := range form.Members {
		n.book.set(m)
	}
	if n.addr.Addr != "" || n.addr.ClientAddr != "" {
		n.book.set(n.addr)
	}
	return nil
}

// openGroups loads the replicas and starts what moves them.
func (n *Node) openGroups() error {
	form := n.form.Load()
	self := raft.NodeID(form.Node)
	support := supportStore{n.eng}
	recs, err := support.load()
	if err != nil {
		return err
	}
	if t, ok := n.net.get().(*transport.GRPC); ok {
		for _, r := range recs {
			t.Remember(r.Node, uint64(r.Epoch)>>32)
		}
	}
	timing := n.o.Timing.withDefaults()
	n.events = newEvents(n.o.Observer)
	n.live, err = liveness.New(liveness.Config{
		Node: self, BootEpoch: n.eng.BootEpoch(), Records: recs, Peers: n.book.peers(self), Logger: n.log,
		Timing: liveness.Timing{Interval: timing.Heartbeat, Duration: timing.Support},
		OnChange: func(node raft.NodeID) {
			if n.host != nil {
				n.host.LivenessChanged(node)
			}
		},
		OnOldCopy: n.oldCopy,
		Score:     func() uint8 { return spaceScore(engine.SpaceState(n.disk.state.Load())) },
		Yield:     true,
		Gate:      func(now raft.Time) bool { return n.host != nil && n.host.Alive(now, timing.Support/2) },
	}, support, &n.net, n.clock)
	if err != nil {
		return err
	}
	var machine multiraft.StateMachine = kv.NewMachine()
	if n.o.machine != nil {
		machine = n.o.machine(machine)
	}
	if m := n.o.Machine; m != nil {
		machine = machines{machine, multiraft.NewExternal(m.external)}
	}
	n.host, err = multiraft.New(multiraft.Config{
		Node: self, Engine: n.eng, Net: &n.net, Liveness: n.live, Clock: n.clock, Machine: machine,
		Snapshots: snapshotEvents{n}, Tuning: n.o.tuning(), CutAge: n.o.Compaction.Age, Seed: uint64(n.clock.Wall()), ProposalBytes: n.gov.plan.proposals, ProposalWait: n.o.Limits.Wait, LogBytes: n.o.Limits.log(),
		TailBytes: n.gov.plan.tails, InboxBytes: n.gov.plan.inbox, RoundBytes: n.gov.plan.round,
		OnDescriptor: n.onDescriptor, Nodes: n.book.peers(self),
		Logger: n.log, OnRole: n.onRole, OnFatal: n.onFatal, OnSync: n.live.NoteSync, ClockOK: n.live.ClockOK,
		Leases:      !n.o.NoClock,
		DigestEvery: n.o.Timing.Compare, StateEvery: n.o.Timing.CompareState, Rebuild: true,
		OnDiverged: func(e multiraft.DivergedError) {
			v := IntegrityEvent{Shard: uint64(e.Shard), Node: uint32(e.Node), Index: uint64(e.Index), Rebuilt: e.Rebuilt}
			if !e.Rebuilt {
				v.Err = &e
			}
			n.events.integrity(v)
		},
		OnAmnesia: func(e multiraft.AmnesiaError) {
			n.events.amnesia(AmnesiaEvent{Shard: uint64(e.Shard), Node: uint32(e.Node), Err: &e})
		},
	})
	if err != nil {
		return err
	}
	n.syncing.Store(n.host)
	some := make([]raft.State, 0, createAtOnce)
	add := func() error {
		err := n.host.AddGroups(some)
		clear(some)
		some = some[:0]
		return err
	}
	err = n.eng.BootEach(func(s raft.State) error {
		if some = append(some, s); len(some) == cap(some) {
			return add()
		}
		return nil
	})
	if err == nil {
		err = add()
	}
	if err != nil {
		return err
	}
	if form.first() && !form.Created {
		if err := n.createShards(form); err != nil {
			return err
		}
	}
	if err := n.addUntouched(); err != nil {
		return err
	}
	n.eng.OnDamage(n.host.Damaged)
	// Behind the replicas: receptions that a crash interrupted are held against them.
	n.snaps, err = snapshot.New(snapshot.Options{Engine: n.eng, Node: self, Live: n.descriptorsNear, Logger: n.log, Room: n.eng.RoomForSnapshots,
		SmallBytes: smallSnapshot(n.o.Limits.Memory), MaxIn: snapshotsIn, KeepBytes: n.o.images(), Busy: n.busy, External: n.saveMachine})
	if err != nil {
		return err
	}
	n.sending = snapshot.NewSender(n.snaps, func(ctx context.Context, to raft.NodeID, header []byte) (snapshot.Stream, error) {
		return n.net.get().OpenSnapshot(ctx, to, header)
	})
	n.former.markDurable()
	return nil
}

// createAtOnce bounds the replicas that are made with one batch, or loaded together.
const createAtOnce = 4096

// createShards makes this node's replicas of the first shards, and notes that in the
// formation: from then on one that is missing was destroyed. Those of a large layout are
// noted all together, but for the first of them, which elect leaders at once.
func (n *Node) createShards(form *formation) error {
	plan, err := form.plan()
	if err != nil {
		return fmt.Errorf("flotilla: %s: %w", formationFile, err)
	}
	self := raft.NodeID(form.Node)
	batch := make([]raft.Descriptor, 0, createAtOnce)
	left := plan.Len()
	if form.Version >= dealtVersion {
		left = electAtOnce
	}
	for r := range plan.All {
		if left--; left < 0 {
			break
		}
		if _, here := r.Desc.ReplicaOn(self); here {
			batch = append(batch, r.Desc)
		}
		if len(batch) == createAtOnce {
			if err := n.host.CreateGroups(batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	if err := n.host.CreateGroups(batch); err != nil {
		return err
	}
	if form.Version >= dealtVersion {
		if err := n.eng.SetDealt(form.Layout); err != nil {
			return err
		}
	}
	f := *form
	f.Created = true
	if err := writeFormation(n.o.FS, n.dir, &f); err != nil {
		return err
	}
	n.form.Store(&f)
	n.former.set(&f)
	return nil
}

// addUntouched adds the replicas that the store holds without a record of their own.
func (n *Node) addUntouched() error {
	v, ok, err := n.eng.Dealt()
	if err != nil || !ok {
		return err
	}
	l, err := catalog.DecodeLayout(v)
	if err != nil {
		return &OpenError{Path: n.dir, Reason: engine.Corrupt, Err: fmt.Errorf("its record of how the shards were dealt: %w", err)}
	}
	return n.host.AddUntouched(dealt{&l})
}

// dealt tells package multiraft how the shards were dealt.
type dealt struct{ *catalog.Layout }

// Each implements multiraft.Dealt.
func (d dealt) Each(f func(raft.ShardID, []raft.Replica) bool) {
	for i := range d.Count {
		if !f(d.First+raft.ShardID(i), d.Members(i)) {
			return
		}
	}
}

// Descriptor implements multiraft.Dealt.
func (d dealt) Descriptor(shard raft.ShardID) (raft.Descriptor, bool) {
	i, ok := d.Index(shard)
	if !ok {
		return raft.Descriptor{}, false
	}
	return d.Range(i).Desc, true
}

// Leader implements multiraft.Dealt.
func (d dealt) Leader(shard raft.ShardID) raft.NodeID {
	i, ok := d.Index(shard)
	if !ok {
		return 0
	}
	return d.Layout.Leader(i)
}

// openDoors lets messages and requests in, and completes the formation.
func (n *Node) openDoors(ctx context.Context) error {
	form := n.form.Load()
	self := raft.NodeID(form.Node)
	cluster, _ := parseClusterID(form.Cluster)
	id := transport.Identity{Cluster: cluster, Node: self, BootEpoch: n.eng.BootEpoch(), Addr: n.addr.Addr, ClientAddr: n.addr.ClientAddr}
	id.Incarnation, id.Before = n.eng.BootNonce()
	if err := n.openRouter(self, form); err != nil {
		return err
	}
	n.store = kv.NewStore(kv.Options{Host: n.host, Engine: n.eng, Addr: n.book.clientAddr, Growth: n.growth, Machine: n.hasMachine})
	n.host.Start()
	n.live.Start()
	n.wg.Go(n.diskLoop)
	n.wg.Go(n.spaceLoop)
	n.wg.Go(n.governLoop)
	n.wg.Go(n.scrubLoop)
	n.serving = true
	switch t := n.net.get().(type) {
	case *transport.GRPC:
		t.Activate(id, door{n}, door{n})
	case *transport.Loopback:
		n.net.set(n.o.Network.JoinWith(transport.Options{Identity: id, Handler: door{n}, Requests: door{n}, OnJoin: n.onJoin, Logger: n.log}))
	}
	n.connect(self)
	n.former.setLate(n.admit)
	n.former.setMoved(n.moved)
	var plan catalog.Plan
	if form.first() {
		var err error
		if plan, err = form.plan(); err != nil {
			return fmt.Errorf("flotilla: %s: %w", formationFile, err)
		}
		if plan.Layout != nil {
			n.table.KeepLayout(plan.Layout)
		}
	}
	if lowest := len(form.Members) > 0 && form.Members[0].ID == form.Node && form.first(); lowest && !form.Written {
		// Step by step, each durable before the next; a crash in between is resumed.
		next := *form
		save := func() error {
			f := next
			f.Confirmed = slices.Clone(next.Confirmed)
			if err := writeFormation(n.o.FS, n.dir, &f); err != nil {
				return err
			}
			n.form.Store(&f)
			n.former.set(&f)
			return nil
		}
		if !form.Complete {
			err := n.former.handOut(ctx, form, func(id uint32) error {
				next.Confirmed = append(next.Confirmed, id)
				return save()
			})
			if err != nil {
				return err
			}
			next.Complete = true
			if err := save(); err != nil {
				return err
			}
		}
		n.campaign(ctx, &plan)
		if err := n.writeCatalog(ctx, form, plan); err != nil {
			return err
		}
		next.Written = true
		if err := save(); err != nil {
			return err
		}
	} else if form.first() {
		n.campaign(ctx, &plan)
	}
	if n.fresh {
		n.dealLeaders(ctx, &plan)
	}
	n.wg.Go(n.reportLoop)
	return nil
}

// connect tells the transport where everybody is.
func (n *Node) connect(self raft.NodeID) {
	for _, m := range n.book.all() {
		if raft.NodeID(m.ID) != self && m.Addr != "" {
			n.net.get().SetPeer(raft.NodeID(m.ID), m.Addr)
			n.live.AddPeer(raft.NodeID(m.ID))
		}
	}
}

// electAtOnce bounds the shards that are given their leaders while a cluster is formed.
// The others elect one when they are first used: the catalog names the node they were
// dealt to, so that is where they are asked for.
const electAtOnce = 1024

// campaign starts the elections of the shards dealt to this node. A replica
// whose shard has a leader already does nothing.
func (n *Node) campaign(ctx context.Context, plan *catalog.Plan) {
	self := raft.NodeID(n.ID())
	left := electAtOnce
	for r := range plan.All {
		if left--; left < 0 {
			return
		}
		if r.Leader == self {
			if v, ok := n.host.AwakeView(r.Desc.Shard); ok && v.Term == 0 {
				n.host.Campaign(ctx, r.Desc.Shard)
			}
		}
	}
}

// dealPatience bounds how long a new cluster settles who leads what.
const dealPatience = 3 * time.Second

// dealLeaders gives the leaderships of a cluster that was formed just now to the
// nodes they were dealt to: elections that ran while some nodes were still
// starting may have gone elsewhere. It is a matter of balance, not of safety.
func (n *Node) dealLeaders(ctx context.Context, plan *catalog.Plan) {
	self := raft.NodeID(n.ID())
	ctx, cancel := context.WithTimeout(ctx, dealPatience)
	defer cancel()
	pause := 2 * time.Millisecond
	for {
		open, left := 0, electAtOnce
		for r := range plan.All {
			if left--; left < 0 {
				break
			}
			v, ok := n.host.AwakeView(r.Desc.Shard)
			if !ok || v.Leader == r.Leader && (r.Leader != self || v.IsReady) {
				continue
			}
			open++
			if v.IsLeader && v.IsReady {
				n.host.Transfer(ctx, r.Desc.Shard, r.Leader)
			}
		}
		if open == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-n.stop:
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// awaitReady waits until every shard that has a replica here, and does not sleep, has a leader, or,
// after a restart, is known to have no quorum while others have.
func (n *Node) awaitReady(ctx context.Context) error {
	pause := time.Millisecond
	for {
		looked := time.Now()
		left, stuck, served := raft.ShardID(0), raft.ShardID(0), false
		for _, v := range n.host.AwakeViews() {
			switch {
			case v.Removed: // it waits for its end
			case v.NoQuorum != nil && !n.fresh:
				stuck = v.Shard // it waits for other nodes, which must not keep this one from serving the rest
			case v.Leader == 0 || v.IsLeader && !v.IsReady:
				left = v.Shard
			default:
				served = true
			}
		}
		if left == 0 && (served || stuck == 0) {
			return nil
		}
		left = max(left, stuck)
		if err := n.Fatal(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("flotilla: shard %d has no leader yet: %w", left, ctx.Err())
		case <-n.roles: // as often as it may cost half a processor
			time.Sleep(max(time.Millisecond, time.Since(looked)))
		case <-time.After(pause):
		}
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// Quiet is closed when the node, while it closes, has ended all that speaks to
// other nodes, and its replicas take in nothing any more; what was being written
// may still be under way. For tests that take a disk away.
func (n *Node) Quiet() <-chan struct{} { return n.quiet }

// Ready is closed once the node serves; Open returns after that.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// ID returns the node's id.
func (n *Node) ID() uint32 { return n.form.Load().Node }

// Cluster returns the cluster's id, 32 hexadecimal digits.
func (n *Node) Cluster() string { return n.form.Load().Cluster }

// Addr returns the address for clients, or "" when none are served.
func (n *Node) Addr() string { return n.addr.ClientAddr }

// PeerAddr returns the address for other nodes, or "".
func (n *Node) PeerAddr() string { return n.addr.Addr }

// Fatal returns why the node stopped itself, or nil.
func (n *Node) Fatal() error {
	if p := n.fatal.Load(); p != nil {
		return *p
	}
	return nil
}

// oldCopy stops the node when a peer remembers a later boot of it than the
// present one, or another one in its place: its store is an old copy and has forgotten votes and
// acknowledgements that others count on. Everybody else goes on without it.
func (n *Node) oldCopy(peer raft.NodeID) {
	go func() { // it writes, and its caller must not wait; the store outlives it, or refuses
		_ = n.eng.MarkAmnesiac(fmt.Errorf("node %d remembers a boot of this node of which the store, in boot %d, does not know", peer, n.eng.BootEpoch()))
	}()
}

func (n *Node) onFatal(err error) {
	if !n.fatal.CompareAndSwap(nil, &err) {
		return
	}
	n.log.Error("the node cannot go on and stops", "err", err)
	if n.o.OnFatal != nil {
		go n.o.OnFatal(err) // it may close the node, which waits for whoever found the error
	}
}

// onRole runs on a loop: it must not block.
func (n *Node) onRole(old, v multiraft.View) {
	select {
	case n.roles <- struct{}{}:
	default:
	}
	if old.Leader != v.Leader || old.Term != v.Term {
		n.events.leader(LeaderEvent{Shard: uint64(v.Shard), Term: uint64(v.Term), Leader: uint32(v.Leader), Here: v.IsLeader})
	}
	if (old.NoQuorum == nil) != (v.NoQuorum == nil) {
		e := QuorumEvent{Shard: uint64(v.Shard), Lost: v.NoQuorum != nil}
		if e.Lost {
			for _, d := range v.NoQuorum.Down {
				e.Down = append(e.Down, uint32(d))
			}
		}
		n.events.quorum(e)
	}
	if v.Leader != 0 && n.router != nil {
		n.router.Table().SetLeader(v.Desc.Keyspace, v.Desc.Start, v.Shard, v.Leader, v.Term)
	}
	if v.IsLeader && v.IsReady {
		n.report1(v.Shard)
	}
}

// Close stops the node at once and releases its directory. Requests under way
// end with ErrClosed, or ErrAmbiguous if they were handed to a shard. It is
// idempotent and leaves no goroutine.
func (n *Node) Close() error { return n.close(true) }

// Kill stops the node as a crash would, as far as a process can do that to a
// part of itself: peers are not told, nothing is handed over. For tests and demonstrations.
func (n *Node) Kill() error { return n.close(false) }

func (n *Node) close(tell bool) error {
	n.closing.Do(func() {
		close(n.stop)
		n.unregister()
		var errs []error
		if n.former != nil {
			n.former.setLate(nil)
		}
		if n.senders != nil {
			n.senders.Close()
		}
		if tell && n.serving {
			n.relinquish()
		}
		if n.router != nil {
			errs = append(errs, n.router.Close())
		}
		n.wg.Wait()
		if t := n.net.get(); t != nil {
			errs = append(errs, t.Close())
		}
		if n.sending != nil {
			n.sending.Close()
		}
		if n.host != nil {
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				n.host.Close()
			}()
			<-n.host.Stopping()
			close(n.quiet)
			<-ended
		}
		n.requests.Wait()
		if n.router != nil {
			n.router.Wait()
		}
		if n.store != nil {
			n.store.Close()
		}
		if n.snaps != nil {
			n.snaps.Close()
		}
		n.cuts.end(true)
		if n.live != nil {
			n.live.Close()
		}
		if n.events != nil {
			n.events.close()
		}
		if n.eng != nil {
			n.using.Lock()
			errs = append(errs, n.eng.Close())
			n.using.Unlock()
		}
		n.closeErr = errors.Join(errs...)
		close(n.closed)
	})
	<-n.closed
	return n.closeErr
}

// relinquish gives all promises of other nodes back, so that they need not wait
// for them to run out, and gives the message a moment to leave.
func (n *Node) relinquish() {
	before := map[raft.NodeID]uint64{}
	for _, p := range n.net.get().Stats() {
		if p.Up {
			before[p.Node] = p.CtlSent
		}
	}
	n.live.Relinquish()
	for range 50 {
		waiting := false
		for _, p := range n.net.get().Stats() {
			if sent, ok := before[p.Node]; ok && p.Up && p.CtlSent == sent {
				waiting = true
			}
		}
		if !waiting {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// Shutdown hands the node's leaderships to other nodes, as far as ctx allows,
// and closes it. The error is Close's; leaderships that could not be handed over
// are elected anew by the others.
func (n *Node) Shutdown(ctx context.Context) error {
	pause := 5 * time.Millisecond
	// A shard that comes back, because its other nodes are stopping too, is kept.
	given := map[raft.ShardID]raft.Term{}
	for ctx.Err() == nil {
		led := 0
		for _, v := range n.host.AwakeViews() { // who sleeps is elected anew when it is asked for
			if !v.IsLeader {
				continue
			}
			if term, ok := given[v.Shard]; ok && term != v.Term {
				continue
			}
			given[v.Shard] = v.Term
			to := n.successor(&v)
			if to == 0 {
				continue
			}
			led++
			n.host.Transfer(ctx, v.Shard, to)
		}
		if led == 0 {
			break
		}
		select {
		case <-ctx.Done():
		case <-n.stop:
			return n.Close()
		case <-time.After(pause):
		}
		pause = min(2*pause, 200*time.Millisecond)
	}
	return n.Close()
}

// successor picks the next voter after this node that can be heard.
func (n *Node) successor(v *multiraft.View) raft.NodeID { return n.successorBut(v, nil) }

// successorBut is successor, but for some nodes.
func (n *Node) successorBut(v *multiraft.View, but []raft.NodeID) raft.NodeID {
	self := raft.NodeID(n.ID())
	reps := v.Desc.Replicas
	i := slices.IndexFunc(reps, func(r raft.Replica) bool { return r.Node == self })
	for k := 1; k < len(reps); k++ {
		r := reps[(i+k)%len(reps)]
		if r.Role != raft.Voter || slices.Contains(but, r.Node) {
			continue
		}
		if _, live := n.live.SupportFor(r.Node); live {
			return r.Node
		}
	}
	return 0
}

// moved takes in where a member says it is.
func (n *Node) moved(m member) {
	if !n.book.update(m) {
		return
	}
	n.log.Info("a node has another address", "node", m.ID, "addr", m.Addr, "client_addr", m.ClientAddr)
	n.connect(raft.NodeID(n.ID()))
	n.remember()
}

// remember writes the addresses of the members into the formation file, so that
// a restart finds them.
func (n *Node) remember() {
	n.formMu.Lock()
	defer n.formMu.Unlock()
	f := *n.form.Load()
	f.Members = slices.Clone(f.Members)
	changed := false
	for _, m := range n.book.all() {
		i := slices.IndexFunc(f.Members, func(x member) bool { return x.ID == m.ID })
		switch {
		case i < 0:
			f.Members = append(f.Members, m)
			changed = true
		case f.Members[i] != m:
			f.Members[i] = m
			changed = true
		}
	}
	left := slices.DeleteFunc(f.Members, func(m member) bool { return m.ID != f.Node && !n.book.has(m.ID) })
	changed = changed || len(left) != len(f.Members)
	if f.Members = left; changed {
		n.writeForm(&f)
	}
}

// addressBook knows where the nodes are.
type addressBook struct {
	mu sync.Mutex // leaf
	by map[uint32]member
	ps atomic.Pointer[[]raft.NodeID]
}

func (b *addressBook) set(m member) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.by == nil {
		b.by = map[uint32]member{}
	}
	b.by[m.ID] = m
	b.listLocked()
}

func (b *addressBook) listLocked() {
	ids := make([]raft.NodeID, 0, len(b.by))
	for id := range b.by {
		ids = append(ids, raft.NodeID(id))
	}
	slices.Sort(ids)
	b.ps.Store(&ids)
}

// update is set for a node whose address differs from what is known; it reports
// whether it does.
func (b *addressBook) update(m member) bool {
	b.mu.Lock()
	old, known := b.by[m.ID]
	b.mu.Unlock()
	if m.ID == 0 || known && old == m {
		return false
	}
	b.set(m)
	return true
}

// drop removes a node; it reports whether it was known.
func (b *addressBook) drop(id uint32) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.by[id]; !ok {
		return false
	}
	delete(b.by, id)
	b.listLocked()
	return true
}

func (b *addressBook) has(id uint32) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.by[id]
	return ok
}

func (b *addressBook) all() []member {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]member, 0, len(b.by))
	for _, m := range b.by {
		out = append(out, m)
	}
	slices.SortFunc(out, func(x, y member) int { return int(x.ID) - int(y.ID) })
	return out
}

func (b *addressBook) clientAddr(id raft.NodeID) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.by[uint32(id)].ClientAddr
}

// peers returns a function that lists all nodes but self, without locking.
func (b *addressBook) peers(self raft.NodeID) func() []raft.NodeID {
	return func() []raft.NodeID {
		p := b.ps.Load()
		if p == nil {
			return nil
		}
		out := make([]raft.NodeID, 0, len(*p))
		for _, id := range *p {
			if id != self {
				out = append(out, id)
			}
		}
		return out
	}
}

// descriptors lists the replicas of this node.
func (n *Node) descriptors() (out []raft.Descriptor) {
	for _, v := range n.host.Views() {
		out = append(out, v.Desc)
	}
	return out
}

// descriptorsNear lists the replicas of this node that may hold keys of d. Of those that
// sleep it reads the descriptors of the few that the layout dealt keys of d to, and of such as
// the layout does not know: a range does not grow.
func (n *Node) descriptorsNear(d *raft.Descriptor) (out []raft.Descriptor) {
	if n.table == nil { // not open yet: what an earlier life received is looked at
		return n.descriptors()
	}
	l := n.table.KnownLayout(d.Keyspace)
	if l == nil || n.host.Census().Replicas <= manyReplicas {
		return n.descriptors()
	}
	for _, v := range n.host.AwakeViews() {
		out = append(out, v.Desc)
	}
	near := func(shard raft.ShardID) {
		if other, ok := n.host.Descriptor(shard); ok {
			out = append(out, other)
		}
	}
	last := l.Count - 1
	if len(d.End) > 0 {
		last = l.Find(d.End)
	}
	for i := l.Find(d.Start); i <= last; i++ {
		near(l.First + raft.ShardID(i))
	}
	n.host.EachAsleep(func(shard raft.ShardID) bool {
		if _, ok := l.Index(shard); !ok {
			near(shard)
		}
		return true
	})
	return out
}

// smallSnapshot returns up to which size a shard travels as a list, which goes through
// memory and the write-ahead log, in place of tables. A table costs some ten
// milliseconds of syncs and a change of the memtable to be taken in, in which a disk
// writes about 2 MiB; with little memory, four lists that come in shall be an eighth of it.
func smallSnapshot(memory int64) int {
	if memory == 0 {
		memory = 256 << 20
	}
	return int(min(2<<20, max(256<<10, memory/32)))
}

// receiveSnapshot takes in what another node streams and installs it.
func (n *Node) receiveSnapshot(from raft.NodeID, header []byte, next func() ([]byte, error), reply func([]byte) error) error {
	staged, err := n.snaps.Handle(from, header, next, reply)
	if err != nil || staged == nil {
		return err
	}
	defer staged.Close()
	if err := n.loadMachine(staged); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err = n.host.InstallSnapshot(ctx, staged.Meta.Shard, staged.Meta.Index, staged.Meta.Term, staged.InstallOn)
	if errors.Is(err, multiraft.ErrSnapshotStale) {
		err = snapshot.Verdict(fmt.Errorf("%w: %w", snapshot.ErrStale, err))
	}
	n.events.snapshot(SnapshotEvent{Shard: uint64(staged.Meta.Shard), Peer: uint32(from), Index: uint64(staged.Meta.Index), Err: err})
	return err
}

const (
	// busyTick is how long an answer of Node.busy holds.
	busyTick = 20 * time.Millisecond
	// busyEntries is from how many entries applied per second on a node has work to do.
	busyEntries = 100
)

// busyWatch counts what the node applies.
type busyWatch struct {
	mu      sync.Mutex
	at      raft.Time
	applied uint64
	busy    atomic.Bool
	until   atomic.Int64 // raft.Time
}

// busy reports whether the node has served others in the last moments.
func (n *Node) busy() bool {
	w := &n.watch
	if now := n.clock.Now(); now >= raft.Time(w.until.Load()) && w.mu.TryLock() {
		defer w.mu.Unlock()
		applied := n.host.Stats().Applied
		if d := now.Sub(w.at); w.at != 0 && d > 0 {
			w.busy.Store(float64(applied-w.applied) > busyEntries*d.Seconds())
		}
		w.at, w.applied = now, applied
		w.until.Store(int64(now.Add(busyTick)))
	}
	return w.busy.Load()
}

// snapshotEvents sends snapshots and tells the observer.
type snapshotEvents struct{ n *Node }

func (s snapshotEvents) Image(desc *raft.Descriptor) ([]byte, raft.Index, error) {
	return s.n.sending.Image(desc)
}

func (s snapshotEvents) SendImage(image []byte, shard raft.ShardID, to raft.NodeID, rep raft.ReplicaID, done func(raft.Index, raft.Term, error)) {
	s.n.sending.SendImage(image, shard, to, rep, s.told(shard, to, done))
}

func (s snapshotEvents) KeepImage(desc raft.Descriptor, done func(raft.Index, int64, bool, error)) {
	s.n.sending.KeepImage(desc, done)
}

func (s snapshotEvents) KeptImage(shard raft.ShardID) (raft.Index, int64, bool) {
	return s.n.sending.KeptImage(shard)
}

func (s snapshotEvents) DropImage(shard raft.ShardID, below raft.Index) bool {
	return s.n.sending.DropImage(shard, below)
}

func (s snapshotEvents) SendKept(shard raft.ShardID, index raft.Index, to raft.NodeID, rep raft.ReplicaID, done func(raft.Index, raft.Term, error)) {
	s.n.sending.SendKept(shard, index, to, rep, s.told(shard, to, done))
}

func (s snapshotEvents) SendSnapshot(desc raft.Descriptor, to raft.NodeID, rep raft.ReplicaID, done func(raft.Index, raft.Term, error)) {
	s.n.sending.SendSnapshot(desc, to, rep, s.told(desc.Shard, to, done))
}

// told tells the observer before done.
func (s snapshotEvents) told(shard raft.ShardID, to raft.NodeID, done func(raft.Index, raft.Term, error)) func(raft.Index, raft.Term, error) {
	return func(index raft.Index, term raft.Term, err error) {
		if errors.Is(err, snapshot.ErrStale) {
			err = nil // the receiver is that far already
		}
		s.n.events.snapshot(SnapshotEvent{Shard: uint64(shard), Peer: uint32(to), Sent: true, Index: uint64(index), Err: err})
		done(index, term, err)
	}
}
