package flotilla

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/router"
	"github.com/flotillakv/flotilla/router/catalog"
	"github.com/flotillakv/flotilla/shard"
)

// The named queries of the admin door. Questions and answers are JSON.
const (
	adminNode      = "node"   // this node, with its replicas
	adminStatus    = "status" // the cluster
	adminNodes     = "nodes"
	adminShards    = "shards"
	adminPage      = "shards-page" // some of them
	adminShard     = "shard"
	adminRoutes    = "routes" // a part of the catalog, for the routers of clients
	adminDigest    = "digest"
	adminSnapshots = "snapshots" // on their way
	// Orders, which change something.
	adminReplicas   = "replicas"    // of a shard
	adminTransfer   = "transfer"    // of a shard's leadership
	adminRemoveNode = "remove-node" // from the cluster
	// For backups.
	adminCut      = "cut"       // hold a view of a shard
	adminCutPage  = "cut-page"  // of pairs; the answer is not JSON (backup.AppendPage)
	adminCutClose = "cut-close" // let go of it
)

// report is what a node tells of itself.
type report struct {
	Node      NodeInfo        `json:"node"`
	Replicas  []replicaReport `json:"replicas"`
	Snapshots []SnapshotInfo  `json:"snapshots,omitempty"`
	// NoQuorum counts the replicas that cannot reach a majority.
	NoQuorum int `json:"no_quorum,omitempty"`
}

type replicaReport struct {
	Shard   uint64 `json:"shard"`
	Desc    []byte `json:"desc"`
	Replica uint32 `json:"replica"`
	Leader  uint32 `json:"leader"`
	Term    uint64 `json:"term"`
	Lead    bool   `json:"lead"`
	Applied uint64 `json:"applied"`
	Commit  uint64 `json:"commit"`
	Last    uint64 `json:"last"`
	Log     int64  `json:"log"`
	Data    int64  `json:"data"`
	Fenced  string `json:"fenced,omitempty"`
}

// nodeQuery says of which replicas a node is asked. An older node tells of all.
type nodeQuery struct {
	// Shards names them; at most pageShards.
	Shards []uint64 `json:"shards,omitempty"`
	// Brief: where there are very many replicas no more than briefReplicas, those that are fenced
	// and awake first.
	Brief bool `json:"brief,omitempty"`
}

// pageQuery asks for at most Limit shards, from the one that holds From on.
type pageQuery struct {
	From  []byte `json:"from"` // null: from the catalog's own shard on
	Limit int    `json:"limit"`
}

const (
	// pageShards bounds the shards of one answer.
	pageShards = 1024
	// briefReplicas bounds the replicas of a brief report.
	briefReplicas = 1024
	// manyReplicas is from how many replicas on a node is not asked for all.
	manyReplicas = 4096
	// maxListed bounds the shards of an answer that cannot be had in pages.
	maxListed = 1 << 14
)

type shardQuery struct {
	Shard uint64 `json:"shard"`
}

type routesQuery struct {
	Keyspace uint32 `json:"keyspace"`
	Key      []byte `json:"key"`
	N        int    `json:"n"`
}

type routesAnswer struct {
	Cluster string   `json:"cluster"`
	Meta    []byte   `json:"meta"`
	Routes  [][]byte `json:"routes"`
	Nodes   []member `json:"nodes"`
}

type digestAnswer struct {
	Applied uint64 `json:"applied"`
	Digest  uint64 `json:"digest"`
}

// admin answers a named query.
func (n *Node) admin(ctx context.Context, method string, in []byte) ([]byte, error) {
	answer := func(v any, err error) ([]byte, error) {
		if err != nil {
			return nil, err
		}
		return json.Marshal(v)
	}
	switch method {
	case adminNode:
		var q nodeQuery
		if err := json.Unmarshal(in, &q); err != nil {
			return nil, &shard.ArgumentError{Field: "query", Reason: err.Error()}
		}
		return answer(n.report(q), nil)
	case adminStatus:
		return answer(n.Status(ctx))
	case adminNodes:
		return answer(n.Nodes(ctx))
	case adminShards:
		if got := n.host.Census().Replicas; got > maxListed {
			return nil, &shard.LimitError{What: "shards listed in one answer (a newer client asks for pages)", Limit: maxListed, Got: got}
		}
		return answer(n.Shards(ctx))
	case adminPage:
		var q pageQuery
		if err := json.Unmarshal(in, &q); err != nil {
			return nil, &shard.ArgumentError{Field: "page", Reason: err.Error()}
		}
		return answer(n.ShardsFrom(ctx, q.From, min(q.Limit, pageShards)))
	case adminSnapshots:
		return answer(n.Snapshots(ctx))
	case adminShard, adminDigest:
		var q shardQuery
		if err := json.Unmarshal(in, &q); err != nil {
			return nil, &shard.ArgumentError{Field: "shard", Reason: err.Error()}
		}
		if method == adminShard {
			return answer(n.Shard(ctx, q.Shard))
		}
		applied, digest, err := n.LocalDigest(ctx, q.Shard)
		return answer(digestAnswer{applied, digest}, err)
	case adminReplicas, adminTransfer:
		var q changeQuery
		if err := json.Unmarshal(in, &q); err != nil {
			return nil, &shard.ArgumentError{Field: "change", Reason: err.Error()}
		}
		return answer(n.change(ctx, method, q))
	case adminRemoveNode:
		var q removalQuery
		if err := json.Unmarshal(in, &q); err != nil {
			return nil, &shard.ArgumentError{Field: "node", Reason: err.Error()}
		}
		return answer(n.removeNode(ctx, q))
	case adminCut:
		var q shardQuery
		if err := json.Unmarshal(in, &q); err != nil {
			return nil, &shard.ArgumentError{Field: "shard", Reason: err.Error()}
		}
		return answer(n.openCut(ctx, q.Shard))
	case adminCutPage, adminCutClose:
		var q cutQuery
		if err := json.Unmarshal(in, &q); err != nil {
			return nil, &shard.ArgumentError{Field: "cut", Reason: err.Error()}
		}
		if method == adminCutPage {
			return n.readCut(q)
		}
		n.cuts.drop(q.Cut)
		return answer(struct{}{}, nil)
	case adminRoutes:
		var q routesQuery
		if err := json.Unmarshal(in, &q); err != nil {
			return nil, &shard.ArgumentError{Field: "routes", Reason: err.Error()}
		}
		return answer(n.routes(ctx, q))
	}
	return nil, &shard.ArgumentError{Field: "method", Reason: fmt.Sprintf("this version does not know %q", method)}
}

func (n *Node) routes(ctx context.Context, q routesQuery) (routesAnswer, error) {
	form := n.form.Load()
	a := routesAnswer{Cluster: form.Cluster, Meta: form.Meta, Nodes: n.book.all()}
	if q.Keyspace == 0 || q.N <= 0 {
		return a, nil
	}
	routes, err := catalog.LookupRange(ctx, n.catalog(), q.Keyspace, q.Key, min(q.N, 1024))
	for i := range routes {
		a.Routes = append(a.Routes, routes[i].Encode(nil))
	}
	return a, err
}

// viewsOf returns the replicas that q asks for.
func (n *Node) viewsOf(q nodeQuery) (out []multiraft.View) {
	if len(q.Shards) > 0 {
		for _, id := range q.Shards[:min(len(q.Shards), pageShards)] {
			if v, ok := n.host.View(raft.ShardID(id)); ok {
				out = append(out, v)
			}
		}
		return out
	}
	if q.Brief && n.host.Census().Replicas > manyReplicas {
		return n.host.SomeViews(briefReplicas)
	}
	return n.host.Views()
}

// report describes this node and its replicas.
func (n *Node) report(q nodeQuery) report {
	m := n.eng.Metrics()
	r := report{Node: NodeInfo{
		ID: n.ID(), Addr: n.addr.Addr, ClientAddr: n.addr.ClientAddr, State: "up", Version: ReleaseVersion, Started: n.started,
		DiskBytes: int64(m.DiskBytes), FsyncP99Ms: float64(m.FsyncP99) / float64(time.Millisecond),
	}}
	mem := n.Memory()
	r.Node.Memory = &mem
	logs := n.host.LogStatus()
	r.Node.LogBytes, r.Node.LogLimit, r.Node.LogZone = logs.Bytes, logs.Limit, logs.Zone.String()
	disk := n.diskStats()
	r.Node.DiskState, r.Node.DiskStalled, r.Node.DiskUsed, r.Node.DiskLimit = disk.Space.State.String(), disk.Stalled, disk.Space.Used, disk.Space.Limit
	if room := disk.Space.Room(); room < math.MaxInt64 {
		r.Node.DiskRoom = room
	}
	census := n.host.Census()
	r.Node.Replicas, r.Node.Leaders, r.NoQuorum = census.Replicas, census.Leaders, census.NoQuorum
	for _, v := range n.viewsOf(q) {
		d := v.Desc
		p := replicaReport{
			Shard: uint64(v.Shard), Desc: d.Encode(nil), Replica: uint32(v.Replica), Leader: uint32(v.Leader), Term: uint64(v.Term),
			Lead: v.IsLeader, Applied: uint64(v.Applied), Commit: uint64(v.Commit), Last: uint64(v.Last),
		}
		if v.Fenced != nil {
			p.Fenced = v.Fenced.Error()
		}
		if v.IsLeader {
			data, _ := n.eng.DataSize(d.Keyspace, d.Start, d.End) // an estimate: zero will do
			p.Log, p.Data = n.eng.LogSize(v.Shard), int64(data)
		}
		r.Replicas = append(r.Replicas, p)
	}
	for _, t := range slices.Concat(n.sending.Transfers(), n.snaps.Transfers()) {
		r.Snapshots = append(r.Snapshots, SnapshotInfo{Node: n.ID(), Peer: uint32(t.Peer), Shard: uint64(t.Shard), State: string(t.State), Index: uint64(t.Index), Bytes: t.Bytes, Done: t.Done})
	}
	return r
}

// Snapshots lists the snapshots that are on their way, by shard and node. Each may
// be listed twice, by the node that sends and by the one that receives; nodes that
// do not answer within two seconds list none.
func (n *Node) Snapshots(ctx context.Context) ([]SnapshotInfo, error) {
	if n.isClosed() {
		return nil, ErrClosed
	}
	out := []SnapshotInfo{}
	for _, r := range n.collect(ctx, nodeQuery{Brief: true}) {
		out = append(out, r.Snapshots...)
	}
	slices.SortFunc(out, func(a, b SnapshotInfo) int {
		return cmp.Or(cmp.Compare(a.Shard, b.Shard), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Peer, b.Peer))
	})
	return out, nil
}

// collect asks all known nodes for their reports; nodes that do not answer are
// missing from the map.
func (n *Node) collect(ctx context.Context, q nodeQuery) map[uint32]report {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	in, err := json.Marshal(q)
	if err != nil {
		return nil
	}
	out := map[uint32]report{n.ID(): n.report(q)}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, m := range n.book.all() {
		if m.ID == n.ID() {
			continue
		}
		wg.Go(func() {
			b, err := n.senders.Admin(ctx, raft.NodeID(m.ID), adminNode, in)
			var r report
			if err != nil || json.Unmarshal(b, &r) != nil {
				return
			}
			mu.Lock()
			out[m.ID] = r
			mu.Unlock()
		})
	}
	wg.Wait()
	return out
}

// Nodes describes the nodes of the cluster, by id. A node that does not answer
// within two seconds is reported as down.
func (n *Node) Nodes(ctx context.Context) ([]NodeInfo, error) {
	if n.isClosed() {
		return nil, ErrClosed
	}
	return n.nodesOf(n.collect(ctx, nodeQuery{Brief: true})), nil
}

func (n *Node) nodesOf(reps map[uint32]report) []NodeInfo {
	commit := map[uint64]uint64{}
	for _, r := range reps {
		for _, p := range r.Replicas {
			commit[p.Shard] = max(commit[p.Shard], p.Commit)
		}
	}
	var out []NodeInfo
	for _, m := range n.book.all() {
		r, ok := reps[m.ID]
		if !ok {
			out = append(out, NodeInfo{ID: m.ID, Addr: m.Addr, ClientAddr: m.ClientAddr, State: "down"})
			continue
		}
		for _, p := range r.Replicas {
			r.Node.Lag = max(r.Node.Lag, commit[p.Shard]-p.Applied)
		}
		out = append(out, r.Node)
	}
	return out
}

// Shards describes the shards of the user's keyspace, in key order.
func (n *Node) Shards(ctx context.Context) ([]ShardInfo, error) {
	if n.isClosed() {
		return nil, ErrClosed
	}
	if n.host.Census().Replicas <= manyReplicas {
		return n.shardsOf(ctx, n.collect(ctx, nodeQuery{}), nil)
	}
	var out []ShardInfo
	for from := []byte(nil); ; {
		page, err := n.ShardsFrom(ctx, from, pageShards)
		if err != nil {
			return nil, err
		}
		out = append(out, page...)
		if from = pageAfter(page); from == nil {
			return out, nil
		}
	}
}

// pageAfter returns where the page behind this one begins, or nil.
func pageAfter(page []ShardInfo) []byte {
	switch n := len(page); {
	case n == 0:
		return nil
	case page[n-1].Keyspace != userKeyspace:
		return []byte{}
	case len(page[n-1].End) == 0:
		return nil
	default:
		return page[n-1].End
	}
}

// ShardsFrom describes up to limit shards in key order, from the one that holds key on;
// with key nil the catalog's own comes first. The next page begins at the End of the
// last one; that is empty, and the list at its end, for the last shard of the user's
// keyspace. Limit is at most 1024, whatever is asked for.
func (n *Node) ShardsFrom(ctx context.Context, key []byte, limit int) ([]ShardInfo, error) {
	if n.isClosed() {
		return nil, ErrClosed
	}
	var cursor []byte
	if key != nil {
		cursor = append(binary.BigEndian.AppendUint32(nil, userKeyspace), key...)
	}
	limit = min(max(limit, 1), pageShards)
	if n.host.Census().Replicas <= manyReplicas { // whether the catalog can be read or not
		all, err := n.shardsOf(ctx, n.collect(ctx, nodeQuery{}), nil)
		if err != nil {
			return nil, err
		}
		all = slices.DeleteFunc(all, func(s ShardInfo) bool {
			return key != nil && (s.Keyspace != userKeyspace || len(s.End) > 0 && bytes.Compare(s.End, key) <= 0)
		})
		return all[:min(limit, len(all))], nil
	}
	routes, _, err := catalog.ListShards(ctx, n.catalog(), cursor, limit)
	if err != nil {
		return nil, err
	}
	if len(routes) == 0 {
		return nil, nil
	}
	q := nodeQuery{}
	for _, r := range routes {
		q.Shards = append(q.Shards, uint64(r.Desc.Shard))
	}
	return n.shardsOf(ctx, n.collect(ctx, q), routes)
}

// shardsOf puts together what nodes tell of the shards in routes; nil: of all.
func (n *Node) shardsOf(ctx context.Context, reps map[uint32]report, routes []catalog.Route) ([]ShardInfo, error) {
	by := map[uint64]*ShardInfo{}
	only := map[raft.ShardID]bool{}
	for _, r := range routes {
		only[r.Desc.Shard] = true
	}
	add := func(d raft.Descriptor) *ShardInfo {
		s := by[uint64(d.Shard)]
		if s == nil || s.ConfVer < d.ConfVer {
			s = &ShardInfo{ID: uint64(d.Shard), Keyspace: d.Keyspace, Start: d.Start, End: d.End, ConfVer: d.ConfVer, Version: d.Version}
			for _, r := range d.Replicas {
				s.Replicas = append(s.Replicas, ReplicaInfo{Node: uint32(r.Node), Replica: uint32(r.ID), Role: roleName(r.Role), State: "unknown"})
			}
			by[uint64(d.Shard)] = s
		}
		return s
	}
	for _, r := range reps { // the newest members of each
		for _, p := range r.Replicas {
			d, err := raft.DecodeDescriptor(p.Desc)
			if err != nil {
				return nil, err
			}
			if routes == nil || only[d.Shard] {
				add(d)
			}
		}
	}
	for _, r := range reps {
		for _, p := range r.Replicas {
			s := by[p.Shard]
			if s == nil {
				continue // an older node tells of all
			}
			if p.Lead && p.Term >= s.Term {
				s.Leader, s.Term, s.LogBytes, s.DataBytes = r.Node.ID, p.Term, p.Log, p.Data
			}
			for i := range s.Replicas {
				if s.Replicas[i].Node == r.Node.ID && s.Replicas[i].Replica == p.Replica {
					s.Replicas[i] = ReplicaInfo{Node: r.Node.ID, Replica: p.Replica, Role: s.Replicas[i].Role, State: "up", Applied: p.Applied, Commit: p.Commit, Last: p.Last}
					if p.Fenced != "" {
						s.Replicas[i].State = "fenced"
					}
				}
			}
		}
	}
	// Shards without any replica that answered are known to the catalog, if that can be read.
	for _, r := range routes {
		add(r.Desc)
	}
	cctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for cursor := []byte(nil); routes == nil; {
		routes, next, err := catalog.ListShards(cctx, n.catalog(), cursor, 1024)
		if err != nil {
			break // what the nodes told must do
		}
		for _, r := range routes {
			add(r.Desc)
		}
		if cursor = next; len(next) == 0 {
			break
		}
	}
	out := make([]ShardInfo, 0, len(by))
	for _, s := range by {
		finishShard(s)
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b ShardInfo) int {
		if a.Keyspace != b.Keyspace {
			return int(a.Keyspace) - int(b.Keyspace)
		}
		return slices.Compare(a.Start, b.Start)
	})
	return out, nil
}

func finishShard(s *ShardInfo) {
	commit, up, voters := uint64(0), 0, 0
	for _, r := range s.Replicas {
		commit = max(commit, r.Commit)
	}
	for i := range s.Replicas {
		r := &s.Replicas[i]
		if r.Role != "learner" {
			voters++
		}
		if r.State == "up" {
			r.Lag = commit - min(commit, r.Applied)
			if r.Role != "learner" {
				up++
			}
		}
	}
	switch {
	case s.Leader == 0 || up <= voters/2:
		s.State = "no leader"
	case up < voters:
		s.State = "under-replicated"
	default:
		s.State = "ok"
	}
}

func roleName(r raft.Role) string {
	switch r {
	case raft.Voter:
		return "voter"
	case raft.Learner:
		return "learner"
	case raft.VoterIncoming:
		return "incoming"
	case raft.VoterOutgoing:
		return "outgoing"
	case raft.VoterDemoting:
		return "demoting"
	}
	return "unknown"
}

// Shard describes one shard; ErrNotFound if there is none with this id.
func (n *Node) Shard(ctx context.Context, id uint64) (ShardInfo, error) {
	var routes []catalog.Route
	if n.host.Census().Replicas > manyReplicas {
		r, err := catalog.FindShard(ctx, n.catalog(), raft.ShardID(id))
		if err != nil {
			return ShardInfo{}, err
		}
		routes = []catalog.Route{r}
	}
	if n.isClosed() {
		return ShardInfo{}, ErrClosed
	}
	all, err := n.shardsOf(ctx, n.collect(ctx, nodeQuery{Shards: []uint64{id}}), routes)
	if err != nil {
		return ShardInfo{}, err
	}
	for _, s := range all {
		if s.ID == id {
			return s, nil
		}
	}
	return ShardInfo{}, fmt.Errorf("shard %d: %w", id, ErrNotFound)
}

// maxFenced bounds the sentences about replicas that serve nothing.
const maxFenced = 8

// fencedReplicas says which replicas serve nothing, and why.
func fencedReplicas(reps map[uint32]report) (out []string) {
	more := 0
	for _, node := range slices.Sorted(maps.Keys(reps)) {
		for _, p := range reps[node].Replicas {
			switch {
			case p.Fenced == "":
			case len(out) == maxFenced:
				more++
			default:
				out = append(out, fmt.Sprintf("the replica of shard %d on n%d serves nothing: %s", p.Shard, node, p.Fenced))
			}
		}
	}
	if more > 0 {
		out = append(out, fmt.Sprintf("so do %d others", more))
	}
	return out
}

// countShards fills in how many shards there are, and how many are not well, from what
// the nodes count: with very many of them they are not looked at one by one. A shard
// that nobody uses has no leader until it is asked for, which is no fault: without a
// leader are those whose replicas miss a majority.
func (n *Node) countShards(s *ClusterStatus, reps map[uint32]report) {
	lost, replicas := 0, 0
	for _, r := range reps {
		lost = max(lost, r.NoQuorum)
		replicas = max(replicas, r.Node.Replicas)
	}
	s.Shards = replicas
	if l := n.table.KnownLayout(userKeyspace); l != nil {
		s.Shards = max(replicas, l.Count+1)
		for i := range l.Nodes { // the shards of a down node, by how they were dealt
			r := l.Range(i)
			for _, rep := range r.Desc.Replicas {
				if _, up := reps[uint32(rep.Node)]; !up {
					s.UnderReplicated += l.Count / len(l.Nodes)
					break
				}
			}
		}
	}
	s.ShardsWithLeader = s.Shards - min(lost, s.Shards)
}

// Status describes the cluster as this node sees it. In a cluster of very many shards
// they are counted, not looked at one by one.
func (n *Node) Status(ctx context.Context) (ClusterStatus, error) {
	if n.isClosed() {
		return ClusterStatus{}, ErrClosed
	}
	reps := n.collect(ctx, nodeQuery{Brief: true})
	s := ClusterStatus{Cluster: n.Cluster(), Nodes: n.nodesOf(reps)}
	var shards []ShardInfo
	if many := n.host.Census().Replicas > manyReplicas; many {
		n.countShards(&s, reps)
	} else {
		var err error
		if shards, err = n.shardsOf(ctx, reps, nil); err != nil {
			return s, err
		}
	}
	fenced := fencedReplicas(reps)
	s.Warnings = append(s.Warnings, fenced...)
	down := 0
	for _, m := range s.Nodes {
		if m.State != "up" {
			down++
		}
	}
	for _, sh := range shards {
		s.Shards++
		if sh.State != "no leader" {
			s.ShardsWithLeader++
		}
		if sh.State != "ok" {
			s.UnderReplicated++
		}
	}
	switch {
	case s.ShardsWithLeader < s.Shards:
		s.State = "UNAVAILABLE"
		s.Note = fmt.Sprintf("%d of %d shards have no leader; see flotilla shard list", s.Shards-s.ShardsWithLeader, s.Shards)
	case s.UnderReplicated > 0 || down > 0:
		s.State = "DEGRADED"
		s.Note = fmt.Sprintf("%d nodes do not answer; see flotilla node list", down)
	default:
		s.State = "HEALTHY"
	}
	if len(fenced) > 0 && s.State == "HEALTHY" {
		s.State = "DEGRADED"
	}
	for i := range s.Nodes {
		if n := &s.Nodes[i]; n.LogZone == multiraft.ZoneHard.String() {
			s.Warnings = append(s.Warnings, fmt.Sprintf("n%d refuses writes: its Raft logs take %d of %d MiB (limits.log); its disk is too slow for what is written, or a shard cannot commit", n.ID, n.LogBytes>>20, n.LogLimit>>20))
		}
		if text := diskText(&s.Nodes[i]); text != "" {
			s.Warnings = append(s.Warnings, text)
			if s.State == "HEALTHY" && (s.Nodes[i].DiskStalled || s.Nodes[i].DiskState != "warning") {
				s.State = "DEGRADED"
			}
		}
	}
	return s, nil
}

// LocalDigest hashes what this node's replica of a shard holds: keys, values
// and versions, in order, and the records of sessions, as of the applied index it returns. Replicas with
// equal applied indexes have equal digests. It reads the whole shard.
func (n *Node) LocalDigest(ctx context.Context, shardID uint64) (applied, digest uint64, err error) {
	n.using.RLock()
	defer n.using.RUnlock()
	if n.isClosed() {
		return 0, 0, ErrClosed
	}
	id := raft.ShardID(shardID)
	d, ok := n.host.Descriptor(id)
	if !ok {
		return 0, 0, fmt.Errorf("shard %d on node %d: %w", shardID, n.ID(), ErrNotFound)
	}
	v, err := n.eng.View(&d)
	if err != nil {
		return 0, 0, err
	}
	defer v.Close()
	h := fnv.New64a()
	it, err := v.Iter(engine.ViewData)
	if err != nil {
		return 0, 0, err
	}
	defer it.Close()
	var lens [16]byte
	hash := func(it *engine.Iter) error {
		for ok := it.First(); ok; ok = it.Next() {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if n.isClosed() {
				return ErrClosed
			}
			k, val := it.Key(), it.Value()
			for i := range 8 {
				lens[i], lens[8+i] = byte(len(k)>>(8*i)), byte(len(val)>>(8*i))
			}
			h.Write(lens[:])
			h.Write(k)
			h.Write(val)
		}
		return it.Err()
	}
	if err := hash(it); err != nil {
		return 0, 0, err
	}
	// Of the applied side: what the state machine keeps (sessions), not the
	// positions and the replicas, which are each replica's own or the group's.
	own, err := v.Iter(engine.ViewMachine)
	if err != nil {
		return 0, 0, err
	}
	defer own.Close()
	if err := hash(own); err != nil {
		return 0, 0, err
	}
	return uint64(v.Applied().Applied), h.Sum64(), nil
}

func (n *Node) isClosed() bool {
	select {
	case <-n.stop:
		return true
	default:
		return false
	}
}

// catalog is the catalog as this node reaches it.
func (n *Node) catalog() catalog.KV { return n.table }

// openRouter makes the node's way to all shards.
func (n *Node) openRouter(self raft.NodeID, form *formation) error {
	meta, err := raft.DecodeDescriptor(form.Meta)
	if err != nil {
		return fmt.Errorf("flotilla: %s: %w", formationFile, err)
	}
	n.senders = &senders{self: self, local: n.serveLocal, start: n.startLocal, near: n.readNear, dial: n.dialClient, addr: n.book.clientAddr}
	n.router = router.New(router.Options{Sender: n.senders, Root: &meta, Self: self, Timeout: n.o.timeout()})
	n.table = &keptCatalog{KV: n.router.Space(0).Plain()}
	n.router.SetSource(nodeSource{n})
	var descs []raft.Descriptor // so that a node without the catalog can serve what it has; of many shards see nodeSource
	for _, v := range n.host.AwakeViews() {
		if len(descs) < electAtOnce {
			descs = append(descs, v.Desc)
		}
	}
	n.host.EachAsleep(func(shard raft.ShardID) bool {
		if d, ok := n.host.Descriptor(shard); ok && len(descs) < electAtOnce {
			descs = append(descs, d)
		}
		return len(descs) < electAtOnce
	})
	n.router.Table().Merge(descs...)
	n.space = n.router.Space(userKeyspace)
	return nil
}

// keptCatalog is the catalog, with the layout of the user's keyspace in memory.
type keptCatalog struct {
	catalog.KV
	layout atomic.Pointer[catalog.Layout]
}

func (c *keptCatalog) KnownLayout(keyspace uint32) *catalog.Layout {
	if l := c.layout.Load(); l != nil && l.Keyspace == keyspace {
		return l
	}
	return nil
}

func (c *keptCatalog) KeepLayout(l *catalog.Layout) { c.layout.Store(l) }

// nodeSource answers the node's router: from an own replica that follows a leader,
// where a layout tells which shard a key was in, else from the catalog; and while that
// cannot be read, from any own replica.
type nodeSource struct{ n *Node }

// Lookup implements router.Source.
func (s nodeSource) Lookup(ctx context.Context, keyspace uint32, key []byte, k int) ([]shard.Descriptor, []router.LeaderHint, error) {
	var own []shard.Descriptor
	if l := s.n.table.KnownLayout(keyspace); l != nil {
		v, ok := s.n.host.View(l.First + raft.ShardID(l.Find(key)))
		if ok && !v.Removed && v.Desc.Contains(key) {
			own = []shard.Descriptor{v.Desc}
			if v.Leader != 0 {
				return own, []router.LeaderHint{{Shard: v.Shard, Node: v.Leader, Term: v.Term}}, nil
			}
		}
	}
	descs, hints, err := catalog.Source{KV: s.n.catalog()}.Lookup(ctx, keyspace, key, k)
	if err != nil && own != nil {
		return own, nil, nil
	}
	return descs, hints, err
}

// writeCatalog fills the meta shard of a cluster that was formed just now.
func (n *Node) writeCatalog(ctx context.Context, form *formation, plan catalog.Plan) error {
	id, err := parseClusterID(form.Cluster)
	if err != nil {
		return err
	}
	now := int64(n.clock.Wall())
	nodes := make([]catalog.NodeInfo, 0, len(form.Members))
	for _, m := range form.Members {
		nodes = append(nodes, catalog.NodeInfo{ID: raft.NodeID(m.ID), Addr: m.Addr, ClientAddr: m.ClientAddr, JoinedAt: now, Version: ReleaseVersion})
	}
	c := catalog.Cluster{ID: id, CreatedAt: now, Replicas: uint32(len(plan.Meta.Desc.Replicas))}
	for {
		err := catalog.Bootstrap(ctx, n.catalog(), c, nodes, plan)
		if err == nil || ctx.Err() != nil || n.isClosed() {
			return wrapOpen("write the catalog", err)
		}
		if errors.Is(err, catalog.ErrOtherCluster) {
			return wrapOpen("write the catalog", err)
		}
		select { // the meta shard may not have a leader yet; running again is safe
		case <-ctx.Done():
		case <-n.stop:
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// admit gives a node that joins a formed cluster its id. refused is a sentence
// for the other node's user; an error passes, and the other node asks again.
func (n *Node) admit(ctx context.Context, from member) (f *formation, refused string, err error) {
	form := n.form.Load()
	if from.ID != 0 {
		// Its directory is empty: under an id that was in use it could vote twice.
		nodes, err := catalog.ListNodes(ctx, n.catalog())
		if err != nil {
			return nil, "", err
		}
		for _, i := range nodes {
			if i.ID == raft.NodeID(from.ID) {
				return nil, fmt.Sprintf("the id %d belongs to the node at %s, and the data directory of this one is empty; if that node has lost its disk, it has lost its votes with it: give it back its directory, or start it without an id to join as a new node, and take the old one out (flotilla node remove n%d)", from.ID, i.Addr, from.ID), nil
			}
		}
		return nil, fmt.Sprintf("a node that joins gets its id from the cluster; start it without the id %d", from.ID), nil
	}
	info, err := catalog.RegisterNext(ctx, n.catalog(), catalog.NodeInfo{
		Addr: from.Addr, ClientAddr: from.ClientAddr, JoinedAt: int64(n.clock.Wall()), Version: ReleaseVersion,
	}, raft.NodeID(certified(ctx)))
	var next *catalog.NextNodeError
	if errors.As(err, &next) {
		return nil, fmt.Sprintf("the next node to join gets the id %d, and the certificate of this one is of node %d; give it a certificate of node %d", next.Next, certified(ctx), next.Next), nil
	}
	if err != nil {
		return nil, "", err
	}
	from.ID = uint32(info.ID)
	n.book.set(from)
	n.connect(raft.NodeID(n.ID()))
	return &formation{Version: 1, Cluster: form.Cluster, Node: from.ID, Meta: form.Meta, Complete: true, Members: n.book.all()}, "", nil
}

// refreshEvery is how often a node reads the catalog's list of nodes.
const refreshEvery = 5 * time.Second

// reportLoop (goroutine "reporter") writes the leaderships of this node into the
// catalog, and learns from it which nodes there are.
func (n *Node) reportLoop() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stopped := make(chan struct{})
	n.wg.Go(func() {
		select {
		case <-n.stop:
		case <-stopped:
		}
		cancel()
	})
	defer close(stopped)
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	told := false
	for {
		n.announce(ctx)
		told = n.refreshNodes(ctx, told)
		n.reportNews(ctx)
		n.rememberMeta()
		select {
		case <-n.stop:
			return
		case <-n.reports:
			select { // elections come in flocks: one transaction for all of them
			case <-n.stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		case <-tick.C:
		}
	}
}

// peersUp lists the nodes this one has an open stream to.
func (n *Node) peersUp() map[raft.NodeID]bool {
	up := map[raft.NodeID]bool{}
	for _, p := range n.net.get().Stats() {
		up[p.Node] = p.Up
	}
	return up
}

// announce tells nodes that cannot be reached where this one is, at the
// addresses they had and at those of Options.Join, in case either has moved.
func (n *Node) announce(ctx context.Context) {
	if n.former.call == nil || n.addr.Addr == "" {
		return
	}
	up := n.peersUp()
	var addrs []string
	for _, m := range n.book.all() {
		if m.ID != n.ID() && !up[raft.NodeID(m.ID)] && m.Addr != "" {
			addrs = append(addrs, m.Addr)
		}
	}
	if len(addrs) == 0 {
		return
	}
	for _, a := range n.o.Join {
		if a != n.addr.Addr && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	n.former.announce(ctx, n.Cluster(), addrs)
}

// news are shards of which the catalog may have to be told.
type news struct {
	mu  sync.Mutex // a leaf
	ids map[raft.ShardID]struct{}
}

func (w *news) add(ids ...raft.ShardID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ids == nil {
		w.ids = map[raft.ShardID]struct{}{}
	}
	for _, id := range ids {
		w.ids[id] = struct{}{}
	}
}

// take removes some of them, at most limit.
func (w *news) take(limit int) (ids []raft.ShardID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.ids {
		if len(ids) == limit {
			break
		}
		ids = append(ids, id)
		delete(w.ids, id)
	}
	if len(w.ids) == 0 {
		w.ids = nil // a map does not shrink
	}
	return ids
}

// report1 has the reporter look at a shard. It does not block.
func (n *Node) report1(id raft.ShardID) {
	n.news.add(id)
	select {
	case n.reports <- struct{}{}:
	default:
	}
}

// reportAtOnce bounds the shards the reporter looks at before it writes.
const reportAtOnce = 1024

// reportNews writes into the catalog who leads the shards of which there is news, and
// who their members are. What cannot be written now is news again.
func (n *Node) reportNews(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		ids := n.news.take(reportAtOnce)
		if len(ids) == 0 {
			return
		}
		slices.Sort(ids)
		err := n.reportShards(ctx, ids)
		if err != nil {
			n.news.add(ids...)
			if !n.isClosed() {
				n.log.Debug("leaders and members of shards not written to the catalog yet", "err", err)
			}
			return // the next tick tries again
		}
	}
}

func (n *Node) reportShards(ctx context.Context, ids []raft.ShardID) error {
	self := raft.NodeID(n.ID())
	l := n.table.KnownLayout(userKeyspace)
	var ups []catalog.LeaderUpdate
	for _, id := range ids {
		v, ok := n.host.View(id)
		if !ok || !v.IsLeader || !v.IsReady {
			continue
		}
		if v.Desc.ConfVer > 1 { // the catalog was made with the first members
			if _, err := catalog.PutDescriptor(ctx, n.catalog(), v.Desc); err != nil {
				return err
			}
		}
		if l != nil && v.Term == 1 {
			if i, ok := l.Index(id); ok && l.Range(i).Leader == self {
				continue // as it was dealt, and nobody else led it before: there is no record, and none is needed
			}
		}
		ups = append(ups, catalog.LeaderUpdate{Keyspace: v.Desc.Keyspace, End: v.Desc.End, Shard: id, Node: self, Term: v.Term})
	}
	_, err := catalog.UpdateLeaders(ctx, n.catalog(), ups)
	return err
}

// refreshNodes learns addresses from the catalog, and tells it the own one
// unless that was told already; it reports whether the catalog has it. An
// address at which a stream is open is not replaced by what the catalog says.
func (n *Node) refreshNodes(ctx context.Context, told bool) bool {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	before := n.book.all()
	nodes, err := catalog.ListNodes(ctx, n.catalog())
	if err != nil || len(nodes) == 0 {
		return told
	}
	self := raft.NodeID(n.ID())
	up := n.peersUp()
	changed := false
	isMember := func(id uint32) bool {
		return slices.ContainsFunc(nodes, func(i catalog.NodeInfo) bool { return i.ID == raft.NodeID(id) })
	}
	if !isMember(uint32(self)) {
		n.removedSelf()
		return told
	}
	for _, m := range before {
		if !isMember(m.ID) {
			n.forgetNode(m.ID)
		}
	}
	for _, i := range nodes {
		if i.ID != self {
			if !up[i.ID] {
				changed = n.book.update(member{ID: uint32(i.ID), Addr: i.Addr, ClientAddr: i.ClientAddr}) || changed
			}
			continue
		}
		if told || n.addr.Addr == "" {
			continue
		}
		if i.Addr != n.addr.Addr || i.ClientAddr != n.addr.ClientAddr || i.Version != ReleaseVersion {
			i.Addr, i.ClientAddr, i.Version = n.addr.Addr, n.addr.ClientAddr, ReleaseVersion
			if _, err := catalog.RegisterNode(ctx, n.catalog(), i); err != nil {
				n.log.Warn("own address not written to the catalog yet", "err", err)
				continue
			}
		}
		told = true
	}
	if changed {
		n.connect(self)
		n.remember()
	}
	return told
}

// serveLocal answers a request of this process's router.
func (n *Node) serveLocal(ctx context.Context, r *shard.Request) *shard.Response {
	if n.isClosed() {
		return r.Failed(shard.ErrClosed)
	}
	return n.store.Do(ctx, r)
}

// startLocal is serveLocal without waiting.
func (n *Node) startLocal(r *shard.Request, a shard.Answerer) {
	if n.isClosed() {
		a.Answered(r.Failed(shard.ErrClosed), nil)
		return
	}
	n.store.Start(r, a)
}

// readNear is serveLocal for what needs no waiting (router.Near).
func (n *Node) readNear(d *raft.Descriptor, key []byte) (v shard.Value, found, ok bool) {
	if n.isClosed() {
		return shard.Value{}, false, false
	}
	return n.store.ReadNear(d, key)
}

// serve answers a request that came over the network. A request that names no
// shard, or may be forwarded, is carried out by this node's router.
func (n *Node) serve(ctx context.Context, r *shard.Request) *shard.Response {
	if r.Shard == 0 {
		return n.router.Do(ctx, r)
	}
	resp := n.serveLocal(ctx, r)
	if r.Hop < shard.MaxHops && resp.Err != nil {
		var notLeader *shard.NotLeaderError
		var epoch *shard.EpochError
		if errors.As(resp.Err, &notLeader) || errors.As(resp.Err, &epoch) {
			return n.router.Do(ctx, r)
		}
	}
	return resp
}

func (n *Node) serveAsync(ctx context.Context, r *shard.Request, a shard.Answerer) {
	if n.isClosed() {
		a.Answered(r.Failed(shard.ErrClosed), nil)
		return
	}
	if r.Shard == 0 || r.Hop < shard.MaxHops {
		n.requests.Go(func() { a.Answered(n.serve(ctx, r), nil) })
		return
	}
	n.store.DoAsync(r, a)
}
