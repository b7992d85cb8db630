package main

import (
	"context"
	"errors"
	"time"

	"github.com/flotillakv/flotilla"
)

// kvTarget lets bench drive a flotilla.KV.
type kvTarget struct{ kv flotilla.KV }

func (t kvTarget) Read(ctx context.Context, key []byte) (bool, error) {
	_, err := t.kv.Get(ctx, key)
	if errors.Is(err, flotilla.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

func (t kvTarget) Write(ctx context.Context, key, value []byte) error {
	_, err := t.kv.Put(ctx, key, value)
	return err
}

func (t kvTarget) Scan(ctx context.Context, start []byte, n int) (int, error) {
	got := 0
	for _, err := range t.kv.Scan(ctx, flotilla.Range{Start: start, Limit: n}) {
		if err != nil {
			return got, err
		}
		got++
	}
	return got, nil
}

// loadPatience is how long a load repeats a write that the cluster cannot take.
const loadPatience = 30 * time.Second

func (t kvTarget) Load(ctx context.Context, keys, values [][]byte) error {
	return retry(ctx, 10*time.Second, loadPatience, func(ctx context.Context) error {
		if len(keys) == 1 {
			return t.Write(ctx, keys[0], values[0])
		}
		var b flotilla.Batch
		for i := range keys {
			b.Put(keys[i], values[i])
		}
		_, err := t.kv.Write(ctx, &b, flotilla.NonAtomic())
		return err
	})
}

// errorKind names an error for the counts of a bench.
func errorKind(err error) string {
	var noQuorum *flotilla.NoQuorumError
	var overloaded *flotilla.OverloadedError
	switch {
	case errors.As(err, &noQuorum):
		return "no_quorum"
	case errors.As(err, &overloaded), errors.Is(err, flotilla.ErrLogBudget):
		return "overloaded"
	case errors.Is(err, flotilla.ErrAmbiguous):
		return "outcome_unknown"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	if code, _, _ := describe(err); code == exitUnreachable {
		return "unreachable"
	}
	return "other"
}
