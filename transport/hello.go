package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Wire versions this build speaks. Two nodes talk in the highest version both
// speak; without one they refuse each other.
const (
	wireVersionMin = 1
	wireVersionMax = 1
)

// A hello, all integers little endian, in the metadata key helloKey:
//
//	 0  version u8 1 | minWire u8 | maxWire u8 | role u8 (1 peer, 2 client)
//	 4  cluster 16 bytes (zero: not said)
//	20  node u32 | to u32 (zero: whoever answers)
//	28  boot u64 | incarnation u64 | features u64
//	52  addrLen u16, addr | clientAddrLen u16, clientAddr
//	    before u64
//	    crc u32  crc32c of all before it
//
// A hello without before is of an earlier version. Bytes between before and crc belong to later versions and are skipped.
const (
	helloVersion  = 1
	helloFixed    = 52
	helloMax      = 1024
	maxAddrBytes  = 256
	helloKey      = "flotilla-hello-bin"
	refusalKey    = "flotilla-refusal-bin"
	rolePeer      = 1
	roleClient    = 2
	noIncarnation = 0
)

// Hello is what each side of a stream says about itself before anything else.
type Hello struct {
	MinVersion, MaxVersion uint8       // wire versions, inclusive
	Client                 bool        // said by a client, which has no node id
	Cluster                [16]byte    // zero: not said (clients only)
	Node                   raft.NodeID // of the speaker
	To                     raft.NodeID // whom the speaker means to reach; zero: whoever answers
	BootEpoch              uint64      // of the speaker's store
	Incarnation            uint64      // random per boot: tells two processes with one node id apart
	Before                 uint64      // incarnation of the boot in front of this one; zero: not known
	Features               uint64      // bit set, none defined yet
	Addr, ClientAddr       string      // where the speaker can be reached; may be empty
}

// ErrHello is wrapped by the errors of DecodeHello.
var ErrHello = errors.New("transport: bad hello")

// Encode appends the encoded form of h. Addresses longer than 256 bytes are left out.
func (h *Hello) Encode(dst []byte) []byte {
	le := binary.LittleEndian
	start := len(dst)
	role := uint8(rolePeer)
	if h.Client {
		role = roleClient
	}
	dst = append(dst, helloVersion, h.MinVersion, h.MaxVersion, role)
	dst = append(dst, h.Cluster[:]...)
	dst = le.AppendUint32(dst, uint32(h.Node))
	dst = le.AppendUint32(dst, uint32(h.To))
	dst = le.AppendUint64(dst, h.BootEpoch)
	dst = le.AppendUint64(dst, h.Incarnation)
	dst = le.AppendUint64(dst, h.Features)
	for _, a := range []string{h.Addr, h.ClientAddr} {
		if len(a) > maxAddrBytes {
			a = ""
		}
		dst = le.AppendUint16(dst, uint16(len(a)))
		dst = append(dst, a...)
	}
	dst = le.AppendUint64(dst, h.Before)
	return le.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

// DecodeHello decodes what Encode produced. Every error wraps ErrHello.
func DecodeHello(b []byte) (Hello, error) {
	le := binary.LittleEndian
	if len(b) < helloFixed+2+2+4 || len(b) > helloMax {
		return Hello{}, fmt.Errorf("%w: %d bytes", ErrHello, len(b))
	}
	body, sum := b[:len(b)-4], le.Uint32(b[len(b)-4:])
	if crc := crc32.Checksum(body, castagnoli); crc != sum {
		return Hello{}, fmt.Errorf("%w: checksum %08x, want %08x", ErrHello, crc, sum)
	}
	if body[0] != helloVersion {
		return Hello{}, fmt.Errorf("%w: version %d, this build knows %d", ErrHello, body[0], helloVersion)
	}
	if body[3] != rolePeer && body[3] != roleClient {
		return Hello{}, fmt.Errorf("%w: role %d", ErrHello, body[3])
	}
	h := Hello{
		MinVersion: body[1], MaxVersion: body[2], Client: body[3] == roleClient,
		Cluster: [16]byte(body[4:20]),
		Node:    raft.NodeID(le.Uint32(body[20:])), To: raft.NodeID(le.Uint32(body[24:])),
		BootEpoch: le.Uint64(body[28:]), Incarnation: le.Uint64(body[36:]), Features: le.Uint64(body[44:]),
	}
	rest := body[helloFixed:]
	for _, a := range []*string{&h.Addr, &h.ClientAddr} {
		if len(rest) < 2 {
			return Hello{}, fmt.Errorf("%w: cut", ErrHello)
		}
		n := int(le.Uint16(rest))
		rest = rest[2:]
		if n > maxAddrBytes || n > len(rest) {
			return Hello{}, fmt.Errorf("%w: an address of %d bytes", ErrHello, n)
		}
		*a, rest = string(rest[:n]), rest[n:]
	}
	if len(rest) >= 8 {
		h.Before = le.Uint64(rest)
	}
	return h, nil
}

// Reason says why a stream was refused or closed by the other side.
type Reason uint8

// The reasons of a refusal. They are part of the wire format.
const (
	// RefusedCluster: the other side belongs to another cluster.
	RefusedCluster Reason = 1
	// RefusedNode: the other side is not the node that was meant.
	RefusedNode Reason = 2
	// RefusedDuplicate: another live process uses the same node id and boot epoch.
	RefusedDuplicate Reason = 3
	// RefusedStale: the node id was seen with a newer boot epoch; this process
	// runs on an old copy of its store, or was replaced.
	RefusedStale Reason = 4
	// RefusedVersion: no common wire version.
	RefusedVersion Reason = 5
	// RefusedNotReady: the other side does not serve yet, or no more. Try again.
	RefusedNotReady Reason = 6
	// RefusedHello: the hello is missing or broken.
	RefusedHello Reason = 7
	// RefusedFrame: a frame was cut, corrupted, too large, out of order or of another node.
	RefusedFrame Reason = 8
	// RefusedReplaced: a newer stream of the same process took over.
	RefusedReplaced Reason = 9

	reasonMax = RefusedReplaced
)

var reasonText = [...]string{
	RefusedCluster:   "it belongs to another cluster",
	RefusedNode:      "it is another node than expected",
	RefusedDuplicate: "another live process has the same node id",
	RefusedStale:     "a newer incarnation of the node id was seen",
	RefusedVersion:   "there is no common wire version",
	RefusedNotReady:  "it does not serve yet or is shutting down",
	RefusedHello:     "the hello is missing or broken",
	RefusedFrame:     "a frame was refused",
	RefusedReplaced:  "a newer stream took over",
}

// String says the reason in words.
func (r Reason) String() string {
	if int(r) < len(reasonText) && reasonText[r] != "" {
		return reasonText[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// RefusedError says that two processes do not talk to each other. Nothing was
// exchanged but the hello, unless Reason is RefusedFrame or RefusedReplaced.
type RefusedError struct {
	Reason Reason
	Addr   string // of the other side; may be empty
	Detail string
	ByUs   bool // this process refused; otherwise the other side did
}

// Error names the address, who refused and why.
func (e *RefusedError) Error() string {
	who, addr := "refused by "+e.Addr, ""
	if e.ByUs {
		who, addr = "refused", " "+e.Addr
	}
	s := "transport: connection" + addr + " " + who + ": " + e.Reason.String()
	if e.Detail != "" {
		s += " (" + e.Detail + ")"
	}
	return s
}

func (e *RefusedError) encode() string { return string(append([]byte{byte(e.Reason)}, e.Detail...)) }

func decodeRefusal(s, addr string) *RefusedError {
	if len(s) == 0 || s[0] == 0 {
		return nil
	}
	detail := s[1:]
	if len(detail) > 512 {
		detail = detail[:512]
	}
	return &RefusedError{Reason: Reason(s[0]), Addr: addr, Detail: detail}
}

// versionsMeet reports whether h speaks a version this build speaks.
func (h *Hello) versionsMeet() bool {
	return h.MinVersion <= wireVersionMax && h.MaxVersion >= wireVersionMin && h.MinVersion <= h.MaxVersion
}

// checkPeer judges a peer's hello for the node with identity id. want is the
// node that was meant to be reached, zero when the peer came to us.
func (h *Hello) checkPeer(id *Identity, want raft.NodeID) *RefusedError {
	switch {
	case !h.versionsMeet():
		return &RefusedError{Reason: RefusedVersion, ByUs: true, Detail: fmt.Sprintf("it speaks %d to %d, this node %d to %d", h.MinVersion, h.MaxVersion, wireVersionMin, wireVersionMax)}
	case h.Cluster != id.Cluster:
		return &RefusedError{Reason: RefusedCluster, ByUs: true, Detail: fmt.Sprintf("its cluster is %x, this node's %x", h.Cluster, id.Cluster)}
	case h.Client || h.Node == 0:
		return &RefusedError{Reason: RefusedNode, ByUs: true, Detail: "it names no node id"}
	case h.To != 0 && h.To != id.Node:
		return &RefusedError{Reason: RefusedNode, ByUs: true, Detail: fmt.Sprintf("it looks for node %d, this is node %d", h.To, id.Node)}
	case want != 0 && h.Node != want:
		return &RefusedError{Reason: RefusedNode, ByUs: true, Detail: fmt.Sprintf("it is node %d, node %d was expected", h.Node, want)}
	case h.Node == id.Node:
		return &RefusedError{Reason: RefusedDuplicate, ByUs: true, Detail: fmt.Sprintf("both are node %d", id.Node)}
	}
	return nil
}
