package transport

import (
	"fmt"

	"google.golang.org/grpc/mem"
)

// rawCodec is the codec of the peer listener: bytes as they are. It is forced on
// the peer server and on each call, never registered.
type rawCodec struct{}

// rawBytes is a small message: a join call, a header or chunk of a snapshot.
type rawBytes struct{ b []byte }

// inFrame is a received frame, in a buffer of its own.
type inFrame struct{ b []byte }

func (rawCodec) Name() string { return "flotilla-raw" }

// Marshal hands bytes over without a copy; frame buffers go back to their pool
// once gRPC has written them.
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case *outFrame:
		var s mem.BufferSlice
		switch {
		case m.body == nil:
			return mem.BufferSlice{mem.SliceBuffer(m.head)}, nil
		case m.head == nil:
			s = mem.BufferSlice{mem.NewBuffer(m.body, &frameBufs)}
		default:
			s = mem.BufferSlice{mem.SliceBuffer(m.head), mem.NewBuffer(m.body, &frameBufs)}
		}
		m.body = nil
		return s, nil
	case *rawBytes:
		return mem.BufferSlice{mem.SliceBuffer(m.b)}, nil
	}
	return nil, fmt.Errorf("transport: cannot encode %T", v)
}

// Unmarshal copies out of gRPC's pooled buffers, once per message.
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	var dst *[]byte
	switch m := v.(type) {
	case *inFrame:
		dst = &m.b
	case *rawBytes:
		dst = &m.b
	default:
		return fmt.Errorf("transport: cannot decode %T", v)
	}
	b := make([]byte, data.Len())
	data.CopyTo(b)
	*dst = b
	return nil
}
