package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/lni/dragonboat/v4/statemachine"
)

var errNoSnapshots = errors.New("compare: snapshots are off")

// diskMachine is a machine of Dragonboat whose records lie in a Pebble that all
// shards of the node share. It does not sync what it applies: after a crash
// Dragonboat applies its log again.
type diskMachine struct {
	db    *pebble.DB
	shard uint64
}

// key prefixes a record with its shard; the bare prefix holds the applied index.
func (m *diskMachine) key(k []byte) []byte {
	b := make([]byte, 8, 8+len(k))
	binary.BigEndian.PutUint64(b, m.shard)
	return append(b, k...)
}

func (m *diskMachine) get(k []byte) ([]byte, error) {
	v, closer, err := m.db.Get(m.key(k))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := append([]byte{}, v...)
	return out, closer.Close()
}

func (m *diskMachine) Open(<-chan struct{}) (uint64, error) {
	v, err := m.get(nil)
	if err != nil || len(v) != 8 {
		return 0, err
	}
	return binary.BigEndian.Uint64(v), nil
}

func (m *diskMachine) Update(entries []statemachine.Entry) ([]statemachine.Entry, error) {
	b := m.db.NewBatch()
	defer b.Close()
	for i := range entries {
		err := eachRecord(entries[i].Cmd, func(key, value []byte) error {
			d := b.SetDeferred(8+len(key), len(value))
			binary.BigEndian.PutUint64(d.Key, m.shard)
			copy(d.Key[8:], key)
			copy(d.Value, value)
			return d.Finish()
		})
		if err != nil {
			return nil, err
		}
	}
	var index [8]byte
	binary.BigEndian.PutUint64(index[:], entries[len(entries)-1].Index)
	if err := b.Set(m.key(nil), index[:], nil); err != nil {
		return nil, err
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return nil, err
	}
	return entries, nil
}

func (m *diskMachine) Lookup(k any) (any, error)     { return m.get(k.([]byte)) }
func (m *diskMachine) Sync() error                   { return m.db.LogData(nil, pebble.Sync) }
func (m *diskMachine) PrepareSnapshot() (any, error) { return m.db.NewSnapshot(), nil }
func (m *diskMachine) Close() error                  { return nil }

// SaveSnapshot writes the keys of the shard and their values, each preceded by its length.
func (m *diskMachine) SaveSnapshot(ctx any, w io.Writer, _ <-chan struct{}) error {
	snap := ctx.(*pebble.Snapshot)
	defer snap.Close()
	it, err := snap.NewIter(&pebble.IterOptions{LowerBound: m.key(nil), UpperBound: (&diskMachine{shard: m.shard + 1}).key(nil)})
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(w, 1<<20)
	var n [8]byte
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return errors.Join(err, it.Close())
		}
		binary.BigEndian.PutUint32(n[:], uint32(len(it.Key())))
		binary.BigEndian.PutUint32(n[4:], uint32(len(v)))
		for _, b := range [][]byte{n[:], it.Key(), v} {
			if _, err := out.Write(b); err != nil {
				return errors.Join(err, it.Close())
			}
		}
	}
	return errors.Join(it.Close(), out.Flush())
}

// RecoverFromSnapshot replaces the shard, in one synced batch.
func (m *diskMachine) RecoverFromSnapshot(r io.Reader, _ <-chan struct{}) error {
	b := m.db.NewBatch()
	defer b.Close()
	if err := b.DeleteRange(m.key(nil), (&diskMachine{shard: m.shard + 1}).key(nil), nil); err != nil {
		return err
	}
	in := bufio.NewReaderSize(r, 1<<20)
	for {
		var n [8]byte
		if _, err := io.ReadFull(in, n[:]); err == io.EOF {
			return b.Commit(pebble.Sync)
		} else if err != nil {
			return err
		}
		d := b.SetDeferred(int(binary.BigEndian.Uint32(n[:])), int(binary.BigEndian.Uint32(n[4:])))
		if _, err := io.ReadFull(in, d.Key); err != nil {
			return err
		}
		if _, err := io.ReadFull(in, d.Value); err != nil {
			return err
		}
		if err := d.Finish(); err != nil {
			return err
		}
	}
}

// memMachine keeps its records in a map.
type memMachine struct {
	mu   sync.RWMutex
	data map[string][]byte
}

func (m *memMachine) Update(entries []statemachine.Entry) ([]statemachine.Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range entries {
		err := eachRecord(entries[i].Cmd, func(key, value []byte) error {
			m.data[string(key)] = append([]byte{}, value...)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return entries, nil
}

func (m *memMachine) Lookup(k any) (any, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if v, ok := m.data[string(k.([]byte))]; ok {
		return v, nil
	}
	return []byte(nil), nil
}

func (m *memMachine) PrepareSnapshot() (any, error) { return nil, errNoSnapshots }
func (m *memMachine) Close() error                  { return nil }
func (m *memMachine) SaveSnapshot(any, io.Writer, statemachine.ISnapshotFileCollection, <-chan struct{}) error {
	return errNoSnapshots
}

func (m *memMachine) RecoverFromSnapshot(io.Reader, []statemachine.SnapshotFile, <-chan struct{}) error {
	return errNoSnapshots
}
