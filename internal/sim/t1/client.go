package t1

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/internal/sim/linear"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
	"github.com/flotillakv/flotilla/transport"
)

// clients are the users of the cluster. Each does one thing at a time, and goes
// from node to node like the router: by hints, and to somebody else after a
// failure that says for certain that nothing happened. A write that is tried
// again is another write, with values of its own, so that an attempt that was
// refused and took effect after all is seen.
type clients struct {
	w     *World
	list  []*client
	h     *linear.History
	tick  int64 // order of calls and answers
	known []seen
	open  int // operations under way
	under []*attempt
}

// seen is what clients last saw of a group of keys: conditions want it. A hint only.
type seen struct {
	saw  linear.State
	vers [linear.KeysMax]shard.Version
}

type client struct {
	w    *World
	id   int
	busy bool
	ok   bool  // the last operation succeeded
	hint []int // by shard: whom to ask
	ses  sessions
}

// attempt is one request on its way.
type attempt struct {
	c        *client
	build    func() (*shard.Request, *linear.Op)
	req      *shard.Request
	op       *linear.Op
	shard    int
	node     *node
	deadline int64
	tries    int
	over     bool         // this try
	told     bool         // the operation is in the history
	done     bool         // all of it
	unknown  bool         // of a session: an earlier try may have taken effect
	home     raft.ShardID // which holds the keys
}

func (cs *clients) init(w *World) {
	*cs = clients{w: w, h: linear.NewHistory(), known: make([]seen, w.p.Groups)}
	for i := range w.p.Clients {
		c := &client{w: w, id: i, hint: make([]int, w.p.Shards)}
		for s := range c.hint {
			c.hint[s] = w.rng.IntN(w.p.Nodes)
		}
		cs.list = append(cs.list, c)
	}
}

func (cs *clients) now() int64 {
	cs.tick++
	return cs.tick
}

// shardOf returns the shard, counted from 0, that holds a group's keys.
func (w *World) shardOf(g int) int { return g % w.p.Shards }

// single reports whether a group has one key only.
func single(g int) bool { return g%2 == 0 }

func (w *World) prefix(g int) []byte {
	return append(shardKey(w.shardOf(g)), fmt.Sprintf("/%d/", g)...)
}

func (w *World) key(g, k int) []byte { return append(w.prefix(g), byte('a'+k)) }

// bytesOf makes a value, of some length.
func (w *World) bytesOf(v linear.Value) []byte {
	b := make([]byte, 4+int(v)*7919%w.p.Payload)
	binary.BigEndian.PutUint32(b, uint32(v))
	return b
}

func (w *World) valueOf(b []byte) linear.Value {
	if len(b) < 4 {
		return 0xffffffff // nobody wrote this
	}
	v := linear.Value(binary.BigEndian.Uint32(b))
	if !bytes.Equal(b, w.bytesOf(v)) {
		return 0xffffffff
	}
	return v
}

// begin lets a client do what an action says.
func (cs *clients) begin(a Action) {
	c := cs.list[a.Node%len(cs.list)]
	if c.busy {
		return
	}
	rng := rand.New(rand.NewPCG(a.R, 0x0b))
	g := rng.IntN(cs.w.p.Groups)
	kind := rng.IntN(100)
	salt := rng.Uint64()
	c.begin(g, cs.w.exp(cs.w.p.Timeout), func() (*shard.Request, *linear.Op) {
		return cs.build(g, kind, rand.New(rand.NewPCG(salt, 1)))
	})
}

func (c *client) begin(g int, patience time.Duration, build func() (*shard.Request, *linear.Op)) {
	c.busy = true
	c.w.clients.open++
	c.w.clients.end() // of those that are over
	at := &attempt{c: c, build: build, shard: c.w.shardOf(g), deadline: c.w.now + int64(20*time.Millisecond+patience)}
	c.w.clients.under = append(c.w.clients.under, at)
	at.send(c.hint[at.shard])
}

// end forgets the attempts that are over.
func (cs *clients) end() {
	cs.under = slices.DeleteFunc(cs.under, func(at *attempt) bool { return at.done })
}

// giveUp ends what is under way when the run does: nobody knows what becomes of it.
func (cs *clients) giveUp() {
	cs.end()
	for _, at := range cs.under {
		if o := at.op; !at.told && o.Write != 0 {
			o.Return = cs.now()
			at.wrote(nil, shard.MaybeApplied)
		}
	}
	cs.under = nil
}

// build draws one operation on a group.
func (cs *clients) build(g, kind int, rng *rand.Rand) (*shard.Request, *linear.Op) {
	w := cs.w
	s := w.shardOf(g)
	r := &shard.Request{Shard: raft.ShardID(s + 1), Keyspace: 1, DescVersion: 1}
	o := &linear.Op{Group: g}
	all := linear.Set(1<<linear.KeysMax - 1)
	k := 0
	if !single(g) {
		k = rng.IntN(linear.KeysMax)
	}
	was := cs.known[g]
	consistency := func() {
		switch rng.IntN(4) {
		case 0:
			r.Consistency = shard.NoClock
		case 1:
			r.Consistency = shard.Follower
		}
	}
	switch {
	case kind < 25:
		o.Name, o.Read = "get", 1<<k
		r.Kind, r.Key = shard.KindGet, w.key(g, k)
		consistency()
	case kind < 40 && !single(g):
		o.Name, o.Read = "scan", all
		p := w.prefix(g)
		end := slices.Clone(p)
		end[len(end)-1]++
		r.Kind, r.Start, r.End, r.Reverse = shard.KindScan, p, end, rng.IntN(3) == 0
		consistency()
	case kind < 60:
		o.Name, o.Write = "put", 1<<k
		o.Values[k] = cs.h.Fresh()
		r.Kind = shard.KindWrite
		r.Command = w.command(shard.PutCommand(w.key(g, k), w.bytesOf(o.Values[k])))
	case kind < 75:
		o.Name, o.Write, o.Conditional, o.CondKey, o.Want = "cas", 1<<k, true, k, was.saw[k]
		o.Values[k] = cs.h.Fresh()
		r.Kind = shard.KindWrite
		r.Command = w.command(shard.CASCommand(w.key(g, k), was.vers[k], w.bytesOf(o.Values[k])))
	case kind < 80:
		o.Name, o.Write = "delete", 1<<k
		r.Kind = shard.KindWrite
		r.Command = w.command(shard.DeleteCommand(w.key(g, k)))
	case kind < 83 && !single(g):
		o.Name, o.Write = "delete range", all
		p := w.prefix(g)
		end := slices.Clone(p)
		end[len(end)-1]++
		r.Kind = shard.KindWrite
		r.Command = w.command(shard.DeleteRangeCommand(p, end))
	case kind < 92 && !single(g):
		o.Name = "batch"
		var b shard.Batch
		for i := range linear.KeysMax {
			switch rng.IntN(8) {
			case 0, 1:
			case 2:
				o.Write |= 1 << i
				b.Delete(w.key(g, i))
			default:
				o.Write |= 1 << i
				o.Values[i] = cs.h.Fresh()
				b.Put(w.key(g, i), w.bytesOf(o.Values[i]))
			}
		}
		if o.Write == 0 {
			o.Write = 1
			o.Values[0] = cs.h.Fresh()
			b.Put(w.key(g, 0), w.bytesOf(o.Values[0]))
		}
		r.Kind = shard.KindWrite
		r.Command = w.command(b.Command())
	default:
		cs.txn(g, r, o, was, rng)
	}
	return r, o
}

// txn reads all keys of a group and, if one of them is as it was last seen, writes two.
func (cs *clients) txn(g int, r *shard.Request, o *linear.Op, was seen, rng *rand.Rand) {
	w := cs.w
	n := linear.KeysMax
	if single(g) {
		n = 1
	}
	k := rng.IntN(n)
	o.Name, o.Conditional, o.CondKey, o.Want = "txn", true, k, was.saw[k]
	var q shard.Txn
	switch {
	case was.saw[k] == 0:
		q.If = append(q.If, shard.IfAbsent(w.key(g, k)))
	case rng.IntN(2) == 0:
		q.If = append(q.If, shard.IfValue(w.key(g, k), w.bytesOf(was.saw[k])))
	default:
		q.If = append(q.If, shard.IfVersion(w.key(g, k), was.vers[k]))
	}
	for i := range n {
		o.Read |= 1 << i
		q.Then = append(q.Then, shard.GetOp(w.key(g, i)))
		q.Else = append(q.Else, shard.GetOp(w.key(g, i)))
	}
	for range 2 {
		i := rng.IntN(n)
		if o.Write.Has(i) {
			continue
		}
		o.Write |= 1 << i
		o.Values[i] = cs.h.Fresh()
		q.Then = append(q.Then, shard.PutOp(w.key(g, i), w.bytesOf(o.Values[i])))
	}
	r.Kind = shard.KindWrite
	r.Command = w.command(q.Command())
}

func (w *World) command(c raft.Command, err error) raft.Command {
	if err != nil {
		w.fail("panic", "a command of the workload: %v", err)
	}
	return c
}

// send sends a new attempt to a node.
func (at *attempt) send(to int) {
	w := at.c.w
	if at.unknown {
		at.again()
	} else {
		at.req, at.op = at.build()
		at.op.Client, at.op.Call = at.c.id, w.clients.now()
		at.home = at.req.Shard
		at.number()
	}
	at.told = false
	at.tries++
	at.node = w.nodes[to%len(w.nodes)]
	at.over = false
	stale := w.rng.IntN(40)
	if !w.calm && stale == 0 { // a route of yesterday
		at.req.DescVersion = 2
	} else if !w.calm && stale == 1 {
		at.req.Shard = raft.ShardID(w.rng.IntN(w.p.Shards+1) + 1)
	}
	try := at.tries
	n := at.node
	w.res.Ops++
	sent := transport.EncodeRequest(nil, at.req, time.Duration(max(at.deadline-w.now, 1)))
	w.after(w.hop(), func() {
		if !n.up {
			at.finish(try, nil, &shard.UnavailableError{Node: n.id, Why: "it does not answer"})
			return
		}
		gen := n.gen
		w.on(n, w.now, func() {
			req, err := transport.DecodeRequest(sent)
			if err != nil {
				w.fail("F2", "node %d cannot decode a request: %v", n.id, err)
			}
			n.store.DoAsync(req, shard.AnswerFunc(func(resp *shard.Response) {
				if n.gen != gen || !n.up {
					return
				}
				resp, err := transport.DecodeResponse(transport.EncodeResponse(nil, resp))
				if err != nil {
					w.fail("F2", "an answer of node %d cannot be decoded: %v", n.id, err)
				}
				w.after(w.hop(), func() {
					if !w.calm && w.rng.Float64() < w.p.LostAnswer {
						at.hit(coverage.LostAnswer)
						at.finish(try, nil, &shard.AmbiguousError{Shard: at.req.Shard, Why: "the answer was lost"})
						return
					}
					at.finish(try, resp, resp.Err)
				})
			}))
		})
		// A connection that breaks with its node.
		w.at(w.now, func() { w.watch(at, try, n, gen) })
	})
	w.at(max(at.deadline, w.now+int64(time.Millisecond)), func() {
		at.finish(try, nil, &shard.AmbiguousError{Shard: at.req.Shard, Why: "its time ended"})
	})
}

// hop draws the way between a client and a node.
func (w *World) hop() time.Duration { return w.p.DelayMin + w.exp(w.p.DelayMean) }

// watch fails an attempt when its node has gone.
func (w *World) watch(at *attempt, try int, n *node, gen uint32) {
	if at.over || at.tries != try {
		return
	}
	if n.gen != gen {
		w.after(w.hop(), func() {
			at.finish(try, nil, &shard.AmbiguousError{Shard: at.req.Shard, Why: "the connection broke"})
		})
		return
	}
	w.after(25*time.Millisecond, func() { w.watch(at, try, n, gen) })
}

// finish takes the outcome of an attempt: once.
func (at *attempt) finish(try int, resp *shard.Response, err error) {
	if at.over || at.tries != try {
		return
	}
	at.over = true
	w, c, o := at.c.w, at.c, at.op
	o.Return = w.clients.now()
	more, resp, err := at.settle(resp, err)
	if more {
		w.after(w.exp(time.Duration(min(at.tries, 10))*4*time.Millisecond), func() { at.send(w.rng.IntN(w.p.Nodes)) })
		return
	}
	at.told = true
	if err != nil {
		o.Err = err.Error()
	}
	outcome := shard.OutcomeOf(err)
	if w.opt.Verbose {
		w.say(-1, "client", "%d at node %d: %s in shard %d (group %d): %v %v", c.id, at.node.id, o.Name, at.req.Shard, o.Group, outcome, err)
	}
	w.log(-1, "client", uint64(c.id)<<32|uint64(outcome), uint64(o.Call))
	var conflict *shard.ConflictError
	switch {
	case o.Write == 0:
		if err == nil {
			at.sawRead(resp)
		}
	case errors.As(err, &conflict):
		o.Outcome, o.Have = shard.Applied, conflict.Have
		if conflict.Have.IsZero() {
			o.Read |= 1 << o.CondKey
		}
		w.clients.add(o)
		err = nil
	default:
		at.wrote(resp, outcome)
	}
	c.ok = err == nil
	if err == nil {
		c.hint[at.shard] = at.node.idx
	}
	retry := err != nil && (outcome == shard.NotApplied || o.Write == 0)
	if !retry || w.now >= at.deadline {
		c.busy, at.done = false, true
		w.clients.open--
		return
	}
	to := w.rng.IntN(w.p.Nodes)
	var nl *shard.NotLeaderError
	if errors.As(err, &nl) && nl.Leader != 0 {
		to = int(nl.Leader) - 1
	}
	c.hint[at.shard] = to
	w.after(w.exp(time.Duration(min(at.tries, 10))*4*time.Millisecond), func() { at.send(to) })
}

func (cs *clients) add(o *linear.Op) { cs.h.Add(*o) }

func (at *attempt) sawRead(resp *shard.Response) {
	w, o := at.c.w, at.op
	o.Outcome = shard.Applied
	switch at.req.Kind {
	case shard.KindGet:
		if resp.Found {
			k := int(at.req.Key[len(at.req.Key)-1] - 'a')
			o.Saw[k], o.SawVersions[k] = w.valueOf(resp.Value.Bytes), resp.Value.Version
		}
	case shard.KindScan:
		last := -1
		for _, p := range resp.Pairs {
			k := int(p.Key[len(p.Key)-1]) - 'a'
			if k < 0 || k >= linear.KeysMax || !bytes.Equal(p.Key, w.key(o.Group, k)) || last >= 0 && (k > last) == at.req.Reverse {
				w.fail("S15", "a scan of group %d yields %q after %d", o.Group, p.Key, last)
			}
			last = k
			o.Saw[k], o.SawVersions[k] = w.valueOf(p.Value), p.Version
		}
	}
	w.clients.learn(o)
	w.clients.add(o)
	w.res.Reads++
}

func (at *attempt) wrote(resp *shard.Response, outcome shard.Outcome) {
	w, o := at.c.w, at.op
	o.Outcome = outcome
	switch outcome {
	case shard.MaybeApplied:
		w.res.Unknown++
		o.Read, o.Saw = 0, linear.State{}
		o.Held = false
	case shard.NotApplied:
		w.res.Denied++
		o.Read = 0
	case shard.Applied:
		w.res.Writes++
		o.Held, o.Receipt = true, resp.Receipt.Version
		if t := resp.Txn; t != nil {
			o.Held = t.Succeeded
			i := 0
			for k := range linear.KeysMax {
				if !o.Read.Has(k) {
					continue
				}
				if g := t.Gets[i]; g.Found {
					o.Saw[k], o.SawVersions[k] = w.valueOf(g.Value.Bytes), g.Value.Version
				}
				i++
			}
			if !o.Held {
				o.Receipt = shard.Version{}
			}
			w.clients.learn(o)
		}
	}
	w.clients.add(o)
}

func (cs *clients) learn(o *linear.Op) {
	k := &cs.known[o.Group]
	for i := range linear.KeysMax {
		if o.Read.Has(i) {
			k.saw[i], k.vers[i] = o.Saw[i], o.SawVersions[i]
		}
	}
}
