package multiraft

import (
	"encoding/binary"
	"slices"
	"sync"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// A replica with nothing to do is a stub: forty bytes without a pointer, of which the
// garbage collector knows nothing. All else about it is on the disk. It has no timer,
// sends nothing and is told nothing; see nap.go for how it becomes one and wakes.
//
// The loop that owns a group is the only writer of its stub; others read under mu.

// stub is what is kept of one sleeping replica. Its log ends at last, and all of it
// is applied, durable and, unless kept, cut.
type stub struct {
	shard  raft.ShardID
	last   raft.Index
	gen    uint64 // View.Generation
	term   uint32
	ground uint32 // what it rests on, in stubs.grounds
	since  uint32 // when it fell asleep: the clock's low bits, milliseconds
	nap    uint8  // how often it was woken soon after it fell asleep
	fresh  bool   // the store has no record of it: see untouched.go
	kept   bool   // some of its log is not cut: see raft.Nap
	_      [1]byte
}

// kind is what a sleeping replica was when it fell asleep.
type kind uint8

const (
	// kindUnsure was not awake since the node started: the leader is not known.
	kindUnsure kind = iota
	kindFollower
	kindLeader
	// kindLost had no leader, and no majority could be reached.
	kindLost
)

// ground is what many stubs have in common: who their members are and what was
// promised. It never changes.
type ground struct {
	kind kind
	// flag: a leader may claim leases; one that is unsure was here before this boot; one
	// that is lost still has to be answered by others (raft.Config.Restarted).
	flag    bool
	lead    raft.NapMember   // kindFollower
	members []raft.NapMember // all of them; what was promised, of kindLeader
	lags    bool             // kindLeader: some member does not hold the whole log
	lease   *raft.Lease      // kindLeader: what its lease rests on; Term is not set
	stubs   int              // that rest on it
	key     string
}

// finish fills in what follows from the rest.
func (g *ground) finish() {
	for i := range g.members {
		g.lags = g.lags || g.members[i].Lags
	}
	if g.kind == kindLeader && g.flag {
		g.lease = &raft.Lease{}
		for i := range g.members {
			if m := &g.members[i]; m.Role.IsVoter() {
				g.lease.Voters = append(g.lease.Voters, raft.LeaseVoter{Node: m.Node, Epoch: m.Epoch, New: true, Old: true})
			}
		}
	}
}

// appendKey appends what tells one ground from another.
func (g *ground) appendKey(dst []byte) []byte {
	b := byte(g.kind) << 1
	if g.flag {
		b |= 1
	}
	dst = appendMember(append(dst, b), &g.lead)
	for i := range g.members {
		dst = appendMember(dst, &g.members[i])
	}
	return dst
}

func appendMember(dst []byte, m *raft.NapMember) []byte {
	lags := byte(0)
	if m.Lags {
		lags = 1
	}
	dst = binary.LittleEndian.AppendUint32(dst, uint32(m.Node))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(m.ID))
	dst = append(dst, byte(m.Role), lags)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(m.Epoch))
	return binary.LittleEndian.AppendUint64(dst, m.Boot)
}

// leader returns the node that leads by what the stub rests on; zero: not known.
func (g *ground) leader(self raft.NodeID, live raft.Liveness) raft.NodeID {
	switch g.kind {
	case kindLeader:
		return self
	case kindFollower:
		if e, ok := live.SupportFor(g.lead.Node); ok && e == g.lead.Epoch {
			return g.lead.Node
		}
	}
	return 0
}

// stubChunk is how many stubs have their memory together: growing copies none.
const stubChunk = 4096

// stubs are the sleeping replicas of one loop.
type stubs struct {
	mu     sync.RWMutex
	chunks []*[stubChunk]stub
	n      int
	// index finds a stub by its shard: open addressing, linear probing; one more than
	// its place, zero: free. Its length is a power of two.
	index   []uint32
	grounds []*ground // nil: free
	free    []uint32
	byKey   map[string]uint32
	keyBuf  []byte
}

func (s *stubs) at(i int) *stub { return &s.chunks[i/stubChunk][i%stubChunk] }

// slot returns where shard is in the index, or would be.
func (s *stubs) slot(shard raft.ShardID) (i uint64, found bool) {
	if len(s.index) == 0 {
		return 0, false
	}
	mask := uint64(len(s.index) - 1)
	for i = mix(uint64(shard)) >> 16 & mask; s.index[i] != 0; i = (i + 1) & mask {
		if s.at(int(s.index[i])-1).shard == shard {
			return i, true
		}
	}
	return i, false
}

// get returns a copy of the stub of shard, and what it rests on.
func (s *stubs) get(shard raft.ShardID) (st stub, g *ground, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.n == 0 {
		return st, nil, false
	}
	i, ok := s.slot(shard)
	if !ok {
		return st, nil, false
	}
	st = *s.at(int(s.index[i]) - 1)
	return st, s.grounds[st.ground], true
}

// count returns how many there are.
func (s *stubs) count() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.n
}

// put adds a stub, which must not be there, resting on g, which is copied if nobody
// rests on the like of it yet.
func (s *stubs) put(st stub, g *ground) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.ground = s.rest(g)
	if 4*(s.n+1) > 3*len(s.index) {
		s.grow()
	}
	if s.n == len(s.chunks)*stubChunk {
		s.chunks = append(s.chunks, new([stubChunk]stub))
	}
	*s.at(s.n) = st
	i, _ := s.slot(st.shard)
	s.n++
	s.index[i] = uint32(s.n)
}

// rest returns the place of the ground, which has one stub more now.
func (s *stubs) rest(like *ground) uint32 {
	s.keyBuf = like.appendKey(s.keyBuf[:0])
	if i, ok := s.byKey[string(s.keyBuf)]; ok {
		s.grounds[i].stubs++
		return i
	}
	g := &ground{kind: like.kind, flag: like.flag, lead: like.lead, members: slices.Clone(like.members), stubs: 1, key: string(s.keyBuf)}
	g.finish()
	if s.byKey == nil {
		s.byKey = make(map[string]uint32)
	}
	i := uint32(len(s.grounds))
	if n := len(s.free); n > 0 {
		i = s.free[n-1]
		s.free = s.free[:n-1]
		s.grounds[i] = g
	} else {
		s.grounds = append(s.grounds, g)
	}
	s.byKey[g.key] = i
	return i
}

// leave notes that one stub less rests on the ground.
func (s *stubs) leave(i uint32) {
	g := s.grounds[i]
	if g.stubs--; g.stubs == 0 {
		delete(s.byKey, g.key)
		s.grounds[i] = nil
		s.free = append(s.free, i)
	}
}

func (s *stubs) grow() {
	s.index = make([]uint32, max(64, 2*len(s.index)))
	for k := range s.n {
		i, _ := s.slot(s.at(k).shard)
		s.index[i] = uint32(k + 1)
	}
}

// remove takes out the stub of shard, if there is one.
func (s *stubs) remove(shard raft.ShardID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.slot(shard)
	if !ok {
		return
	}
	k := int(s.index[i]) - 1
	s.leave(s.at(k).ground)
	s.vacate(i)
	last := s.n - 1
	if k != last { // the last one takes its place
		j, _ := s.slot(s.at(last).shard)
		*s.at(k) = *s.at(last)
		s.index[j] = uint32(k + 1)
	}
	*s.at(last) = stub{}
	s.n = last
	if c := (s.n + stubChunk - 1) / stubChunk; c+1 < len(s.chunks) {
		s.chunks[len(s.chunks)-1] = nil
		s.chunks = s.chunks[:len(s.chunks)-1]
	}
}

// vacate frees a place of the index and moves up what would not be found any more.
func (s *stubs) vacate(i uint64) {
	mask := uint64(len(s.index) - 1)
	for j := (i + 1) & mask; s.index[j] != 0; j = (j + 1) & mask {
		home := mix(uint64(s.at(int(s.index[j])-1).shard)) >> 16 & mask
		if (j-home)&mask >= (j-i)&mask {
			s.index[i] = s.index[j]
			i = j
		}
	}
	s.index[i] = 0
}
