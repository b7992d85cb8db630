package transport

import (
	"time"

	"github.com/flotillakv/flotilla/shard"
)

// The messages between clients and nodes as bytes, for simulators: what they send
// passes through the same codec as on a connection.

// EncodeRequest appends a request with its time to dst.
func EncodeRequest(dst []byte, r *shard.Request, timeout time.Duration) []byte {
	return appendRequest(dst, r, 1, int64(timeout))
}

// DecodeRequest decodes a request; byte slices alias b.
func DecodeRequest(b []byte) (*shard.Request, error) { return decodeRequest(b) }

// EncodeResponse appends a response to dst.
func EncodeResponse(dst []byte, r *shard.Response) []byte { return encodeResponse(dst, r, 1) }

// DecodeResponse decodes a response; byte slices alias b.
func DecodeResponse(b []byte) (*shard.Response, error) { return decodeResponse(b) }
