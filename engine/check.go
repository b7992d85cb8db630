package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// CheckOptions says how Check looks at a store. The zero value is of use.
type CheckOptions struct {
	// FS is the file system of the store. Nil: that of the operating system.
	FS FS
	// Digest has a digest of the applied data of each shard computed.
	Digest bool
	// Group is asked about each record that SetGroup wrote, Value about each value of
	// a user key. What they return is reported as a fault. Arguments count during the
	// call. Nil: such records are read, and not looked into.
	Group func(s raft.ShardID, suffix, val []byte) error
	Value func(keyspace uint32, key, val []byte) error
}

// FaultKind says what part of a store a Fault is in.
type FaultKind string

// The kinds of faults.
const (
	FaultIdentity   FaultKind = "identity"   // identity file, or its copy in the database
	FaultFormation  FaultKind = "formation"  // the file that says how the cluster was formed
	FaultWatermark  FaultKind = "watermark"  // up to where writes were durable
	FaultAmnesia    FaultKind = "amnesia"    // the store has forgotten what was durable
	FaultManifest   FaultKind = "manifest"   // the list of tables, or the record of its checksum
	FaultDatabase   FaultKind = "database"   // the database as a whole
	FaultTable      FaultKind = "table"      // a file with data
	FaultWAL        FaultKind = "wal"        // a file of the write-ahead log
	FaultKey        FaultKind = "key"        // a key that no store has
	FaultRecord     FaultKind = "record"     // a small record of the store
	FaultLog        FaultKind = "log"        // entries of a Raft log, or their absence
	FaultHard       FaultKind = "hard state" // what a replica has promised
	FaultApplied    FaultKind = "applied"    // through where a replica has applied
	FaultDescriptor FaultKind = "descriptor" // the range and the replicas of a shard
	FaultTombstone  FaultKind = "tombstone"  // a replica that must not live here
	FaultSession    FaultKind = "session"    // another replicated record of a shard
	FaultData       FaultKind = "data"       // a user's record
)

// Fault is one thing that is wrong with a store.
type Fault struct {
	Kind FaultKind `json:"kind"`
	// Shard and Index say of which shard, and of which entry of its log. Zero: of none.
	Shard raft.ShardID `json:"shard,omitempty"`
	Index raft.Index   `json:"index,omitempty"`
	// File is relative to the directory; empty: not in one file. Offset is where in it,
	// in bytes; -1: not known.
	File   string `json:"file,omitempty"`
	Offset int64  `json:"offset"`
	// What is wrong, and what the operator can do, each one sentence.
	What string `json:"what"`
	Next string `json:"next"`
}

// String returns the fault on one line, without Next.
func (f Fault) String() string {
	var b strings.Builder
	b.WriteString(string(f.Kind))
	if f.Shard != 0 {
		fmt.Fprintf(&b, ", shard %d", f.Shard)
	}
	if f.Index != 0 {
		fmt.Fprintf(&b, ", index %d", f.Index)
	}
	if f.File != "" {
		b.WriteString(", " + f.File)
		if f.Offset >= 0 {
			fmt.Fprintf(&b, " at %d", f.Offset)
		}
	}
	return b.String() + ": " + strings.ReplaceAll(f.What, "\n", "; ")
}

// MaxFaults bounds the faults of a report that are kept; the others are counted.
const MaxFaults = 1000

// ShardDigest sums up the applied data of one replica. Two replicas of a shard that
// have applied the same entries, with the same range, have the same digest, however
// their stores came to be.
type ShardDigest struct {
	Shard    raft.ShardID `json:"shard"`
	Keyspace uint32       `json:"keyspace"`
	Start    []byte       `json:"start"`
	End      []byte       `json:"end"`
	Applied  raft.Index   `json:"applied"` // through which entry, in tables or the write-ahead log
	Term     raft.Term    `json:"term"`    // of that entry
	// Last is the last entry of the log. Those behind Applied are redo: they are not in
	// the digest.
	Last raft.Index `json:"last"`
	Keys uint64     `json:"keys"`
	// Digest is the SHA-256 of the shard's range, its replicated records and its keys
	// and values, in order, each preceded by its length.
	Digest string `json:"digest"`
}

// CheckReport is what Check found.
type CheckReport struct {
	Dir       string      `json:"dir"`
	Node      raft.NodeID `json:"node"`
	Cluster   string      `json:"cluster"` // 32 hexadecimal digits
	BootEpoch uint64      `json:"boot_epoch"`
	Shards    int         `json:"shards"`
	// Entries are those of the logs that count. Unapplied of them are behind what is
	// applied in the tables and the write-ahead log: the node applies them as it
	// starts, as far as they are committed.
	Entries   uint64 `json:"entries"`
	Unapplied uint64 `json:"unapplied"`
	Keys      uint64 `json:"keys"`    // of users, and of the catalog
	Records   uint64 `json:"records"` // other replicated records of the shards
	Tables    int    `json:"tables"`
	Bytes     int64  `json:"bytes"` // of files that were read and verified
	Nanos     int64  `json:"nanos"` // how long it took
	// Faults are in the order in which they were found; More were not kept.
	Faults []Fault `json:"faults"`
	More   int     `json:"more,omitempty"`
	// Notes are what is worth knowing and no fault.
	Notes   []string      `json:"notes,omitempty"`
	Digests []ShardDigest `json:"digests,omitempty"`
}

// Add notes a fault.
func (r *CheckReport) Add(f Fault) {
	if len(r.Faults) >= MaxFaults {
		r.More++
		return
	}
	r.Faults = append(r.Faults, f)
}

// Check looks at everything in the store of a stopped node, and reports what is wrong
// with it: files and their checksums first, then what they say. It reads only: not a
// byte of the directory is changed, and nothing is created in it. It needs memory for
// the write-ahead log and the Raft logs, as opening the store does.
//
// An *OpenError says that nothing was checked: there is no store (NotAStore), it is in
// use (Locked), a newer release has written it (NewerLayout), or it cannot be read
// (NotWritable). Another error is that of ctx. Damage is no error.
func Check(ctx context.Context, dir string, o CheckOptions) (*CheckReport, error) {
	c := &checker{ctx: ctx, o: o, isOS: o.FS == nil}
	fs := o.FS
	if fs == nil {
		fs = OSFS()
	}
	begun := time.Now()
	e := &Engine{fs: readOnlyFS{fs}, down: make(chan struct{})}
	e.opts = Options{
		Dir: dir, FS: e.fs, OnFatal: func(error) {}, NoDiskWatch: true,
		tune: func(po *pebble.Options) {
			po.ReadOnly = !mutants.On("E-check-writes")
			// By default damage ends the process; here the reads say it, too.
			po.EventListener = &pebble.EventListener{DataCorruption: func(pebble.DataCorruptionInfo) {}, BackgroundError: func(error) {}}
			po.FS = e.fs
		},
	}.withDefaults()
	e.log = e.opts.Logger
	e.dir = canonicalDir(fs, dir)
	c.e, c.fs = e, e.fs
	c.r = &CheckReport{Dir: dir, Faults: []Fault{}}
	err := c.run(fs)
	if e.db != nil {
		c.attempt(Fault{Kind: FaultDatabase}, e.db.Close)
	}
	if c.lock != nil {
		_ = c.lock.Close()
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	c.r.Nanos = time.Since(begun).Nanoseconds()
	return c.r, nil
}

// checker is one run of Check.
type checker struct {
	ctx  context.Context
	o    CheckOptions
	isOS bool
	e    *Engine // without goroutines and locks; db is read-only, and nil if it does not open
	fs   FS
	r    *CheckReport
	lock io.Closer

	rec    identRecord
	seq    uint64 // the next sequence number of the database, as its files say
	minLog uint64 // the oldest file of the write-ahead log that counts
	shards []*checkedShard
	of     map[raft.ShardID]*checkedShard
}

func (c *checker) run(real FS) error {
	if err := c.place(real); err != nil {
		return err
	}
	if err := c.identity(); err != nil {
		return err
	}
	c.slots(markName, 2, FaultWatermark, func(b []byte) error { _, err := decodeWatermark(b); return err })
	c.slots(sumName, sumSlots, FaultManifest, func(b []byte) error { _, err := decodeManifestSum(b); return err })
	if err := c.database(); err != nil {
		return err
	}
	c.tables()
	c.walFiles()
	c.watermark()
	c.contents()
	c.staged()
	return nil
}

// fault notes a fault whose remedy is to replace the node.
func (c *checker) fault(f Fault, format string, args ...any) {
	if f.What = fmt.Sprintf(format, args...); f.Next == "" {
		f.Next = c.e.replaceHint()
	}
	if f.File == "" {
		f.Offset = -1
	}
	c.r.Add(f)
}

func (c *checker) note(format string, args ...any) {
	c.r.Notes = append(c.r.Notes, fmt.Sprintf(format, args...))
}

// attempt runs f, whose error or panic is a fault.
func (c *checker) attempt(about Fault, f func() error) {
	err := func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("%v", p)
			}
		}()
		return f()
	}()
	if err != nil && c.ctx.Err() == nil {
		c.fault(about, "%v", err)
	}
}

// place looks whether there is a store that nobody uses, and keeps others from using it.
func (c *checker) place(real FS) error {
	e := c.e
	if e.opts.Dir == "" {
		return e.openErr(NotAStore, "name a directory", errors.New("no directory given"))
	}
	unreadable := func(err error) error {
		return e.openErr(NotWritable, "check the path and its permissions", err)
	}
	info, err := c.fs.Stat(e.dir)
	switch {
	case isNotExist(err):
		return e.openErr(NotAStore, "check the path", errors.New("no such directory"))
	case err != nil:
		return unreadable(err)
	case !info.IsDir():
		return e.openErr(NotAStore, "name a directory", errors.New("not a directory"))
	}
	hasIdent, err := exists(c.fs, c.path(identName))
	if err != nil {
		return unreadable(err)
	}
	hasDB, err := exists(c.fs, c.path(dbName))
	if err != nil {
		return unreadable(err)
	}
	if !hasIdent && !hasDB {
		return e.openErr(NotAStore, "check the path", errors.New("it holds no store"))
	}
	if has, err := exists(c.fs, c.path(lockName)); err != nil || !has {
		return err // a copy without the file: nobody can have locked it
	}
	lock, owner, err := lockOrOwner(real, c.path(lockName), c.isOS)
	if err != nil && isPermission(err) {
		// What cannot be written cannot be in use by a node on this file system, unless
		// through another mount of it: ask.
		if c.isOS {
			owner = lockOwner(c.path(lockName))
		}
		if owner == 0 {
			return nil
		}
	}
	switch {
	case err == nil:
		c.lock = lock
	case owner != 0:
		return e.openErr(Locked, "stop that process first: flotilla check looks at directories of stopped nodes", fmt.Errorf("process %d uses it", owner))
	default:
		return e.openErr(Locked, "stop the process that uses this directory first", err)
	}
	return nil
}

func (c *checker) path(names ...string) string {
	p := c.e.dir
	for _, n := range names {
		p = c.fs.PathJoin(p, n)
	}
	return p
}

// identity reads the identity file.
func (c *checker) identity() error {
	e := c.e
	rec, err := readIdentFile(c.fs, c.path(identName))
	switch {
	case errors.Is(err, errNewerIdent):
		return e.openErr(NewerLayout, "use the release that wrote it, or a newer one", err)
	case err == nil && rec.Layout > LayoutVersion:
		return e.openErr(NewerLayout, "use the release that wrote it, or a newer one", fmt.Errorf("layout %d, this release reads up to %d", rec.Layout, LayoutVersion))
	case err == nil && rec.State == stateCreating:
		return e.openErr(NotAStore, "start the node: it begins anew", errors.New("its creation was never completed"))
	case isNotExist(err):
		c.fault(Fault{Kind: FaultIdentity, File: identName, Offset: -1}, "the identity file is missing")
		return nil
	case isPermission(err):
		return e.openErr(NotWritable, "check the path and its permissions", err)
	}
	if err == nil {
		c.rec, e.identRec = rec, rec
		c.r.Node, c.r.Cluster, c.r.BootEpoch = rec.Node, fmt.Sprintf("%x", rec.Cluster), rec.BootEpoch
		if rec.State == stateAmnesiac {
			c.fault(Fault{Kind: FaultAmnesia, File: identName, Offset: -1}, "the store was found to have forgotten what it had promised to other nodes")
		}
	}
	c.slots(identName, 2, FaultIdentity, func(b []byte) error {
		r, err := decodeIdentRecord(b)
		if err == nil && r.Nonce == 0 && len(b) >= identLen+nonceLen && !zeros(b[identLen:identLen+nonceLen]) {
			return errors.New("numbers of boots are damaged")
		}
		return err
	})
	return nil
}

func zeros(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// slots looks at the copies of a record in a small file.
func (c *checker) slots(name string, n int, kind FaultKind, check func(b []byte) error) {
	b, err := c.readFile(c.path(name), int64(n)*identSlot)
	if isNotExist(err) {
		if c.rec.State == stateReady {
			c.note("%s is missing: what it guards against cannot be told", name)
		}
		return
	}
	if err != nil {
		c.fault(Fault{Kind: kind, File: name, Offset: -1, Next: "check the disk"}, "it cannot be read: %v", err)
		return
	}
	good, bad := 0, []int{}
	var why error
	for i := range n {
		slot := b[min(i*identSlot, len(b)):min((i+1)*identSlot, len(b))]
		if zeros(slot) {
			continue // never written
		}
		if err := check(slot); err != nil {
			bad, why = append(bad, i), err
			continue
		}
		good++
	}
	for _, i := range bad {
		next := "another copy counts, and the node starts; look after the disk"
		if good == 0 {
			next = c.e.replaceHint()
		}
		c.fault(Fault{Kind: kind, File: name, Offset: int64(i) * identSlot, Next: next}, "copy %d of %d is damaged: %v", i+1, n, why)
	}
	if good == 0 && len(bad) == 0 && kind == FaultIdentity {
		c.fault(Fault{Kind: kind, File: name, Offset: 0}, "the identity file is empty")
	}
}

// readFile returns up to limit bytes of a file, and counts them.
func (c *checker) readFile(name string, limit int64) ([]byte, error) {
	f, err := c.fs.Open(name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit))
	c.r.Bytes += int64(len(b))
	return b, closeWith(f, err)
}

// database opens Pebble to read, if its list of tables is sound.
func (c *checker) database() error {
	e := c.e
	dir := c.path(dbName)
	if has, err := exists(c.fs, dir); err != nil || !has {
		c.fault(Fault{Kind: FaultDatabase, File: dbName, Offset: -1}, "the database directory is missing")
		return nil
	}
	desc, err := pebble.Peek(dir, c.fs)
	switch {
	case err != nil && isPermission(err):
		return e.openErr(NotWritable, "check the path and its permissions", err)
	case err == nil && desc.FormatMajorVersion > format:
		return e.openErr(NewerLayout, "use the release that wrote it, or a newer one", fmt.Errorf("database format %d, this release reads up to %d", desc.FormatMajorVersion, format))
	case err == nil && desc.Exists:
		if c.manifest(desc.ManifestFilename); len(c.r.Faults) > 0 && slices.ContainsFunc(c.r.Faults, func(f Fault) bool {
			return f.Kind == FaultManifest && !strings.HasPrefix(f.File, sumName)
		}) {
			return nil // what it names is not what the store holds
		}
	}
	if err := e.openDB(false); err != nil {
		var oe *OpenError
		if errors.As(err, &oe) && oe.Err != nil {
			err = oe.Err
		}
		c.fault(Fault{Kind: FaultDatabase, File: dbName, Offset: -1}, "the database does not open, so what is in it was not looked at: %v", err)
	}
	return nil
}

// readOnlyFS refuses every change.
type readOnlyFS struct{ FS }

func (f readOnlyFS) refuse(op, name string) error {
	return &os.PathError{Op: op, Path: name, Err: syscall.EROFS}
}

func (f readOnlyFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return nil, f.refuse("create", name)
}

func (f readOnlyFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, _ ...vfs.OpenOption) (vfs.File, error) {
	return nil, f.refuse("write", name)
}

func (f readOnlyFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return nil, f.refuse("write", newname)
}

func (f readOnlyFS) Link(oldname, newname string) error       { return f.refuse("link", newname) }
func (f readOnlyFS) Remove(name string) error                 { return f.refuse("remove", name) }
func (f readOnlyFS) RemoveAll(name string) error              { return f.refuse("remove", name) }
func (f readOnlyFS) Rename(oldname, newname string) error     { return f.refuse("rename", oldname) }
func (f readOnlyFS) MkdirAll(dir string, _ os.FileMode) error { return f.refuse("mkdir", dir) }
func (f readOnlyFS) Lock(name string) (io.Closer, error)      { return nopCloser{}, nil }
func (f readOnlyFS) Unwrap() vfs.FS                           { return f.FS }

// nopCloser stands for the lock of Pebble's directory: the one of the store is held.
type nopCloser struct{}

func (nopCloser) Close() error { return nil }
