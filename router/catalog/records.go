package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// ErrCorrupt is wrapped by every error of a record that does not decode.
var ErrCorrupt = errors.New("catalog: corrupt record")

// Route is a range: its descriptor and the leader last heard of.
type Route struct {
	Desc raft.Descriptor
	// Leader led the shard in Term. Zero: none was reported yet.
	Leader raft.NodeID
	Term   raft.Term
}

// NodeInfo is a node of the cluster.
type NodeInfo struct {
	ID raft.NodeID
	// Addr is where other nodes reach it, ClientAddr where clients do.
	Addr, ClientAddr string
	Name             string // for people; may be empty
	JoinedAt         int64  // Unix nanoseconds, by the clock of the node that recorded it
	Version          string // of the program
}

// Cluster is the record that a cluster exists.
type Cluster struct {
	ID        [16]byte
	CreatedAt int64 // Unix nanoseconds
	Replicas  uint32
}

// Every record: version u8, kind u8, body, crc32c u32 of all bytes before it.
// Numbers in bodies are uvarints, strings and descriptors carry their length.
const (
	recordVersion = 1

	kindRoute   = 'r' // descriptor, leader, term
	kindNode    = 'n' // id, addr, client addr, name, joined at, version
	kindCluster = 'c' // id [16]byte, created at, replicas
	kindCounter = 'i' // value
	kindLayout  = 'l' // keyspace, first shard, count, replicas, turn, number of nodes, nodes, number of split keys (zero: evenly), split keys with their lengths
)

// maxStringBytes bounds addresses, names and versions in records.
const maxStringBytes = 1 << 10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Encode appends the record of r to dst.
func (r *Route) Encode(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, recordVersion, kindRoute)
	desc := r.Desc.Encode(nil)
	dst = append(binary.AppendUvarint(dst, uint64(len(desc))), desc...)
	dst = binary.AppendUvarint(dst, uint64(r.Leader))
	dst = binary.AppendUvarint(dst, uint64(r.Term))
	return seal(dst, start)
}

// DecodeRoute decodes a range's record. The result shares no memory with v.
func DecodeRoute(v []byte) (Route, error) {
	rd, err := open(v, kindRoute, "range")
	if err != nil {
		return Route{}, err
	}
	var r Route
	desc := rd.take(rd.uvarint())
	r.Leader, r.Term = raft.NodeID(rd.u32()), raft.Term(rd.uvarint())
	if err := rd.close("range"); err != nil {
		return Route{}, err
	}
	d, err := raft.DecodeDescriptor(desc)
	if err != nil {
		return Route{}, fmt.Errorf("%w: range: %w", ErrCorrupt, err)
	}
	r.Desc = d.Clone()
	return r, nil
}

// Encode appends the record of n to dst. Strings longer than 1 KiB are cut.
func (n *NodeInfo) Encode(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, recordVersion, kindNode)
	dst = binary.AppendUvarint(dst, uint64(n.ID))
	dst = appendString(dst, n.Addr)
	dst = appendString(dst, n.ClientAddr)
	dst = appendString(dst, n.Name)
	dst = binary.AppendUvarint(dst, uint64(n.JoinedAt))
	dst = appendString(dst, n.Version)
	return seal(dst, start)
}

// DecodeNode decodes a node's record.
func DecodeNode(v []byte) (NodeInfo, error) {
	rd, err := open(v, kindNode, "node")
	if err != nil {
		return NodeInfo{}, err
	}
	n := NodeInfo{ID: raft.NodeID(rd.u32()), Addr: rd.str(), ClientAddr: rd.str(), Name: rd.str(), JoinedAt: int64(rd.uvarint()), Version: rd.str()}
	return n, rd.close("node")
}

// Encode appends the record of c to dst.
func (c *Cluster) Encode(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, recordVersion, kindCluster)
	dst = append(dst, c.ID[:]...)
	dst = binary.AppendUvarint(dst, uint64(c.CreatedAt))
	dst = binary.AppendUvarint(dst, uint64(c.Replicas))
	return seal(dst, start)
}

// DecodeCluster decodes the cluster record.
func DecodeCluster(v []byte) (Cluster, error) {
	rd, err := open(v, kindCluster, "cluster")
	if err != nil {
		return Cluster{}, err
	}
	var c Cluster
	copy(c.ID[:], rd.take(uint64(len(c.ID))))
	c.CreatedAt, c.Replicas = int64(rd.uvarint()), rd.u32()
	return c, rd.close("cluster")
}

func encodeCounter(next uint64) []byte {
	return seal(binary.AppendUvarint([]byte{recordVersion, kindCounter}, next), 0)
}

func decodeCounter(v []byte) (uint64, error) {
	rd, err := open(v, kindCounter, "id counter")
	if err != nil {
		return 0, err
	}
	next := rd.uvarint()
	return next, rd.close("id counter")
}

func appendString(dst []byte, s string) []byte {
	s = s[:min(len(s), maxStringBytes)]
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// seal appends the checksum of dst[start:].
func seal(dst []byte, start int) []byte {
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

// reader is a cursor over a record's body. The first bad read sets bad.
type reader struct {
	b   []byte
	bad bool
}

// open checks checksum, version and kind, and returns the body.
func open(v []byte, kind byte, what string) (reader, error) {
	n := len(v) - 4
	switch {
	case n < 2:
		return reader{}, fmt.Errorf("%w: %s: %d bytes are too few", ErrCorrupt, what, len(v))
	case binary.BigEndian.Uint32(v[n:]) != crc32.Checksum(v[:n], castagnoli):
		return reader{}, fmt.Errorf("%w: %s: checksum mismatch", ErrCorrupt, what)
	case v[0] != recordVersion:
		return reader{}, fmt.Errorf("%w: %s: version %d is unknown here; upgrade this program", ErrCorrupt, what, v[0])
	case v[1] != kind:
		return reader{}, fmt.Errorf("%w: %s: it is a record of kind %q", ErrCorrupt, what, v[1])
	}
	return reader{b: v[2:n]}, nil
}

// close returns an error if something was bad or is left over.
func (r *reader) close(what string) error {
	if r.bad || len(r.b) > 0 {
		return fmt.Errorf("%w: %s: its fields do not fit its length", ErrCorrupt, what)
	}
	return nil
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) u32() uint32 {
	v := r.uvarint()
	if v > 1<<32-1 {
		r.bad = true
	}
	return uint32(v)
}

func (r *reader) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) str() string {
	n := r.uvarint()
	if n > maxStringBytes {
		r.bad = true
		return ""
	}
	return string(r.take(n))
}
