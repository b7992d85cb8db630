package snapshot

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

const (
	// RetainFor is how long what came of an interrupted snapshot is kept, for its sender
	// to go on, or for another snapshot of the shard to draw from.
	RetainFor = 10 * time.Minute
	// StallFor is how long a stream may stand still before it gives way to others.
	StallFor = 2 * time.Minute
	// ViewFor bounds how long one snapshot holds its view, which keeps tables from being
	// deleted. What was sent until then is not sent again by the next one.
	ViewFor = 10 * time.Minute
)

// sendAttempts is how often in a row one snapshot is offered to its receiver without
// that a file of it arrives.
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
	// Live lists the descriptors of the replicas of this node, or at least of those that
	// may hold keys of d, for the overlap check before data is taken in. Nil: only the
	// engine checks, when installing.
	Live func(d *raft.Descriptor) []raft.Descriptor
	// BytesPerSecond bounds what all outgoing snapshots send together. Zero: no limit.
	BytesPerSecond int64
	// MaxOut and MaxIn bound the snapshots under way. Zero: 2 each.
	MaxOut, MaxIn int
	// SmallBytes is up to which size of its data a shard travels as a list
	// instead of tables. Zero: 256 KiB.
	SmallBytes int
	// TableBytes is about the size of one table, before compression, on average; a
	// sender holds up to four times as much in memory for each snapshot. Zero: 8 MiB.
	TableBytes int
	// KeepBytes bounds what the images take together that are kept of shards (Store.Keep),
	// those being made included. Zero: none are kept.
	KeepBytes int64
	// Inline makes snapshots without goroutines of the package's own, and lets nothing in
	// them depend on when Pebble's goroutines do their work. Simulators use it.
	Inline bool
	// External returns the state of a shard outside of the store as a stream, and the index
	// as of which it is, which is at least what the store had applied before the call. Nil,
	// or no stream and no error: all is in the store.
	External func(ctx context.Context, desc *raft.Descriptor) (io.ReadCloser, raft.Index, error)
	// Room returns how many bytes the snapshots that come in may take on the disk, all
	// together and besides what of them is there already. It must not block. Nil: no
	// bound.
	Room func() int64
	// Busy reports whether the node serves others: then the transfers of both directions
	// work a quarter of the time. It is asked about every millisecond. Nil: never.
	Busy func() bool
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
	count counters

	mu struct {
		sync.Mutex
		limiter *Limiter
		in      []*reception
		closed  bool
		kept    map[raft.ShardID]*keptImage
		keeping map[raft.ShardID]*keeping
		tight   bool         // no images are made
		leaving []*keptImage // on no list any more, and still being sent
	}
	aside sync.WaitGroup // removes files
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
		o.TableBytes = 8 << 20
	}
	if o.SmallBytes > maxListBytes/2 || o.TableBytes > MaxFileBytes/32 {
		return nil, fmt.Errorf("snapshot: SmallBytes %d or TableBytes %d exceeds %d or %d", o.SmallBytes, o.TableBytes, maxListBytes/2, MaxFileBytes/32)
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
	s.mu.kept, s.mu.keeping = map[raft.ShardID]*keptImage{}, map[raft.ShardID]*keeping{}
	return s, s.restore()
}

// Stream is one outgoing snapshot on the wire.
type Stream interface {
	// Send sends one message of at most MaxMessageBytes; it may block. The bytes may be
	// used again afterwards.
	Send(msg []byte) error
	// Recv returns the receiver's next message; it blocks. An error: the stream is over,
	// CloseAndRecv tells why.
	Recv() ([]byte, error)
	// CloseAndRecv ends the stream and returns the receiver's answer: nil when
	// the snapshot is installed there.
	CloseAndRecv() error
}

// OpenFunc opens a stream to the receiver, with the manifest as its header.
// ctx bounds the whole stream.
type OpenFunc func(ctx context.Context, header []byte) (Stream, error)

// Send makes a snapshot of the replica of desc and sends it to node to, both at the
// same time. It waits for a slot first. It returns what was sent, and nil once it is
// installed there. After an interruption it goes on with what is missing, as long as
// that gets less. Errors: ErrStale (the receiver is as far already), ErrRefused,
// ErrBusy, ErrNothingApplied, ErrClosed, the context's, the store's or the stream's;
// unless it is ErrStale, whether it was installed is unknown if the stream broke at
// its end.
func (s *Store) Send(ctx context.Context, desc *raft.Descriptor, to raft.NodeID, open OpenFunc) (raft.Index, raft.Term, error) {
	return s.send(ctx, desc, to, open, new(atomic.Pointer[transfer]))
}

// send is Send; it tells of the progress through p.
func (s *Store) send(ctx context.Context, desc *raft.Descriptor, to raft.NodeID, open OpenFunc, p *atomic.Pointer[transfer]) (raft.Index, raft.Term, error) {
	return s.sendSource(ctx, to, open, p, func() (*source, error) { return s.sourceOf(ctx, desc) })
}

// sendSource sends what the source has that take returns once there is a slot.
func (s *Store) sendSource(ctx context.Context, to raft.NodeID, open OpenFunc, p *atomic.Pointer[transfer], take func() (*source, error)) (raft.Index, raft.Term, error) {
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
	c, err := take()
	if err != nil {
		return 0, 0, err
	}
	t := s.begin(&c.meta, to, false)
	p.Store(t)
	err = s.offer(ctx, c, t, open)
	t.end(err)
	err = errors.Join(err, c.close())
	s.o.Logger.Info("snapshot sent", "what", c.meta.String(), "to", to, "sent", t.net.Load(), "took", s.o.Clock.Now().Sub(t.began), "err", err)
	return c.meta.Index, c.meta.Term, err
}

// offer sends what c makes, again after interruptions.
func (s *Store) offer(ctx context.Context, c *source, t *transfer, open OpenFunc) error {
	header := c.meta.Encode(nil) // without files
	if len(header) > MaxManifestBytes {
		return fmt.Errorf("snapshot: manifest of %d bytes", len(header))
	}
	began, far := s.o.Clock.Now(), 0
	var err error
	for try := 0; try < sendAttempts; try++ {
		if try > 0 {
			if serr := s.o.Clock.Sleep(ctx, 50*time.Millisecond<<(2*try)); serr != nil {
				return errors.Join(serr, err)
			}
		}
		var arrived int
		if arrived, err = s.stream(ctx, c, t, header, open); err == nil || ctx.Err() != nil {
			return err
		}
		if s.o.Clock.Now().Sub(began) > ViewFor {
			return err
		}
		if arrived > far { // it gets somewhere
			far, try = arrived, 0
		}
		code, _, ok := parseVerdict(err)
		switch {
		case !ok, code == codeMore:
			// The connection broke. The receiver says what has arrived.
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

// errProtocol: the receiver says what it should not. Nothing more was sent.
var errProtocol = errors.New("snapshot: unexpected message of the receiver")

// stream sends what the receiver does not have. arrived is how many files it had
// whole at the beginning.
func (s *Store) stream(ctx context.Context, c *source, t *transfer, header []byte, open OpenFunc) (arrived int, err error) {
	st, err := open(ctx, header)
	if err != nil {
		return 0, err
	}
	// fail prefers the receiver's word about why the stream ended.
	fail := func(err error) (int, error) {
		if verdict := st.CloseAndRecv(); verdict != nil {
			return arrived, verdict
		}
		return arrived, err
	}
	b, err := st.Recv()
	if err != nil {
		return fail(err)
	}
	y, err := decodeReady(b)
	if err != nil {
		return fail(err)
	}
	c.settle()
	c.foresee(y.files)
	if arrived = y.files; arrived > len(c.known) {
		return fail(fmt.Errorf("%w: it has %d files, %d were made", errProtocol, arrived, len(c.known)))
	}
	t.skip(c.meta.Files[:arrived])
	var buf []byte
	work := duty{s: s}
	for n := arrived; ; n++ {
		if s.o.Clock.Now().Sub(t.began) > ViewFor {
			return fail(fmt.Errorf("snapshot: its view is %v old; the next one goes on", ViewFor))
		}
		f, err := c.get(ctx, n)
		if err != nil {
			return fail(err)
		}
		if f == nil {
			break
		}
		buf = encodeFile(buf[:0], n, &f.file)
		if err := st.Send(buf); err != nil {
			return fail(err)
		}
		have, keep := 0, []int(nil)
		if y.asks {
			if b, err = st.Recv(); err != nil {
				return fail(err)
			}
			if have, keep, err = f.answer(b); err != nil {
				return fail(err)
			}
			buf = encodeKeep(buf[:0], n, keep)
			if err := st.Send(buf); err != nil {
				return fail(err)
			}
		}
		for i := range f.file.Sums {
			size := f.file.chunkLen(i)
			if len(keep) > 0 && keep[0] == i {
				keep = keep[1:]
				t.spare(size)
				continue
			}
			if i < have {
				t.spare(size)
				continue
			}
			at := i * ChunkBytes
			buf = encodeChunk(buf[:0], f.file.Kind, n, i, f.bytes[at:at+size])
			if err = s.pace(ctx, len(buf)); err == nil {
				work.start()
				err = st.Send(buf)
			}
			if err == nil {
				err = work.stop(ctx, restAfter) // the rest of it waits for the other side
			}
			if err != nil {
				return fail(err)
			}
			t.add(size)
		}
	}
	if err := st.Send(c.meta.total().encode(buf[:0])); err != nil {
		return fail(err)
	}
	return arrived, st.CloseAndRecv()
}

// answer decides on the receiver's offer: which of the chunks that it may have are
// the ones of f.
func (f *builtFile) answer(b []byte) (have int, keep []int, err error) {
	o, err := decodeOffer(b)
	if err != nil {
		return 0, nil, err
	}
	n := len(f.file.Sums)
	if o.file != f.n || o.have > n {
		return 0, nil, fmt.Errorf("%w: it offers %d chunks of file %d", errProtocol, o.have, o.file)
	}
	last := o.have - 1
	for _, m := range o.may {
		if m.chunk <= last || m.chunk >= n {
			return 0, nil, fmt.Errorf("%w: it offers chunk %d", errProtocol, m.chunk)
		}
		last = m.chunk
		at := m.chunk * ChunkBytes
		if sha256.Sum256(f.bytes[at:at+f.file.chunkLen(m.chunk)]) == m.sum || mutants.On("E-same-sum") {
			keep = append(keep, m.chunk)
		}
	}
	return o.have, keep, nil
}

func (s *Store) pace(ctx context.Context, n int) error {
	s.mu.Lock()
	d := s.mu.limiter.Take(s.o.Clock.Now(), n)
	s.mu.Unlock()
	if d <= 0 {
		return ctx.Err()
	}
	s.count.paced.Add(uint64(d))
	return s.o.Clock.Sleep(ctx, d)
}

// Sweep drops what is left of interrupted receptions that nobody went on with for
// RetainFor, or of all of them, and then all kept images as well, and none is made until
// the next call. Its owner calls it from time to time.
func (s *Store) Sweep(all bool) {
	s.mu.Lock()
	s.mu.tight = all
	s.mu.Unlock()
	if all {
		s.dropAllKept()
	}
	s.sweep(all)
}

func (s *Store) sweep(all bool) {
	now := s.o.Clock.Now()
	s.dropIdle(func(r *reception) bool { return all || now.Sub(r.since) >= RetainFor })
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
	keep = keep && !r.gone
	if !keep {
		s.forgetLocked(r)
	}
	if s.mu.closed {
		r.closeFile()
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
	r.closeFile()
	if r.dir != "" {
		if err := s.fs.RemoveAll(r.dir); err != nil {
			s.o.Logger.Warn("snapshot: staged files not removed", "err", err)
		}
		r.dir = ""
	}
}

// Close refuses further snapshots. Those under way end by their streams and contexts,
// which the caller ends. What came of interrupted ones stays on the disk, for the next
// life of the node. It is idempotent.
func (s *Store) Close() {
	defer s.aside.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.closed = true
	for _, r := range s.mu.in {
		if !r.busy {
			r.closeFile()
		}
	}
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
