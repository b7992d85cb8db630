package crashpoint

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// State is everything that a store must remember, taken apart.
type State struct {
	Groups  map[raft.ShardID]*Group
	Tombs   map[raft.ShardID]raft.ReplicaID
	Support map[raft.NodeID]engine.SupportRecord
	// Stray are keys that belong to nothing that lives.
	Stray []string
	text  string
	raft  string // text without the applied sides
}

// Group is one replica in a State.
type Group struct {
	Desc    raft.Descriptor
	Hard    raft.HardState
	Applied raft.AppliedState
	// Log holds the entries behind Applied.TruncIndex.
	Log []LogEntry
	// Data and Records are hashes of the user's keys and of the other keys of the
	// applied side.
	Data, Records uint64
	Keys          int
	side          string // the applied side, printed
}

// LogEntry is an entry by its term and its checksum.
type LogEntry struct {
	Term raft.Term
	Sum  uint32
}

// Last is the last index of the log.
func (g *Group) Last() raft.Index { return g.Applied.TruncIndex + raft.Index(len(g.Log)) }

// Term returns the term of entry i; ok is false if the log does not hold it.
func (g *Group) Term(i raft.Index) (raft.Term, bool) {
	switch at := g.Applied.TruncIndex; {
	case i == at:
		return g.Applied.TruncTerm, true
	case i > at && i <= g.Last():
		return g.Log[i-at-1].Term, true
	}
	return 0, false
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Capture reads the whole store. It fails on what cannot be: a gap in a log, an
// entry or record that does not decode, an applied index outside the log.
func Capture(e *engine.Engine) (*State, error) {
	s := &State{
		Groups: map[raft.ShardID]*Group{}, Tombs: map[raft.ShardID]raft.ReplicaID{},
		Support: map[raft.NodeID]engine.SupportRecord{},
	}
	type found struct {
		log     map[raft.Index]LogEntry
		has     []string
		g       Group
		hasDesc bool
		// through where the log is cut, as the record of it says
		trunc     raft.Index
		truncTerm raft.Term
		records   uint64
		// void: log records before it do not count
		void [2]uint64
	}
	groups := map[raft.ShardID]*found{}
	group := func(id raft.ShardID) *found {
		if groups[id] == nil {
			groups[id] = &found{log: map[raft.Index]LogEntry{}}
		}
		return groups[id]
	}
	type datum struct {
		ks   uint32
		key  string
		hash uint64
	}
	var data []datum
	err := e.EachKey(func(key, val []byte) error {
		k, err := engine.ParseKey(key)
		if err != nil {
			return err
		}
		g := group(k.Shard)
		switch k.Kind {
		case engine.KindIntent:
			s.Stray = append(s.Stray, fmt.Sprintf("intent of shard %d", k.Shard))
		case engine.KindEntry:
			en, err := raft.DecodeEntry(k.Index, slices.Clone(val))
			if err != nil {
				return fmt.Errorf("shard %d entry %d: %w", k.Shard, k.Index, err)
			}
			g.log[k.Index] = LogEntry{en.Term, crc32.Checksum(val, castagnoli)}
			g.has = append(g.has, fmt.Sprintf("entry %d", k.Index))
		case engine.KindHard:
			if g.g.Hard, err = raft.DecodeHardState(val); err != nil {
				return fmt.Errorf("shard %d: %w", k.Shard, err)
			}
			g.has = append(g.has, "hard state")
		case engine.KindTrunc:
			if len(val) != 17 {
				return fmt.Errorf("shard %d: truncation %x", k.Shard, val)
			}
			g.trunc, g.truncTerm = raft.Index(binary.BigEndian.Uint64(val[1:])), raft.Term(binary.BigEndian.Uint64(val[9:]))
			g.has = append(g.has, "truncation")
		case engine.KindVoid:
			if len(val) != 17 {
				return fmt.Errorf("shard %d: void mark %x", k.Shard, val)
			}
			g.void = [2]uint64{binary.BigEndian.Uint64(val[1:]), binary.BigEndian.Uint64(val[9:])}
		case engine.KindRecord:
			return engine.EachLogged(val, func(id raft.ShardID, i raft.Index, fresh bool, value []byte) error {
				g := group(id)
				if k.Epoch < g.void[0] || k.Epoch == g.void[0] && k.Seq < g.void[1] {
					return nil
				}
				if fresh {
					for at := range g.log {
						if at >= i {
							delete(g.log, at)
						}
					}
				}
				if i <= max(g.trunc, g.g.Applied.TruncIndex) {
					return nil // not deleted yet: others of the record are needed
				}
				en, err := raft.DecodeEntry(i, slices.Clone(value))
				if err != nil {
					return fmt.Errorf("shard %d entry %d: %w", id, i, err)
				}
				g.log[i] = LogEntry{en.Term, crc32.Checksum(value, castagnoli)}
				g.has = append(g.has, fmt.Sprintf("entry %d", i))
				return nil
			})
		case engine.KindApplied:
			if g.g.Applied, err = raft.DecodeAppliedState(val); err != nil {
				return fmt.Errorf("shard %d: %w", k.Shard, err)
			}
			g.has = append(g.has, "applied state")
		case engine.KindDesc:
			d, err := raft.DecodeDescriptor(slices.Clone(val))
			if err != nil {
				return fmt.Errorf("shard %d: %w", k.Shard, err)
			}
			g.g.Desc, g.hasDesc = d.Clone(), true
		case engine.KindGroup:
			g.records = mix(g.records, key, val)
			g.has = append(g.has, fmt.Sprintf("record %x", k.Rest))
		case engine.KindData:
			data = append(data, datum{k.Keyspace, string(k.Rest), mix(0, key, val)})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for id, f := range groups {
		if !f.hasDesc {
			for _, h := range f.has {
				s.Stray = append(s.Stray, fmt.Sprintf("%s of shard %d, which is not here", h, id))
			}
			continue
		}
		g := f.g
		g.Records = f.records
		if f.trunc > g.Applied.TruncIndex {
			g.Applied.TruncIndex, g.Applied.TruncTerm = f.trunc, f.truncTerm
		}
		as := g.Applied
		for i := as.TruncIndex + 1; ; i++ {
			en, ok := f.log[i]
			if !ok {
				break
			}
			g.Log = append(g.Log, en)
			delete(f.log, i)
		}
		for i := range f.log {
			return nil, fmt.Errorf("shard %d: entry %d does not belong to the log (%d, %d]", id, i, as.TruncIndex, g.Last())
		}
		if as.TruncIndex > as.Applied || as.Applied > g.Last() {
			return nil, fmt.Errorf("shard %d: truncated %d, applied %d, last %d", id, as.TruncIndex, as.Applied, g.Last())
		}
		if t, _ := g.Term(as.Applied); t != as.AppliedTerm {
			return nil, fmt.Errorf("shard %d: applied %d in term %d, the log has term %d there", id, as.Applied, as.AppliedTerm, t)
		}
		s.Groups[id] = &g
	}
	for _, d := range data {
		owner := s.owner(d.ks, d.key)
		if owner == nil {
			s.Stray = append(s.Stray, fmt.Sprintf("data %d/%q of nobody", d.ks, d.key))
			continue
		}
		owner.Data = owner.Data*31 + d.hash
		owner.Keys++
	}
	slices.Sort(s.Stray)
	if err := s.readStore(e, groups2ids(groups)); err != nil {
		return nil, err
	}
	s.print()
	return s, nil
}

func groups2ids[V any](m map[raft.ShardID]V) []raft.ShardID {
	out := make([]raft.ShardID, 0, len(m))
	for id := range m {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

func (s *State) owner(ks uint32, key string) *Group {
	for _, g := range s.Groups {
		if g.Desc.Keyspace == ks && g.Desc.Contains([]byte(key)) {
			return g
		}
	}
	return nil
}

// readStore reads what belongs to the node as a whole.
func (s *State) readStore(e *engine.Engine, ids []raft.ShardID) error {
	for _, id := range ids {
		if r, ok, err := e.Tombstone(id); err != nil {
			return err
		} else if ok {
			s.Tombs[id] = r
		}
	}
	recs, err := e.LoadSupport()
	for _, r := range recs {
		s.Support[r.Node] = r
	}
	return err
}

func mix(h uint64, parts ...[]byte) uint64 {
	f := fnv.New64a()
	for _, p := range parts {
		_, _ = f.Write(p)
		_, _ = f.Write([]byte{0xff})
	}
	return h*1099511628211 + f.Sum64()
}

// String prints the state; equal states have equal prints.
func (s *State) String() string { return s.text }

func (s *State) print() {
	var b, raft strings.Builder
	for _, id := range groups2ids(s.Groups) {
		g := s.Groups[id]
		as := g.Applied
		as.TruncIndex, as.TruncTerm = 0, 0
		desc := fmt.Sprintf("shard %d [%q, %q) conf %d version %d replicas %v\n", id, g.Desc.Start, g.Desc.End, g.Desc.ConfVer, g.Desc.Version, g.Desc.Replicas)
		g.side = desc + fmt.Sprintf("  applied %+v\n  data %d keys %x, records %x\n", as, g.Keys, g.Data, g.Records)
		log := fmt.Sprintf("  hard %+v\n  truncated %d@%d\n  log", g.Hard, g.Applied.TruncIndex, g.Applied.TruncTerm)
		for i, en := range g.Log {
			log += fmt.Sprintf(" %d@%d/%x", uint64(g.Applied.TruncIndex)+1+uint64(i), en.Term, en.Sum)
		}
		log += "\n"
		b.WriteString(g.side + log)
		raft.WriteString(desc + log)
	}
	common := s.printStore()
	s.text, s.raft = b.String()+common, raft.String()+common
}

// printStore prints what belongs to the node as a whole.
func (s *State) printStore() string {
	var b strings.Builder
	for _, id := range groups2ids(s.Tombs) {
		fmt.Fprintf(&b, "tombstone of shard %d: %d\n", id, s.Tombs[id])
	}
	nodes := make([]raft.NodeID, 0, len(s.Support))
	for n := range s.Support {
		nodes = append(nodes, n)
	}
	slices.Sort(nodes)
	for _, n := range nodes {
		fmt.Fprintf(&b, "support %+v\n", s.Support[n])
	}
	return b.String()
}

// diff shows the lines in which two states differ.
func diff(got, want *State) string {
	g, w := strings.Split(got.text, "\n"), strings.Split(want.text, "\n")
	var b strings.Builder
	for i := range max(len(g), len(w)) {
		var x, y string
		if i < len(g) {
			x = g[i]
		}
		if i < len(w) {
			y = w[i]
		}
		if x != y {
			fmt.Fprintf(&b, "    recovered %s\n    was       %s\n", clip(x), clip(y))
		}
	}
	return b.String()
}

func clip(s string) string {
	if len(s) > 400 {
		return s[:400] + "..."
	}
	return s
}
