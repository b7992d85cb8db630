package engine

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"
	"sort"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// checkedShard is what is known of one group.
type checkedShard struct {
	id       raft.ShardID
	desc     raft.Descriptor
	hasDesc  bool
	hasState bool // any key of the applied side
	applied  raft.AppliedState
	hasAppl  bool
	hard     raft.HardState
	hasHard  bool
	trunc    raft.Index
	truncT   raft.Term
	last     raft.Index
	tomb     raft.ReplicaID // lowest id that may live here; zero: no tombstone
	intent   *intent
	broken   bool // a record of it does not decode: what follows from it is not said

	lower, upper []byte // raw span of its data
	sum          hash.Hash
	keys         uint64
}

func (c *checker) shard(s raft.ShardID) *checkedShard {
	g := c.of[s]
	if g == nil {
		g = &checkedShard{id: s}
		c.of[s] = g
	}
	return g
}

// contents looks at what the database says.
func (c *checker) contents() {
	if c.e.db == nil {
		return
	}
	c.of = make(map[raft.ShardID]*checkedShard)
	c.storeKeys()
	for _, sp := range [][2][]byte{{{prefixRecord + 1}, {prefixData}}, {{prefixData + 1}, nil}} { // no store has keys there
		c.scan(sp[0], sp[1], func(Key, []byte, []byte) {})
	}
	c.groupKeys()
	c.order()
	records := c.records()
	for _, g := range c.shards {
		if c.ctx.Err() != nil {
			return
		}
		c.log(g, records)
	}
	c.ranges()
	c.data()
	for _, g := range c.shards {
		if g.sum == nil || g.broken {
			continue
		}
		c.r.Digests = append(c.r.Digests, ShardDigest{
			Shard: g.id, Keyspace: g.desc.Keyspace, Start: g.desc.Start, End: g.desc.End,
			Applied: g.applied.Applied, Term: g.applied.AppliedTerm, Last: g.last, Keys: g.keys,
			Digest: hex.EncodeToString(g.sum.Sum(nil)),
		})
	}
}

// scan calls f with the raw keys [lower, upper). What cannot be read is a fault, and
// the rest of the span is left out then.
func (c *checker) scan(lower, upper []byte, f func(k Key, raw, v []byte)) {
	c.attempt(Fault{Kind: FaultDatabase}, func() error {
		it, err := c.e.db.NewIter(bounds(lower, upper))
		if err != nil {
			return err
		}
		n := 0
		for ok := it.First(); ok; ok = it.Next() {
			if n++; n%1024 == 0 && c.ctx.Err() != nil {
				break
			}
			k, err := ParseKey(it.Key())
			if err != nil {
				c.fault(Fault{Kind: FaultKey}, "%v", err)
				continue
			}
			v, err := it.ValueAndErr()
			if err != nil {
				key := bytes.Clone(it.Key())
				_ = it.Close() // says the same
				return fmt.Errorf("the value of key %.64x cannot be read, and what is behind it was not looked at: %w", key, err)
			}
			f(k, it.Key(), v)
		}
		if err := it.Close(); err != nil {
			return fmt.Errorf("keys from %x on cannot be read to their end: %w", lower, err)
		}
		return nil
	})
}

// storeKeys looks at the records that belong to no shard, and at tombstones and intents.
func (c *checker) storeKeys() {
	bad := func(k Key, err error) {
		c.fault(Fault{Kind: FaultRecord, Shard: k.Shard}, "%v", err)
	}
	c.scan([]byte{prefixStore}, []byte{prefixStore + 1}, func(k Key, raw, v []byte) {
		switch k.Kind {
		case KindStore:
			if len(raw) == 2 && raw[1] == tagDealt {
				if _, err := decodeDealt(v); err != nil {
					bad(k, err)
				}
				return
			}
			if len(raw) != 2 || raw[1] != tagIdent {
				return
			}
			id, err := decodeIdent(v)
			if err != nil {
				c.fault(Fault{Kind: FaultIdentity}, "the copy in the database: %v", err)
			} else if r := c.rec; r.State != 0 && ((id.Cluster != [16]byte{} && id.Cluster != r.Cluster) || (id.Node != 0 && id.Node != r.Node) || id.CreatedAt != r.CreatedAt) {
				c.fault(Fault{Kind: FaultIdentity, Next: "its files come from two stores; restore one of them as a whole"},
					"the identity file says cluster %x, node %d; the database says cluster %x, node %d", r.Cluster, r.Node, id.Cluster, id.Node)
			}
		case KindRequester:
			if _, err := decodeRequester(v); err != nil {
				bad(k, err)
			}
		case KindSupporter:
			if _, err := decodeSupport(k.Node, v); err != nil {
				bad(k, err)
			}
		case KindTombstone:
			r, err := decodeTombstone(v)
			if err != nil {
				bad(k, err)
				return
			}
			c.shard(k.Shard).tomb = r
		case KindIntent:
			in, err := decodeIntent(v)
			if err != nil {
				bad(k, err)
				return
			}
			c.shard(k.Shard).intent = &in
		}
	})
}

// groupKeys looks at the records of the shards.
func (c *checker) groupKeys() {
	c.scan([]byte{prefixHard}, []byte{prefixApplied + 1}, func(k Key, raw, v []byte) {
		g := c.shard(k.Shard)
		var err error
		kind := FaultSession
		switch k.Kind {
		case KindHard:
			kind = FaultHard
			g.hard, err = raft.DecodeHardState(v)
			g.hasHard = err == nil
		case KindTrunc:
			kind = FaultLog
			g.trunc, g.truncT, err = decodeTrunc(v)
		case KindVoid:
			kind = FaultLog
			_, err = decodeVoid(v)
		case KindQuarantine:
			kind = FaultDescriptor
			_, err = decodeQuarantine(v)
		case KindSkipped:
			kind = FaultLog
			_, err = decodeSkipped(k.Index, v)
		case KindApplied:
			kind, g.hasState = FaultApplied, true
			g.applied, err = raft.DecodeAppliedState(v)
			g.hasAppl = err == nil
		case KindDesc:
			kind, g.hasState = FaultDescriptor, true
			var d raft.Descriptor
			if d, err = raft.DecodeDescriptor(v); err == nil {
				g.desc, g.hasDesc = d.Clone(), true
				if d.Shard != k.Shard {
					err = fmt.Errorf("it is of shard %d", d.Shard)
				}
			}
		case KindGroup:
			g.hasState = true
			c.r.Records++
			if c.o.Group != nil && !mutants.On("E-check-session") {
				err = c.o.Group(k.Shard, k.Rest, v)
			}
			c.digest(g, k.Rest, v)
		}
		if err != nil {
			g.broken = g.broken || kind != FaultSession
			c.fault(Fault{Kind: kind, Shard: k.Shard}, "%v", err)
		}
	})
}

// digest adds a record to the digest of its shard.
func (c *checker) digest(g *checkedShard, key, val []byte) {
	if !c.o.Digest {
		return
	}
	if g.sum == nil {
		g.sum = sha256.New()
	}
	var n [16]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(key)))
	binary.BigEndian.PutUint64(n[8:], uint64(len(val)))
	g.sum.Write(n[:])
	g.sum.Write(key)
	g.sum.Write(val)
}

// order sorts the shards and says of which of them something is missing.
func (c *checker) order() {
	var all []*checkedShard
	for _, g := range c.of {
		all = append(all, g)
	}
	slices.SortFunc(all, func(a, b *checkedShard) int { return cmp.Compare(a.id, b.id) })
	hint := c.e.replaceHint()
	for _, g := range all {
		switch {
		case g.hasDesc:
			c.shards = append(c.shards, g)
		case g.hasState && !g.broken && g.intent == nil:
			c.fault(Fault{Kind: FaultDescriptor, Shard: g.id, Next: hint}, "the descriptor is missing, and other records of the shard are there")
		}
		if !g.hasDesc {
			continue
		}
		c.r.Shards++
		if !g.hasAppl && !g.broken {
			c.fault(Fault{Kind: FaultApplied, Shard: g.id, Next: hint}, "the applied state is missing")
			g.broken = true
		}
		if g.trunc > g.applied.TruncIndex {
			g.applied.TruncIndex, g.applied.TruncTerm = g.trunc, g.truncT
		}
		if node := c.rec.Node; node != 0 {
			rep, here := g.desc.ReplicaOn(node)
			switch {
			case !here:
				c.note("shard %d has no replica on n%d any more; the node removes what is left of it", g.id, node)
			case rep.ID < g.tomb && !mutants.On("E-check-tomb"):
				c.fault(Fault{Kind: FaultTombstone, Shard: g.id, Next: hint}, "replica %d lives here, though replicas below %d were removed for good", rep.ID, g.tomb)
			}
		}
	}
}

// records reads the log records, and has the journal know their runs.
func (c *checker) records() map[recordID][]byte {
	j := &c.e.journal
	j.groups, j.overs = make(map[raft.ShardID]groupLog), make(map[raft.ShardID][]overwrite)
	out := make(map[recordID][]byte)
	c.scan([]byte{prefixRecord}, []byte{prefixRecord + 1}, func(k Key, _, v []byte) {
		id := recordID{k.Epoch, k.Seq}
		runs, err := parseRecord(nil, v)
		if err != nil {
			// Its runs are not known: entries may be missing in any log.
			c.fault(Fault{Kind: FaultLog}, "record %d.%d of the log: %v", id.epoch, id.seq, err)
			return
		}
		j.add(id, len(v), runs)
		out[id] = bytes.Clone(v)
	})
	for _, g := range c.shards {
		if gl, err := c.e.groupLog(g.id); err == nil {
			j.groups[g.id] = gl
		}
	}
	return out
}

// log looks at the log of one shard, and at what must be true of it.
func (c *checker) log(g *checkedShard, records map[recordID][]byte) {
	fault := func(i raft.Index, kind FaultKind, format string, args ...any) {
		c.fault(Fault{Kind: kind, Shard: g.id, Index: i}, format, args...)
	}
	as := g.applied
	if as.TruncIndex > as.Applied && !g.broken {
		fault(0, FaultApplied, "the log is cut through %d, but only %d is applied", as.TruncIndex, as.Applied)
	}
	g.last = as.TruncIndex
	term := as.TruncTerm
	var entries uint64
	c.attempt(Fault{Kind: FaultLog, Shard: g.id}, func() error {
		moved, err := c.e.db.NewIter(bounds([]byte{prefixLog}, []byte{prefixLog + 1}))
		if err != nil {
			return err
		}
		defer moved.Close()
		return c.e.eachEntry(g.id, as.TruncIndex, moved, func(_ uint64, id recordID) ([]byte, error) { return records[id], nil },
			func(i raft.Index, v []byte) error {
				switch {
				case i <= as.TruncIndex:
					fault(i, FaultLog, "the entry is there, though the log is cut through %d", as.TruncIndex)
					return nil
				case i != g.last+1 && !mutants.On("E-check-gap"):
					fault(g.last+1, FaultLog, "entries %d to %d are missing", g.last+1, i-1)
				}
				g.last = i
				entries++
				en, err := raft.DecodeEntry(i, v)
				if err != nil {
					if !mutants.On("E-check-entry") {
						fault(i, FaultLog, "%v", err)
					}
					return nil
				}
				if en.Term < term && !mutants.On("E-check-term") {
					fault(i, FaultLog, "term %d comes after term %d", en.Term, term)
				}
				if i == as.Applied && en.Term != as.AppliedTerm && !g.broken {
					fault(i, FaultApplied, "it was applied with term %d, and has term %d in the log", as.AppliedTerm, en.Term)
				}
				term = max(term, en.Term)
				return c.ctx.Err()
			})
	})
	c.r.Entries += entries
	c.r.Unapplied += uint64(max(g.last, as.Applied) - as.Applied)
	if g.broken {
		return
	}
	if g.last < as.Applied {
		fault(0, FaultLog, "the log ends at %d, but %d is applied", g.last, as.Applied)
	}
	if g.hasHard && g.hard.Commit > g.last {
		fault(0, FaultHard, "%d is committed, but the log ends at %d", g.hard.Commit, g.last)
	}
	if g.hasHard && entries > 0 && g.hard.Term < term {
		fault(0, FaultHard, "it is of term %d, but the log has entries of term %d", g.hard.Term, term)
	}
}

// ranges looks for shards that hold the same keys.
func (c *checker) ranges() {
	var live []*checkedShard
	for _, g := range c.shards {
		g.lower, g.upper = DataSpan(g.desc.Keyspace, g.desc.Start, g.desc.End)
		if c.o.Digest {
			var head [12]byte
			binary.BigEndian.PutUint64(head[:], uint64(g.id))
			binary.BigEndian.PutUint32(head[8:], g.desc.Keyspace)
			c.digest(g, g.desc.Start, g.desc.End)
			c.digest(g, head[:], nil)
		}
		if _, here := g.desc.ReplicaOn(c.rec.Node); here || c.rec.Node == 0 {
			live = append(live, g)
		}
	}
	slices.SortFunc(live, func(a, b *checkedShard) int { return bytes.Compare(a.lower, b.lower) })
	var far *checkedShard // of those before, the one that reaches furthest
	for _, g := range live {
		if far != nil && bytes.Compare(far.upper, g.lower) > 0 && !mutants.On("E-check-overlap") {
			c.fault(Fault{Kind: FaultDescriptor, Shard: g.id}, "its keys from %.64q on are those of shard %d too", g.desc.Start, far.id)
		}
		if far == nil || bytes.Compare(g.upper, far.upper) > 0 {
			far = g
		}
	}
}

// data looks at the user's records, and whose they are.
func (c *checker) data() {
	spans := slices.Clone(c.shards)
	for _, g := range c.of {
		if g.intent != nil && !g.hasDesc { // not removed yet
			lower, upper := DataSpan(g.intent.Keyspace, g.intent.Start, g.intent.End)
			spans = append(spans, &checkedShard{lower: lower, upper: upper})
		}
	}
	slices.SortFunc(spans, func(a, b *checkedShard) int { return bytes.Compare(a.lower, b.lower) })
	var first, last []byte // of keys that are nobody's
	var nobodys uint64
	strays := func() {
		if nobodys > 0 && !mutants.On("E-check-stray") {
			c.fault(Fault{Kind: FaultData}, "%d keys are outside the range of every shard of this node, from %.64q to %.64q", nobodys, first, last)
		}
		nobodys = 0
	}
	at := -1 // spans[at] is the last one that begins at or before the key
	c.scan([]byte{prefixData}, []byte{prefixData + 1}, func(k Key, raw, v []byte) {
		c.r.Keys++
		for at+1 < len(spans) && bytes.Compare(spans[at+1].lower, raw) <= 0 {
			at++
		}
		var g *checkedShard
		if at >= 0 && bytes.Compare(raw, spans[at].upper) < 0 {
			g = spans[at]
		} else if at > 0 { // of overlapping ones an earlier one may reach here
			if n := sort.Search(at, func(i int) bool { return bytes.Compare(raw, spans[i].upper) < 0 }); n < at {
				g = spans[n]
			}
		}
		if g == nil {
			if nobodys++; nobodys == 1 {
				first = bytes.Clone(raw[1:])
			}
			last = append(last[:0], raw[1:]...)
			return
		}
		strays()
		g.keys++
		if c.o.Value != nil && !mutants.On("E-check-value") {
			if err := c.o.Value(k.Keyspace, k.Rest, v); err != nil {
				c.fault(Fault{Kind: FaultData, Shard: g.id}, "key %.64q: %v", k.Rest, err)
			}
		}
		if g.hasDesc {
			c.digest(g, k.Rest, v)
		}
	})
	strays()
}
