package t1

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// Custom puts a user's state machine in the place of the key-value machine. The
// cluster has one shard then, whose span is all keys. What the machine left on
// disk is compared between replicas that have applied the same entries; what
// clients saw is for Check to judge.
type Custom struct {
	// Machine makes the state machine of one life of a node.
	Machine func() multiraft.Machine
	// Next draws what a client does next, from rng alone.
	Next func(rng *rand.Rand, client int) CustomOp
	// Check judges everything that clients did, in the order in which it ended.
	// Nil: nothing.
	Check func(h []CustomResult) error
}

// CustomOp is a command, which changes the machine, or a query, which does not.
type CustomOp struct {
	Query bool
	Body  []byte
}

// CustomResult is what became of an operation. Call and Return order operations:
// one whose Return is below another's Call was over before that one began.
type CustomResult struct {
	CustomOp
	Client       int
	Call, Return int64
	// Outcome of a command; a query that failed is not recorded.
	Outcome shard.Outcome
	Result  []byte
	// Err is a *multiraft.MachineError if the machine refused the command, else
	// why it is not known to be applied.
	Err error
}

// customRun is the clients' side of a run with a user's machine.
type customRun struct {
	w    *World
	c    *Custom
	busy []bool
	hint []int
	list []CustomResult
}

func (r *customRun) init(w *World) {
	*r = customRun{w: w, c: w.opt.Custom, busy: make([]bool, w.p.Clients), hint: make([]int, w.p.Clients)}
}

// begin lets a client do what Next says.
func (r *customRun) begin(a Action) {
	i := a.Node % len(r.busy)
	if r.busy[i] {
		return
	}
	r.busy[i] = true
	rng := rand.New(rand.NewPCG(a.R, 0xc0))
	op := r.c.Next(rng, i)
	r.w.clients.open++
	r.send(i, op, r.w.now+int64(20*time.Millisecond+r.w.exp(r.w.p.Timeout)), 1, func(bool) { r.busy[i] = false })
}

// send tries an operation at the node a client believes in.
func (r *customRun) send(client int, op CustomOp, deadline int64, tries int, done func(ok bool)) {
	w := r.w
	slot := client % len(r.hint)
	n := w.nodes[r.hint[slot]%len(w.nodes)]
	res := CustomResult{CustomOp: op, Client: client, Call: w.clients.now()}
	w.res.Ops++
	over := false
	finish := func(data []byte, err error) {
		if over {
			return
		}
		over = true
		res.Return, res.Result, res.Err = w.clients.now(), data, err
		var refused *multiraft.MachineError
		switch {
		case err == nil || errors.As(err, &refused):
			res.Outcome = shard.Applied
		case errors.Is(err, multiraft.ErrAmbiguous):
			res.Outcome = shard.MaybeApplied
		default:
			res.Outcome = shard.NotApplied
		}
		w.log(-1, "client", uint64(client)<<32|uint64(res.Outcome), uint64(res.Call))
		r.record(&res)
		if (res.Outcome == shard.NotApplied || op.Query && err != nil) && w.now < deadline {
			r.hint[slot] = w.rng.IntN(w.p.Nodes)
			var nl *multiraft.NotLeaderError
			if errors.As(err, &nl) && nl.Leader != 0 {
				r.hint[slot] = int(nl.Leader) - 1
			}
			w.after(w.exp(time.Duration(min(tries, 10))*4*time.Millisecond), func() { r.send(client, op, deadline, tries+1, done) })
			return
		}
		w.clients.open--
		done(res.Outcome == shard.Applied)
	}
	w.after(w.hop(), func() {
		if !n.up {
			finish(nil, multiraft.ErrClosed)
			return
		}
		gen := n.gen
		w.on(n, w.now, func() {
			r.ask(n, op, func(data []byte, err error) {
				if n.gen != gen || !n.up {
					return
				}
				w.after(w.hop(), func() {
					if !w.calm && w.rng.Float64() < w.p.LostAnswer {
						finish(nil, multiraft.ErrAmbiguous)
						return
					}
					finish(data, err)
				})
			})
		})
	})
	w.at(max(deadline, w.now+int64(time.Millisecond)), func() { finish(nil, multiraft.ErrAmbiguous) })
}

// ask carries an operation out on a node.
func (r *customRun) ask(n *node, op CustomOp, done func([]byte, error)) {
	if !op.Query {
		door{n}.Propose(1, raft.Command{Op: multiraft.OpUser, Body: op.Body}, func(data []byte, _ raft.Index, _ uint32, err error) {
			if err == nil {
				data, err = multiraft.Answer(data)
			}
			done(data, err)
		})
		return
	}
	door{n}.Read(1, func(_ raft.Index, err error) {
		if err != nil {
			done(nil, err)
			return
		}
		n.readLater(func() {
			desc, ok := n.host.Descriptor(1)
			if !ok {
				done(nil, multiraft.ErrUnknownShard)
				return
			}
			done(n.custom.Query(multiraft.NewReader(n.eng, desc), op.Body))
		})
	})
}

func (r *customRun) record(res *CustomResult) {
	w := r.w
	switch {
	case res.Query && res.Outcome != shard.Applied:
		return
	case res.Query:
		w.res.Reads++
	case res.Outcome == shard.Applied:
		w.res.Writes++
	case res.Outcome == shard.MaybeApplied:
		w.res.Unknown++
	default:
		w.res.Denied++
	}
	r.list = append(r.list, *res)
}

// check lets the user judge.
func (r *customRun) check() {
	if r.c.Check == nil {
		return
	}
	if err := r.c.Check(r.list); err != nil {
		r.w.fail("check", "%v", err)
	}
	r.w.res.Histories = 1
}
