package shard

import "github.com/flotillakv/flotilla/multiraft/raft"

// Version is the identity of a write: the shard whose log wrote it, the index
// of the log entry and the slot of the command within the entry. All keys
// written by one command share one Version. The zero Version means "absent".
// Versions are compared for equality only; their order means nothing across
// shards.
type Version struct {
	Lineage raft.ShardID
	Index   raft.Index
	Slot    uint32
}

// IsZero reports whether v is the version of an absent key.
func (v Version) IsZero() bool { return v == Version{} }

// Receipt tells under which Version a write was applied.
type Receipt struct{ Version }

// Value is a stored value and the Version that wrote it.
type Value struct {
	Bytes   []byte
	Version Version
}

// Pair is one key of a scan with its value.
type Pair struct {
	Key     []byte
	Value   []byte
	Version Version
}

// Kind tells what a Request asks for.
type Kind uint8

// The kinds of requests.
const (
	// KindGet reads Key.
	KindGet Kind = 1
	// KindScan reads a page of [Start, End) within one shard.
	KindScan Kind = 2
	// KindWrite replicates Command and answers its result.
	KindWrite Kind = 3
	// KindStats answers Count: an estimate of the bytes the shard's keys take.
	KindStats Kind = 4
)

// Consistency says how fresh a read must be.
type Consistency uint8

const (
	// Linearizable reads see every write acknowledged before the read began.
	Linearizable Consistency = 0
	// NoClock is Linearizable without reliance on bounded clock drift (no leases).
	NoClock Consistency = 1
	// Local reads see what the asked replica has applied; it may lag without bound.
	Local Consistency = 2
	// Follower reads are linearizable at any replica, which asks the leader how far
	// it has to be.
	Follower Consistency = 3
)

// Request is one operation on one shard. Byte slices are read-only for whoever
// receives the request, and must not change until it is answered.
type Request struct {
	// ID pairs the response with the request on one stream. The sender chooses it.
	ID    uint64
	Shard raft.ShardID
	// DescVersion is the version of the descriptor the sender routed by. Zero:
	// the sender does not say; keys are checked all the same.
	DescVersion uint64
	Keyspace    uint32
	// Hop counts how often a node forwarded the request, at most MaxHops.
	Hop  uint8
	Kind Kind
	// Consistency of reads. Writes ignore it.
	Consistency Consistency
	// TimeoutNanos is the time left to the caller when the request was sent. Zero: no limit stated.
	TimeoutNanos int64

	// Key of KindGet, 1 to MaxKeyBytes bytes.
	Key []byte
	// Start and End of KindScan, [Start, End) of the keyspace; empty: from its
	// first key, to its end. Start must not be after End. The end at which the
	// scan begins (End, when Reverse) must lie in the shard, else the answer is an
	// *EpochError. Where the range reaches beyond the shard's other edge, the last
	// page of the shard has More set and Resume is that edge.
	Start, End []byte
	// Limit bounds the pairs of a scan page. Zero: MaxScanPairs.
	Limit int
	// MaxBytes bounds keys and values of a scan page; the first pair may exceed
	// it. Zero: DefaultScanBytes. At most MaxScanBytes.
	MaxBytes int
	// Reverse scans from End down to Start.
	Reverse bool

	// Command of KindWrite.
	Command raft.Command
}

// Limits of requests.
const (
	// MaxHops bounds how often a request is forwarded between nodes.
	MaxHops = 2
	// MaxScanPairs bounds the pairs of one scan page.
	MaxScanPairs = 16 << 10
	// DefaultScanBytes is the byte bound of a scan page that states none.
	DefaultScanBytes = 1 << 20
	// MaxScanBytes bounds what a request may state as MaxBytes.
	MaxScanBytes = 4 << 20
)

// Response answers a Request. If Err is nil the fields of the request's kind are
// set. Byte slices belong to the receiver.
type Response struct {
	// ID is the request's.
	ID uint64
	// Err is one of the typed errors of this package; OutcomeOf tells whether a
	// write may have been applied.
	Err error
	// Found and Value answer KindGet. Value is nil when the key is absent.
	Found bool
	Value *Value
	// Pairs answer KindScan, in scan order. More says that the page ended before
	// the range did: scan on with Start = Resume (or End = Resume when Reverse).
	Pairs  []Pair
	More   bool
	Resume []byte
	// Receipt answers KindWrite.
	Receipt Receipt
	// Txn answers OpTxn.
	Txn *TxnResult
	// Result holds the encoded result of OpKeyed (multiraft.Answer), and is nil for all
	// other commands.
	Result []byte
	// Count answers KindStats.
	Count int
}

// Answerer is told what came of a request that was handed over without waiting.
type Answerer interface {
	// Answered is called once, maybe on a goroutine that must not be blocked. The
	// error says that there is no response, as the one of a call that waits does.
	// The Response (and its Value, not what that points to) is valid until
	// Answered returns.
	Answered(r *Response, err error)
}

// AnswerFunc is an Answerer for callees that always have a response.
type AnswerFunc func(r *Response)

// Answered implements Answerer.
func (f AnswerFunc) Answered(r *Response, _ error) { f(r) }

// Abandoner has requests under way whose answers may cease to be of interest.
type Abandoner interface {
	// Abandon drops the request id. Its Answerer is not told any more, unless
	// that is happening already.
	Abandon(id uint64)
}

// Failed returns a response to r that carries err.
func (r *Request) Failed(err error) *Response { return &Response{ID: r.ID, Err: err} }

// Check validates what can be judged without a descriptor: kind, sizes, order of
// bounds, the command's body. It returns nil, *ArgumentError or *LimitError;
// nothing has been done.
func (r *Request) Check() error {
	if r.Shard == 0 {
		return &ArgumentError{Field: "shard", Reason: "the request names none"}
	}
	if r.Consistency > Follower {
		return &ArgumentError{Field: "consistency", Reason: "this version does not know the level asked for"}
	}
	switch r.Kind {
	case KindGet:
		return CheckKeySize(r.Key)
	case KindScan:
		return r.checkScan()
	case KindWrite:
		return CheckCommand(r.Command)
	case KindStats:
		return nil
	}
	return &ArgumentError{Field: "kind", Reason: "this version does not know the kind of request"}
}

func (r *Request) checkScan() error {
	if err := CheckBounds(r.Start, r.End); err != nil {
		return err
	}
	if r.Limit < 0 {
		return &ArgumentError{Field: "limit", Reason: "it is negative; use 0 for no limit"}
	}
	if r.MaxBytes < 0 {
		return &ArgumentError{Field: "max bytes", Reason: "it is negative; use 0 for the default"}
	}
	if r.MaxBytes > MaxScanBytes {
		return &LimitError{What: "bytes of a scan page", Limit: MaxScanBytes, Got: r.MaxBytes}
	}
	return nil
}
