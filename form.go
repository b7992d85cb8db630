package flotilla

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/router/catalog"
	"github.com/flotillakv/flotilla/shard"
)

// How a cluster comes into being
//
// The first N nodes are started with the same Bootstrap number and each other's
// addresses. Every node tells the others its id and addresses until it has heard
// of N. The one with the lowest id then writes the formation (cluster id,
// members, first shards) to its directory, hands it to the others, and marks it
// complete when all N have made it durable; whoever crashes in between resumes.
// A node that finds its peers formed while its own directory is empty has lost
// its disk and is refused. A node that joins later asks any member for an id.

// formationFile holds the formation, beside the engine's files.
const formationFile = "cluster.json"

// member is a node as the formation and the join protocol name it.
type member struct {
	ID         uint32 `json:"id"`
	Addr       string `json:"addr"`
	ClientAddr string `json:"client_addr"`
}

// formation is what all nodes of a cluster agree on when it is formed, and what
// a node needs to find the meta shard after a restart.
type formation struct {
	Version int      `json:"version"`
	Cluster string   `json:"cluster"`
	Node    uint32   `json:"node"`
	Members []member `json:"members"`
	Meta    []byte   `json:"meta"` // encoded descriptor of the meta shard
	// Layout is the encoded catalog.Layout of the first shards, and Leads the node that
	// leads the meta shard first. A node that joined later has neither.
	Layout []byte `json:"layout,omitempty"`
	Leads  uint32 `json:"leads,omitempty"`
	// Created: this node's replicas of the first shards are durable.
	Created bool `json:"created,omitempty"`
	// Of version 1, in the place of Layout and Leads: the encoded descriptors of all
	// first shards, the meta shard first, and the node that leads each of them first.
	Shards  [][]byte `json:"shards,omitempty"`
	Leaders []uint32 `json:"leaders,omitempty"`
	// Confirmed lists the members that have made the formation durable, as the
	// lowest id knows. A member is handed it once: one that has forgotten it has
	// lost its disk.
	Confirmed []uint32 `json:"confirmed,omitempty"`
	// Complete: all members have confirmed.
	Complete bool `json:"complete"`
	// Written: the catalog is in the meta shard (known to the lowest id alone).
	Written bool `json:"written,omitempty"`
}

// Versions of formations: those with a Layout have layoutVersion, others 1. From
// dealtVersion on, replicas beyond the first electAtOnce shards have no record in the
// store before they are used (engine.SetDealt).
const layoutVersion, dealtVersion, formationVersion = 2, 3, 3

// check says what is wrong with a formation that was read or received.
func (f *formation) check() error {
	if f.Version < 1 || f.Version > formationVersion {
		return fmt.Errorf("it has version %d, this release knows 1 to %d; use the release that wrote it", f.Version, formationVersion)
	}
	if _, err := parseClusterID(f.Cluster); err != nil {
		return err
	}
	if len(f.Members) == 0 || len(f.Leaders) != len(f.Shards) || f.Layout != nil && (len(f.Shards) > 0 || f.Version < 2) {
		return fmt.Errorf("it is damaged: version %d, %d members, %d shards, %d leaders, %d bytes of layout", f.Version, len(f.Members), len(f.Shards), len(f.Leaders), len(f.Layout))
	}
	for _, m := range f.Members {
		if m.ID == 0 {
			return errors.New("it is damaged: a member without an id")
		}
	}
	if _, err := raft.DecodeDescriptor(f.Meta); err != nil {
		return fmt.Errorf("its descriptor of the meta shard: %w", err)
	}
	_, err := f.plan()
	return err
}

func (f *formation) hasMember(id uint32) bool {
	return slices.ContainsFunc(f.Members, func(m member) bool { return m.ID == id })
}

// first says that the node was there when the cluster was formed.
func (f *formation) first() bool { return len(f.Shards) > 0 || f.Layout != nil }

// plan says what the shards of the new cluster were, and where.
func (f *formation) plan() (p catalog.Plan, err error) {
	if f.Layout != nil {
		l, err := catalog.DecodeLayout(f.Layout)
		if err != nil {
			return p, err
		}
		d, err := raft.DecodeDescriptor(f.Meta)
		if err != nil {
			return p, err
		}
		return catalog.Plan{Meta: catalog.Route{Desc: d.Clone(), Leader: raft.NodeID(f.Leads)}, Layout: &l}, nil
	}
	for i, b := range f.Shards {
		d, err := raft.DecodeDescriptor(b)
		if err != nil {
			return p, err
		}
		r := catalog.Route{Desc: d, Leader: raft.NodeID(f.Leaders[i])}
		if i == 0 {
			p.Meta = r
		} else {
			p.Shards = append(p.Shards, r)
		}
	}
	return p, nil
}

func parseClusterID(s string) (id [16]byte, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 16 {
		return id, errors.New("a cluster id is 32 hexadecimal digits")
	}
	copy(id[:], b)
	return id, nil
}

func newClusterID() (id [16]byte) {
	rand.Read(id[:]) // never fails
	return id
}

// planFormation lays out the shards of a new cluster.
func planFormation(cluster [16]byte, members []member, o *Options) (*formation, error) {
	nodes := make([]raft.NodeID, 0, len(members))
	for _, m := range members {
		nodes = append(nodes, raft.NodeID(m.ID))
	}
	plan, err := catalog.NewLayoutPlan(nodes, o.Replicas, userKeyspace, o.SplitAt, o.Shards)
	var limit *shard.LimitError
	if errors.As(err, &limit) {
		return nil, &OptionError{Field: "Shards", Value: fmt.Sprint(max(o.Shards, len(o.SplitAt)+1)), Reason: limit.Error() + "; begin with fewer shards or shorter boundaries"}
	}
	if err != nil {
		return nil, err
	}
	version := layoutVersion // what older releases know, if they can do with it
	if plan.Len() > electAtOnce {
		version = dealtVersion
	}
	return &formation{
		Version: version, Cluster: hex.EncodeToString(cluster[:]), Members: members,
		Meta: plan.Meta.Desc.Encode(nil), Leads: uint32(plan.Meta.Leader), Layout: plan.Layout.Encode(nil),
	}, nil
}

// readFormation returns nil when there is none.
func readFormation(fs engine.FS, dir string) (*formation, error) {
	path := fs.PathJoin(dir, formationFile)
	file, err := fs.Open(path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) { // the engine says what is there instead of a directory
		return nil, nil
	}
	if err != nil {
		return nil, &OpenError{Path: dir, Reason: engine.NotWritable, Err: err, Hint: "check the path and its permissions"}
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, 256<<20))
	if err != nil {
		return nil, &OpenError{Path: dir, Reason: engine.NotWritable, Err: fmt.Errorf("read %s: %w", formationFile, err), Hint: "check the disk"}
	}
	f, err := decodeFormation(b)
	if err != nil {
		return nil, &OpenError{Path: dir, Reason: engine.Corrupt, Err: fmt.Errorf("%s cannot be used: %w", formationFile, err), Hint: formationHint}
	}
	return f, nil
}

const formationHint = "copy " + formationFile + " from another node of the same cluster and set this node's id in \"node\""

// decodeFormation decodes and checks a node's formation.
func decodeFormation(b []byte) (*formation, error) {
	var f formation
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("it is damaged: %w", err)
	}
	if err := f.check(); err != nil {
		return nil, err
	}
	if f.Node == 0 {
		return nil, errors.New("\"node\" is missing, the id of this node")
	}
	return &f, nil
}

// encode gives the bytes of the file.
func (f *formation) encode() ([]byte, error) {
	b, err := json.MarshalIndent(f, "", " ")
	return append(b, '\n'), err
}

// writeFormation replaces the file in one durable step.
func writeFormation(fs engine.FS, dir string, f *formation) error {
	b, err := f.encode()
	if err != nil {
		return err
	}
	tmp := fs.PathJoin(dir, formationFile+".tmp")
	err = func() error {
		file, err := fs.Create(tmp, "flotilla-cluster")
		if err != nil {
			return err
		}
		if _, err := file.Write(b); err != nil {
			return errors.Join(err, file.Close())
		}
		if err := file.Sync(); err != nil {
			return errors.Join(err, file.Close())
		}
		if err := file.Close(); err != nil {
			return err
		}
		if err := fs.Rename(tmp, fs.PathJoin(dir, formationFile)); err != nil {
			return err
		}
		d, err := fs.OpenDir(dir)
		if err != nil {
			return err
		}
		return errors.Join(d.Sync(), d.Close())
	}()
	if err != nil {
		return fmt.Errorf("flotilla: write %s: %w", fs.PathJoin(dir, formationFile), err)
	}
	return nil
}

// joinKind is the kind of a join message.
type joinKind string

const (
	joinHello joinKind = "hello" // a node of the first N introduces itself
	joinForm  joinKind = "form"  // the lowest id hands out the formation
	joinLate  joinKind = "join"  // a later node asks for an id
)

type joinRequest struct {
	Kind      joinKind   `json:"kind"`
	From      member     `json:"from"`
	Nonce     string     `json:"nonce"` // one per process: tells a restart or namesake from itself
	Bootstrap int        `json:"bootstrap,omitempty"`
	Cluster   string     `json:"cluster,omitempty"`
	Formation *formation `json:"formation,omitempty"`
}

type joinReply struct {
	From    member `json:"from"`
	Nonce   string `json:"nonce"`
	Formed  bool   `json:"formed"`
	Cluster string `json:"cluster,omitempty"`
	// Lowest answers joinHello of a formed cluster: the member that formed it.
	Lowest uint32 `json:"lowest,omitempty"`
	// Refused is a sentence for the other node's user; empty: not refused.
	Refused string `json:"refused,omitempty"`
	// Formation answers joinLate.
	Formation *formation `json:"formation,omitempty"`
}

// joinCaller sends one join message to an address.
type joinCaller func(ctx context.Context, addr string, in []byte) ([]byte, error)

// former takes part in forming or joining a cluster.
type former struct {
	nonce     string
	bootstrap int
	want      string // cluster id demanded by the options, or empty
	call      joinCaller
	late      func(ctx context.Context, from member) (f *formation, refused string, err error) // serves joinLate, once formed

	mu     sync.Mutex // guards what follows; never held across a call
	self   member
	seen   map[uint32]member
	nonces map[uint32]string
	form   *formation
	// durable: form is in this node's directory, and its shards in the engine.
	durable bool
	moved   func(member)
	formed  chan struct{} // closed when form is set
}

func newFormer(self member, bootstrap int, want string, call joinCaller) *former {
	var nonce [8]byte
	rand.Read(nonce[:])
	f := &former{
		self: self, nonce: hex.EncodeToString(nonce[:]), bootstrap: bootstrap, want: want, call: call,
		seen: map[uint32]member{}, nonces: map[uint32]string{}, formed: make(chan struct{}),
	}
	if self.ID != 0 {
		f.seen[self.ID] = self
	}
	return f
}

// setSelf says who this node is, once that is known.
func (f *former) setSelf(m member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.self = m
	if m.ID != 0 {
		f.seen[m.ID] = m
	}
}

// me returns what setSelf set; ID zero: not known yet.
// setMoved has g told of members that say where they are.
func (f *former) setMoved(g func(member)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.moved = g
}

func (f *former) movedTo() func(member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.moved
}

// announce tells the nodes at addrs where this member is, and learns from their
// answers where they are. It reports how many of them answered.
func (f *former) announce(ctx context.Context, cluster string, addrs []string) int {
	n := 0
	for _, a := range addrs {
		r, err := f.send(ctx, a, joinRequest{Kind: joinHello, Cluster: cluster})
		if err != nil || r.Nonce == f.nonce || r.Cluster != cluster || r.From.ID == 0 {
			continue
		}
		n++
		if moved := f.movedTo(); moved != nil {
			moved(r.From)
		}
	}
	return n
}

func (f *former) me() member {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.self
}

// set makes the node a member of a formed cluster.
func (f *former) set(form *formation) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.form == nil {
		close(f.formed)
	}
	f.form = form
}

// markDurable lets the node confirm the formation.
func (f *former) markDurable() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.durable = true
}

func (f *former) current() *formation {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.form
}

func (f *former) setLate(g func(ctx context.Context, from member) (f *formation, refused string, err error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.late = g
}

// serve answers a join message of another node.
func (f *former) serve(ctx context.Context, in []byte) ([]byte, error) {
	var q joinRequest
	if err := json.Unmarshal(in, &q); err != nil {
		return nil, fmt.Errorf("flotilla: a join message does not decode: %w", err)
	}
	if id := certified(ctx); id != 0 && q.From.ID != 0 && q.From.ID != id {
		return json.Marshal(joinReply{From: f.me(), Nonce: f.nonce, Refused: fmt.Sprintf("it calls itself node %d, and its certificate is of node %d", q.From.ID, id)})
	}
	r := f.answer(ctx, &q)
	r.From, r.Nonce = f.me(), f.nonce
	return json.Marshal(r)
}

func (f *former) answer(ctx context.Context, q *joinRequest) joinReply {
	f.mu.Lock()
	form, late := f.form, f.late
	f.mu.Unlock()
	switch q.Kind {
	case joinHello:
		if form == nil {
			if q.From.ID == 0 {
				return joinReply{}
			}
			if q.Bootstrap != f.bootstrap {
				return joinReply{Refused: fmt.Sprintf("node %d was started to bootstrap %d nodes, this one %d; start all of the first nodes with the same number", f.me().ID, f.bootstrap, q.Bootstrap)}
			}
			return f.meet(q)
		}
		if q.Cluster == form.Cluster && q.From.ID != 0 {
			// A member that restarted, perhaps elsewhere.
			if moved := f.movedTo(); moved != nil {
				moved(q.From)
			}
			return joinReply{Formed: true, Cluster: form.Cluster}
		}
		r := joinReply{Formed: true, Cluster: form.Cluster}
		if len(form.Members) > 0 {
			r.Lowest = form.Members[0].ID
		}
		i := slices.IndexFunc(form.Members, func(m member) bool { return m.ID == q.From.ID })
		switch {
		case i < 0:
			r.Refused = fmt.Sprintf("cluster %s is formed already, without node %d; start it without bootstrap to let it join", form.Cluster, q.From.ID)
		case form.Complete && q.Cluster == "" && form.first():
			// Only the lowest id knows that everybody had made the formation durable.
			r.Refused = fmt.Sprintf("node %d is a member of cluster %s, but its data directory is empty: it has lost its disk, and with it its votes; give it back its directory, or start it with --rejoin and without an id to join as a new node, and take the old one out (flotilla node remove n%d)", q.From.ID, form.Cluster, q.From.ID)
		}
		return r
	case joinForm:
		if q.Formation == nil {
			return joinReply{Refused: "the formation is missing in the message"}
		}
		if form != nil {
			if form.Cluster != q.Formation.Cluster {
				return joinReply{Formed: true, Cluster: form.Cluster, Refused: fmt.Sprintf("node %d belongs to cluster %s already", f.me().ID, form.Cluster)}
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			return joinReply{Formed: f.durable || mutants.On("G16"), Cluster: form.Cluster}
		}
		if f.want != "" && f.want != q.Formation.Cluster {
			return joinReply{Refused: fmt.Sprintf("node %d was told to be of cluster %s, not %s", f.me().ID, f.want, q.Formation.Cluster)}
		}
		if err := q.Formation.check(); err != nil {
			return joinReply{Refused: "the formation cannot be used: " + err.Error()}
		}
		if id := f.me().ID; id != 0 && !q.Formation.hasMember(id) {
			return joinReply{Refused: fmt.Sprintf("node %d is not a member of the formation", id)}
		}
		if f.me().ID == 0 {
			return joinReply{} // still reading its own directory; the sender asks again
		}
		return f.accept(q.Formation)
	case joinLate:
		if form == nil || late == nil {
			return joinReply{}
		}
		if q.Cluster != "" && q.Cluster != form.Cluster {
			return joinReply{Formed: true, Cluster: form.Cluster, Refused: fmt.Sprintf("it is of cluster %s, not %s", form.Cluster, q.Cluster)}
		}
		got, refused, err := late(ctx, q.From)
		if err != nil || refused != "" { // an error passes: the other node asks again
			return joinReply{Formed: true, Cluster: form.Cluster, Refused: refused}
		}
		return joinReply{Formed: true, Cluster: form.Cluster, Formation: got}
	}
	return joinReply{Refused: fmt.Sprintf("this release does not know the join message %q", q.Kind)}
}

// meet notes a node of the first N. Two nodes with one id are told apart by their nonces.
func (f *former) meet(q *joinRequest) joinReply {
	f.mu.Lock()
	defer f.mu.Unlock()
	clash := func(addr string) joinReply {
		return joinReply{Refused: fmt.Sprintf("two nodes have the id %d: one at %s, one at %s; give each its own", q.From.ID, addr, q.From.Addr)}
	}
	if q.From.ID == f.self.ID && q.Nonce != f.nonce {
		return clash(f.self.Addr)
	}
	if old, ok := f.seen[q.From.ID]; ok && old.Addr != q.From.Addr {
		return clash(old.Addr)
	}
	if q.From.ID != f.self.ID {
		f.seen[q.From.ID] = q.From
	}
	return joinReply{}
}

// accept waits until the node has made the formation durable.
func (f *former) accept(form *formation) joinReply {
	mine := *form
	mine.Node, mine.Confirmed, mine.Complete, mine.Created = f.me().ID, nil, false, false
	f.set(&mine)
	return joinReply{Cluster: form.Cluster}
}

func (f *former) send(ctx context.Context, addr string, q joinRequest) (joinReply, error) {
	q.From, q.Nonce = f.me(), f.nonce
	in, err := json.Marshal(q)
	if err != nil {
		return joinReply{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := f.call(ctx, addr, in)
	if err != nil {
		return joinReply{}, err
	}
	var r joinReply
	if err := json.Unmarshal(out, &r); err != nil {
		return joinReply{}, fmt.Errorf("flotilla: the join answer of %s does not decode: %w", addr, err)
	}
	return r, nil
}

// gather runs the first phase: until N nodes are known, or a formation arrived.
// It returns the members in order of id, or nil when the formation was set.
func (f *former) gather(ctx context.Context, addrs []string) ([]member, error) {
	pause := 50 * time.Millisecond
	for {
		someFormed := false
		for _, a := range addrs {
			r, err := f.send(ctx, a, joinRequest{Kind: joinHello, Bootstrap: f.bootstrap})
			if err != nil {
				if ctx.Err() != nil {
					break
				}
				continue
			}
			if r.Nonce == f.nonce || r.From.ID == 0 {
				continue // ourselves, or a node that does not know its id yet
			}
			if r.Refused != "" {
				return nil, &JoinError{a, r.Refused}
			}
			if r.Formed && !mutants.On("G16b") {
				someFormed = true
				if r.Lowest == f.me().ID {
					return nil, &JoinError{a, fmt.Sprintf("cluster %s is formed, but this node, which has the lowest id, has an empty data directory: it has lost its disk; give it back its directory, or start it with --rejoin and without an id to join as a new node, and take the old one out (flotilla node remove n%d)", r.Cluster, f.me().ID)}
				}
				continue
			}
			if rep := f.meet(&joinRequest{From: r.From, Nonce: r.Nonce}); rep.Refused != "" {
				return nil, &JoinError{a, rep.Refused}
			}
		}
		f.mu.Lock()
		form, n := f.form, len(f.seen)
		var members []member
		for _, m := range f.seen {
			members = append(members, m)
		}
		f.mu.Unlock()
		if form != nil {
			return nil, nil
		}
		slices.SortFunc(members, func(a, b member) int { return int(a.ID) - int(b.ID) })
		if n > f.bootstrap {
			return nil, fmt.Errorf("flotilla: %d nodes answered for a cluster to be formed of %d; check the lists of addresses", n, f.bootstrap)
		}
		if n == f.bootstrap && !someFormed && members[0].ID == f.me().ID {
			return members, nil
		}
		select {
		case <-f.formed:
			return nil, nil
		case <-ctx.Done():
			return nil, fmt.Errorf("flotilla: %d of %d nodes found before the time ran out: %w", n, f.bootstrap, ctx.Err())
		case <-time.After(pause):
		}
		pause = min(2*pause, time.Second)
	}
}

// handOut gives the formation to all members until everybody has it. confirmed
// is told of each, to make that durable before anything else happens.
func (f *former) handOut(ctx context.Context, form *formation, confirmed func(id uint32) error) error {
	self := f.me().ID
	todo := slices.DeleteFunc(slices.Clone(form.Members), func(m member) bool {
		return m.ID == self || slices.Contains(form.Confirmed, m.ID)
	})
	pause := 20 * time.Millisecond
	for len(todo) > 0 {
		rest := todo[:0]
		for _, m := range todo {
			r, err := f.send(ctx, m.Addr, joinRequest{Kind: joinForm, Formation: form, Cluster: form.Cluster})
			switch {
			case err != nil:
				rest = append(rest, m)
			case r.Refused != "":
				return &JoinError{m.Addr, r.Refused}
			case !r.Formed:
				rest = append(rest, m) // accepted, not yet durable there
			default:
				if err := confirmed(m.ID); err != nil {
					return err
				}
			}
		}
		todo = rest
		if len(todo) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("flotilla: %d nodes have not confirmed the formation: %w", len(todo), ctx.Err())
		case <-time.After(pause):
		}
		pause = min(2*pause, time.Second)
	}
	return nil
}

// joinExisting asks the members at addrs for an id until one answers.
func (f *former) joinExisting(ctx context.Context, addrs []string) (*formation, error) {
	pause := 50 * time.Millisecond
	var last error
	for {
		for _, a := range addrs {
			r, err := f.send(ctx, a, joinRequest{Kind: joinLate, Cluster: f.want})
			switch {
			case err != nil:
				last = err
			case r.Nonce == f.nonce:
			case r.Refused != "":
				return nil, &JoinError{a, r.Refused}
			case r.Formation != nil:
				if f.want != "" && f.want != r.Cluster {
					return nil, &JoinError{a, fmt.Sprintf("it is of cluster %s, not %s", r.Cluster, f.want)}
				}
				if err := r.Formation.check(); err != nil {
					return nil, &JoinError{a, "its answer cannot be used: " + err.Error()}
				}
				return r.Formation, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("flotilla: no member of a formed cluster answered at %v (%w; last: %v)", addrs, ctx.Err(), last)
		case <-time.After(pause):
		}
		pause = min(2*pause, time.Second)
	}
}

// idByAddress gives the nodes ids in the order of their addresses.
func idByAddress(self string, join []string) (uint32, error) {
	all := append([]string{self}, join...)
	slices.Sort(all)
	all = slices.Compact(all)
	i := slices.Index(all, self)
	if i < 0 {
		return 0, errors.New("flotilla: own address not found")
	}
	return uint32(i + 1), nil
}

// userKeyspace is the keyspace of the KV interface; 0 holds the meta shard.
const userKeyspace uint32 = 1
