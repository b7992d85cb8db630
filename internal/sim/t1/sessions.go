package t1

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/multiraft/session"
	"github.com/flotillakv/flotilla/shard"
)

// sessions are the sessions of one client, one after the other. Every other
// client writes in sessions: after an unknown outcome it sends the same write
// again, and now and then, much later, a copy of a write that is over. Each must
// take effect once, which the histories show.
type sessions struct {
	rng  *rand.Rand
	cur  session.Client
	uses int
}

// number gives a new write its place in the client's session.
func (at *attempt) number() {
	w, c := at.c.w, at.c
	if c.id%2 == 0 || at.req.Kind != shard.KindWrite {
		return
	}
	s := &c.ses
	if s.rng == nil {
		s.rng = rand.New(rand.NewPCG(w.sched.Seed, 0x5e55+uint64(c.id)))
	}
	if s.uses == 0 || s.rng.IntN(60) == 0 {
		s.cur = session.Client{ID: [16]byte{1, byte(c.id), byte(s.uses), byte(s.uses >> 8)}}
	}
	s.uses++
	ttl := []time.Duration{200 * time.Millisecond, 2 * time.Second, time.Minute}[s.rng.IntN(3)]
	h, ok := s.cur.Begin(at.req.Shard, uint64(epochNanos+w.now+int64(ttl)))
	if !ok {
		w.fail("panic", "a client with one write at a time has no number left: %+v", s.cur)
	}
	at.req.Command.Session = h
}

// again makes the request for another try of the same write.
func (at *attempt) again() {
	req := *at.req
	req.Shard, req.DescVersion = at.home, 1
	at.req = &req
}

// settle turns the answer to one try of a session's write into what is known of
// the write. more says that nothing is known yet and there is time to ask again.
func (at *attempt) settle(resp *shard.Response, err error) (more bool, _ *shard.Response, _ error) {
	h := at.req.Command.Session
	if h == nil {
		return false, resp, err
	}
	w, c := at.c.w, at.c
	var (
		conflict *shard.ConflictError
		expired  *shard.SessionExpiredError
		gone     *shard.ResultGoneError
	)
	switch {
	case err == nil, errors.As(err, &conflict), errors.As(err, &expired) && expired.Known:
	case errors.As(err, &gone) && !gone.Version.IsZero():
		at.op.Read = 0 // what it read is lost
		resp = &shard.Response{Receipt: shard.Receipt{Version: gone.Version}}
		if at.op.Name == "txn" {
			resp.Txn = &shard.TxnResult{Succeeded: gone.Succeeded, Receipt: resp.Receipt}
		}
		err = nil
	case shard.OutcomeOf(err) == shard.MaybeApplied:
		at.unknown = true
		if w.now < at.deadline {
			return true, resp, err
		}
	case at.unknown: // of this try it is known, of an earlier one not
		if w.now < at.deadline {
			return true, resp, err
		}
		err = &shard.AmbiguousError{Shard: at.home, Why: err.Error()}
	}
	at.unknown = false
	c.ses.cur.End(h)
	if shard.OutcomeOf(err) != shard.NotApplied && c.ses.rng.IntN(4) == 0 {
		at.copyLater()
	}
	return false, resp, err
}

// copyLater lets a copy of the write arrive at some node when it is over. What
// it answers is nobody's business, but it must not take effect a second time.
func (at *attempt) copyLater() {
	w := at.c.w
	at.again()
	req := at.req
	to := w.nodes[at.c.ses.rng.IntN(len(w.nodes))]
	w.after(time.Duration(at.c.ses.rng.Int64N(int64(3*time.Second))), func() {
		if !to.up || w.calm {
			return
		}
		w.res.fault("late-copy", 1)
		w.coverOp(coverage.LateCopy, coverage.Session, to, req.Shard)
		w.on(to, w.now, func() { to.store.DoAsync(req, shard.AnswerFunc(func(*shard.Response) {})) })
	})
}
