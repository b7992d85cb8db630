package bench

import "context"

// Target is a store under test, as one client sees it. Implementations are
// safe for concurrent use.
type Target interface {
	// Read reads one key and reports whether it exists. The value is the
	// caller's.
	Read(ctx context.Context, key []byte) (value []byte, found bool, err error)
	// Write stores one record and returns when it is durable.
	Write(ctx context.Context, key, value []byte) error
	// Scan reads up to n records in key order from start on and returns how many
	// it got.
	Scan(ctx context.Context, start []byte, n int) (int, error)
	// Load stores many records in any order; it may repeat itself after an
	// error, since it writes the same values again.
	Load(ctx context.Context, keys, values [][]byte) error
}
