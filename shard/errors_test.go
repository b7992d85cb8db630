package shard

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/internal/fuzzing"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

func sampleErrors() []struct {
	name    string
	err     error
	outcome Outcome
	text    string // a part of the message
} {
	d := Descriptor{Shard: 7, Keyspace: 1, Start: []byte("a"), End: []byte("m"), ConfVer: 2, Version: 3, NextReplica: 4,
		Replicas: []raft.Replica{{Node: 1, ID: 1, Role: raft.Voter}, {Node: 2, ID: 2, Role: raft.Voter}}}
	since := time.Unix(1700000000, 5).UTC()
	return []struct {
		name    string
		err     error
		outcome Outcome
		text    string
	}{
		{"ambiguous", &AmbiguousError{Shard: 7, Why: "the leader stepped down"}, MaybeApplied, "may or may not have been applied"},
		{"ambiguousdeadline", &AmbiguousError{Shard: 7, Why: "the deadline passed", Cause: context.DeadlineExceeded}, MaybeApplied, "the deadline passed"},
		{"ambiguouscancel", &AmbiguousError{Cause: context.Canceled}, MaybeApplied, "no answer came"},
		{"notleader", &NotLeaderError{Shard: 7, Leader: 2, Addr: "h:1", Term: 9, Descriptor: &d}, NotApplied, "node 2 does (term 9)"},
		{"noleader", &NotLeaderError{Shard: 7, Term: 9}, NotApplied, "no known leader"},
		{"epoch", &EpochError{Shard: 7, Descriptors: []Descriptor{d}}, NotApplied, `["a", "m") of keyspace 1 at version 3`},
		{"epochempty", &EpochError{Shard: 7}, NotApplied, "no replica of shard 7"},
		{"noquorum", &NoQuorumError{Shard: 7, Down: []raft.NodeID{2, 3}, Since: since}, NotApplied, "down: node 2, 3"},
		{"noquorumof", &NoQuorumError{Shard: 7, Down: []raft.NodeID{2, 3}, Since: since, Voters: 3}, NotApplied, "shard 7 has no quorum: 1 of 3 reachable since "},
		{"noquorumforgot", &NoQuorumError{Shard: 7, Down: []raft.NodeID{2}, Forgot: []raft.NodeID{3}, Since: since}, NotApplied, "has forgotten what it promised: node 3;"},
		{"noquorumbare", &NoQuorumError{Shard: 7}, NotApplied, "shard 7 has no quorum;"},
		{"overloaded", &OverloadedError{RetryAfter: 50 * time.Millisecond, Why: "the shard's proposals"}, NotApplied, "try again in 50ms"},
		{"crossshard", &CrossShardError{At: []byte("m")}, NotApplied, `at key "m"`},
		{"conflict", &ConflictError{Have: v1}, NotApplied, "version 7.300.2"},
		{"conflictabsent", &ConflictError{}, NotApplied, "absent"},
		{"limit", &LimitError{What: "bytes of a key", Limit: 16384, Got: 16385}, NotApplied, "limited to 16384, and 16385"},
		{"argument", &ArgumentError{Field: "key", Reason: "it is empty"}, NotApplied, "invalid key: it is empty"},
		{"unavailable", &UnavailableError{Node: 3, Why: "connection refused"}, NotApplied, "at node 3 (connection refused)"},
		{"unavailablelate", &UnavailableError{Why: "the deadline passed", Cause: context.DeadlineExceeded}, NotApplied, "the deadline passed"},
		{"partial", &PartialError{Applied: 1, Shards: 3, Err: &NoQuorumError{Shard: 7}}, MaybeApplied, "1 of 3 shards"},
		{"diskfull", &DiskFullError{Shard: 7, Nodes: []raft.NodeID{1, 3}}, NotApplied, "in shard 7: full is the disk of node 1, 3;"},
		{"logbudget", ErrLogBudget, NotApplied, "disk budget"},
		{"unsynced", &UnsyncedError{Shard: 7, Since: since, Why: "its disk is full"}, NotApplied, "the state machine of shard 7 has not made its state durable"},
		{"closed", ErrClosed, NotApplied, "closed"},
		{"notfound", ErrNotFound, NotApplied, "not found"},
		{"unknownop", ErrUnknownOp, MaybeApplied, "upgrade this node"},
		{"sessionexpired", &SessionExpiredError{Shard: 7, Known: true, Deadline: since, Now: since.Add(time.Minute)}, NotApplied, "is expired (its time ended at 2023-11-14T22:13:20.000000005Z"},
		{"sessionsfull", &SessionsFullError{Shard: 7, Limit: 10000}, NotApplied, "remembers 10000 sessions"},
		{"resultgone", &ResultGoneError{Shard: 7, Version: v1, Succeeded: true}, Applied, "was applied, once, as 7.300.2"},
		{"settled", &ResultGoneError{Shard: 7}, MaybeApplied, "is not applied again"},
		{"remote", &RemoteError{Text: "the disk is on fire"}, MaybeApplied, "fire"},
	}
}

// Shows, for every typed error: its bytes are those on record, it decodes to the
// same value, its outcome and message survive, and the message is one sentence
// of this product without a line break.
func TestErrorGolden(t *testing.T) {
	g := openGolden(t, "errors")
	for _, c := range sampleErrors() {
		code, payload := EncodeError(fmt.Errorf("while testing: %w", c.err))
		if c.name == "remote" {
			code, payload = EncodeError(c.err)
		}
		g.check(c.name, append([]byte{byte(code)}, payload...))
		got := DecodeError(code, payload)
		if !reflect.DeepEqual(got, c.err) {
			t.Errorf("%s: got %#v", c.name, got)
		}
		if o := OutcomeOf(got); o != c.outcome || OutcomeOf(c.err) != c.outcome {
			t.Errorf("%s: outcome %v, want %v", c.name, o, c.outcome)
		}
		if text := got.Error(); text != c.err.Error() || !strings.Contains(text, c.text) || strings.ContainsAny(text, "\n") {
			t.Errorf("%s: %q does not say %q", c.name, text, c.text)
		}
	}
}

// Shows that errors.Is and errors.As work on decoded errors, and that an
// ambiguous error never unwraps to one that invites a retry.
func TestErrorIsAs(t *testing.T) {
	wire := func(err error) error { return DecodeError(EncodeError(err)) }
	if !errors.Is(wire(ErrAmbiguous), ErrAmbiguous) || OutcomeOf(wire(ErrAmbiguous)) != MaybeApplied {
		t.Error("ErrAmbiguous is lost on the wire")
	}
	late := wire(&AmbiguousError{Cause: fmt.Errorf("x: %w", context.DeadlineExceeded)})
	if !errors.Is(late, ErrAmbiguous) || !errors.Is(late, context.DeadlineExceeded) {
		t.Error("an ambiguous deadline is lost on the wire")
	}
	sneaky := &AmbiguousError{Cause: &NotLeaderError{Shard: 1}}
	for _, err := range []error{sneaky, wire(sneaky)} {
		var nl *NotLeaderError
		if errors.As(err, &nl) || OutcomeOf(err) != MaybeApplied {
			t.Error("an ambiguous error turned into a definite one")
		}
	}
	if err := wire(&UnavailableError{Cause: context.Canceled}); !errors.Is(err, context.Canceled) {
		t.Error("a cancelled request is lost on the wire")
	}
	if err := wire(nil); err != nil || OutcomeOf(nil) != Applied {
		t.Error("no error is an error")
	}
	if OutcomeOf(context.DeadlineExceeded) != MaybeApplied || OutcomeOf(wire(errors.New("x"))) != MaybeApplied {
		t.Error("an unknown error is taken for a definite one")
	}
	part := &PartialError{Applied: 1, Shards: 2, Err: &PartialError{Applied: 1, Shards: 2, Err: ErrClosed}}
	if OutcomeOf(wire(part)) != MaybeApplied || OutcomeOf(fmt.Errorf("%w", part)) != MaybeApplied {
		t.Error("a partial write is taken for a definite one")
	}
}

// Shows that payloads that are cut, have more behind them, or come from a newer
// version become an error of unknown outcome.
func TestErrorRefused(t *testing.T) {
	for _, c := range sampleErrors() {
		code, payload := EncodeError(c.err)
		for i := range payload {
			if got := DecodeError(code, payload[:i]); OutcomeOf(got) != MaybeApplied {
				t.Errorf("%s cut at %d: %v", c.name, i, got)
			}
		}
		if got := DecodeError(code, append(payload, 0)); OutcomeOf(got) != MaybeApplied {
			t.Errorf("%s with more behind it: %v", c.name, got)
		}
		if got := DecodeError(code+1000, payload); OutcomeOf(got) != MaybeApplied {
			t.Errorf("%s with an unknown code: %v", c.name, got)
		}
	}
}

// FuzzError: no panic, no nil for a failure, and what decodes survives encoding.
func FuzzError(tf *testing.F) {
	f := fuzzing.New(tf)
	for _, c := range sampleErrors() {
		code, payload := EncodeError(c.err)
		f.Add(uint32(code), payload)
	}
	f.Fuzz(func(t testing.TB, code uint32, payload []byte) {
		fuzzing.Decode(t, len(payload), func() { DecodeError(Code(code), payload) })
		err := DecodeError(Code(code), payload)
		if (err == nil) != (code == 0) {
			t.Fatalf("code %d gave %v", code, err)
		}
		if err == nil {
			return
		}
		again := DecodeError(EncodeError(err))
		if again == nil || again.Error() != err.Error() || OutcomeOf(again) != OutcomeOf(err) {
			t.Fatalf("%v became %v", err, again)
		}
	})
}
