package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// ErrDamaged is wrapped by what a read gets that needs a table of user keys of which a
// block is damaged, where OnDamage said that its replicas will be rebuilt. Nothing
// was read, and the store goes on.
var ErrDamaged = errors.New("engine: a table of the store is damaged")

// Damage is a table of user keys of which a block cannot be read: its checksum is wrong.
type Damage struct {
	Path string
	Err  error
	span pebble.KeyRange // raw keys of the table
}

// Overlaps reports whether the table may hold keys of the group of desc.
func (d *Damage) Overlaps(desc *raft.Descriptor) bool {
	lower, upper := DataSpan(desc.Keyspace, desc.Start, desc.End)
	return bytes.Compare(lower, d.span.End) < 0 && bytes.Compare(d.span.Start, upper) < 0
}

// damagePause is how long a compaction waits that met a damaged table.
const damagePause = 20 * time.Millisecond

// damages are tables that are damaged and not dropped yet.
type damages struct {
	mu   sync.Mutex
	tell func(Damage) bool // nil: nobody listens yet
	open []Damage
}

// OnDamage has f told of damaged tables, those found before included. f must not
// block or read the store; it may be called on any goroutine. With true it says that
// all groups the table overlaps will be quarantined (QuarantineUnreadable), and DropDamaged called
// then; with false the store fails, as it does without any f once it is read.
func (e *Engine) OnDamage(f func(Damage) bool) {
	d := &e.damage
	d.mu.Lock()
	d.tell = f
	found := d.open
	d.mu.Unlock()
	for i := range found {
		if !f(found[i]) {
			e.fail(fmt.Errorf("corruption in %s: %w", found[i].Path, found[i].Err))
		}
	}
}

// damaged takes news of damage. It reports false if the store cannot live with it.
func (e *Engine) damaged(info *pebble.DataCorruptionInfo) bool {
	b := info.Bounds
	if !e.opts.Rebuild || len(b.Start) < dataHead || b.Start[0] != prefixData || len(b.End.Key) == 0 || b.End.Key[0] != prefixData || mutants.On("IG3") {
		return false
	}
	v := Damage{Path: info.Path, Err: info.Details, span: pebble.KeyRange{Start: bytes.Clone(b.Start), End: append(bytes.Clone(b.End.Key), 0)}}
	d := &e.damage
	d.mu.Lock()
	for i := range d.open {
		if d.open[i].Path == v.Path && bytes.Equal(d.open[i].span.Start, v.span.Start) {
			d.mu.Unlock()
			return true
		}
	}
	d.open = append(d.open, v)
	tell := d.tell
	d.mu.Unlock()
	e.log.Error("a table is damaged", "path", v.Path, "err", v.Err)
	return tell == nil || tell(v)
}

// forget lets go of a damage: if it is met again it is told again.
func (d *damages) forget(v *Damage) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.open {
		if d.open[i].Path == v.Path && bytes.Equal(d.open[i].span.Start, v.span.Start) {
			d.open = append(d.open[:i:i], d.open[i+1:]...)
			return
		}
	}
}

// GiveUp is called if a damaged table is not dropped: who meets it again tells again.
func (e *Engine) GiveUp(v Damage) { e.damage.forget(&v) }

// DropDamaged removes a damaged table, and what else the store holds of its span: the
// replicas it overlaps have to be rebuilt anyhow, and no compaction can get through it. It reports
// false, and does nothing, as long as one of them is not quarantined as unreadable,
// durably. An error means that the store has failed.
func (e *Engine) DropDamaged(v Damage) (done bool, err error) {
	if err := e.enter(); err != nil {
		return false, err
	}
	defer e.leave()
	if e.def != nil { // no snapshot is installed meanwhile
		e.def.flushMu.Lock()
		defer e.def.flushMu.Unlock()
	}
	// What is read of the marks is made durable by this (E2).
	if err := e.syncLog(); err != nil {
		return false, err
	}
	ready := true
	var bad error
	err = e.eachDescriptor(func(d *raft.Descriptor) {
		if v.Overlaps(d) {
			q, err := e.quarantined(d.Shard)
			bad = errors.Join(bad, err)
			ready = ready && q.Why == QuarantineUnreadable
		}
	})
	if err = errors.Join(err, bad); err != nil || !ready && !mutants.On("IG9") {
		return false, err
	}
	e.hurry.Add(1)
	defer e.hurry.Add(-1)
	if err := e.db.Excise(context.Background(), v.span); err != nil {
		return false, e.fail(fmt.Errorf("drop the damaged table %s: %w", v.Path, err))
	}
	e.damage.forget(&v)
	e.log.Warn("a damaged table was dropped", "path", v.Path)
	return true, nil
}

// stateRate bounds what StateDigest reads, in bytes per second.
const stateRate = 32 << 20

// StateDigest sums up what the store holds of the group of desc: keys, values and the records of
// its state machine, as of the applied index that it returns. Replicas of equal index
// have equal digests. It reads everything, and gives up when stop is closed.
func (e *Engine) StateDigest(desc *raft.Descriptor, stop <-chan struct{}) (d raft.Digest, applied raft.Index, err error) {
	v, err := e.View(desc)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	began, read, napped := time.Now(), int64(0), int64(0)
	for _, part := range []ViewPart{ViewMachine, ViewData} {
		it, err := v.Iter(part)
		if err != nil {
			return 0, 0, err
		}
		for ok := it.First(); ok; ok = it.Next() {
			key, val := it.Key(), it.Value()
			d = d.Add(key).Add(val)
			if read += int64(len(key) + len(val)); read-napped < 1<<20 || e.opts.FlushInline {
				continue
			}
			napped = read
			t := time.NewTimer(time.Until(began.Add(time.Duration(read) * time.Second / stateRate)))
			select {
			case <-t.C:
			case <-stop:
				t.Stop()
				return 0, 0, errors.Join(ErrClosed, it.Close())
			}
		}
		if err := errors.Join(it.Err(), it.Close()); err != nil {
			return 0, 0, err
		}
	}
	return d, v.Applied().Applied, nil
}

// Scrub reads all tables from the disk once, bytesPerSecond at most, past all caches,
// and holds each block against its checksum. What it finds is told as if a
// read had met it (OnDamage). It returns how many bytes it read; an error is the
// context's, or means that the store has failed.
func (e *Engine) Scrub(ctx context.Context, bytesPerSecond int64) (read int64, err error) {
	levels, err := e.tables()
	if err != nil {
		return 0, err
	}
	p := &paced{ctx: ctx, rate: bytesPerSecond, began: time.Now()}
	for _, tables := range levels {
		for i := range tables {
			if err := e.scrubTable(p, &tables[i]); err != nil {
				return p.read, err
			}
		}
	}
	return p.read, nil
}

func (e *Engine) tables() ([][]pebble.SSTableInfo, error) {
	if err := e.enter(); err != nil {
		return nil, err
	}
	defer e.leave()
	l, err := e.db.SSTables()
	if err != nil {
		return nil, e.iterError(err)
	}
	return l, nil
}

func (e *Engine) scrubTable(p *paced, t *pebble.SSTableInfo) error {
	path := e.fs.PathJoin(e.dir, dbName, fmt.Sprintf("%s.sst", t.BackingSSTNum))
	err := e.readTable(p, path)
	if err == nil || p.ctx.Err() != nil {
		return p.ctx.Err()
	}
	if e.usable() != nil {
		return e.usable()
	}
	// It may be gone, or on its way: then nobody needs it.
	levels, lerr := e.tables()
	if lerr != nil {
		return lerr
	}
	for _, tables := range levels {
		for i := range tables {
			if o := &tables[i]; o.FileNum == t.FileNum {
				info := pebble.DataCorruptionInfo{Path: path, Details: err}
				info.Bounds.Start, info.Bounds.End.Key = o.Smallest.UserKey, o.Largest.UserKey
				if pebble.IsCorruptionError(err) && e.damaged(&info) {
					return nil
				}
				return e.fail(fmt.Errorf("scrub %s: %w", path, err))
			}
		}
	}
	return nil
}

// readTable reads all blocks of a table.
func (e *Engine) readTable(p *paced, path string) (err error) {
	if err := e.enter(); err != nil {
		return err
	}
	defer e.leave()
	f, err := e.fs.Open(path, vfs.SequentialReadsOption)
	if err != nil {
		return err
	}
	readable, err := sstable.NewSimpleReadable(&pacedFile{File: f, p: p})
	if err != nil {
		return errors.Join(err, f.Close())
	}
	o := e.po.MakeReaderOptions()
	r, err := sstable.NewReader(p.ctx, readable, o)
	if err != nil {
		return errors.Join(err, readable.Close())
	}
	return errors.Join(r.ValidateBlockChecksums(), r.Close())
}

// paced bounds the bytes read per second.
type paced struct {
	ctx   context.Context
	rate  int64
	began time.Time
	read  int64
}

// pacedFile is a table as a scrub reads it.
type pacedFile struct {
	vfs.File
	p *paced
}

// ReadAt waits until the read is due.
func (f *pacedFile) ReadAt(b []byte, off int64) (int, error) {
	p := f.p
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	p.read += int64(len(b))
	due := p.began.Add(time.Duration(float64(p.read) / float64(max(1, p.rate)) * float64(time.Second)))
	if wait := time.Until(due); wait > time.Millisecond {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-p.ctx.Done():
			return 0, p.ctx.Err()
		}
	}
	return f.File.ReadAt(b, off)
}
