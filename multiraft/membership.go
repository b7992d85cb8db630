package multiraft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Change says what a node shall hold of a shard: a voter, a learner, or, with
// role zero, nothing. It names an aim, not a step: a change whose aim is reached
// does nothing, so a list of changes may be given again after any error.
type Change struct {
	Node raft.NodeID
	Role raft.Role // raft.Voter, raft.Learner, or zero
}

// StepKind is the kind of a Step.
type StepKind uint8

// The kinds of steps.
const (
	StepDone     StepKind = iota // the aim is reached
	StepWait                     // something has to happen first
	StepPropose                  // Conf is to be proposed
	StepTransfer                 // the leadership is to be handed to To
)

// Step is what comes next on the way to a list of changes.
type Step struct {
	Kind StepKind
	Conf raft.ConfChange // StepPropose
	To   raft.NodeID     // StepTransfer
	Why  string          // StepWait: what is waited for, for people
}

// NextStep plans the next step from descriptor d towards changes, for the leader
// self, which knows of its members what peers say. It is a pure function, so
// whoever leads next goes on where this leader stopped. The way: new replicas
// come as learners, which nobody waits for; when all that shall vote have caught
// up, one joint change gives them their votes and takes out who is to go; a
// leader on its way out hands over before that. Errors: *RefusedError, for what
// can never be done.
func NextStep(d *raft.Descriptor, self raft.ReplicaID, changes []Change, peers []raft.PeerStatus) (Step, error) {
	refuse := func(format string, args ...any) (Step, error) {
		return Step{}, &RefusedError{Shard: d.Shard, Err: fmt.Errorf("%w: "+format, append([]any{raft.ErrConfInvalid}, args...)...)}
	}
	want := func(n raft.NodeID, has raft.Role) raft.Role {
		for _, c := range changes {
			if c.Node == n {
				return c.Role
			}
		}
		return has
	}
	for i, c := range changes {
		switch {
		case c.Node == 0:
			return refuse("a change without a node")
		case c.Role != 0 && c.Role != raft.Voter && c.Role != raft.Learner:
			return refuse("role %d cannot be asked for", c.Role)
		case slices.ContainsFunc(changes[:i], func(o Change) bool { return o.Node == c.Node }):
			return refuse("node %d twice in one change", c.Node)
		}
	}
	if d.IsJoint() {
		return Step{Kind: StepWait, Why: "a change before this one is being completed"}, nil
	}
	// Learners first: a voter that has no log yet would count and not answer.
	first := raft.ConfChange{ConfVer: d.ConfVer}
	for _, c := range changes {
		if _, has := d.ReplicaOn(c.Node); !has && c.Role != 0 {
			role := raft.Learner
			if mutants.On("C18") {
				role = c.Role
			}
			first.Steps = append(first.Steps, raft.ConfStep{Replica: raft.Replica{Node: c.Node, Role: role}})
		}
	}
	if len(d.Replicas)+len(first.Steps) > raft.MaxReplicas {
		return refuse("%d replicas on the way are more than the limit of %d; use several changes", len(d.Replicas)+len(first.Steps), raft.MaxReplicas)
	}
	if mutants.On("C15") { // a removal of nobody is proposed
		for _, c := range changes {
			if _, has := d.ReplicaOn(c.Node); !has && c.Role == 0 {
				first.Steps = append(first.Steps, raft.ConfStep{Remove: true, Replica: raft.Replica{Node: c.Node}})
			}
		}
	}
	stays, voters := raft.NodeID(0), 0 // a voter that stays one, other than self
	promote, leave := raft.ConfChange{ConfVer: d.ConfVer}, raft.ConfChange{ConfVer: d.ConfVer}
	leaving := false
	wait := ""
	for _, r := range d.Replicas {
		w := want(r.Node, r.Role)
		if w == raft.Voter {
			voters++
		}
		switch {
		case w == r.Role:
			if r.Role == raft.Voter && r.ID != self && stays == 0 {
				stays = r.Node
			}
		case w == raft.Voter:
			promote.Steps = append(promote.Steps, raft.ConfStep{Replica: raft.Replica{Node: r.Node, ID: r.ID, Role: raft.Voter}})
			if !caughtUp(peers, r.ID) && !mutants.On("C11") {
				wait = fmt.Sprintf("the new replica on node %d is catching up", r.Node)
			}
		default:
			s := raft.ConfStep{Remove: w == 0, Replica: raft.Replica{Node: r.Node, ID: r.ID, Role: w}}
			leave.Steps = append(leave.Steps, s)
			leaving = leaving || r.ID == self
		}
	}
	for _, c := range changes {
		if _, has := d.ReplicaOn(c.Node); !has && c.Role == raft.Voter {
			voters++
		}
	}
	switch {
	case voters == 0 && !mutants.On("C10"):
		return refuse("no voter would be left")
	case len(first.Steps) > 0:
		return Step{Kind: StepPropose, Conf: first}, nil
	case wait != "":
		return Step{Kind: StepWait, Why: wait}, nil
	case leaving && stays != 0 && !mutants.On("C6b"):
		// To one that has the whole log, if there is one.
		for _, r := range d.Replicas {
			if r.ID != self && r.Role == raft.Voter && want(r.Node, r.Role) == raft.Voter && caughtUp(peers, r.ID) {
				stays = r.Node
				break
			}
		}
		return Step{Kind: StepTransfer, To: stays}, nil
	case leaving && len(promote.Steps) > 0 && !mutants.On("C6b"): // there is nobody to hand over to yet
		return Step{Kind: StepPropose, Conf: promote}, nil
	case len(promote.Steps)+len(leave.Steps) > 0:
		promote.Steps = append(promote.Steps, leave.Steps...)
		return Step{Kind: StepPropose, Conf: promote}, nil
	}
	return Step{}, nil
}

func caughtUp(peers []raft.PeerStatus, id raft.ReplicaID) bool {
	return slices.ContainsFunc(peers, func(p raft.PeerStatus) bool { return p.ID == id && p.CaughtUp })
}

// ErrConfNoQuorum: of the voters that the change would leave, no majority can be
// reached. Nothing was proposed.
var ErrConfNoQuorum = errors.New("multiraft: a majority of the voters that would be left does not answer")

// ErrVoterFirst: the change would give a vote to a replica that is new. Nothing
// was proposed; add it as a learner first.
var ErrVoterFirst = errors.New("multiraft: a new replica cannot begin as a voter")

// ErrTransferFailed: the leadership was not handed over in time; this replica
// leads on.
var ErrTransferFailed = errors.New("multiraft: the other replica did not take over in time")

// safeConf refuses what the core would take and should not be asked: a voter
// without a log, and a configuration that could commit nothing.
func (h *Host) safeConf(d *raft.Descriptor, cc *raft.ConfChange) error {
	for _, s := range cc.Steps {
		if _, has := d.ReplicaOn(s.Node); !has && s.Role == raft.Voter && !s.Remove && !mutants.On("C18") {
			return &RefusedError{Shard: d.Shard, Err: ErrVoterFirst}
		}
	}
	next, err := d.Apply(*cc)
	if err != nil {
		return nil // the core says it better
	}
	voters, up := 0, 0
	for _, r := range next.Replicas {
		if r.Role != raft.Voter && r.Role != raft.VoterIncoming {
			continue
		}
		voters++
		if _, live := h.live.SupportFor(r.Node); live || r.Node == h.node {
			up++
		}
	}
	if up <= voters/2 && len(cc.Steps) > 0 {
		return &RefusedError{Shard: d.Shard, Err: ErrConfNoQuorum}
	}
	return nil
}

// Plan returns the next step towards changes of a shard that this node leads:
// *NotLeaderError if it does not. It changes nothing.
func (h *Host) Plan(ctx context.Context, shard raft.ShardID, changes []Change) (s Step, d raft.Descriptor, err error) {
	err = h.on(ctx, shard, func(_ raft.Time, r *replica, _ *raft.Out) (err error) {
		c := r.core
		d = r.desc.Clone()
		if st := c.Status(); st.Role != raft.RoleLeader {
			return r.notLeader()
		} else if !st.Ready {
			s = Step{Kind: StepWait, Why: "the leader is new"}
			return nil
		}
		s, err = NextStep(&d, r.self, changes, c.Peers(nil))
		return err
	})
	return s, d, err
}

// ChangeError says how far a change of replicas came. What was done stays; the
// same change, given again, goes on from there.
type ChangeError struct {
	Shard raft.ShardID
	Stage string // what was waited for
	Err   error
}

func (e *ChangeError) Error() string {
	return fmt.Sprintf("multiraft: the replicas of shard %d are not all changed: %s: %v; the same change, given again, goes on from there", e.Shard, e.Stage, e.Err)
}
func (e *ChangeError) Unwrap() error { return e.Err }

// ChangeReplicas brings the replicas of a shard that this node leads to where
// changes want them, and returns the descriptor then. Errors: *NotLeaderError
// (also when this leader handed over because it is to go: give the same changes
// to the leader named), *RefusedError (ErrConfInvalid, ErrConfNoQuorum: cannot be
// done), ErrUnknownShard, ErrFenced, ErrClosed, and *ChangeError when ctx ends.
func (h *Host) ChangeReplicas(ctx context.Context, shard raft.ShardID, changes []Change) (raft.Descriptor, error) {
	pause := changePause
	stage := "it was not begun"
	for {
		s, d, err := h.Plan(ctx, shard, changes)
		switch {
		case ctx.Err() != nil:
			return d, &ChangeError{Shard: shard, Stage: stage, Err: ctx.Err()}
		case err != nil:
			return d, err
		}
		switch s.Kind {
		case StepDone:
			return d, nil
		case StepWait:
			stage = s.Why
		case StepTransfer:
			stage = fmt.Sprintf("the leadership goes to node %d, since this leader is to go", s.To)
			err := h.TransferAndWait(ctx, shard, s.To)
			if err == nil {
				return d, &NotLeaderError{Shard: shard, Leader: s.To}
			}
			if !passing(err) {
				return d, err
			}
		case StepPropose:
			stage = "a change of the configuration is being agreed on"
			switch err := h.propose(ctx, shard, s.Conf); {
			case err == nil:
				pause = changePause
				continue
			case !passing(err):
				return d, err
			}
		}
		if err := h.sleep(ctx, pause); err != nil {
			if errors.Is(err, ErrClosed) {
				return d, err
			}
			return d, &ChangeError{Shard: shard, Stage: stage, Err: err}
		}
		pause = min(2*pause, changePauseMax)
	}
}

// The pauses between two looks at a change under way.
const (
	changePause    = 2 * time.Millisecond
	changePauseMax = 100 * time.Millisecond
)

// passing reports whether an error of a step may be over at the next look. Which
// step is next shows in the descriptor, whatever became of the last one.
func passing(err error) bool {
	var busy *OverloadedError
	return errors.As(err, &busy) || errors.Is(err, ErrAmbiguous) || errors.Is(err, ErrDropped) || errors.Is(err, ErrTransferFailed) ||
		errors.Is(err, raft.ErrConfPending) || errors.Is(err, raft.ErrConfVersion) || errors.Is(err, raft.ErrConfLagging) ||
		errors.Is(err, raft.ErrTransferTarget) || errors.Is(err, raft.ErrTransferring)
}

// propose carries one configuration change through the log.
func (h *Host) propose(ctx context.Context, shard raft.ShardID, cc raft.ConfChange) error {
	ch := make(chan error, 1)
	err := h.ChangeConf(ctx, shard, cc, func(data []byte, _ raft.Index, _ uint32, err error) {
		if err == nil && len(data) > 0 { // rejected where it was applied, alike everywhere
			err = raft.ErrConfVersion
		}
		ch <- err
	})
	if err != nil {
		return err
	}
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return ErrAmbiguous
	case <-h.stop:
		return ErrClosed
	}
}

// TransferAndWait hands the leadership of a shard, which must be here, to the
// replica on another node, and returns when that leads. Errors, with this
// replica leading on: *RefusedError (raft.ErrTransferTarget: the node holds no
// voter, or cannot be reached), *OverloadedError (another transfer is under way),
// ErrTransferFailed. *NotLeaderError: this replica does not lead, or a third one
// took over. The context's error: the outcome is open.
func (h *Host) TransferAndWait(ctx context.Context, shard raft.ShardID, to raft.NodeID) error {
	v, ok := h.View(shard)
	if !ok {
		return ErrUnknownShard
	}
	if v.Leader == to && to != 0 {
		return nil
	}
	err := h.on(ctx, shard, func(now raft.Time, r *replica, o *raft.Out) error {
		c := r.core
		rep, ok := r.desc.ReplicaOn(to)
		if !ok {
			return &RefusedError{Shard: shard, Err: raft.ErrTransferTarget}
		}
		if err := c.Transfer(now, rep.ID, o); err != nil {
			return r.loop.proposeError(r, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for pause := changePause; ; pause = min(2*pause, changePauseMax/2) {
		if v, ok := h.View(shard); !ok {
			return ErrUnknownShard
		} else if v.Leader == to {
			return nil
		} else if !v.IsLeader && v.Leader != 0 {
			return &NotLeaderError{Shard: shard, Leader: v.Leader, Term: v.Term}
		}
		over := false
		err := h.On(ctx, shard, func(_ raft.Time, c *raft.Core, _ *raft.Out) error {
			st := c.Status()
			over = st.Role == raft.RoleLeader && st.Transferee == 0
			return nil
		})
		if err != nil {
			return err
		}
		if over {
			return fmt.Errorf("%w: shard %d, node %d", ErrTransferFailed, shard, to)
		}
		if err := h.sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// sleep waits, unless the context or the host ends.
func (h *Host) sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-h.stop:
		return ErrClosed
	}
}
