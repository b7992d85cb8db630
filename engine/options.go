package engine

import (
	"crypto/rand"
	"encoding/binary"
	"log/slog"
	"runtime"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Defaults of Options. The memtable is a compromise: inserting into a larger one
// costs more processor time per write once it outgrows the caches (measured
// per entry appended and applied: 4 MiB 4.7 us, 16 MiB 5.5 us, 64 MiB 6.3 us,
// 128 MiB 8.7 us), a smaller one makes more compactions.
const (
	DefaultCacheBytes    = 64 << 20
	DefaultMemTableBytes = 32 << 20
)

// format pins Pebble's on-disk format: columnar tables, sync chunks in the
// write-ahead log (a flipped bit in the middle of it is found at open instead
// of silently ending the log there), flushable excises. It is raised only by
// an explicit upgrade together with LayoutVersion.
const format = pebble.FormatTableFormatV6

// Options says where a store is and how it may use the machine. Dir is the
// only required field.
type Options struct {
	// Dir is the directory of the store. Several names of one directory are
	// taken for the same store.
	Dir string
	// FS is the file system. Nil: the one of the operating system, watched for
	// writes that hang.
	FS FS
	// Cluster and Node say whom the store must belong to. Zero accepts any.
	// A store that has no identity yet takes them on.
	Cluster [16]byte
	Node    raft.NodeID
	// Create makes a new store when there is none at Dir.
	Create bool
	// CacheBytes bounds the block cache and the memtables together when Cache is nil: the
	// cache has what the memtables leave (see also ReserveCache). Zero: DefaultCacheBytes.
	CacheBytes int64
	// MemTableBytes is the size of one memtable; up to six may exist. Zero:
	// DefaultMemTableBytes. A batch of half that size rotates the memtable, so
	// keep rounds well below it.
	MemTableBytes int64
	// DeferBytes, if not zero, keeps the applied side of the groups in memory until
	// that many bytes have gathered, and writes it to tables in bulk: see deferred.
	// Up to twice as much is held, and once more of what was flushed last, for reads.
	// Owners of groups cut their logs by OnFlush then.
	// Zero: it goes through the write-ahead log with each batch.
	DeferBytes int64
	// DeferLogBytes is how much is written to the write-ahead log before what is in
	// memory is written to tables, so that the Raft logs can be cut. Zero: five
	// eighths of MemTableBytes, so that entries are deleted in the memtable they are in.
	DeferLogBytes int64
	// DeferLogLimit is how much of the write-ahead log may be needed as redo of what is
	// in memory: beyond it writes wait for a flush. Zero: three times DeferLogBytes.
	DeferLogLimit int64
	// JournalBytes is how much of the log, in records that hold the entries of many
	// groups, may be there because some of the groups still need theirs. Beyond it these
	// are moved to keys of their own. Opening the store takes as much memory for a moment.
	// Zero: four times DeferLogBytes.
	JournalBytes int64
	// PointDeletes is the longest span of log entries with keys of their own that is
	// deleted key by key and not as a range. Zero: 64.
	PointDeletes raft.Index
	// FlushInline makes flushes part of the commit that begins them. Simulators use it.
	FlushInline bool
	// Cache is a block cache shared by several stores of the process.
	Cache *Cache
	// Logger receives what the store has to say. Nil: discarded.
	Logger *slog.Logger
	// OnFatal is called exactly once, with the reason, when the store has
	// failed and the node must stop. It may be called on any goroutine, also on
	// one of Pebble's that holds Pebble's locks: it must not read or write the
	// store, it may call Close. When it returns, a Pebble goroutine that called it is parked for ever. Nil: log
	// and os.Exit(1).
	OnFatal func(error)
	// MinSyncInterval, if set, is asked before each sync of the log how long to
	// collect further batches. It is called from Pebble's log goroutine.
	MinSyncInterval func() time.Duration
	// OnDurable, if set, is called whenever a call that waits for the disk by itself
	// has made its writes durable, before it returns: synced writes of single
	// records, SyncNow, snapshot installation. Batch.Wait does not call it. It
	// runs on the caller's goroutine. Simulators use it.
	OnDurable func()
	// Now is the wall clock for what people read and for pacing. Nil: time.Now.
	Now func() time.Time
	// Nonce draws the number of a boot (BootNonce). Nil: a random one. Simulators
	// set it, so that equal runs leave equal files.
	Nonce func() uint64
	// ManifestBytes is the size at which the list of tables goes over to a new file.
	// Zero: 4 MiB. Small values are for tests of that change.
	ManifestBytes int64
	// SpaceLimit is the most that the files of the store may take, in bytes: what
	// LookAtSpace judges by, besides the file system. Zero: no limit.
	SpaceLimit int64
	// BallastBytes is how large a file is kept in the directory that holds nothing but
	// space, for when the disk is full; a hundredth of the capacity at most. Zero: none.
	BallastBytes int64
	// Rebuild lets the store live with damaged tables of user keys, whose replicas the
	// owner quarantines and rebuilds (OnDamage, which has to be called). Else they stop it.
	Rebuild bool
	// NoDiskWatch switches off the watch for hanging writes on the operating
	// system's file system.
	NoDiskWatch bool

	// tune changes Pebble's options last (tests).
	tune func(*pebble.Options)
	// noDirSync leaves out the directory sync after a MANIFEST was created
	// (the test that shows why it is needed).
	noDirSync bool
	// yield takes the place of each pause of background work (tests).
	yield func()
	// sealed is called with a batch before Pebble gets it (tests).
	sealed func(*Batch)
	// restBytes takes the place of the constant.
	restBytes int64
	// markAlways writes a watermark at every SyncNow.
	markAlways bool
}

func (o Options) withDefaults() Options {
	if o.CacheBytes <= 0 {
		o.CacheBytes = DefaultCacheBytes
	}
	if o.MemTableBytes <= 0 {
		o.MemTableBytes = DefaultMemTableBytes
	}
	if o.DeferLogBytes <= 0 {
		o.DeferLogBytes = o.MemTableBytes * 5 / 8
	}
	if o.PointDeletes == 0 {
		o.PointDeletes = pointDeletes
	}
	if o.DeferLogLimit <= 0 {
		o.DeferLogLimit = 3 * o.DeferLogBytes
	}
	o.DeferLogLimit = max(o.DeferLogLimit, o.DeferLogBytes)
	if o.JournalBytes <= 0 {
		o.JournalBytes = 4 * o.DeferLogBytes
	}
	if o.ManifestBytes <= 0 {
		o.ManifestBytes = manifestBytes
	}
	if o.restBytes <= 0 {
		o.restBytes = restBytes
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.OnDurable == nil {
		o.OnDurable = func() {}
	}
	if o.Nonce == nil {
		o.Nonce = func() uint64 {
			var b [8]byte
			_, _ = rand.Read(b[:]) // never fails
			return binary.LittleEndian.Uint64(b[:])
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Cache is a block cache that several stores of a process share.
type Cache struct{ c *pebble.Cache }

// NewCache returns a cache of the given size in bytes. Close it after the
// stores that use it.
func NewCache(bytes int64) *Cache { return &Cache{c: pebble.NewCache(bytes)} }

// Close releases the cache. It must be called once.
func (c *Cache) Close() { c.c.Unref() }

// Sublevels of level 0 at which they are merged, and at which writes stop.
const (
	l0Compaction = 8
	l0Stop       = 24
)

// bytesPerSync is how much of a table is written before the disk begins with it: a
// sync of the log does not find all of a table before it.
const bytesPerSync = 512 << 10

// pebbleOptions is the option sheet. Numbers are start values for a small
// machine; the reasons are in the comments.
func (e *Engine) pebbleOptions() *pebble.Options {
	version := format
	if mutants.On("E-old-format") {
		version = pebble.FormatMinSupported
	}
	o := &pebble.Options{
		FS:                 e.fs,
		FormatMajorVersion: version,
		Logger:             pebbleLogger{e},
		// Two memtables may be on their way to tables before writes stop.
		MemTableSize:                uint64(e.opts.MemTableBytes),
		MemTableStopWritesThreshold: memTables,
		L0CompactionThreshold:       l0Compaction, // tables of a flush lie over each other; filters keep reads short
		L0StopWritesThreshold:       l0Stop,
		LBaseMaxBytes:               e.opts.baseBytes(),
		MaxManifestFileSize:         e.opts.ManifestBytes,
		// A flush is one table per part: each one costs the disk time when it goes.
		TargetFileSizes: [7]int64{16 << 20, 8 << 20, 16 << 20, 32 << 20, 64 << 20, 64 << 20, 64 << 20},
		MaxOpenFiles:    1000,
		BytesPerSync:    bytesPerSync,
		// The log is synced by commits only; a background sync would only delay them.
		WALBytesPerSync:       0,
		WALMinSyncInterval:    e.opts.MinSyncInterval,
		FlushDelayDeleteRange: 10 * time.Second,
		EventListener:         e.eventListener(),
		// A clean close makes everything durable, and the log is never off.
		NoSyncOnClose:              false,
		DisableWAL:                 mutants.On("B0-E4"),
		CompactionConcurrencyRange: func() (int, int) { return 1, compactions() },
		// Statistics of tables are read aside, whenever that comes; a simulation has to be
		// the same each time.
		DisableTableStats: e.opts.FlushInline,
	}
	if o.Cache = e.cache; e.opts.Cache != nil {
		o.Cache = e.opts.Cache.c
	}
	o.Experimental.FileCacheShards = max(1, min(4, runtime.GOMAXPROCS(0)))
	for i := range o.Levels {
		l := &o.Levels[i]
		chore := choreCompaction
		if i == 0 {
			chore = choreMemtable
		}
		l.FilterPolicy = e.filter(chore)
		l.BlockSize = 16 << 10
		l.IndexBlockSize = 128 << 10
		compression := sstable.SnappyCompression
		if i < 2 {
			compression = sstable.NoCompression
		}
		l.Compression = func() *sstable.CompressionProfile { return compression }
	}
	// Everything below the data is small, hot and short-lived.
	o.Experimental.SpanPolicyFunc = func(start []byte) (pebble.SpanPolicy, []byte, error) {
		if len(start) == 0 || start[0] < prefixData {
			return pebble.SpanPolicy{PreferFastCompression: true}, []byte{prefixData}, nil
		}
		return pebble.SpanPolicy{}, nil, nil
	}
	if e.opts.tune != nil {
		e.opts.tune(o)
	}
	return o
}
