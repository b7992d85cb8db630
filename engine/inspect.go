package engine

import (
	"context"
	"errors"
	"fmt"
)

// EachKey calls f with every raw key of the store and its value, in order, as of
// one moment; ParseKey takes keys apart. Both are valid during the call. It stops
// at the first error of f and returns it.
func (e *Engine) EachKey(f func(key, val []byte) error) error {
	if err := e.enter(); err != nil {
		return err
	}
	defer e.leave()
	it, err := e.newIter(nil, nil, nil, nil)
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		if err := f(it.Key(), it.Value()); err != nil {
			return errors.Join(err, it.Close())
		}
	}
	return errors.Join(it.Err(), it.Close())
}

// Flush writes what is in memory to tables and waits for that.
func (e *Engine) Flush() error {
	if err := e.enter(); err != nil {
		return err
	}
	defer e.leave()
	if err := e.flushAll(); err != nil {
		return err
	}
	if err := e.db.Flush(); err != nil {
		return e.fail(fmt.Errorf("flush: %w", err))
	}
	return nil
}

// Compact rewrites all tables and waits for that, or for ctx. What it has done
// when ctx ends stays done.
func (e *Engine) Compact(ctx context.Context) error {
	if err := e.enter(); err != nil {
		return err
	}
	defer e.leave()
	if err := e.flushAll(); err != nil {
		return err
	}
	err := e.db.Compact(ctx, []byte{prefixStore}, []byte{prefixData + 1}, false)
	if err != nil && ctx.Err() == nil {
		return e.fail(fmt.Errorf("compaction: %w", err))
	}
	return err
}
