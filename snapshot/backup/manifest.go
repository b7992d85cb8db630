package backup

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"
)

// Kind says what a manifest describes.
type Kind string

const (
	// Backup is all shards: their ranges cover all keys, each once.
	Backup Kind = "backup"
	// Snapshot is some shards.
	Snapshot Kind = "snapshot"
)

var kinds = []Kind{Backup, Snapshot}

// dir is where the manifests of a kind are.
func (k Kind) dir() string { return string(k) + "s/" }

func (k Kind) name(id string) string { return k.dir() + id }

// magic begins the first line of a manifest, before the SHA-256 of the rest.
func (k Kind) magic() string { return "flotilla-" + string(k) + "/1 sha256=" }

// Manifest describes one backup, or one snapshot. It is stored as JSON behind a
// line that names the format and the SHA-256 of the JSON.
type Manifest struct {
	Kind    Kind      `json:"-"` // the object's name and first line say it
	ID      string    `json:"id"`
	Cluster string    `json:"cluster"` // that was backed up
	Release string    `json:"release"` // of the program that wrote it
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended"` // all cuts lie between
	// Shards in key order. Those of a backup cover all keys of the keyspace.
	Shards []Shard `json:"shards"`
}

// Shard is one shard of a backup: the state of [Start, End) as of Index.
type Shard struct {
	ShardCut
	Chunks []Chunk `json:"chunks"` // in key order
}

// ShardCut says which state of which shard a cut is.
type ShardCut struct {
	Shard    uint64 `json:"shard"`
	Keyspace uint32 `json:"keyspace"`
	Start    []byte `json:"start"` // the range is [Start, End); empty: from the first key
	End      []byte `json:"end"`   // empty: to behind the last key
	Index    uint64 `json:"index"` // of the entry applied last
	Term     uint64 `json:"term"`  // of that entry
	// Time is the group's time as of Index, in nanoseconds; zero: it keeps none.
	Time uint64 `json:"time,omitempty"`
}

// Chunk is an object that holds neighbouring pairs of a shard.
type Chunk struct {
	Hash   string `json:"sha256"` // of the object
	Stored int64  `json:"stored"` // bytes of the object
	Bytes  int64  `json:"bytes"`  // of its pairs, before compression
	Pairs  int64  `json:"pairs"`
	First  []byte `json:"first"` // its first key
}

// Pairs returns the number of pairs of the backup.
func (m *Manifest) Pairs() int64 { return m.sum(func(c *Chunk) int64 { return c.Pairs }) }

// Bytes returns the bytes of the pairs before compression.
func (m *Manifest) Bytes() int64 { return m.sum(func(c *Chunk) int64 { return c.Bytes }) }

// Chunks returns how many chunks the backup names.
func (m *Manifest) Chunks() int64 { return m.sum(func(*Chunk) int64 { return 1 }) }

// Stored returns the bytes of the chunks as stored, each counted once.
func (m *Manifest) Stored() int64 {
	seen := map[string]bool{}
	return m.sum(func(c *Chunk) int64 {
		if seen[c.Hash] {
			return 0
		}
		seen[c.Hash] = true
		return c.Stored
	})
}

func (m *Manifest) sum(f func(*Chunk) int64) (n int64) {
	for i := range m.Shards {
		for j := range m.Shards[i].Chunks {
			n += f(&m.Shards[i].Chunks[j])
		}
	}
	return n
}

func (m *Manifest) name() string { return m.Kind.name(m.ID) }

// Ranges returns the ranges [start, end) of the shards, neighbours as one: for a
// backup that is one of all keys.
func (m *Manifest) Ranges() iter.Seq2[[]byte, []byte] {
	return func(yield func(start, end []byte) bool) {
		for i := 0; i < len(m.Shards); {
			j := i
			for j+1 < len(m.Shards) && bytes.Equal(m.Shards[j].End, m.Shards[j+1].Start) {
				j++
			}
			if !yield(m.Shards[i].Start, m.Shards[j].End) {
				return
			}
			i = j + 1
		}
	}
}

// encode returns the object.
func (m *Manifest) encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("backup: manifest: %w", err)
	}
	body, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return nil, fmt.Errorf("backup: manifest: %w", err)
	}
	b := append([]byte(m.Kind.magic()+hashOf(body)+"\n"), body...)
	if len(b) > MaxManifestBytes {
		return nil, fmt.Errorf("backup: the manifest has %d bytes, more than %d", len(b), MaxManifestBytes)
	}
	return b, nil
}

// decodeManifest reads an object of encode. Every bit of it counts.
func decodeManifest(kind Kind, id string, b []byte) (*Manifest, error) {
	line, body, ok := bytes.Cut(b, []byte("\n"))
	hash, isOurs := strings.CutPrefix(string(line), kind.magic())
	switch {
	case !ok || !isOurs:
		return nil, fmt.Errorf("it is not the manifest of a %s, or of a later version", kind)
	case hash != hashOf(body):
		return nil, fmt.Errorf("its bytes do not have the SHA-256 of its first line")
	}
	m := &Manifest{Kind: kind}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(m); err != nil {
		return nil, fmt.Errorf("malformed: %w", err)
	}
	if d.InputOffset() != int64(len(body)) {
		return nil, fmt.Errorf("malformed: something follows its end")
	}
	if m.ID != id {
		return nil, fmt.Errorf("it is the manifest of %q", m.ID)
	}
	return m, m.check()
}

// check returns what cannot be in a manifest. The shards of a backup must cover
// everything: one that left out a range would restore to a hole.
func (m *Manifest) check() error {
	if !validID(m.ID) {
		return fmt.Errorf("the id %q cannot be", m.ID)
	}
	for i := range m.Shards {
		s := &m.Shards[i]
		if s.Index == 0 || s.Keyspace != m.Shards[0].Keyspace {
			return fmt.Errorf("shard %d: index %d of keyspace %d", s.Shard, s.Index, s.Keyspace)
		}
		for j := range s.Chunks {
			if err := s.checkChunk(j); err != nil {
				return fmt.Errorf("shard %d, chunk %d: %w", s.Shard, j, err)
			}
		}
	}
	if m.Kind == Backup {
		return checkCover(m.Shards)
	}
	return checkApart(m.Shards)
}

func (s *Shard) checkChunk(j int) error {
	c := &s.Chunks[j]
	switch {
	case !validHash(c.Hash):
		return fmt.Errorf("the name %q cannot be", c.Hash)
	case c.Pairs < 1 || c.Pairs > c.Bytes || c.Bytes > maxObjectBytes || c.Stored < 1 || c.Stored > maxObjectBytes:
		return fmt.Errorf("%d pairs in %d bytes, stored in %d", c.Pairs, c.Bytes, c.Stored)
	case !s.holds(c.First):
		return fmt.Errorf("its first key lies outside the shard")
	case j > 0 && bytes.Compare(s.Chunks[j-1].First, c.First) >= 0:
		return fmt.Errorf("its first key does not ascend")
	}
	return nil
}

func (s *ShardCut) holds(key []byte) bool {
	return bytes.Compare(s.Start, key) <= 0 && (len(s.End) == 0 || bytes.Compare(key, s.End) < 0)
}

// checkCover returns an error unless the ranges, in this order, cover all keys,
// each once.
func checkCover(list []Shard) error {
	at := []byte{}
	for i := range list {
		s := &list[i]
		if !bytes.Equal(s.Start, at) || i > 0 && len(at) == 0 {
			return fmt.Errorf("shard %d begins at %q, not where the one before ends, at %q", s.Shard, s.Start, at)
		}
		at = s.End
	}
	if len(at) > 0 || len(list) == 0 {
		return fmt.Errorf("no shard holds the keys from %q on", at)
	}
	return nil
}

// checkApart returns an error unless the ranges ascend and share no key.
func checkApart(list []Shard) error {
	for i := range list {
		s := &list[i]
		if len(s.End) > 0 && bytes.Compare(s.Start, s.End) >= 0 {
			return fmt.Errorf("shard %d ends at %q, before it begins", s.Shard, s.End)
		}
		if i > 0 && (len(list[i-1].End) == 0 || bytes.Compare(list[i-1].End, s.Start) > 0) {
			return fmt.Errorf("shard %d begins at %q, within the one before", s.Shard, s.Start)
		}
	}
	if len(list) == 0 {
		return fmt.Errorf("it has no shard")
	}
	return nil
}

// validID allows what newID makes, and other names of lower-case letters, digits
// and '-', at most 64.
func validID(id string) bool {
	return id != "" && len(id) <= 64 && id[0] != '-' && strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func validHash(h string) bool {
	return len(h) == 64 && strings.Trim(h, "0123456789abcdef") == ""
}

func sortShards(s []Shard) {
	slices.SortFunc(s, func(a, b Shard) int { return bytes.Compare(a.Start, b.Start) })
}
