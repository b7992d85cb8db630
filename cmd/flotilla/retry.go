package main

import (
	"context"
	"errors"
	"time"

	"github.com/flotillakv/flotilla"
)

const (
	retryFirst = 20 * time.Millisecond
	retryMax   = time.Second
)

// retry repeats an idempotent action, each attempt under the time limit per, as
// long as its error may pass by itself (a leader lost, overload, an outcome
// unknown) and the first of these errors is less than patience ago. It returns
// the last error.
func retry(ctx context.Context, per, patience time.Duration, action func(ctx context.Context) error) error {
	var since time.Time
	pause := retryFirst
	for {
		attempt, cancel := context.WithTimeout(ctx, per)
		err := action(attempt)
		cancel()
		if err == nil || ctx.Err() != nil || !passing(err) {
			return err
		}
		if since.IsZero() {
			since = time.Now()
		} else if time.Since(since) > patience {
			return err
		}
		wait := pause
		if over := new(flotilla.OverloadedError); errors.As(err, &over) {
			wait = max(wait, over.RetryAfter)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
		pause = min(2*pause, retryMax)
	}
}

// passing reports whether an error may be gone at the next attempt.
func passing(err error) bool {
	if over := new(flotilla.OverloadedError); errors.As(err, &over) || errors.Is(err, flotilla.ErrLogBudget) {
		return true
	}
	code, _, _ := describe(err)
	return code == exitUnreachable || code == exitUnknown
}
