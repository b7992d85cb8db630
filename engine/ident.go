package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// LayoutVersion is the version of the key table and of the identity file that
// this package writes. A store with a higher one is refused; one with a lower one is
// raised to it as it is opened.
//
//	1  the first one
//	2  how far a log is cut stands beside the hard state, too (key 02 shard 't'),
//	   since the applied state may come to the disk later
//	3  log entries stand in records of many groups (04), with void marks (02 shard
//	   'v'); those that older layouts wrote below 01 are read on
const LayoutVersion = 3

// Ident says whom a store belongs to.
type Ident struct {
	Cluster   [16]byte // zero: not assigned yet
	Node      raft.NodeID
	Layout    uint32
	CreatedAt int64 // wall clock at creation, Unix nanoseconds (for people, not for decisions)
}

// The identity file lives beside the Pebble directory, outside the write-ahead
// log, so that a log that lost its end can neither forget whose store this is
// nor bring a boot epoch back to life. It has two slots of one sector each,
// written in turn; the valid slot with the higher sequence number counts, so a
// torn write leaves the previous one.
//
//	offset 0 and 4096, each:
//	magic "FLOTIDNT" | version u8 | state u8 | layout u32 | seq u64 |
//	cluster [16] | node u32 | createdAt u64 | bootEpoch u64 | crc32c u32 of all before
//
// Behind that, where a boot had a number: nonce u64 | nonce of the boot before u64
// | crc32c u32 of these two. Releases that do not know it write zeros there.
//
// All integers are big-endian.
const (
	identName    = "IDENT"
	identMagic   = "FLOTIDNT"
	identVersion = 1
	identSlot    = 4096
	identLen     = 8 + 1 + 1 + 4 + 8 + 16 + 4 + 8 + 8 + 4
	nonceLen     = 8 + 8 + 4
)

// The states of a store.
const (
	stateCreating byte = 1 // Pebble's directory is not usable yet; it is removed and made again
	stateReady    byte = 2
	// stateAmnesiac: the store has forgotten what others count on. It is never
	// opened again.
	stateAmnesiac byte = 3
)

// identRecord is one slot of the identity file.
type identRecord struct {
	Ident
	State     byte
	Seq       uint64
	BootEpoch uint64
	// Nonce is the random number of the boot BootEpoch, Before that of the boot in
	// front of it. Zero: not known.
	Nonce, Before uint64
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errBadIdent = errors.New("identity record is damaged")

func (r identRecord) encode(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, identMagic...)
	dst = append(dst, identVersion, r.State)
	dst = binary.BigEndian.AppendUint32(dst, r.Layout)
	dst = binary.BigEndian.AppendUint64(dst, r.Seq)
	dst = append(dst, r.Cluster[:]...)
	dst = binary.BigEndian.AppendUint32(dst, uint32(r.Node))
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.CreatedAt))
	dst = binary.BigEndian.AppendUint64(dst, r.BootEpoch)
	dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[at:], castagnoli))
	if r.Nonce == 0 {
		return dst
	}
	at = len(dst)
	dst = binary.BigEndian.AppendUint64(dst, r.Nonce)
	dst = binary.BigEndian.AppendUint64(dst, r.Before)
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[at:], castagnoli))
}

// decodeIdentRecord reads one slot; bytes after the record are ignored.
func decodeIdentRecord(b []byte) (identRecord, error) {
	var r identRecord
	if len(b) < identLen || string(b[:8]) != identMagic {
		return r, errBadIdent
	}
	nonces := b[identLen:]
	b = b[:identLen]
	if crc32.Checksum(b[:identLen-4], castagnoli) != binary.BigEndian.Uint32(b[identLen-4:]) {
		return r, errBadIdent
	}
	r.Layout = binary.BigEndian.Uint32(b[10:])
	if b[8] != identVersion {
		// A higher version keeps the place of the layout, so that the refusal
		// can name it.
		return r, fmt.Errorf("identity record of version %d: %w", b[8], errNewerIdent)
	}
	r.State = b[9]
	if r.State < stateCreating || r.State > stateAmnesiac {
		return r, errBadIdent
	}
	r.Seq = binary.BigEndian.Uint64(b[14:])
	copy(r.Cluster[:], b[22:38])
	r.Node = raft.NodeID(binary.BigEndian.Uint32(b[38:]))
	r.CreatedAt = int64(binary.BigEndian.Uint64(b[42:]))
	r.BootEpoch = binary.BigEndian.Uint64(b[50:])
	if len(nonces) >= nonceLen && crc32.Checksum(nonces[:16], castagnoli) == binary.BigEndian.Uint32(nonces[16:]) {
		if r.Nonce = binary.BigEndian.Uint64(nonces); r.Nonce != 0 {
			r.Before = binary.BigEndian.Uint64(nonces[8:])
		}
	}
	return r, nil
}

var errNewerIdent = errors.New("written by a newer release")

// decodeIdentFile picks the slot that counts.
func decodeIdentFile(b []byte) (identRecord, error) {
	best, err := decodeIdentRecord(b)
	if errors.Is(err, errNewerIdent) || len(b) < identSlot {
		return best, err
	}
	second, err2 := decodeIdentRecord(b[identSlot:])
	switch {
	case errors.Is(err2, errNewerIdent):
		return second, err2
	case err2 != nil:
		return best, err
	case err != nil || second.Seq > best.Seq:
		return second, nil
	}
	return best, nil
}

// readIdentFile returns os.ErrNotExist if there is no file.
func readIdentFile(fs FS, name string) (identRecord, error) {
	f, err := fs.Open(name)
	if err != nil {
		return identRecord{}, err
	}
	b := make([]byte, 2*identSlot)
	n, err := io.ReadFull(f, b)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	if err = closeWith(f, err); err != nil {
		return identRecord{}, err
	}
	return decodeIdentFile(b[:n])
}

// writeIdentFile writes r, with the next sequence number, durably into the
// slot that does not count now.
func writeIdentFile(fs FS, name string, r *identRecord) error {
	r.Seq++
	f, err := fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	var slot [identSlot]byte
	r.encode(slot[:0])
	if _, err := f.WriteAt(slot[:], int64(r.Seq%2)*identSlot); err != nil {
		return closeWith(f, err)
	}
	if mutants.On("D14f") {
		return f.Close()
	}
	return closeWith(f, f.Sync())
}

// The copy of the identity inside Pebble: version u8, layout u32, cluster
// [16], node u32, createdAt u64.
func (id Ident) encode(dst []byte) []byte {
	dst = append(dst, identVersion)
	dst = binary.BigEndian.AppendUint32(dst, id.Layout)
	dst = append(dst, id.Cluster[:]...)
	dst = binary.BigEndian.AppendUint32(dst, uint32(id.Node))
	return binary.BigEndian.AppendUint64(dst, uint64(id.CreatedAt))
}

func decodeIdent(b []byte) (Ident, error) {
	var id Ident
	if len(b) != 1+4+16+4+8 || b[0] != identVersion {
		return id, errBadIdent
	}
	id.Layout = binary.BigEndian.Uint32(b[1:])
	copy(id.Cluster[:], b[5:21])
	id.Node = raft.NodeID(binary.BigEndian.Uint32(b[21:]))
	id.CreatedAt = int64(binary.BigEndian.Uint64(b[25:]))
	return id, nil
}

// Ident returns the identity of the store.
func (e *Engine) Ident() Ident {
	e.identMu.Lock()
	defer e.identMu.Unlock()
	return e.identRec.Ident
}

// BootEpoch returns the number of this opening of the store. It is higher than
// that of every earlier opening, and was durable before Open returned.
func (e *Engine) BootEpoch() uint64 { return e.bootEpoch }

// BootNonce returns the random number of this opening of the store and that of the
// opening before, as the store remembers it (zero: not known). They tell two lines
// of boots apart that come from copies of one store, where the boot epochs are
// equal.
func (e *Engine) BootNonce() (own, before uint64) {
	e.identMu.Lock()
	defer e.identMu.Unlock()
	return e.identRec.Nonce, e.identRec.Before
}

// SetIdent gives the store its identity. It is durable when SetIdent returns.
// Setting the identity it already has does nothing; a part that is still zero
// can be set later. ErrIdentity: it has another one.
func (e *Engine) SetIdent(cluster [16]byte, node raft.NodeID) error {
	if err := e.usable(); err != nil {
		return err
	}
	e.identMu.Lock()
	defer e.identMu.Unlock()
	next := e.identRec
	if next.Cluster == ([16]byte{}) {
		next.Cluster = cluster
	}
	if next.Node == 0 {
		next.Node = node
	}
	if (cluster != [16]byte{} && next.Cluster != cluster) || (node != 0 && next.Node != node) {
		return fmt.Errorf("%w: cluster %x, node %d", ErrIdentity, e.identRec.Cluster, e.identRec.Node)
	}
	if next.Ident == e.identRec.Ident {
		return nil
	}
	if err := writeIdentFile(e.fs, e.identPath(), &next); err != nil {
		return e.fail(fmt.Errorf("write identity file: %w", err))
	}
	e.identRec = next
	return e.setSynced(identKey(nil), next.Ident.encode(nil))
}

// MarkAmnesiac stops the store for good: it is known to have forgotten promises
// that others count on, as an old copy has, or a disk that lost what it had
// synced. That is made durable first: no later Open succeeds (Amnesia), so that
// nothing is ever voted, acknowledged or read from it again. Then the store fails
// as after a failed sync. If another process has opened the directory since, that
// one is the store, and only this Engine fails. The error is the failure.
func (e *Engine) MarkAmnesiac(why error) error {
	if err := e.usable(); err != nil {
		return err
	}
	e.identMu.Lock()
	rec, err := readIdentFile(e.fs, e.identPath())
	if err == nil && rec.BootEpoch == e.bootEpoch && !mutants.On("B18c") {
		rec.State = stateAmnesiac
		err = writeIdentFile(e.fs, e.identPath(), &rec)
	}
	e.identMu.Unlock()
	if err != nil {
		e.log.Error("the amnesia of the store could not be noted", "err", err)
	}
	return e.fail(fmt.Errorf("%w: %w", ErrAmnesia, why))
}

func (e *Engine) identPath() string { return e.fs.PathJoin(e.dir, identName) }

// loadIdent brings the identity file, Pebble's copy and Options together and
// raises the boot epoch, durably in both places, before anything else happens.
func (e *Engine) loadIdent() error {
	fromDB, ok, err := e.getRaw(identKey(nil))
	if err != nil {
		return err
	}
	rec := e.identRec
	if ok {
		id, err := decodeIdent(fromDB)
		if err != nil {
			return e.openErr(Corrupt, e.replaceHint(), err)
		}
		if (id.Cluster != [16]byte{} && id.Cluster != rec.Cluster) || (id.Node != 0 && id.Node != rec.Node) || id.CreatedAt != rec.CreatedAt {
			return e.openErr(Corrupt, "its files come from two stores; restore one of them as a whole",
				fmt.Errorf("identity file says cluster %x, node %d, created at %d; the database says cluster %x, node %d, created at %d",
					rec.Cluster, rec.Node, rec.CreatedAt, id.Cluster, id.Node, id.CreatedAt))
		}
	}
	if rec.Cluster == ([16]byte{}) {
		rec.Cluster = e.opts.Cluster
	}
	if rec.Node == 0 {
		rec.Node = e.opts.Node
	}
	epoch := rec.BootEpoch
	b, ok, err := e.getRaw(requesterKey(nil))
	if err != nil {
		return err
	}
	if ok {
		fromDB, err := decodeRequester(b)
		if err != nil {
			return e.openErr(Corrupt, e.replaceHint(), err)
		}
		epoch = max(epoch, fromDB)
	}
	rec.BootEpoch, rec.Layout = epoch+1, LayoutVersion
	rec.Nonce, rec.Before = e.opts.Nonce()|1, rec.Nonce
	if epoch != e.identRec.BootEpoch {
		rec.Before = 0 // the file does not know the boot before
	}
	if err := writeIdentFile(e.fs, e.identPath(), &rec); err != nil {
		return e.openErr(NotWritable, "check the disk", err)
	}
	pb := e.db.NewBatch()
	defer pb.Close()
	if err := pb.Set(identKey(nil), rec.Ident.encode(nil), nil); err != nil {
		return err
	}
	if err := pb.Set(requesterKey(nil), encodeRequester(nil, rec.BootEpoch), nil); err != nil {
		return err
	}
	durable := pebble.Sync
	if mutants.On("D14f") {
		durable = pebble.NoSync
	}
	if err := e.db.Apply(pb, durable); err != nil {
		return e.openErr(NotWritable, "check the disk", err)
	}
	e.identRec, e.bootEpoch = rec, rec.BootEpoch
	return nil
}

// checkIdent compares a record with what the caller expects.
func (e *Engine) checkIdent(rec identRecord) error {
	if rec.Layout > LayoutVersion {
		return e.openErr(NewerLayout, "start the release that wrote it, or a newer one",
			fmt.Errorf("layout %d, this release reads up to %d", rec.Layout, LayoutVersion))
	}
	if rec.Cluster != ([16]byte{}) && e.opts.Cluster != ([16]byte{}) && rec.Cluster != e.opts.Cluster {
		return e.openErr(OtherCluster, "choose the directory of this cluster, or an empty one",
			fmt.Errorf("it belongs to cluster %x, wanted %x", rec.Cluster, e.opts.Cluster))
	}
	if rec.Node != 0 && e.opts.Node != 0 && rec.Node != e.opts.Node {
		return e.openErr(OtherNode, "choose the directory of this node, or an empty one",
			fmt.Errorf("it belongs to node %d, wanted %d", rec.Node, e.opts.Node))
	}
	return nil
}

// newIdent returns the record of a store that is being created.
func newIdent(o Options) identRecord {
	return identRecord{
		Ident: Ident{Cluster: o.Cluster, Node: o.Node, Layout: LayoutVersion, CreatedAt: o.Now().UnixNano()},
		State: stateCreating,
	}
}

func isNotExist(err error) bool { return errors.Is(err, os.ErrNotExist) }
