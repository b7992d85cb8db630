package snapshot

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// RetainFor is how long an interrupted reception is kept for its sender to go on.
const RetainFor = 2 * time.Minute

// sendAttempts is how often one snapshot is offered to its receiver.
const sendAttempts = 4

// Clock is the node's clock.
type Clock interface {
	Now() raft.Time
	// Sleep returns after d, or with the context's error.
	Sleep(ctx context.Context, d time.Duration) error
}

// Options configures a Store. Engine and Node are required.
type Options struct {
	Engine *engine.Engine
	Node   raft.NodeID
	// Live lists the descriptors of all replicas of this node, for the overlap
	// check before data is taken in. Nil: only the engine checks, when installing.
	Live func() []raft.Descriptor
	// BytesPerSecond bounds what all outgoing snapshots send together. Zero: no limit.
	BytesPerSecond int64
	// MaxOut and MaxIn bound the snapshots under way. Zero: 2 each.
	MaxOut, MaxIn int
	// SmallBytes is up to which size of its data a shard travels as a list
	// instead of tables. Zero: 256 KiB.
	SmallBytes int
	// TableBytes is about the size of one table. Zero: 32 MiB.
	TableBytes int
	// Room returns how many bytes the snapshots that come in may take on the disk, all
	// together and besides what of them is there already. It must not block. Nil: no
	// bound.
	Room func() int64
	// Clock: nil means the system's.
	Clock Clock
	// NewID draws the id of a snapshot. Nil: from the system's random source.
	NewID func() ID
	// Logger gets a line per snapshot. Nil: none.
	Logger *slog.Logger
}

// Store is the snapshot side of one node: what is being sent and received.
type Store struct {
	o  Options
	fs engine.FS

	slots chan struct{} // outgoing

	mu struct {
		sync.Mutex
		limiter *Limiter
		in      []*reception
		closed  bool
	}
}

// New returns a Store. It cleans the engine's staging directory, but for
// interrupted receptions whose senders may go on. It fails with the file
// system's error.
func New(o Options) (*Store, error) {
	if o.Engine == nil || o.Node == 0 {
		return nil, errors.New("snapshot: Options needs Engine and Node")
	}
	if o.MaxOut <= 0 {
		o.MaxOut = 2
	}
	if o.MaxIn <= 0 {
		o.MaxIn = 2
	}
	if o.SmallBytes <= 0 {
		o.SmallBytes = 256 << 10
	}
	if o.TableBytes <= 0 {
		o.TableBytes = 32 << 20
	}
	if o.SmallBytes > maxListBytes/2 || o.TableBytes > MaxFileBytes/2 {
		return nil, fmt.Errorf("snapshot: SmallBytes %d or TableBytes %d exceeds %d or %d", o.SmallBytes, o.TableBytes, maxListBytes/2, MaxFileBytes/2)
	}
	if o.Clock == nil {
		o.Clock = systemClock{time.Now()}
	}
	if o.NewID == nil {
		o.NewID = func() (id ID) { rand.Read(id[:]); return id }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{o: o, fs: o.Engine.FS(), slots: make(chan struct{}, o.MaxOut)}
	s.mu.limiter = NewLimiter(o.BytesPerSecond)
	return s, s.restore()
}

// Stream is one outgoing snapshot on the wire.
type Stream interface {
	// Send sends one chunk of at most ChunkBytes+16 bytes; it may block.
	Send(chunk []byte) error
	// CloseAndRecv ends the stream and returns the receiver's answer: nil when
	// the snapshot is installed there.
	CloseAndRecv() error
}

// OpenFunc opens a stream to the receiver, with the manifest as its header.
// ctx bounds the whole stream.
type OpenFunc func(ctx context.Context, header []byte) (Stream, error)

// Send builds a snapshot of the replica of desc and sends it. It waits for a
// slot first. It returns what was sent, and nil once it is installed there.
// After an interruption it asks what has arrived and goes on behind it, up to
// four times in all. Errors: ErrStale (the receiver is as far already),
// ErrRefused, ErrBusy, ErrNothingApplied, ErrClosed, the context's, the store's
// or the stream's; unless it is ErrStale, whether it was installed is unknown
// if the stream broke at its end.
func (s *Store) Send(ctx context.Context, desc *raft.Descriptor, open OpenFunc) (raft.Index, raft.Term, error) {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	defer func() { <-s.slots }()
	s.mu.Lock()
	closed := s.mu.closed
	s.mu.Unlock()
	if closed {
		return 0, 0, ErrClosed
	}
	b, err := s.Build(ctx, desc)
	if err != nil {
		return 0, 0, err
	}
	err = s.offer(ctx, b, open)
	if cerr := b.Close(); cerr != nil {
		s.o.Logger.Warn("snapshot: staged files not removed", "err", cerr)
	}
	s.o.Logger.Info("snapshot sent", "what", b.Meta.String(), "err", err)
	return b.Meta.Index, b.Meta.Term, err
}

// offer sends b, again after interruptions.
func (s *Store) offer(ctx context.Context, b *Built, open OpenFunc) error {
	header := b.Meta.Encode(nil)
	if len(header) > MaxManifestBytes {
		return fmt.Errorf("snapshot: manifest of %d bytes", len(header))
	}
	from := 0
	var err error
	for try := range sendAttempts {
		if try > 0 {
			if serr := s.o.Clock.Sleep(ctx, 50*time.Millisecond<<(2*try)); serr != nil {
				return errors.Join(serr, err)
			}
		}
		if err = s.stream(ctx, b, header, from, open); err == nil || ctx.Err() != nil {
			return err
		}
		code, have, ok := parseVerdict(err)
		switch {
		case !ok:
			// The connection broke. Ask with an empty stream what has arrived.
			from = b.Meta.Chunks()
		case code == codeMore:
			from = min(have, b.Meta.Chunks())
		case code == codeStale:
			return fmt.Errorf("%w: %w", ErrStale, err)
		case code == codeBusy:
			err = fmt.Errorf("%w: %w", ErrBusy, err)
		default:
			return fmt.Errorf("%w: %w", ErrRefused, err)
		}
	}
	return err
}

// stream sends the chunks from from on.
func (s *Store) stream(ctx context.Context, b *Built, header []byte, from int, open OpenFunc) error {
	st, err := open(ctx, header)
	if err != nil {
		return err
	}
	var buf []byte
	for n := from; n < b.Meta.Chunks(); n++ {
		if buf, err = b.Chunk(n, buf[:0]); err == nil {
			err = s.pace(ctx, len(buf))
		}
		if err != nil {
			return errors.Join(err, st.CloseAndRecv())
		}
		if err = st.Send(buf); err != nil {
			if verdict := st.CloseAndRecv(); verdict != nil {
				return verdict // why the stream ended
			}
			return err
		}
	}
	return st.CloseAndRecv()
}

func (s *Store) pace(ctx context.Context, n int) error {
	s.mu.Lock()
	d := s.mu.limiter.Take(s.o.Clock.Now(), n)
	s.mu.Unlock()
	if d <= 0 {
		return ctx.Err()
	}
	return s.o.Clock.Sleep(ctx, d)
}

// Sweep drops interrupted receptions that nobody went on with. Handle calls it.
func (s *Store) Sweep(now raft.Time) {
	s.dropIdle(func(r *reception) bool { return now.Sub(r.since) >= RetainFor })
}

// dropIdle drops the interrupted receptions for which f holds.
func (s *Store) dropIdle(f func(*reception) bool) {
	var gone []*reception
	s.mu.Lock()
	for i := len(s.mu.in) - 1; i >= 0; i-- {
		if r := s.mu.in[i]; !r.busy && f(r) {
			s.forgetLocked(r)
			gone = append(gone, r)
		}
	}
	s.mu.Unlock()
	for _, r := range gone {
		s.discard(r)
	}
}

// touch notes that a chunk came; false: the reception gave way to another.
func (s *Store) touch(r *reception) bool {
	now := s.o.Clock.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	r.since = now
	return !r.gone
}

// release ends the ownership of r by a Handle or a Staged.
func (s *Store) release(r *reception, keep bool) {
	s.mu.Lock()
	r.busy = false
	keep = keep && !s.mu.closed && !r.gone
	if !keep {
		s.forgetLocked(r)
	}
	s.mu.Unlock()
	if !keep {
		s.discard(r)
	}
}

// forgetLocked takes r off the list; its files are still to be discarded.
func (s *Store) forgetLocked(r *reception) {
	s.mu.in = slices.DeleteFunc(s.mu.in, func(o *reception) bool { return o == r })
}

// discard removes the files of r, which is on no list any more. What cannot be
// removed is left to the next boot.
func (s *Store) discard(r *reception) {
	if r == nil {
		return
	}
	if r.file != nil {
		_ = r.file.Close()
		r.file = nil
	}
	if r.dir != "" {
		if err := s.fs.RemoveAll(r.dir); err != nil {
			s.o.Logger.Warn("snapshot: staged files not removed", "err", err)
		}
		r.dir = ""
	}
}

// Close refuses further snapshots and drops interrupted ones. Those under way
// end by their streams and contexts, which the caller ends. It is idempotent.
func (s *Store) Close() {
	s.mu.Lock()
	s.mu.closed = true
	s.mu.Unlock()
	s.dropIdle(func(*reception) bool { return true })
}

func (s *Store) syncDir(dir string) error {
	d, err := s.fs.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("snapshot: sync staging directory: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

type systemClock struct{ origin time.Time }

func (c systemClock) Now() raft.Time { return raft.Time(time.Since(c.origin)) + 1 }

func (c systemClock) Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
