package flotilla

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/router/catalog"
	"github.com/flotillakv/flotilla/shard"
)

// ReplicaChange says what a node shall hold of a shard. It names an aim: one
// that is reached already changes nothing.
type ReplicaChange struct {
	Node uint32 `json:"node"`
	// Role is "voter", "learner", or "none".
	Role string `json:"role"`
}

// The roles of a ReplicaChange.
const (
	RoleVoter   = "voter"
	RoleLearner = "learner"
	RoleNone    = "none"
)

// MembershipError says why the replicas of a shard, or the members of the
// cluster, are not as they were asked to be.
type MembershipError struct {
	Shard uint64 // zero: it is about a node
	// Reason is a sentence. If Unfinished, part of the change may be done; it
	// stays, and the same request goes on from there. Else nothing was changed.
	Reason     string
	Unfinished bool
}

func (e *MembershipError) Error() string {
	if e.Shard == 0 {
		return "flotilla: " + e.Reason
	}
	return fmt.Sprintf("flotilla: shard %d: %s", e.Shard, e.Reason)
}

// changeTimeout bounds a change of replicas whose context has no deadline: a new
// replica has to receive all data of its shard.
const changeTimeout = 5 * time.Minute

// connectGrace bounds how long a change waits for a node that is to hold a new
// replica, and which the shard's leader does not hear.
const connectGrace = 5 * time.Second

// changeQuery asks for a change of replicas or a transfer.
type changeQuery struct {
	Shard   uint64          `json:"shard"`
	Changes []ReplicaChange `json:"changes,omitempty"`
	To      uint32          `json:"to,omitempty"` // transfer
	// Here: the asked node leads the shard, or says who does.
	Here bool `json:"here"`
	// Nanos bounds the work, from the arrival of the question.
	Nanos int64 `json:"nanos,omitempty"`
}

// changeAnswer is what became of it. Errors that routing is interested in go the
// way of errors.
type changeAnswer struct {
	Desc       []byte `json:"desc,omitempty"`
	Leader     uint32 `json:"leader,omitempty"`
	Refused    string `json:"refused,omitempty"`
	Unfinished bool   `json:"unfinished,omitempty"`
}

func (a *changeAnswer) info(id uint64) (ShardInfo, error) {
	if a.Refused != "" {
		return ShardInfo{}, &MembershipError{Shard: id, Reason: a.Refused, Unfinished: a.Unfinished}
	}
	s := ShardInfo{ID: id, Leader: a.Leader}
	if len(a.Desc) == 0 {
		return s, nil
	}
	d, err := raft.DecodeDescriptor(a.Desc)
	if err != nil {
		return s, err
	}
	s.Keyspace, s.Start, s.End, s.ConfVer, s.Version = d.Keyspace, d.Start, d.End, d.ConfVer, d.Version
	for _, r := range d.Replicas {
		s.Replicas = append(s.Replicas, ReplicaInfo{Node: uint32(r.Node), Replica: uint32(r.ID), Role: roleName(r.Role), State: "unknown"})
	}
	return s, nil
}

// checkChanges turns changes into those of the runtime.
func checkChanges(changes []ReplicaChange) ([]multiraft.Change, error) {
	out := make([]multiraft.Change, 0, len(changes))
	for i, c := range changes {
		m := multiraft.Change{Node: raft.NodeID(c.Node)}
		switch c.Role {
		case RoleVoter:
			m.Role = raft.Voter
		case RoleLearner:
			m.Role = raft.Learner
		case RoleNone:
		default:
			return nil, &ArgumentError{Field: "role", Reason: fmt.Sprintf("%q is none of %s, %s, %s", c.Role, RoleVoter, RoleLearner, RoleNone)}
		}
		if c.Node == 0 {
			return nil, &ArgumentError{Field: "node", Reason: "it must not be zero"}
		}
		for _, o := range changes[:i] {
			if o.Node == c.Node {
				return nil, &ArgumentError{Field: "changes", Reason: fmt.Sprintf("node %d is named twice", c.Node)}
			}
		}
		out = append(out, m)
	}
	return out, nil
}

// ChangeReplicas brings the replicas of a shard to where changes want them,
// wherever its leader is, and returns the shard's new members. New replicas get
// the data first and their votes then, together with the removal of those who
// go. It goes on through changes of the leader. Without a deadline it takes five
// minutes at most. Errors: *MembershipError, ErrNotFound (no such shard or node),
// *ArgumentError, *NoQuorumError, *UnavailableError (nobody leads the shard), ErrClosed.
func (n *Node) ChangeReplicas(ctx context.Context, shardID uint64, changes ...ReplicaChange) (ShardInfo, error) {
	if _, err := checkChanges(changes); err != nil {
		return ShardInfo{}, err
	}
	for _, c := range changes {
		if c.Role != RoleNone && !n.knows(ctx, c.Node) {
			return ShardInfo{}, fmt.Errorf("node %d: %w", c.Node, ErrNotFound)
		}
	}
	ctx, cancel := boundBy(ctx, changeTimeout)
	defer cancel()
	a, err := n.atLeader(ctx, adminReplicas, changeQuery{Shard: shardID, Changes: changes})
	if err != nil {
		return ShardInfo{}, err
	}
	return a.info(shardID)
}

// knows reports whether a node is a member of the cluster.
func (n *Node) knows(ctx context.Context, id uint32) bool {
	if n.book.has(id) {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	info, err := catalog.GetNode(ctx, n.catalog(), raft.NodeID(id))
	if err != nil {
		return false
	}
	n.book.update(member{ID: id, Addr: info.Addr, ClientAddr: info.ClientAddr})
	n.connect(raft.NodeID(n.ID()))
	return true
}

func boundBy(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

// TransferLeader hands the leadership of a shard to another node that holds a
// voter of it, wherever the leader is now, and returns when that node leads.
// Options.Timeout applies without a deadline. Errors: ErrNotFound (no such shard,
// or no replica of it on the node), *MembershipError (Unfinished: it may still
// happen), *UnavailableError, ErrClosed.
func (n *Node) TransferLeader(ctx context.Context, shardID uint64, to uint32) error {
	ctx, cancel := boundBy(ctx, n.o.timeout())
	defer cancel()
	a, err := n.atLeader(ctx, adminTransfer, changeQuery{Shard: shardID, To: to})
	if err == nil {
		_, err = a.info(shardID)
	}
	return err
}

// atLeader has q carried out by the node that leads its shard.
func (n *Node) atLeader(ctx context.Context, method string, q changeQuery) (a changeAnswer, err error) {
	if n.isClosed() {
		return a, ErrClosed
	}
	q.Here = true
	id := raft.ShardID(q.Shard)
	pause := 5 * time.Millisecond
	var last error
	looked := false
	var ask []raft.NodeID // of this round, the likely leader first
	if v, ok := n.host.View(id); ok && v.Leader != 0 {
		ask = append(ask, v.Leader)
	}
	for {
		if len(ask) == 0 {
			route, err := catalog.FindShard(ctx, n.catalog(), id)
			switch {
			case errors.Is(err, ErrNotFound):
				if _, here := n.host.View(id); !here {
					return a, fmt.Errorf("shard %d: %w", q.Shard, ErrNotFound)
				}
			case err != nil && last == nil:
				last = err
			case err == nil && route.Leader != 0:
				ask = append(ask, route.Leader)
			}
			desc := route.Desc
			if v, ok := n.host.View(id); ok && v.Desc.ConfVer >= desc.ConfVer {
				desc = v.Desc
				if v.Leader != 0 {
					ask = append([]raft.NodeID{v.Leader}, ask...)
				}
			}
			for _, r := range desc.Replicas {
				ask = append(ask, r.Node)
			}
			if looked {
				select {
				case <-ctx.Done():
				case <-n.stop:
					return a, ErrClosed
				case <-time.After(pause):
				}
				pause = min(2*pause, 200*time.Millisecond)
			}
			looked = true
		}
		var asked []raft.NodeID
		for len(ask) > 0 && ctx.Err() == nil {
			node := ask[0]
			ask = ask[1:]
			if slices.Contains(asked, node) {
				continue
			}
			asked = append(asked, node)
			a, err := n.askNode(ctx, node, method, q)
			var notLeader *NotLeaderError
			switch {
			case err == nil:
				return a, nil
			case errors.As(err, &notLeader):
				if l := notLeader.Leader; l != 0 && l != node {
					if asked = slices.DeleteFunc(asked, func(n raft.NodeID) bool { return n == l && notLeader.Term == 0 }); !slices.Contains(asked, l) {
						ask = append([]raft.NodeID{l}, ask...)
					}
				}
			case errors.Is(err, ErrClosed) && n.isClosed():
				return a, ErrClosed
			}
			var argument *ArgumentError
			if errors.As(err, &argument) || errors.Is(err, ErrNotFound) {
				return a, err
			}
			last = err
		}
		ask = nil
		if ctx.Err() != nil {
			var quorum *NoQuorumError
			if errors.As(last, &quorum) {
				return a, quorum
			}
			return a, &shard.UnavailableError{Why: fmt.Sprintf("no leader of shard %d was found in time (%v)", q.Shard, last), Cause: ctx.Err()}
		}
	}
}

// askNode puts q to one node.
func (n *Node) askNode(ctx context.Context, node raft.NodeID, method string, q changeQuery) (a changeAnswer, err error) {
	if d, ok := ctx.Deadline(); ok {
		q.Nanos = int64(time.Until(d) * 9 / 10) // so that its answer comes before the end
	}
	if node == raft.NodeID(n.ID()) {
		return n.changeHere(ctx, method, q)
	}
	in, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	out, err := n.senders.Admin(ctx, node, method, in)
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal(out, &a)
}

// change answers adminReplicas and adminTransfer.
func (n *Node) change(ctx context.Context, method string, q changeQuery) (changeAnswer, error) {
	if q.Here {
		return n.changeHere(ctx, method, q)
	}
	var s ShardInfo
	var err error
	if q.Nanos > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(q.Nanos))
		defer cancel()
	}
	if method == adminTransfer {
		err = n.TransferLeader(ctx, q.Shard, q.To)
	} else {
		s, err = n.ChangeReplicas(ctx, q.Shard, q.Changes...)
	}
	var refused *MembershipError
	if errors.As(err, &refused) {
		return changeAnswer{Refused: refused.Reason, Unfinished: refused.Unfinished}, nil
	}
	if err != nil {
		return changeAnswer{}, err
	}
	return changeAnswer{Leader: s.Leader, Desc: s.descriptor()}, nil
}

// descriptor encodes the part of a shard's description that info decodes.
func (s *ShardInfo) descriptor() []byte {
	if len(s.Replicas) == 0 {
		return nil
	}
	d := raft.Descriptor{Shard: raft.ShardID(s.ID), Keyspace: s.Keyspace, Start: s.Start, End: s.End, ConfVer: s.ConfVer, Version: s.Version}
	for _, r := range s.Replicas {
		role := raft.Voter
		for x := raft.Voter; x <= raft.VoterDemoting; x++ {
			if roleName(x) == r.Role {
				role = x
			}
		}
		d.Replicas = append(d.Replicas, raft.Replica{Node: raft.NodeID(r.Node), ID: raft.ReplicaID(r.Replica), Role: role})
		d.NextReplica = max(d.NextReplica, raft.ReplicaID(r.Replica)+1)
	}
	return d.Encode(nil)
}

// changeHere carries q out on a shard that this node leads.
func (n *Node) changeHere(ctx context.Context, method string, q changeQuery) (a changeAnswer, err error) {
	if n.isClosed() {
		return a, ErrClosed
	}
	if q.Nanos > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(q.Nanos))
		defer cancel()
	}
	id := raft.ShardID(q.Shard)
	if method == adminTransfer {
		return n.transferHere(ctx, id, raft.NodeID(q.To))
	}
	changes, err := checkChanges(q.Changes)
	if err != nil {
		return a, err
	}
	if why := n.awaitNodes(ctx, id, changes); why != "" {
		return changeAnswer{Refused: why}, nil
	}
	d, err := n.host.ChangeReplicas(ctx, id, changes)
	if err != nil {
		return changed(err)
	}
	v, _ := n.host.View(id)
	return changeAnswer{Desc: d.Encode(nil), Leader: uint32(v.Leader)}, nil
}

// awaitNodes waits a moment for nodes that are to hold new replicas and are not
// heard from here. It says what is wrong if they stay away.
func (n *Node) awaitNodes(ctx context.Context, id raft.ShardID, changes []multiraft.Change) (why string) {
	end := time.Now().Add(connectGrace)
	for {
		away := raft.NodeID(0)
		v, _ := n.host.View(id)
		for _, c := range changes {
			_, has := v.Desc.ReplicaOn(c.Node)
			if _, live := n.live.SupportFor(c.Node); !live && !has && c.Role != 0 && c.Node != raft.NodeID(n.ID()) {
				away = c.Node
			}
		}
		if away == 0 || !v.IsLeader {
			return ""
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Sprintf("node %d, which is to hold a new replica, does not answer; nothing was changed", away)
		}
		n.knows(ctx, uint32(away))
		select {
		case <-ctx.Done():
		case <-n.stop:
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// changed turns an error of a change at its leader into an answer, or into the
// error that sends the question elsewhere.
func changed(err error) (changeAnswer, error) {
	var (
		notLeader *multiraft.NotLeaderError
		noQuorum  *multiraft.NoQuorumError
		part      *multiraft.ChangeError
		refused   *multiraft.RefusedError
	)
	switch {
	case errors.As(err, &notLeader):
		return changeAnswer{}, &shard.NotLeaderError{Shard: notLeader.Shard, Leader: notLeader.Leader, Term: notLeader.Term}
	case errors.As(err, &noQuorum):
		return changeAnswer{}, &shard.NoQuorumError{Shard: noQuorum.Shard, Down: noQuorum.Down, Forgot: noQuorum.Forgot, Since: noQuorum.Since, Voters: noQuorum.Voters}
	case errors.Is(err, multiraft.ErrUnknownShard):
		return changeAnswer{}, &shard.EpochError{}
	case errors.Is(err, multiraft.ErrClosed):
		return changeAnswer{}, shard.ErrClosed
	case errors.As(err, &part):
		return changeAnswer{Refused: fmt.Sprintf("the time is up while %s; what was done stays, and the same request goes on from there", part.Stage), Unfinished: true}, nil
	case errors.Is(err, multiraft.ErrConfNoQuorum):
		return changeAnswer{Refused: "a majority of the voters that would be left does not answer, so the shard would stand still; nothing was changed"}, nil
	case errors.Is(err, multiraft.ErrTransferFailed):
		return changeAnswer{Refused: "the other node did not take over in time; the leader is the old one"}, nil
	case errors.Is(err, raft.ErrTransferTarget):
		return changeAnswer{Refused: "the node holds no voter of the shard, or cannot be reached; the leader is the old one"}, nil
	case errors.As(err, &refused):
		return changeAnswer{Refused: refused.Err.Error()}, nil
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return changeAnswer{Refused: "the time is up; it may still happen", Unfinished: true}, nil
	}
	return changeAnswer{Refused: err.Error()}, nil
}

// transferHere hands the leadership over, in several attempts if need be.
func (n *Node) transferHere(ctx context.Context, id raft.ShardID, to raft.NodeID) (changeAnswer, error) {
	for {
		v, ok := n.host.View(id)
		if !ok {
			return changeAnswer{}, &shard.EpochError{Shard: id}
		}
		if !v.IsLeader && v.Leader != to {
			return changeAnswer{}, &shard.NotLeaderError{Shard: id, Leader: v.Leader, Term: v.Term}
		}
		if _, has := v.Desc.ReplicaOn(to); !has {
			return changeAnswer{}, fmt.Errorf("replica of shard %d on node %d: %w", id, to, ErrNotFound)
		}
		err := n.host.TransferAndWait(ctx, id, to)
		switch {
		case err == nil:
			return changeAnswer{Leader: uint32(to)}, nil
		case errors.Is(err, multiraft.ErrTransferFailed) && ctx.Err() == nil:
			continue // it was given up after a while
		}
		var busy *multiraft.OverloadedError
		if !errors.As(err, &busy) {
			return changed(err)
		}
		select {
		case <-ctx.Done():
			return changed(ctx.Err())
		case <-n.stop:
			return changeAnswer{}, ErrClosed
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Removal is what the removal of a node does, or did.
type Removal struct {
	Node uint32 `json:"node"`
	// Moves lists the shards whose replica leaves the node, and where it goes.
	Moves []Move `json:"moves"`
	// Gone: the node is no member of the cluster any more.
	Gone bool `json:"gone"`
}

// Move is one replica on its way to another node.
type Move struct {
	Shard uint64 `json:"shard"`
	From  uint32 `json:"from"`
	To    uint32 `json:"to"` // zero: the shard gets one replica less
	Done  bool   `json:"done"`
}

// RemovalOptions say how a node is removed. The zero value will do.
type RemovalOptions struct {
	// Shrink lets shards lose a replica for which there is no other node.
	Shrink bool `json:"shrink,omitempty"`
	// Plan only tells what would be done.
	Plan bool `json:"plan,omitempty"`
}

type removalQuery struct {
	Node    uint32         `json:"node"`
	Options RemovalOptions `json:"options"`
	Nanos   int64          `json:"nanos,omitempty"`
}

type removalAnswer struct {
	Removal    Removal `json:"removal"`
	Refused    string  `json:"refused,omitempty"`
	Unfinished bool    `json:"unfinished,omitempty"`
}

// RemoveNode takes a node out of the cluster, running or dead: its replicas go
// to the nodes with the fewest of them, then its record is deleted. Its id is
// never given out again. A node that runs stops itself once its replicas are
// gone. To be repeated after an error: what is done stays. A node that is no
// member is Gone, without an error. Errors as ChangeReplicas.
func (n *Node) RemoveNode(ctx context.Context, id uint32, o RemovalOptions) (Removal, error) {
	r := Removal{Node: id}
	if n.isClosed() {
		return r, ErrClosed
	}
	ctx, cancel := boundBy(ctx, changeTimeout)
	defer cancel()
	node := raft.NodeID(id)
	if _, err := catalog.GetNode(ctx, n.catalog(), node); errors.Is(err, ErrNotFound) {
		r.Gone = true
		return r, nil
	} else if err != nil {
		return r, err
	}
	for pass := 0; ; pass++ {
		moves, err := n.planRemoval(ctx, node, o.Shrink)
		if err != nil {
			return r, err
		}
		if pass == 0 {
			r.Moves = moves
		}
		if o.Plan {
			return r, nil
		}
		if len(moves) == 0 {
			break
		}
		for _, m := range moves {
			changes := []ReplicaChange{{Node: m.From, Role: RoleNone}}
			if m.To != 0 {
				changes = append(changes, ReplicaChange{Node: m.To, Role: RoleVoter})
			}
			if _, err := n.ChangeReplicas(ctx, m.Shard, changes...); err != nil {
				var refused *MembershipError
				if errors.As(err, &refused) && pass == 0 {
					refused.Unfinished = refused.Unfinished || slices.ContainsFunc(r.Moves, func(m Move) bool { return m.Done })
				}
				return r, err
			}
			for i := range r.Moves {
				if r.Moves[i].Shard == m.Shard {
					r.Moves[i].To, r.Moves[i].Done = m.To, true
				}
			}
		}
		if pass == 8 {
			return r, &MembershipError{Reason: fmt.Sprintf("node %d is given replicas as fast as they are taken from it", id), Unfinished: true}
		}
	}
	if err := catalog.RemoveNode(ctx, n.catalog(), node); err != nil {
		return r, err
	}
	r.Gone = true
	if id != n.ID() {
		n.forgetNode(id)
	}
	return r, nil
}

// planRemoval finds the replicas on a node and new places for them. Of very many shards it
// looks at a page at a time, and keeps those that the node has.
func (n *Node) planRemoval(ctx context.Context, node raft.NodeID, shrink bool) ([]Move, error) {
	load := map[raft.NodeID]int{}
	for id := range n.collect(ctx, nodeQuery{Brief: true}) {
		if raft.NodeID(id) != node {
			load[raft.NodeID(id)] = 0
		}
	}
	var leaving []raft.Descriptor
	for cursor := []byte(nil); ; {
		routes, next, err := catalog.ListShards(ctx, n.catalog(), cursor, pageShards)
		if err != nil {
			return nil, err
		}
		newest := make(map[raft.ShardID]raft.Descriptor, len(routes))
		var q nodeQuery
		for _, r := range routes {
			newest[r.Desc.Shard] = r.Desc
			q.Shards = append(q.Shards, uint64(r.Desc.Shard))
		}
		if len(q.Shards) > 0 { // none would ask for all
			for _, rep := range n.collect(ctx, q) { // the catalog may lag behind the shards
				for _, p := range rep.Replicas {
					if d, err := raft.DecodeDescriptor(p.Desc); err == nil && newest[d.Shard].Shard != 0 && d.ConfVer > newest[d.Shard].ConfVer {
						newest[d.Shard] = d
					}
				}
			}
		}
		for _, r := range routes {
			d := newest[r.Desc.Shard]
			for _, m := range d.Replicas {
				if _, up := load[m.Node]; up {
					load[m.Node]++
				}
			}
			if _, has := d.ReplicaOn(node); has {
				leaving = append(leaving, d)
			}
		}
		if cursor = next; len(next) == 0 {
			break
		}
	}
	var moves []Move
	for _, d := range leaving {
		old, _ := d.ReplicaOn(node)
		to := raft.NodeID(0)
		for id, k := range load {
			if _, holds := d.ReplicaOn(id); !holds && (to == 0 || k < load[to] || k == load[to] && id < to) {
				to = id
			}
		}
		voters := 0
		for _, r := range d.Replicas {
			if r.Role != raft.Learner && r.Node != node {
				voters++
			}
		}
		switch {
		case to != 0:
			load[to]++
		case voters == 0:
			return nil, &MembershipError{Shard: uint64(d.Shard), Reason: fmt.Sprintf("node %d holds its only voter, and no other node that answers could take it; start another node first", node)}
		case !shrink && old.Role != raft.Learner:
			return nil, &MembershipError{Shard: uint64(d.Shard), Reason: fmt.Sprintf("no node is left that could take the replica of node %d; start another node first, or let shards have fewer replicas", node)}
		}
		moves = append(moves, Move{Shard: uint64(d.Shard), From: uint32(node), To: uint32(to)})
	}
	return moves, nil
}

// removeNode answers adminRemoveNode.
func (n *Node) removeNode(ctx context.Context, q removalQuery) (removalAnswer, error) {
	if q.Nanos > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(q.Nanos))
		defer cancel()
	}
	r, err := n.RemoveNode(ctx, q.Node, q.Options)
	var refused *MembershipError
	if errors.As(err, &refused) {
		why := refused.Reason
		if refused.Shard != 0 {
			why = fmt.Sprintf("shard %d: %s", refused.Shard, why)
		}
		return removalAnswer{Removal: r, Refused: why, Unfinished: refused.Unfinished}, nil
	}
	return removalAnswer{Removal: r}, err
}

// forgetNode drops a node that was removed from the cluster.
func (n *Node) forgetNode(id uint32) {
	if n.book.drop(id) {
		n.log.Info("a node was removed from the cluster", "node", id)
		n.remember()
	}
}

// removedSelf stops this node, which was removed from the cluster, once nobody
// needs its replicas any more.
func (n *Node) removedSelf() {
	if n.host.Census().Replicas > 0 {
		return
	}
	n.onFatal(&MembershipError{Reason: fmt.Sprintf("node %d was removed from cluster %s; to use this machine again, delete its directory and let it join as a new node", n.ID(), n.Cluster())})
}

// onDescriptor runs on a loop: it must not block.
func (n *Node) onDescriptor(v multiraft.View) {
	if n.router != nil {
		n.router.Table().Merge(v.Desc)
	}
	n.report1(v.Shard)
}

// rememberMeta keeps the newest members of the meta shard in the formation file:
// a restart finds the catalog by them.
func (n *Node) rememberMeta() {
	route, ok := n.router.Table().Lookup(0, nil)
	if !ok || route.Desc.Shard != raft.MetaShard || route.Desc.IsJoint() {
		return
	}
	n.formMu.Lock()
	defer n.formMu.Unlock()
	f := *n.form.Load()
	if old, err := raft.DecodeDescriptor(f.Meta); err != nil || old.ConfVer >= route.Desc.ConfVer {
		return
	}
	f.Meta = route.Desc.Encode(nil)
	n.writeForm(&f)
}

// writeForm makes a changed formation durable and current. formMu is held.
func (n *Node) writeForm(f *formation) {
	if err := writeFormation(n.o.FS, n.dir, f); err != nil {
		n.log.Warn("members not written", "err", err)
		return
	}
	n.form.Store(f)
	n.former.set(f)
}

// ChangeReplicas is Node.ChangeReplicas, asked of the first node that answers.
func (c *Client) ChangeReplicas(ctx context.Context, shardID uint64, changes ...ReplicaChange) (ShardInfo, error) {
	if _, err := checkChanges(changes); err != nil {
		return ShardInfo{}, err
	}
	ctx, cancel := boundBy(ctx, changeTimeout)
	defer cancel()
	var a changeAnswer
	if err := c.order(ctx, adminReplicas, func(nanos int64) any { return changeQuery{Shard: shardID, Changes: changes, Nanos: nanos} }, &a); err != nil {
		return ShardInfo{}, err
	}
	return a.info(shardID)
}

// TransferLeader is Node.TransferLeader, asked of the first node that answers.
func (c *Client) TransferLeader(ctx context.Context, shardID uint64, to uint32) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	var a changeAnswer
	if err := c.order(ctx, adminTransfer, func(nanos int64) any { return changeQuery{Shard: shardID, To: to, Nanos: nanos} }, &a); err != nil {
		return err
	}
	_, err := a.info(shardID)
	return err
}

// RemoveNode is Node.RemoveNode, asked of the first node that answers, which is
// not the one to be removed if there is a choice.
func (c *Client) RemoveNode(ctx context.Context, id uint32, o RemovalOptions) (Removal, error) {
	ctx, cancel := boundBy(ctx, changeTimeout)
	defer cancel()
	var a removalAnswer
	err := c.order(ctx, adminRemoveNode, func(nanos int64) any { return removalQuery{Node: id, Options: o, Nanos: nanos} }, &a)
	if err == nil && a.Refused != "" {
		err = &MembershipError{Reason: a.Refused, Unfinished: a.Unfinished}
	}
	return a.Removal, err
}

// order puts an order, which takes as long as ctx allows, to one node after the
// other until one answers. Orders may be given twice.
func (c *Client) order(ctx context.Context, method string, q func(nanos int64) any, a any) error {
	if _, err := c.routes(ctx, routesQuery{}); err != nil { // who is there now
		return err
	}
	addrs := slices.Clone(c.seeds)
	for _, m := range c.book.all() {
		if m.ClientAddr != "" && !slices.Contains(addrs, m.ClientAddr) {
			addrs = append(addrs, m.ClientAddr)
		}
	}
	var last error
	for _, addr := range addrs {
		s, err := c.seed(addr)
		if err != nil {
			return err
		}
		nanos := int64(0)
		if d, ok := ctx.Deadline(); ok {
			nanos = int64(time.Until(d) * 9 / 10)
		}
		in, err := json.Marshal(q(nanos))
		if err != nil {
			return err
		}
		out, err := s.Admin(ctx, method, in)
		if err == nil {
			return json.Unmarshal(out, a)
		}
		var away *shard.UnavailableError
		if !errors.As(err, &away) && !errors.Is(err, ErrClosed) || ctx.Err() != nil {
			return err
		}
		last = err
	}
	return noAnswer(last)
}
