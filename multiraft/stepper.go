package multiraft

import (
	"errors"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Stepper runs a host by hand, in place of Start: its owner calls the steps that
// the loops' and the syncers' goroutines call else, at times of its own choice
// and all on one goroutine. Simulators use it: the decisions of a node then
// depend on nothing but what it was handed. A host that has a Stepper owns no
// goroutine, and calls Config.OnFatal on the stepping one.
type Stepper struct {
	h *Host
	// OnRound, if set, sees the effects of a round before they are carried out:
	// after the state machine applied what is committed, before anything is
	// written or sent. o is read-only and valid during the call.
	OnRound func(loop int, o *raft.Out)
	// OnCommit, if set, is called right before a round's batch is handed to the
	// store to be synced.
	OnCommit func(loop int)
	// OnCommitted, if set, is called right after that: whatever syncs the store from then
	// on syncs the batch, too.
	OnCommitted func(loop int)
}

// Stepper returns the means to step the host. It is called once, instead of Start.
func (h *Host) Stepper() (*Stepper, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.started || h.closed {
		return nil, errors.New("multiraft: the host was started or closed before")
	}
	h.started = true
	h.stepper = &Stepper{h: h}
	return h.stepper, nil
}

// spawn runs f on a goroutine of its own, or here if the host is stepped by hand.
func (h *Host) spawn(f func()) {
	if h.stepper != nil {
		f()
		return
	}
	h.wg.Go(f)
}

// Loops returns the number of loops.
func (s *Stepper) Loops() int { return len(s.h.loops) }

// LoopOf returns the loop that owns a shard.
func (s *Stepper) LoopOf(shard raft.ShardID) int { return s.h.loopOf(shard).id }

// Step runs one round of a loop at now, and reports whether it did anything. A
// host that has failed answers what is open, once.
func (s *Stepper) Step(loop int, now raft.Time) bool {
	l := s.h.loops[loop]
	if s.h.dead.Load() != nil {
		select {
		case <-l.gone:
			return false
		default:
		}
		l.abandon()
		return true
	}
	l.idle.Store(false)
	l.roundAt.Store(int64(now))
	return l.step(now)
}

// Next returns when Step has to run even if nothing arrives, whether there is
// such a time, and whether there is work left already.
func (s *Stepper) Next(loop int) (deadline raft.Time, has, busy bool) {
	l := s.h.loops[loop]
	if s.h.dead.Load() != nil {
		select {
		case <-l.gone:
			return 0, false, false
		default:
			return 0, false, true
		}
	}
	deadline, has, busy = l.next()
	if l.in.waiting() && (l.inFlight < maxInFlightSyncs || l.in.waitingLight()) {
		busy = true
	}
	return deadline, has, busy
}

// Rest notes that a loop waits for work: it counts as alive (Host.Alive) however
// long nothing arrives.
func (s *Stepper) Rest(loop int) {
	l := s.h.loops[loop]
	l.idle.Store(l.inFlight == 0)
}

// Unsynced returns how many batches of a loop wait to be completed.
func (s *Stepper) Unsynced(loop int) int { return s.h.loops[loop].syncer.len() }

// Flush waits until the store has synced all batches of a loop. The loop is told
// of nothing: that is Complete's, for one batch after the other, at any later
// time. An error means that the host has failed.
func (s *Stepper) Flush(loop int) error {
	q := s.h.loops[loop].syncer
	for i := range q.q {
		if err := q.q[i].batch.Flushed(); err != nil {
			s.h.fatal(err)
			return err
		}
	}
	return nil
}

// Complete acknowledges the oldest batch of a loop that waits.
func (s *Stepper) Complete(loop int) {
	if q := s.h.loops[loop].syncer; q.len() > 0 {
		q.step()
	}
}

// Inside is what a replica is in the middle of, for whoever steps the host and
// wants to know what a fault hits.
type Inside struct {
	raft.Status
	Desc   raft.Descriptor // read-only
	Asleep bool
	// Commands wait for their answer, Sessions of them belong to sessions.
	Commands, Sessions int
	Reads              int // asked for and not answered
	Asks               int // of them: by other members
	// Repairing: it leads, and looks for where some peer's log agrees with its own.
	Repairing bool
	// Sending: it leads, and some peer waits for a snapshot.
	Sending bool
}

// Inside returns what goes on in the replica of a shard, or false if there is
// none. It is called between steps.
func (s *Stepper) Inside(shard raft.ShardID) (Inside, bool) {
	r, st, g := s.h.find(shard)
	if g != nil {
		return s.h.insideAsleep(&st, g)
	}
	if r == nil || r.removed {
		return Inside{}, false
	}
	in := Inside{Status: r.core.Status(), Desc: *r.desc, Commands: len(r.queue), Sessions: len(r.flights)}
	for i := range r.waiting {
		in.Commands += len(r.waiting[i].dones)
	}
	x := r.reads
	if x == nil {
		x = new(reading)
	}
	for _, list := range [][]readGroup{x.asked, x.ready} {
		for i := range list {
			in.Reads += len(list[i].dones) + len(list[i].asks)
			in.Asks += len(list[i].asks)
		}
	}
	if in.Role == raft.RoleLeader {
		for _, p := range r.core.Peers(nil) {
			in.Repairing = in.Repairing || p.State == "probe" && p.Match < in.Last
			in.Sending = in.Sending || p.State == "snapshot"
		}
	}
	return in, true
}

func (h *Host) insideAsleep(st *stub, g *ground) (Inside, bool) {
	d, ok := h.descOf(st)
	if !ok {
		return Inside{}, false
	}
	v := h.viewOf(st, g, d)
	in := Inside{Desc: d, Asleep: true}
	in.Status = raft.Status{
		Shard: v.Shard, Replica: v.Replica, Term: v.Term, LeadNode: v.Leader, Ready: v.IsReady,
		Commit: v.Commit, Applied: v.Applied, Last: v.Last, Trunc: v.Last, Stable: v.Last,
	}
	if v.IsLeader {
		in.Role, in.Lead = raft.RoleLeader, v.Replica
	} else if v.Leader != 0 {
		in.Lead = g.lead.ID
	}
	for _, m := range d.Replicas {
		in.Learner = in.Learner || m.Node == h.node && m.Role == raft.Learner
	}
	return in, true
}
