package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Listed is one backup or snapshot that List found: its manifest, or why that is
// not usable.
type Listed struct {
	Kind     Kind
	ID       string
	Manifest *Manifest
	Err      error // *DamageError; nil: the manifest is whole
}

// List returns the backups, or the snapshots, of a store, oldest first. Only
// complete ones are there. A damaged manifest is listed with its error.
func List(ctx context.Context, s Store, kind Kind) ([]Listed, error) {
	objects, err := s.List(ctx, kind.dir())
	if err != nil {
		return nil, err
	}
	var out []Listed
	for _, o := range objects {
		l := Listed{Kind: kind, ID: strings.TrimPrefix(o.Name, kind.dir())}
		l.Manifest, l.Err = Load(ctx, s, kind, l.ID)
		if d := new(DamageError); l.Err != nil && !errors.As(l.Err, &d) {
			return nil, l.Err
		}
		out = append(out, l)
	}
	// Ids tell seconds only.
	slices.SortStableFunc(out, func(a, b Listed) int { return strings.Compare(a.when(), b.when()) })
	return out, nil
}

// when sorts like the time when l was begun.
func (l *Listed) when() string {
	if l.Manifest == nil {
		return l.ID
	}
	return l.Manifest.Started.Format(idTime + ".000000000")
}

// Load returns the manifest of a backup or a snapshot. Its error is ErrNoBackup,
// *DamageError or the store's.
func Load(ctx context.Context, s Store, kind Kind, id string) (*Manifest, error) {
	if !validID(id) {
		return nil, &DamageError{Object: kind.name(id), Reason: "its name is not that of a " + string(kind)}
	}
	b, err := s.Get(ctx, kind.name(id), MaxManifestBytes)
	if errors.Is(err, ErrNoObject) {
		return nil, fmt.Errorf("%q in %s: %w", id, s, ErrNoBackup)
	}
	if err != nil {
		return nil, err
	}
	m, err := decodeManifest(kind, id, b)
	if err != nil {
		return nil, &DamageError{Object: kind.name(id), Reason: err.Error()}
	}
	return m, nil
}

// Latest returns the newest backup, or snapshot, whose manifest is whole. It fails
// with ErrNoBackup, or the store's error.
func Latest(ctx context.Context, s Store, kind Kind) (*Manifest, error) {
	list, err := List(ctx, s, kind)
	if err != nil {
		return nil, err
	}
	for _, l := range slices.Backward(list) {
		if l.Err == nil {
			return l.Manifest, nil
		}
	}
	if len(list) > 0 {
		return nil, list[len(list)-1].Err
	}
	return nil, fmt.Errorf("in %s: %w", s, ErrNoBackup)
}

// Verify reads every byte of the backups given and returns what is not as it was
// written, by name. A chunk that several of them share is read once. The error is
// the store's or the context's: then the list may be incomplete.
func Verify(ctx context.Context, s Store, list []Listed, o Options) ([]*DamageError, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	v := verification{s: s, found: map[string]*found{}}
	var names []string
	for _, l := range list {
		var damage *DamageError
		if errors.As(l.Err, &damage) {
			v.report(damage)
		}
		if l.Manifest == nil {
			continue
		}
		for i := range l.Manifest.Shards {
			for _, c := range l.Manifest.Shards[i].Chunks {
				if v.found[c.Hash] == nil {
					v.found[c.Hash] = new(found)
					names = append(names, c.Hash)
				}
			}
		}
	}
	o.Progress.ChunksTotal.Store(int64(len(names)))
	err := parallel(ctx, o.Parallel, len(names), func(ctx context.Context, i int) error {
		f := v.found[names[i]] // no one else's
		err := v.read(ctx, names[i], f)
		o.Progress.Chunks.Add(1)
		o.Progress.Pairs.Add(f.pairs)
		o.Progress.Bytes.Add(f.bytes)
		return err
	})
	if err != nil {
		return v.damage, err
	}
	for _, l := range list {
		if l.Manifest != nil {
			v.compare(l.Manifest)
		}
	}
	slices.SortStableFunc(v.damage, func(a, b *DamageError) int { return strings.Compare(a.Object, b.Object) })
	o.Progress.DamagedObjects.Store(int64(len(v.damage)))
	return v.damage, nil
}

type found struct {
	contents
	bad bool
}

type verification struct {
	s     Store
	found map[string]*found

	mu     sync.Mutex // guards what follows
	damage []*DamageError
}

func (v *verification) report(e *DamageError) {
	v.mu.Lock()
	v.damage = append(v.damage, e)
	v.mu.Unlock()
}

// read looks at one chunk. Its error is the store's.
func (v *verification) read(ctx context.Context, hash string, f *found) error {
	b, err := getChunk(ctx, v.s, hash)
	if err == nil {
		f.contents, err = openChunk(hash, b, nil)
		if err != nil {
			err = &DamageError{Object: chunkName(hash), Reason: err.Error()}
		}
	}
	var damage *DamageError
	if errors.As(err, &damage) {
		f.bad = true
		v.report(damage)
		return nil
	}
	return err
}

// compare checks that the chunks hold what the manifest says.
func (v *verification) compare(m *Manifest) {
	for i := range m.Shards {
		s := &m.Shards[i]
		for j := range s.Chunks {
			f := v.found[s.Chunks[j].Hash]
			if f.bad {
				continue
			}
			if err := s.fits(j, &f.contents); err != nil {
				v.report(&DamageError{Object: m.name(), Reason: fmt.Sprintf("shard %d, %s: %v", s.Shard, chunkName(s.Chunks[j].Hash), err)})
			}
		}
	}
}

// fits compares a chunk with what the manifest says of it.
func (s *Shard) fits(j int, c *contents) error {
	want := &s.Chunks[j]
	switch {
	case c.pairs != want.Pairs || c.bytes != want.Bytes:
		return fmt.Errorf("it holds %d pairs in %d bytes, not %d in %d", c.pairs, c.bytes, want.Pairs, want.Bytes)
	case !bytes.Equal(c.first, want.First):
		return fmt.Errorf("it begins at %q, not %q", c.first, want.First)
	case !s.holds(c.last):
		return fmt.Errorf("it reaches beyond the shard, to %q", c.last)
	case j+1 < len(s.Chunks) && bytes.Compare(c.last, s.Chunks[j+1].First) >= 0:
		return fmt.Errorf("it reaches into the next chunk, to %q", c.last)
	}
	return nil
}

// getChunk reads an object. A chunk that is missing is a *DamageError.
func getChunk(ctx context.Context, s Store, hash string) ([]byte, error) {
	b, err := s.Get(ctx, chunkName(hash), maxObjectBytes)
	if errors.Is(err, ErrNoObject) {
		return nil, &DamageError{Object: chunkName(hash), Reason: "it is missing"}
	}
	return b, err
}
