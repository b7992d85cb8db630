// Package filemachine is a state machine that keeps its state in files of its own
// (multiraft.External), for tests. Per shard it has lists of words by key; a command is a
// word, appended to the list of its key. Who appends each word once sees in the lists what
// was lost or came twice.
//
// A state is one file, written aside, synced and renamed. In between, an eager machine
// writes each entry to a journal that nobody syncs: after a crash it may be ahead of what
// it said it had durably. A Machine that is not eager goes back to its last Sync.
package filemachine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Machine implements multiraft.External.
type Machine struct {
	fs    engine.FS
	dir   string
	eager bool
	asked atomic.Pointer[func(step string, shard raft.ShardID) error]

	mu     sync.RWMutex // guards shards and the states
	shards map[raft.ShardID]*state
}

var (
	_ multiraft.External         = (*Machine)(nil)
	_ multiraft.ExternalDigester = (*Machine)(nil)
)

type state struct {
	at, base raft.Index // base: of the file
	lists    map[string][]string
	journal  engine.File // of an eager machine; nil: none yet
}

// Refuse is the beginning of words that the machine refuses.
const Refuse = "refuse"

// New returns a machine with its files in dir, which is made if it is not there.
func New(fs engine.FS, dir string, eager bool) (*Machine, error) {
	m := &Machine{fs: fs, dir: dir, eager: eager, shards: map[raft.ShardID]*state{}}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return m, m.syncDir(fs.PathDir(dir))
}

func (m *Machine) hook(step string, shard raft.ShardID) error {
	if f := m.asked.Load(); f != nil {
		return (*f)(step, shard)
	}
	return nil
}

// SetHook has f asked before each step of a call ("apply", "sync", "sync.rename", "save",
// "load", "load.rename", "drop", "open.rename"); its error ends the call.
func (m *Machine) SetHook(f func(step string, shard raft.ShardID) error) { m.asked.Store(&f) }

func (m *Machine) path(shard raft.ShardID, what string) string {
	return m.fs.PathJoin(m.dir, fmt.Sprintf("%d.%s", shard, what))
}

func (m *Machine) syncDir(dir string) error {
	d, err := m.fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// open returns the state of a shard, from its files if it is the first time.
func (m *Machine) open(shard raft.ShardID) (*state, error) {
	if s := m.shards[shard]; s != nil {
		return s, nil
	}
	s := &state{lists: map[string][]string{}}
	b, err := m.read(m.path(shard, "state"))
	if err != nil {
		return nil, err
	}
	if b != nil {
		if err := s.decode(b); err != nil {
			return nil, fmt.Errorf("filemachine: shard %d: %w", shard, err)
		}
	}
	// The journal behind this state. What a crash tore off its end is not there.
	s.base = s.at
	b, err = m.read(m.journal(shard, s.base))
	if err != nil {
		return nil, err
	}
	for len(b) >= 16 {
		n := binary.BigEndian.Uint32(b)
		if uint64(n) > uint64(len(b)-16) || crc32.ChecksumIEEE(b[8:16+n]) != binary.BigEndian.Uint32(b[4:]) || n == 0 {
			break
		}
		s.at = raft.Index(binary.BigEndian.Uint64(b[8:]))
		for r := b[16 : 16+n]; len(r) > 0; {
			var key, word []byte
			key, r = take(r)
			word, r = take(r)
			s.lists[string(key)] = append(s.lists[string(key)], string(word))
		}
		b = b[16+n:]
	}
	if s.at > s.base {
		if err := m.write(shard, s, s.at, "open"); err != nil {
			return nil, err
		}
	}
	m.shards[shard] = s
	return s, nil
}

func (m *Machine) journal(shard raft.ShardID, at raft.Index) string {
	return m.path(shard, fmt.Sprintf("%d.journal", at))
}

// read returns the content of a file; nil: there is none.
func (m *Machine) read(path string) ([]byte, error) {
	info, err := m.fs.Stat(path)
	if err != nil || info.Size() == 0 {
		return nil, nil
	}
	f, err := m.fs.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(f)
	return b, errors.Join(err, f.Close())
}

func put(dst []byte, b string) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(b))), b...)
}

func take(b []byte) (v, rest []byte) {
	n := binary.BigEndian.Uint32(b)
	return b[4 : 4+n], b[4+n:]
}

// encode is crc32 of the rest, index, then per key: key, words u32, words.
func (s *state) encode(at raft.Index) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 4), uint64(at))
	keys := make([]string, 0, len(s.lists))
	for k := range s.lists {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		b = binary.BigEndian.AppendUint32(put(b, k), uint32(len(s.lists[k])))
		for _, w := range s.lists[k] {
			b = put(b, w)
		}
	}
	binary.BigEndian.PutUint32(b, crc32.ChecksumIEEE(b[4:]))
	return b
}

func (s *state) decode(b []byte) error {
	if len(b) < 12 || binary.BigEndian.Uint32(b) != crc32.ChecksumIEEE(b[4:]) {
		return errors.New("the state is damaged")
	}
	s.at = raft.Index(binary.BigEndian.Uint64(b[4:]))
	s.lists = map[string][]string{}
	for b = b[12:]; len(b) > 0; {
		var k, w []byte
		k, b = take(b)
		n := binary.BigEndian.Uint32(b)
		b = b[4:]
		list := make([]string, 0, n)
		for range n {
			w, b = take(b)
			list = append(list, string(w))
		}
		s.lists[string(k)] = list
	}
	return nil
}

// Apply implements multiraft.External.
func (m *Machine) Apply(e *multiraft.ExternalEntry) error {
	if err := m.hook("apply", e.Shard); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.open(e.Shard)
	if err != nil {
		return err
	}
	if e.Index <= s.at {
		return fmt.Errorf("filemachine: entry %d of shard %d comes again, the state is as of %d", e.Index, e.Shard, s.at)
	}
	var rec []byte
	for i := range e.Commands {
		c := &e.Commands[i]
		word := string(c.Body)
		if strings.HasPrefix(word, Refuse) {
			c.Err = fmt.Errorf("%s is refused", word)
			continue
		}
		list := append(s.lists[string(c.Key)], word)
		s.lists[string(c.Key)] = list
		c.Result = fmt.Appendf(nil, "%d", len(list))
		rec = put(put(rec, string(c.Key)), word)
	}
	if m.eager && len(rec) > 0 {
		if s.journal == nil {
			if s.journal, err = m.fs.Create(m.journal(e.Shard, s.base), "unspecified"); err != nil {
				return err
			}
		}
		b := binary.BigEndian.AppendUint32(nil, uint32(len(rec)))
		b = binary.BigEndian.AppendUint64(append(b, 0, 0, 0, 0), uint64(e.Index))
		b = append(b, rec...)
		binary.BigEndian.PutUint32(b[4:], crc32.ChecksumIEEE(b[8:]))
		if _, err := s.journal.Write(b); err != nil {
			return err
		}
	}
	s.at = e.Index
	return nil
}

// write makes the state the durable one, as of index at.
func (m *Machine) write(shard raft.ShardID, s *state, at raft.Index, step string) error {
	tmp := m.path(shard, "tmp")
	f, err := m.fs.Create(tmp, "unspecified")
	if err != nil {
		return err
	}
	_, err = f.Write(s.encode(at))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := m.hook(step+".rename", shard); err != nil {
		return err
	}
	if err := m.fs.Rename(tmp, m.path(shard, "state")); err != nil {
		return err
	}
	if err := m.syncDir(m.dir); err != nil {
		return err
	}
	old := m.journal(shard, s.base)
	if s.journal != nil {
		_ = s.journal.Close()
		s.journal = nil
	}
	if _, err := m.fs.Stat(old); err == nil {
		_ = m.fs.Remove(old)
	}
	s.at, s.base = at, at
	return nil
}

// Query implements multiraft.External: the words of the list of key, with blanks between.
func (m *Machine) Query(shard raft.ShardID, key, _ []byte) ([]byte, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	s := m.shards[shard]
	if s == nil {
		return nil, nil
	}
	return []byte(strings.Join(s.lists[string(key)], " ")), nil
}

// Applied implements multiraft.External.
func (m *Machine) Applied(shard raft.ShardID) (raft.Index, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.open(shard)
	if err != nil {
		return 0, err
	}
	return s.at, nil
}

// Sync implements multiraft.External.
func (m *Machine) Sync(shard raft.ShardID, at raft.Index) error {
	if err := m.hook("sync", shard); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.open(shard)
	if err != nil {
		return err
	}
	if at < s.at {
		return fmt.Errorf("filemachine: shard %d is to be synced as of index %d, it is at %d", shard, at, s.at)
	}
	return m.write(shard, s, at, "sync")
}

// Save implements multiraft.External.
func (m *Machine) Save(shard raft.ShardID) (io.ReadCloser, error) {
	if err := m.hook("save", shard); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.open(shard)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(s.encode(s.at))), nil
}

// Load implements multiraft.External.
func (m *Machine) Load(shard raft.ShardID, at raft.Index, r io.Reader) error {
	if err := m.hook("load", shard); err != nil {
		return err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	var s state
	if err := s.decode(b); err != nil {
		return err
	}
	if s.at > at {
		return fmt.Errorf("filemachine: what is loaded is as of index %d, not %d", s.at, at)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old, err := m.open(shard)
	if err != nil {
		return err
	}
	s.base, s.journal = old.base, old.journal
	if err := m.write(shard, &s, at, "load"); err != nil {
		return err
	}
	m.shards[shard] = &s
	return nil
}

// Drop implements multiraft.External.
func (m *Machine) Drop(shard raft.ShardID) error {
	if err := m.hook("drop", shard); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.shards[shard]; s != nil && s.journal != nil {
		_ = s.journal.Close()
	}
	delete(m.shards, shard)
	names, err := m.fs.List(m.dir)
	if err != nil {
		return err
	}
	slices.Sort(names) // journals go before the state they are behind
	for _, name := range names {
		if strings.HasPrefix(name, fmt.Sprintf("%d.", shard)) {
			err = errors.Join(err, m.fs.Remove(m.fs.PathJoin(m.dir, name)))
		}
	}
	return errors.Join(err, m.syncDir(m.dir))
}

// Sum returns a checksum of the lists of a shard.
func (m *Machine) Sum(shard raft.ShardID) uint32 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	s := m.shards[shard]
	if s == nil {
		return 0
	}
	return crc32.ChecksumIEEE(s.encode(0))
}

// Digest implements multiraft.ExternalDigester.
func (m *Machine) Digest(shard raft.ShardID) (uint64, error) { return uint64(m.Sum(shard)), nil }

// Spoil appends a word to a list that no command appended.
func (m *Machine) Spoil(shard raft.ShardID, key, word string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.shards[shard]; s != nil {
		s.lists[key] = append(s.lists[key], word)
	}
}
