package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// ImageBytes is the size up to which a shard's state travels in an entry of its log.
const ImageBytes = 256 << 10

const imageVersion = 1

// imageHead is what the manifest and the lengths in an image may take of ImageBytes.
const imageHead = 16 << 10

// Image makes an image of the replica of desc for an entry of its log (raft.Cut): the
// state as of one index. Nil without an error: the state exceeds ImageBytes. It reads no
// more than that. It fails with ErrNothingApplied or the store's error.
func (s *Store) Image(desc *raft.Descriptor) ([]byte, raft.Index, error) {
	size, err := s.o.Engine.DataSize(desc.Keyspace, desc.Start, desc.End)
	if err != nil || size > ImageBytes && !s.o.Inline {
		return nil, 0, err
	}
	c, err := s.source(desc)
	if err != nil {
		return nil, 0, err
	}
	img, err := c.image()
	return img, c.meta.Index, errors.Join(err, c.close())
}

// image encodes the state in the view; nil: it is too large.
func (c *source) image() ([]byte, error) {
	kinds := [...]struct {
		part engine.ViewPart
		kind FileKind
	}{{engine.ViewData, FileData}, {engine.ViewState, FileState}}
	var lists [len(kinds)][]byte
	m := c.meta
	m.Estimate = 0 // what the lists have: the view's depends on the store's background work
	for i, k := range kinds {
		err := c.eachPair(context.Background(), k.part, nil, func(key, val []byte) error {
			if k.part == engine.ViewState && isOwn(key) {
				return nil
			}
			n := len(lists[i])
			lists[i] = appendKV(lists[i], key, val)
			if m.Estimate += int64(len(lists[i]) - n); m.Estimate > ImageBytes-imageHead {
				return errFull
			}
			return nil
		})
		if errors.Is(err, errFull) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
	meta := m.Encode(nil)
	if len(meta) > imageHead/2 {
		return nil, nil // a descriptor of very long keys
	}
	b := appendBytes([]byte{imageVersion}, meta)
	for i, k := range kinds {
		b = appendBytes(append(b, byte(k.kind)), lists[i])
	}
	return binary.BigEndian.AppendUint32(b, sum(b)), nil
}

// decodeImage returns what image encoded: the manifest, and the lists that are not
// empty. What it returns aliases b. An error wraps ErrCorrupt.
func decodeImage(b []byte) (m Meta, files []*builtFile, err error) {
	if len(b) < 5 || b[0] != imageVersion {
		return m, nil, corrupt("image of an unknown version, or too short")
	}
	body, tail := b[:len(b)-4], b[len(b)-4:]
	if sum(body) != binary.BigEndian.Uint32(tail) {
		return m, nil, corrupt("checksum of an image")
	}
	r := reader{b: body[1:]}
	if m, err = DecodeMeta(r.bytes(MaxManifestBytes)); err != nil {
		return m, nil, err
	}
	if len(m.Files) > 0 {
		return m, nil, corrupt("image whose manifest has files")
	}
	for _, kind := range [...]FileKind{FileData, FileState} {
		if k := FileKind(r.byte()); k != kind {
			return m, nil, corrupt("image with a part of kind %d, expected %d", k, kind)
		}
		list := r.bytes(maxListBytes)
		if _, err := decodeKVs(list); err != nil {
			return m, nil, err
		}
		if f := listFile(len(files), kind, list); f != nil {
			files = append(files, f)
		}
	}
	if r.bad || len(r.b) > 0 {
		return m, nil, corrupt("malformed image")
	}
	return m, files, nil
}

// SendImage is Send of an image in place of the state as it is now. Errors besides: the
// image is damaged, or its descriptor does not name replica rep.
func (s *Store) SendImage(ctx context.Context, image []byte, to raft.NodeID, rep raft.ReplicaID, open OpenFunc) (raft.Index, raft.Term, error) {
	return s.sendImage(ctx, image, to, rep, open, new(atomic.Pointer[transfer]))
}

func (s *Store) sendImage(ctx context.Context, image []byte, to raft.NodeID, rep raft.ReplicaID, open OpenFunc, p *atomic.Pointer[transfer]) (raft.Index, raft.Term, error) {
	m, files, err := decodeImage(image)
	if err != nil {
		return 0, 0, err
	}
	if _, ok := m.Desc.Replica(rep); !ok {
		return 0, 0, fmt.Errorf("snapshot: the image of shard %d is older than replica %d", m.Shard, rep)
	}
	m.ID = s.o.NewID()
	return s.sendSource(ctx, to, open, p, func() (*source, error) { return &source{s: s, meta: m, made: files}, nil })
}
