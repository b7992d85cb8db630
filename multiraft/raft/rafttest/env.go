package rafttest

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

const shard raft.ShardID = 7

// Env is a cluster of cores with its network, disks and clock. Commands:
//
//	nodes N [learners=K]      N voters on nodes 1..N, then K learners
//	spare N                   processes without a replica, on the next nodes
//	tune key=value...         before nodes: tail, keep, uncommitted, inflight, msg (bytes or counts)
//	campaign A                A starts an election (pre-vote first)
//	propose A text [xN]       A proposes one command (or N of them, one entry each)
//	read A [xN]               A asks for a read index (or N of them in one round)
//	conf A v4 l5 -2           A proposes a change: voter on 4, learner on 5, remove 2
//	transfer A B              A hands the leadership to B
//	frame                     every disk syncs, then every message in flight arrives
//	deliver A->B [type]       messages from A to B arrive
//	sync A                    A's disk syncs
//	settle                    frames until nothing moves
//	wait 250ms                time passes; deadlines fire and messages move
//	partition 1,2|3,4,5       messages cross no group border any more
//	drop A->B [type]          messages in flight from A to B are lost
//	lapse [A,B]               support between nodes that do not reach each other lapses;
//	                          with arguments only A's and B's promises, and no time passes
//	heal                      all nodes reach and support each other again
//	nap A                     A is put away, if it has nothing to do, until something comes for it
//	crash A / restart A       A loses what its disk has not synced / comes back
//	stop-replication A        (alias of partition A alone)
//	status / log [A]          what the cores say / what the logs hold
//	holds A text | lacks A text   assertion on A's state machine
//	quiet on|off              do not print message traffic
type Env struct {
	now   raft.Time
	tun   raft.Tuning // CommitDelay is 2 ms, so that commit records show
	nodes []*node
	net   []packet
	cut   [][]bool       // cut[a][b]: a does not reach b
	sup   [][]raft.Epoch // sup[a][b]: a supports b at this epoch; zero: not
	epoch []raft.Epoch   // newest epoch of each node
	out   strings.Builder
	quiet bool
	ctx   uint64
	naps  int
}

type node struct {
	env     *Env
	id      raft.NodeID
	core    *raft.Core // nil: no replica here, or down
	down    bool
	replica raft.ReplicaID
	visible store
	durable store
	pending []batch
	ops     []func(*store)
	lead    string
	// nap is set while the core is put away: n.core is the one of before then.
	nap           *raft.Nap
	rounds, asked uint64 // highest numbers of all naps
}

// store is what a node's disk holds of the replica.
type store struct {
	has  bool
	hard raft.HardState
	as   raft.AppliedState
	desc raft.Descriptor
	ents []raft.Entry // (as.TruncIndex, last]
	data []string     // applied commands
}

type batch struct {
	ops   []func(*store)
	marks []raft.LogMark
	held  []raft.Msg
}

type packet struct {
	m    raft.Msg
	snap *store // a snapshot on its way
	want raft.ReplicaID
}

// refusal is an error of a core, which a scenario may expect.
type refusal struct{ error }

// New returns an empty environment.
func New() *Env {
	return &Env{now: raft.Time(time.Second), tun: raft.Tuning{CommitDelay: 2 * time.Millisecond}}
}

func (e *Env) printf(f string, a ...any) { fmt.Fprintf(&e.out, f+"\n", a...) }

// traffic prints a line unless quiet.
func (e *Env) traffic(f string, a ...any) {
	if !e.quiet {
		e.printf(f, a...)
	}
}

// Run executes one command and returns what happened.
func (e *Env) Run(cmd string) string {
	e.out.Reset()
	for line := range strings.SplitSeq(cmd, "\n") {
		if f := strings.Fields(line); len(f) > 0 {
			if err := e.run(f[0], f[1:]); err != nil {
				if r, ok := err.(refusal); ok {
					e.printf("refused: %v", r.error)
				} else {
					e.printf("error: %v", err)
				}
			}
		}
	}
	if e.out.Len() == 0 {
		return "ok\n"
	}
	return e.out.String()
}

func (e *Env) run(cmd string, args []string) error {
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	switch cmd {
	case "tune":
		return e.tune(args)
	case "nodes":
		return e.create(arg(0), arg(1))
	case "spare":
		n, err := strconv.Atoi(arg(0))
		for range n {
			e.addNode()
		}
		return err
	case "settle":
		e.settle(200)
		return nil
	case "frame":
		e.frame()
		return nil
	case "wait":
		d, err := time.ParseDuration(arg(0))
		e.wait(d)
		return err
	case "quiet":
		e.quiet = arg(0) == "on"
		return nil
	case "partition":
		return e.partition(arg(0))
	case "lapse":
		if arg(0) != "" {
			return e.withdraw(arg(0))
		}
		e.lapse()
		return nil
	case "heal":
		e.heal()
		return nil
	case "deliver", "drop":
		return e.pick(cmd == "deliver", arg(0), arg(1))
	case "status":
		for _, n := range e.nodes {
			e.printf("%s", n.status())
		}
		return nil
	case "log":
		for _, n := range e.nodes {
			if arg(0) == "" || arg(0) == strconv.Itoa(int(n.id)) {
				e.printf("%d: %s", n.id, n.visible.log())
			}
		}
		return nil
	}
	n, err := e.node(arg(0))
	if err != nil {
		return err
	}
	switch cmd {
	case "crash":
		n.crash()
		return nil
	case "restart":
		return n.restart()
	case "sync":
		n.sync()
		return nil
	case "nap":
		n.sleep()
		return nil
	case "holds", "lacks":
		if slices.Contains(n.visible.data, arg(1)) != (cmd == "holds") {
			return fmt.Errorf("state of %d: %v", n.id, n.visible.data)
		}
		return nil
	}
	if n.core == nil {
		return fmt.Errorf("node %d has no running replica", n.id)
	}
	return n.command(cmd, args[1:])
}

// command hands one client or admin call to the core.
func (n *node) command(cmd string, args []string) error {
	e := n.env
	var err error
	var mark raft.LogMark
	n.round(func(c *raft.Core, o *raft.Out) {
		switch cmd {
		case "campaign":
			c.Campaign(e.now, o)
		case "propose":
			k := 1
			if len(args) > 1 {
				k, err = strconv.Atoi(strings.TrimPrefix(args[1], "x"))
			}
			for i := 0; i < k && err == nil; i++ {
				body := args[0]
				if k > 1 {
					body = fmt.Sprintf("%s%d", args[0], i+1)
				}
				mark, err = c.Propose(e.now, raft.EntryHeader{}, []raft.Command{{Op: 1, Body: []byte(body)}}, o)
			}
			if err == nil {
				e.traffic("%d proposes %s at %d/%d", n.id, args[0], mark.Index, mark.Term)
			}
		case "read":
			k := 1
			if len(args) > 0 {
				k, err = strconv.Atoi(strings.TrimPrefix(args[0], "x"))
			}
			for range k {
				e.ctx++
				c.ReadIndex(e.now, e.ctx, o)
			}
		case "transfer":
			var to *node
			if to, err = e.node(args[0]); err == nil {
				r, _ := n.visible.desc.ReplicaOn(to.id)
				err = c.Transfer(e.now, r.ID, o)
			}
		case "conf":
			var cc raft.ConfChange
			if cc, err = parseConf(n.visible.desc.ConfVer, args); err == nil {
				if mark, err = c.ProposeConf(e.now, cc, raft.EntryHeader{}, o); err == nil {
					e.traffic("%d proposes conf at %d/%d", n.id, mark.Index, mark.Term)
				}
			}
		default:
			panic("unknown command " + cmd)
		}
	})
	if err != nil {
		return refusal{err}
	}
	return nil
}

func parseConf(ver uint64, args []string) (raft.ConfChange, error) {
	cc := raft.ConfChange{ConfVer: ver}
	for _, a := range args {
		id, err := strconv.Atoi(a[1:])
		if err != nil {
			return cc, err
		}
		s := raft.ConfStep{Replica: raft.Replica{Node: raft.NodeID(id), Role: raft.Voter}}
		switch a[0] {
		case 'v':
		case 'l':
			s.Role = raft.Learner
		case '-':
			s.Remove, s.Role = true, 0
		default:
			return cc, fmt.Errorf("bad step %q", a)
		}
		cc.Steps = append(cc.Steps, s)
	}
	return cc, nil
}

func (e *Env) tune(args []string) error {
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		n, err := strconv.Atoi(v)
		if err != nil {
			return err
		}
		switch k {
		case "tail":
			e.tun.TailBytes = n
		case "keep":
			e.tun.LogKeepEntries = n
		case "uncommitted":
			e.tun.UncommittedBytes = n
		case "inflight":
			e.tun.InflightMsgs = n
		case "msg":
			e.tun.MaxMsgBytes = n
		default:
			return fmt.Errorf("unknown tuning %q", k)
		}
	}
	return nil
}

func (e *Env) addNode() *node {
	n := &node{env: e, id: raft.NodeID(len(e.nodes) + 1)}
	e.nodes = append(e.nodes, n)
	k := len(e.nodes)
	e.epoch = append(e.epoch, 1<<32|1)
	for i := range e.cut {
		e.cut[i] = append(e.cut[i], false)
		e.sup[i] = append(e.sup[i], e.epoch[k-1])
	}
	e.cut = append(e.cut, make([]bool, k))
	e.sup = append(e.sup, slices.Clone(e.epoch))
	return n
}

func (e *Env) create(voters, learners string) error {
	v, err := strconv.Atoi(voters)
	if err != nil {
		return err
	}
	l := 0
	if s, ok := strings.CutPrefix(learners, "learners="); ok {
		if l, err = strconv.Atoi(s); err != nil {
			return err
		}
	}
	desc := raft.Descriptor{Shard: shard, ConfVer: 1, Version: 1, NextReplica: raft.ReplicaID(v + l + 1)}
	for i := range v + l {
		r := raft.Replica{Node: raft.NodeID(i + 1), ID: raft.ReplicaID(i + 1), Role: raft.Voter}
		if i >= v {
			r.Role = raft.Learner
		}
		desc.Replicas = append(desc.Replicas, r)
	}
	for range v + l {
		n := e.addNode()
		n.visible = store{has: true, desc: desc.Clone()}
		n.durable = n.visible.clone()
		if err := n.start(); err != nil {
			return err
		}
	}
	return nil
}

func (e *Env) node(s string) (*node, error) {
	i, err := strconv.Atoi(s)
	if err != nil || i < 1 || i > len(e.nodes) {
		return nil, fmt.Errorf("no node %q", s)
	}
	return e.nodes[i-1], nil
}

// liveness is the table as one node sees it.
type liveness struct {
	e  *Env
	me int
}

func (l liveness) SupportFor(n raft.NodeID) (raft.Epoch, bool) {
	e := l.e.sup[l.me][n-1]
	return e, e != 0
}

func (l liveness) SupportFrom(n raft.NodeID) (raft.Epoch, raft.Time) {
	if int(n-1) == l.me {
		return l.e.epoch[l.me], raft.Never
	}
	if e := l.e.sup[n-1][l.me]; e != 0 {
		return e, raft.Never
	}
	return 0, 0
}

func (e *Env) partition(groups string) error {
	side := make([]int, len(e.nodes))
	for g, s := range strings.Split(groups, "|") {
		for _, a := range strings.Split(s, ",") {
			n, err := e.node(strings.TrimSpace(a))
			if err != nil {
				return err
			}
			side[n.id-1] = g + 1
		}
	}
	for i := range e.nodes {
		for j := range e.nodes {
			e.cut[i][j] = side[i] != side[j]
		}
	}
	return nil
}

func (e *Env) lapse() {
	e.now = e.now.Add(3 * time.Second)
	type pair struct{ a, b int }
	var gone []pair
	for i := range e.nodes {
		for j := range e.nodes {
			if i != j && e.sup[i][j] != 0 && (e.cut[j][i] || e.nodes[i].down || e.nodes[j].down) {
				e.sup[i][j] = 0
				gone = append(gone, pair{i, j})
			}
		}
	}
	for _, p := range gone {
		e.nodes[p.a].livenessChanged(raft.NodeID(p.b + 1))
		e.nodes[p.b].livenessChanged(raft.NodeID(p.a + 1))
	}
}

// withdraw ends the promises of some nodes to those they do not hear.
func (e *Env) withdraw(list string) error {
	for _, a := range strings.Split(list, ",") {
		n, err := e.node(a)
		if err != nil {
			return err
		}
		i := int(n.id - 1)
		for j, p := range e.nodes {
			if j != i && e.sup[i][j] != 0 && (e.cut[j][i] || p.down) {
				e.sup[i][j] = 0
				n.livenessChanged(p.id)
			}
		}
	}
	return nil
}

func (e *Env) heal() {
	for i := range e.nodes {
		for j := range e.nodes {
			e.cut[i][j] = false
		}
	}
	for j := range e.nodes {
		lost := false
		for i := range e.nodes {
			if i != j && e.sup[i][j] == 0 && !e.nodes[i].down && !e.nodes[j].down {
				lost = true
			}
		}
		if lost {
			e.epoch[j]++ // a lapsed epoch is never used again
			for i := range e.nodes {
				if i != j && e.sup[i][j] == 0 && !e.nodes[i].down && !e.nodes[j].down {
					e.sup[i][j] = e.epoch[j]
				}
			}
		}
	}
	for i := range e.nodes {
		for j := range e.nodes {
			if i != j {
				e.nodes[i].livenessChanged(raft.NodeID(j + 1))
			}
		}
	}
}

func (n *node) livenessChanged(of raft.NodeID) {
	if n.nap != nil && !slices.ContainsFunc(n.nap.Members, func(m raft.NapMember) bool { return m.Lags && m.Node == of }) {
		return // it looks for itself when it wakes
	}
	n.round(func(c *raft.Core, o *raft.Out) { c.LivenessChanged(n.env.now, of, o) })
}

// frame syncs every disk, then delivers what is in flight, as of now.
func (e *Env) frame() bool {
	moved := false
	for _, n := range e.nodes {
		moved = n.sync() || moved
	}
	ps := e.net
	e.net = nil
	for i := range ps {
		e.deliver(&ps[i])
		moved = true
	}
	for _, n := range e.nodes {
		moved = n.due() || moved
	}
	return moved
}

func (e *Env) settle(most int) {
	for i := 0; e.frame(); i++ {
		if i == most {
			e.printf("error: does not settle")
			return
		}
	}
}

// wait lets time pass from deadline to deadline.
func (e *Env) wait(d time.Duration) {
	end := e.now.Add(d)
	for range 10000 {
		next := end
		for _, n := range e.nodes {
			if n.core != nil && n.nap == nil {
				next = min(next, max(n.core.Deadline(), e.now))
			}
		}
		e.now = next
		for _, n := range e.nodes {
			n.due()
		}
		e.settle(200)
		if e.now >= end {
			return
		}
		if next == e.now {
			e.now++
		}
	}
	e.printf("error: the clock does not get there")
}

// due ticks the core if its deadline has come.
func (n *node) due() bool {
	if n.core == nil || n.nap != nil || n.core.Deadline() > n.env.now {
		return false
	}
	n.round(func(c *raft.Core, o *raft.Out) { c.Tick(n.env.now, o) })
	return true
}

func (e *Env) pick(deliver bool, link, typ string) error {
	a, b, ok := strings.Cut(link, "->")
	if !ok {
		return errors.New("want A->B")
	}
	var ps []packet
	e.net = slices.DeleteFunc(e.net, func(p packet) bool {
		hit := (a == "*" || a == strconv.Itoa(int(p.m.From))) && (b == "*" || b == strconv.Itoa(int(p.m.To))) &&
			(typ == "" || typ == msgName(&p.m))
		if hit {
			ps = append(ps, p)
		}
		return hit
	})
	for i := range ps {
		if deliver {
			e.deliver(&ps[i])
		} else {
			e.traffic("lost: %s", format(&ps[i].m))
		}
	}
	return nil
}

func (e *Env) deliver(p *packet) {
	from, to := e.nodes[p.m.From-1], e.nodes[p.m.To-1]
	lost := e.cut[from.id-1][to.id-1] || to.down
	if p.snap != nil {
		e.deliverSnapshot(p, lost)
		return
	}
	if lost {
		e.traffic("lost: %s", format(&p.m))
		return
	}
	if to.core != nil && p.m.Type == raft.MsgApp && p.m.ToReplica > to.replica {
		// The replica here was removed and a newer one takes its place.
		to.core, to.nap, to.pending, to.visible, to.durable = nil, nil, nil, store{}, store{}
	}
	if to.core == nil {
		if p.m.Type == raft.MsgApp {
			e.send(raft.Msg{Type: raft.MsgNeedSnapshot, Shard: shard, From: to.id, To: from.id, FromReplica: p.m.ToReplica, ToReplica: p.m.FromReplica, Term: p.m.Term})
		}
		return
	}
	to.round(func(c *raft.Core, o *raft.Out) { c.Step(e.now, &p.m, o) })
}

func (e *Env) deliverSnapshot(p *packet, lost bool) {
	from, to := e.nodes[p.m.From-1], e.nodes[p.m.To-1]
	as := p.snap.as
	if !lost && (to.core == nil || to.core.WantsSnapshot(as.Applied, as.AppliedTerm)) {
		to.install(p.snap, p.want)
	}
	from.round(func(c *raft.Core, o *raft.Out) {
		c.SnapshotSent(e.now, p.want, as.Applied, as.AppliedTerm, !lost, o)
	})
}

func (e *Env) send(m raft.Msg) {
	e.traffic("%s", format(&m))
	e.net = append(e.net, packet{m: m})
}
