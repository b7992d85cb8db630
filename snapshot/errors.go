package snapshot

import (
	"errors"
	"fmt"
	"strings"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

var (
	// ErrCorrupt is wrapped by every error about bytes that are not what their
	// checksum, their manifest or their format says. Nothing was installed; what
	// was staged of the snapshot is gone.
	ErrCorrupt = errors.New("snapshot: corrupt")
	// ErrTruncated: the stream ended before all chunks had come. Nothing was
	// installed; what had come is kept for a while, and a retry of the same
	// snapshot goes on from there.
	ErrTruncated = errors.New("snapshot: stream ended early")
	// ErrStale: the receiver is already as far as the snapshot, or holds a newer
	// replica or descriptor. Nothing was installed and nothing is needed.
	ErrStale = errors.New("snapshot: older than what is there")
	// ErrNotMember: the snapshot's descriptor names no replica on this node, or
	// one below the shard's tombstone. Nothing was installed.
	ErrNotMember = errors.New("snapshot: no replica of this node in it")
	// ErrBusy: as many snapshots as allowed are under way. Nothing was sent or
	// staged; try again later.
	ErrBusy = errors.New("snapshot: too many under way")
	// ErrNoSpace: the receiver's disk has no room for the snapshot, besides what was
	// promised to others that are coming in. Nothing was staged; try again later. To
	// the sender it is ErrBusy, with this as its text.
	ErrNoSpace = errors.New("snapshot: no space for it on the disk")
	// ErrRefused: the receiver refused the snapshot for good (it is corrupt to
	// it, overlaps another shard, or names no replica there); the text says why.
	// It was not installed.
	ErrRefused = errors.New("snapshot: refused by the receiver")
	// ErrNothingApplied: the replica has applied no entry yet, so there is
	// nothing to send.
	ErrNothingApplied = errors.New("snapshot: the replica has applied nothing yet")
	// ErrClosed: the store was closed. Nothing was sent or staged.
	ErrClosed = errors.New("snapshot: closed")
)

// verdict is how a receiver's error crosses to the sender: transports carry
// its text only. The form is fixed by a test.
//
//	snapshot/1 <code> <chunks>: <text>
type verdict struct {
	code   string
	chunks int // that the receiver has, in order; with code "more"
	err    error
}

func (v *verdict) Error() string { return fmt.Sprintf("snapshot/1 %s %d: %v", v.code, v.chunks, v.err) }
func (v *verdict) Unwrap() error { return v.err }

const (
	codeMore    = "more"    // the stream ended early; go on behind chunks
	codeStale   = "stale"   // ErrStale
	codeBusy    = "busy"    // ErrBusy
	codeRefused = "refused" // everything else
)

// verdictOf wraps an error of the receiver.
func verdictOf(err error, chunks int) error {
	v := &verdict{code: codeRefused, err: err}
	switch {
	case errors.Is(err, ErrTruncated):
		v.code, v.chunks = codeMore, chunks
	case errors.Is(err, ErrStale), errors.Is(err, engine.ErrStale):
		v.code = codeStale
	case errors.Is(err, ErrBusy), errors.Is(err, ErrNoSpace):
		v.code = codeBusy
	}
	return v
}

// Verdict puts an error of the receiver that did not come from this package (of
// the host that would not install, say) into the form in which it crosses to the
// sender: it wraps ErrStale or ErrBusy, or refuses the snapshot for good.
func Verdict(err error) error { return verdictOf(err, 0) }

// parseVerdict finds the receiver's verdict in the text of an error that a
// transport returned. ok is false if there is none: the connection broke.
func parseVerdict(err error) (code string, chunks int, ok bool) {
	text := err.Error()
	i := strings.Index(text, "snapshot/1 ")
	if i < 0 {
		return "", 0, false
	}
	if n, err := fmt.Sscanf(text[i:], "snapshot/1 %s %d:", &code, &chunks); n != 2 || err != nil || chunks < 0 {
		return "", 0, false
	}
	return code, chunks, true
}

// OverlapError refuses a snapshot whose span overlaps the span of another
// shard that lives on this node. Nothing was installed.
type OverlapError struct {
	Shard raft.ShardID // the snapshot's
	Other raft.ShardID // the one that lives here
}

func (e *OverlapError) Error() string {
	return fmt.Sprintf("snapshot: span of shard %d overlaps that of shard %d, which lives here", e.Shard, e.Other)
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("snapshot: "+format+": %w", append(args, ErrCorrupt)...)
}
