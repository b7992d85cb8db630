package multiraft

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Comparing replicas
//
// Every replica keeps a digest of what it has applied (raft.Digest): in memory and,
// with the effects, on the disk and in snapshots. Now and then, and only if something
// was applied since, the leader asks all members for theirs at one index, which is the
// last one of its log: nobody can be beyond it. Who gets there answers.
//
//   - All the same: nothing more is said until something is applied again.
//   - A majority of the voters (or, failing that, of all members) has one digest, and somebody another: that replica is
//     quarantined (quarantine.go). If it is the leader, it hands over.
//   - There is no majority for any digest: nobody knows who is right, and nobody
//     guesses. The members that answered are disputed: they serve no reads and take no
//     writes, but go on to replicate and apply, so that a further replica decides.
//
// A chain over what was applied does not see what happened to it since. So a group that
// has come to rest, with all digests the same, is also compared by what it holds: each
// member reads its keys and records at that index, slowly, aside, one group of a node at
// a time. If anything is applied meanwhile the comparison is void, and there is another when
// the group has come to rest again. (Groups that never rest are compared by their chains,
// and their tables are read by Engine.Scrub.)
//
// What an older release says of these messages is nothing; it counts as not asked.

const (
	// DefaultDigestEvery is Config.DigestEvery if that is zero.
	DefaultDigestEvery = 10 * time.Second
	// digestWait is for how long answers are waited for.
	digestWait = 2 * time.Second
	// DefaultStateEvery is Config.StateEvery if that is zero.
	DefaultStateEvery = time.Hour
	// stateWait is for how long digests of the state are waited for.
	stateWait = 30 * time.Minute
	// stateChain stands for the chain where the digest is that of a state.
	stateChain = raft.NoDigest - 1
)

// ErrDiverged is wrapped by what a replica answers that may have another state than
// the others of its group. Nothing was read or proposed.
var ErrDiverged = errors.New("multiraft: replicas differ")

// DivergedError says that a replica does not have what the others of its group have
// at an index, or that nobody knows which of them is right.
type DivergedError struct {
	Shard   raft.ShardID
	Node    raft.NodeID // whose replica it is; zero: nobody knows whose
	Replica raft.ReplicaID
	Index   raft.Index // through which the digests were compared
	// Why is empty if digests differ; else how the fault was found.
	Why string
	// Rebuilt, in events only: the replica has a good state again, through Index.
	Rebuilt bool
}

// Error says what is known, and what comes of it.
func (e *DivergedError) Error() string {
	switch {
	case e.Node == 0:
		return fmt.Sprintf("multiraft: the replicas of shard %d differ at index %d, and no majority agrees: the shard is closed until a further replica decides, or the faulty one is removed", e.Shard, e.Index)
	case e.Why != "":
		return fmt.Sprintf("multiraft: replica %d of shard %d on node %d is quarantined: %s; it is rebuilt from another one", e.Replica, e.Shard, e.Node, e.Why)
	}
	return fmt.Sprintf("multiraft: replica %d of shard %d on node %d differs from the majority at index %d; it is quarantined and rebuilt from another one", e.Replica, e.Shard, e.Node, e.Index)
}

// Is makes errors.Is(err, ErrDiverged) hold.
func (e *DivergedError) Is(err error) bool { return err == ErrDiverged }

// comparison is a replica's part in comparing digests.
type comparison struct {
	at          raft.Time  // when a leader asks, or ends the wait for answers; raft.Never: not planned
	agreed      raft.Index // a leader: through which those who were asked agreed last
	stated      raft.Index // a leader: through which states were compared last
	absent      bool       // some were not asked then, or did not answer
	state       bool       // the next question, or the one under way, is for the state
	byState     bool       // disputed came from comparing states
	wasDisputed bool       // others may have to be told that it is over
	question    *question  // of a leader: the one under way, or the last one; nil: none, or nobody needs it any more
	answer      *answer    // of whoever was asked; nil: it was not
	// disputed is set while nobody knows whether this replica is right.
	disputed *fenceError
}

// question is what a leader asks.
type question struct {
	index raft.Index
	term  raft.Term // zero: it is over
	known bool      // the own digest at index is in mine
	mine  raft.Digest
	from  raft.Index
	asked []raft.ReplicaID
	said  []digestAnswer
}

// answer is what a replica answers when it gets to where it was asked for (want, of the
// replica), and what it answered last.
type answer struct {
	to      raft.NodeID // zero: nobody waits
	replica raft.ReplicaID
	theirs  raft.Digest // of the leader, if has
	chain   raft.Index
	has     bool
	told    digestAnswer // the last answer, and at which index
	toldAt  raft.Index
}

// asking reports whether a question is under way.
func (c *comparison) asking() bool { return c.question != nil && c.question.term != 0 }

// asked reports whether somebody waits for an answer.
func (c *comparison) asked() bool { return c.answer != nil && c.answer.to != 0 }

// end ends the question under way. What was answered is kept.
func (c *comparison) end() {
	if c.question != nil {
		c.question.term = 0
	}
}

// reply returns c.answer, to be changed.
func (c *comparison) reply() *answer {
	if c.answer == nil {
		c.answer = new(answer)
	}
	return c.answer
}

type digestAnswer struct {
	replica  raft.ReplicaID
	digest   raft.Digest
	from     raft.Index
	none     bool // it has none for that index
	disputed bool // it waits to hear that a dispute is over, which an answer like this can end
}

// waits reports whether the replica is disputed and an answer about states, or about chains,
// can end that: what states differed in no chain shows.
func (c *comparison) waits(state bool) bool { return c.disputed != nil && (state || !c.byState) }

// noteApplied extends the digest of r by an entry and what came of it, which is in
// the round's batch from mark on, and in sum (what was answered).
func (r *replica) noteApplied(e raft.Entry, effects []byte, answered raft.Digest) {
	if r.as.DigestFrom == raft.NoDigest {
		return
	}
	d := r.as.Digest.Entry(e.Index, e.Term, e.Type).Add(effects)
	if answered != 0 {
		d = d.Entry(raft.Index(answered), 0, 0)
	}
	r.as.Digest = d
}

// planComparison decides when a leader asks next. It is called once per round in
// which r was touched.
func (l *loop) planComparison(now raft.Time, r *replica) {
	c := &r.cmp
	if !r.shown.isLeader || !r.shown.isReady || r.fenced != nil || l.h.digestEvery < 0 {
		if c.at != raft.Never {
			c.at, c.question, c.agreed, c.absent, c.state, c.stated = raft.Never, nil, 0, false, false, 0
		}
		return
	}
	// Spread, so that the groups of a node do not ask all at once.
	spread := func(every time.Duration) raft.Time {
		return now.Add(every/2 + time.Duration(mix(uint64(r.shard)^uint64(now))%uint64(every/2+1)))
	}
	moved := r.as.Applied > c.agreed || c.absent && c.question != nil && l.anyLive(r, c.question.said)
	switch {
	case c.state && r.as.Applied > c.agreed: // no rest
		c.state = false
		c.end()
		c.at = spread(l.h.digestEvery)
	case c.at == raft.Never && moved:
		c.at = spread(l.h.digestEvery)
	case c.at == raft.Never && l.h.stateEvery > 0 && r.as.Applied > c.stated:
		c.at, c.state = spread(l.h.stateEvery), true
	}
}

// anyLive reports whether a member is live that has not said anything.
func (l *loop) anyLive(r *replica, said []digestAnswer) bool {
	for _, m := range r.desc.Replicas {
		if m.ID != r.self && l.live(m.Node) && !slices.ContainsFunc(said, func(a digestAnswer) bool { return a.replica == m.ID }) {
			return true
		}
	}
	return false
}

func (l *loop) live(n raft.NodeID) bool {
	_, ok := l.h.live.SupportFor(n)
	return ok
}

// compare asks, or judges what was answered, when it is time to.
func (l *loop) compare(now raft.Time, r *replica) {
	c := &r.cmp
	if now < c.at {
		return
	}
	if c.asking() {
		l.judge(now, r)
		return
	}
	st := r.core.Status()
	if st.Role != raft.RoleLeader || r.fenced != nil {
		c.at = raft.Never
		return
	}
	if r.as.DigestFrom == raft.NoDigest { // begun here; the others follow
		r.as.Digest, r.as.DigestFrom, r.asDirty = 0, r.as.Applied, true
		l.touch(r)
	}
	q := &question{index: st.Last, term: st.Term, from: r.as.DigestFrom}
	c.question = q
	c.at = now.Add(digestWait)
	if c.state {
		q.from, c.at = stateChain, now.Add(stateWait)
	}
	m := raft.Msg{Type: raft.MsgDigest, Shard: r.shard, From: l.h.node, FromReplica: r.self, Term: st.Term, Index: q.index, Epoch: raft.Epoch(q.from)}
	if c.state {
		m.Flags = raft.FlagProbe
		if r.as.Applied != q.index {
			c.question, c.state, c.at = nil, false, raft.Never
			return
		}
		l.sumState(r, func(now raft.Time, d raft.Digest, ok bool) {
			if c.question == q && q.term != 0 && c.state && ok {
				q.known, q.mine = true, d
				l.maybeJudge(now, r)
			}
		})
	} else if r.as.Applied == q.index {
		if q.mine, q.known = l.digestOf(r); r.out == nil { // else it is no chain that could be joined
			m.Flags, m.Round = raft.FlagGrant, uint64(q.mine)
		}
	} else {
		r.want = q.index
	}
	for _, p := range r.desc.Replicas {
		if p.ID == r.self || !l.live(p.Node) {
			continue
		}
		q.asked = append(q.asked, p.ID)
		m.To, m.ToReplica = p.Node, p.ID
		l.out.Msgs = append(l.out.Msgs, m)
	}
	l.h.stats.compared.Add(1)
	if len(q.asked) == 0 {
		l.judge(now, r)
	}
}

// reached is called when r has applied the entry at r.want.
func (l *loop) reached(now raft.Time, r *replica) {
	r.want = 0
	c := &r.cmp
	if c.asking() && c.question.index == r.as.Applied {
		c.question.mine, c.question.known = l.digestOf(r)
		l.maybeJudge(now, r)
		return
	}
	if c.asked() {
		l.answerDigest(r)
	}
}

// answerDigest tells the leader the digest at the index that is applied.
func (l *loop) answerDigest(r *replica) {
	c := r.cmp.answer
	if r.as.DigestFrom != c.chain && c.has {
		// Another chain: begun by a leader whose store had none. Join it.
		r.as.Digest, r.as.DigestFrom, r.asDirty = c.theirs, c.chain, true
		l.touch(r)
	}
	d, ok := l.digestOf(r)
	m := raft.Msg{
		Type: raft.MsgDigestResp, Shard: r.shard, From: l.h.node, To: c.to, FromReplica: r.self, ToReplica: c.replica,
		Term: max(1, r.core.Status().Term), Index: r.as.Applied, Epoch: raft.Epoch(r.as.DigestFrom), Round: uint64(d),
	}
	if r.as.DigestFrom == raft.NoDigest || !ok {
		m.Flags = raft.FlagReject
	}
	if r.cmp.waits(false) && !mutants.On("IG10") {
		m.Flags |= raft.FlagProbe
	}
	c.told, c.toldAt = digestAnswer{digest: d, from: r.as.DigestFrom}, r.as.Applied
	c.to = 0
	l.out.Msgs = append(l.out.Msgs, m)
}

// stepDigest takes the messages of this protocol. It reports whether m was one.
func (l *loop) stepDigest(now raft.Time, m *raft.Msg) bool {
	if m.Type < raft.MsgDigest || m.Type > raft.MsgRebuild {
		return false
	}
	r := l.get(now, m.Shard)
	if r == nil || m.ToReplica != r.self {
		return true
	}
	r.stirredAt(now)
	st := r.core.Status()
	if p, ok := r.desc.Replica(m.FromReplica); !ok || p.Node != m.From || m.Term != st.Term {
		return true // of another term, or configuration: it will be asked again
	}
	switch m.Type {
	case raft.MsgDigest:
		if st.Role != raft.RoleLeader && st.LeadNode == m.From {
			l.takeQuestion(r, m)
		}
	case raft.MsgDigestResp:
		q := r.cmp.question
		if q == nil || q.term != m.Term || q.index != m.Index || !slices.Contains(q.asked, m.FromReplica) ||
			slices.ContainsFunc(q.said, func(a digestAnswer) bool { return a.replica == m.FromReplica }) {
			break
		}
		q.said = append(q.said, digestAnswer{replica: m.FromReplica, digest: raft.Digest(m.Round), from: raft.Index(m.Epoch), none: m.Reject(), disputed: m.Flags&raft.FlagProbe != 0})
		l.maybeJudge(now, r)
	case raft.MsgDigestVerdict:
		if st.Role != raft.RoleLeader && st.LeadNode == m.From {
			l.takeVerdict(r, m)
		}
	case raft.MsgRebuild:
		if st.Role == raft.RoleLeader {
			l.rebuild(r, m)
		}
	}
	return true
}

// takeQuestion answers the leader now or, at an index not applied yet, then.
func (l *loop) takeQuestion(r *replica, m *raft.Msg) {
	answer := raft.Msg{
		Type: raft.MsgDigestResp, Flags: raft.FlagReject, Shard: r.shard, From: l.h.node, To: m.From, FromReplica: r.self, ToReplica: m.FromReplica,
		Term: m.Term, Index: m.Index,
	}
	if m.Flags&raft.FlagProbe != 0 && r.fenced == nil && r.as.Applied == m.Index {
		l.sumState(r, func(_ raft.Time, d raft.Digest, ok bool) {
			if ok {
				answer.Flags, answer.Epoch, answer.Round = 0, raft.Epoch(stateChain), uint64(d)
				if r.cmp.waits(true) && !mutants.On("IG10") {
					answer.Flags = raft.FlagProbe
				}
				c := r.cmp.reply()
				c.told, c.toldAt = digestAnswer{digest: d, from: stateChain}, answer.Index
			}
			l.out.Msgs = append(l.out.Msgs, answer)
		})
		return
	}
	if r.fenced != nil || m.Index < r.as.Applied || m.Flags&raft.FlagProbe != 0 {
		l.out.Msgs = append(l.out.Msgs, answer)
		return
	}
	c := r.cmp.reply()
	c.to, c.replica, c.chain, c.theirs, c.has = m.From, m.FromReplica, raft.Index(m.Epoch), raft.Digest(m.Round), m.Flags&raft.FlagGrant != 0
	if r.want = m.Index; r.as.Applied == m.Index {
		r.want = 0
		l.answerDigest(r)
	}
}

// maybeJudge judges when everybody has answered.
func (l *loop) maybeJudge(now raft.Time, r *replica) {
	if q := r.cmp.question; q != nil && q.known && len(q.said) == len(q.asked) {
		l.judge(now, r)
	}
}

// judge ends a comparison.
func (l *loop) judge(now raft.Time, r *replica) {
	c, q := &r.cmp, r.cmp.question
	term, index, state := q.term, q.index, c.state
	q.term, c.state = 0, false
	c.at = now.Add(l.h.digestEvery) // again, if nothing else follows
	st := r.core.Status()
	if !q.known || st.Role != raft.RoleLeader || st.Term != term || r.fenced != nil {
		return
	}
	l.touch(r)
	differs := false
	answers := 0
	for _, a := range q.said {
		if !a.none && a.from == q.from {
			answers++
			differs = differs || a.digest != q.mine
		}
	}
	if !differs || mutants.On("IG1") {
		if c.disputed != nil && (answers+1 <= r.voters()/2 || c.byState != state) {
			c.state = c.byState
			return // too few to say that it is over, or about something else
		}
		// Who became disputed under an earlier leader says so, and hears that it is over.
		waiting := slices.ContainsFunc(q.said, func(a digestAnswer) bool { return a.disputed && !a.none && a.from == q.from })
		if waiting && answers+1 <= r.voters()/2 {
			return // too few, as above
		}
		c.wasDisputed = c.wasDisputed || waiting
		l.verdict(r, index, 0, 0)
		c.agreed = index
		if state {
			c.stated = index
		}
		if c.absent = answers < len(r.desc.Replicas)-1; !c.absent {
			c.question = nil
		}
		if waiting { // until all have heard it
			return
		}
		c.at, c.wasDisputed = raft.Never, c.wasDisputed && c.absent
		return
	}
	majority, ok := r.majorityDigest()
	if !ok {
		if c.disputed == nil {
			err := &DivergedError{Shard: r.shard, Index: index}
			l.dispute(r, err)
			l.diverged(err)
		}
		c.byState, c.state = state, state
		l.verdict(r, index, 0, raft.FlagProbe)
		return
	}
	// Told again with each comparison until they are rebuilt; they ask for that themselves.
	for _, a := range append(q.said, digestAnswer{replica: r.self, digest: q.mine, from: q.from}) {
		if a.none || a.from != q.from || a.digest == majority {
			continue
		}
		p, _ := r.desc.Replica(a.replica)
		if a.replica == r.self {
			l.quarantine(r, &DivergedError{Shard: r.shard, Node: l.h.node, Replica: r.self, Index: index}, false)
			continue
		}
		l.diverged(&DivergedError{Shard: r.shard, Node: p.Node, Replica: p.ID, Index: index})
	}
	l.verdict(r, index, majority, raft.FlagReject)
}

// majorityDigest returns the digest that more than half of the voters have, in both
// halves of a joint configuration; or, if the voters do not agree, more than half of all
// members. (It is no vote, but evidence: what learners have applied is as good.)
func (r *replica) majorityDigest() (raft.Digest, bool) {
	q := r.cmp.question
	digest := func(id raft.ReplicaID) (raft.Digest, bool) {
		if id == r.self {
			return q.mine, true
		}
		for _, a := range q.said {
			if a.replica == id && !a.none && a.from == q.from {
				return a.digest, true
			}
		}
		return 0, false
	}
	for _, m := range r.desc.Replicas {
		d, ok := digest(m.ID)
		if !ok {
			continue
		}
		var have, need [2]int
		for _, o := range r.desc.Replicas {
			for h, in := range [2]bool{
				o.Role == raft.Voter || o.Role == raft.VoterIncoming,
				o.Role == raft.Voter || o.Role == raft.VoterOutgoing || o.Role == raft.VoterDemoting,
			} {
				if in {
					need[h]++
					if x, ok := digest(o.ID); ok && x == d {
						have[h]++
					}
				}
			}
		}
		if have[0] > need[0]/2 && have[1] > need[1]/2 || mutants.On("IG2") && have[0] > 0 {
			return d, true
		}
	}
	for _, m := range r.desc.Replicas {
		have := 0
		d, ok := digest(m.ID)
		for _, o := range r.desc.Replicas {
			if x, has := digest(o.ID); ok && has && x == d {
				have++
			}
		}
		if have > len(r.desc.Replicas)/2 {
			return d, true
		}
	}
	return 0, false
}

// sumState reads what a replica holds, aside, and gives the digest of it to f on the
// loop: ok is false if it was not of the index that is applied now.
func (l *loop) sumState(r *replica, f func(now raft.Time, d raft.Digest, ok bool)) {
	desc, index := r.desc.Clone(), r.as.Applied
	h := l.h
	h.spawn(func() {
		select { // one at a time
		case h.summing <- struct{}{}:
			defer func() { <-h.summing }()
		case <-h.stop:
			return
		}
		d, at, err := h.engine.StateDigest(&desc, h.stop)
		l.in.put(func(it *items) {
			it.funcs = append(it.funcs, func(now raft.Time) {
				if l.byID[r.shard] != r || r.removed {
					return
				}
				l.touch(r)
				f(now, d, err == nil && at == index && r.fenced == nil)
			})
		})
	})
}

// verdict tells those who answered what came of it: with flags zero only those who
// are to hear that a dispute is over.
func (l *loop) verdict(r *replica, index raft.Index, d raft.Digest, flags uint8) {
	c := &r.cmp
	if flags == 0 && c.disputed == nil && !c.wasDisputed {
		return
	}
	if flags&raft.FlagProbe == 0 && c.disputed != nil && r.fenced == nil {
		l.h.logger.Info("a majority of the replicas agrees again", "shard", r.shard, "index", index)
		c.disputed, c.wasDisputed = nil, true
	}
	for _, a := range c.question.said {
		if p, ok := r.desc.Replica(a.replica); ok && !a.none {
			l.out.Msgs = append(l.out.Msgs, raft.Msg{
				Type: raft.MsgDigestVerdict, Flags: flags, Shard: r.shard, From: l.h.node, To: p.Node, FromReplica: r.self, ToReplica: p.ID,
				Term: r.core.Status().Term, Index: index, Epoch: raft.Epoch(c.question.from), Round: uint64(d),
			})
		}
	}
	l.touch(r)
}

// takeVerdict takes the leader's word on what this replica answered.
func (l *loop) takeVerdict(r *replica, m *raft.Msg) {
	c, a := &r.cmp, r.cmp.answer
	if r.fenced != nil || a == nil || a.toldAt != m.Index || a.told.from != raft.Index(m.Epoch) {
		return
	}
	l.touch(r)
	switch {
	case m.Flags&raft.FlagProbe != 0:
		if c.disputed == nil {
			l.dispute(r, &DivergedError{Shard: r.shard, Index: m.Index})
			c.byState = a.told.from == stateChain
		}
	case m.Reject() && a.told.digest != raft.Digest(m.Round):
		l.quarantine(r, &DivergedError{Shard: r.shard, Node: l.h.node, Replica: r.self, Index: m.Index}, false)
	case c.waits(a.told.from == stateChain):
		c.disputed = nil
	}
}

// dispute closes the replica to clients until it is known who is right.
func (l *loop) dispute(r *replica, err *DivergedError) {
	l.h.logger.Error("replicas differ and no majority agrees; the shard is closed", "shard", r.shard, "index", err.Index)
	r.cmp.disputed = &fenceError{err.Index, err}
	r.failQueued(r.closed(), &l.done)
	r.failReads(r.closed(), &l.done)
	l.touch(r)
}

// diverged reports a replica that differs.
func (l *loop) diverged(err *DivergedError) {
	l.h.stats.diverged.Add(1)
	l.h.logger.Error("replicas differ", "shard", err.Shard, "node", err.Node, "index", err.Index, "err", err)
	if l.h.onDiverged != nil {
		l.h.onDiverged(*err)
	}
}

// closed returns why the replica serves nobody; nil: it does.
func (r *replica) closed() error {
	switch {
	case r.fenced != nil:
		return r.refused()
	case r.cmp.disputed != nil:
		return fmt.Errorf("%w: shard %d: %w", ErrFenced, r.shard, r.cmp.disputed)
	}
	return nil
}
