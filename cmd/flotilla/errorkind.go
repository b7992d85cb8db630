package main

import (
	"context"
	"errors"

	"github.com/flotillakv/flotilla"
)

// errorKind names an error for the counts of a bench.
func errorKind(err error) string {
	var noQuorum *flotilla.NoQuorumError
	var overloaded *flotilla.OverloadedError
	switch {
	case errors.As(err, &noQuorum):
		return "no_quorum"
	case errors.As(err, &overloaded), errors.Is(err, flotilla.ErrLogBudget):
		return "overloaded"
	case errors.Is(err, flotilla.ErrDiskFull):
		return "disk_full"
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
