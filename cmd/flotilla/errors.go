package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/flotillakv/flotilla"
)

// Exit codes, the same for every command.
const (
	exitOK          = 0
	exitFailed      = 1 // something went wrong that has no code of its own
	exitUsage       = 2 // a command line, file or value that cannot be right
	exitNotFound    = 3 // the key, shard or node does not exist
	exitUnreachable = 4 // no node answers, or no quorum; nothing was applied
	exitConflict    = 5 // refused because of the state: another version, another cluster's data, overload
	exitUnknown     = 6 // a write whose outcome is unknown
)

// cliError is an error with the exit code it leads to. Text is one sentence;
// Try, if any, is the next step, as a command where possible.
type cliError struct {
	code  int
	text  string
	try   string
	cause error
	shown bool // everything was said already
}

func (e *cliError) Error() string { return e.text }
func (e *cliError) Unwrap() error { return e.cause }

func usageError(format string, args ...any) *cliError {
	return &cliError{code: exitUsage, text: fmt.Sprintf(format, args...)}
}

func failure(code int, cause error, try, format string, args ...any) *cliError {
	return &cliError{code: code, text: fmt.Sprintf(format, args...), try: try, cause: cause}
}

// reachError says that no connection could be made.
func reachError(addrs []string, err error) error {
	code, text, _ := describe(err)
	if code == exitFailed {
		code = exitUnreachable
	}
	try := "check that the nodes run and that --addr names client addresses; a local cluster: flotilla dev"
	if code != exitUnreachable {
		try = ""
	}
	return failure(code, err, try, "cannot connect to %s: %s", strings.Join(addrs, ", "), text)
}

// describe returns the exit code of an error, a sentence, and what to try.
func describe(err error) (code int, text, try string) {
	text = err.Error()
	for _, pkg := range []string{"flotilla: ", "engine: ", "transport: "} {
		text = strings.TrimPrefix(text, pkg)
	}
	var (
		own         *cliError
		partial     *flotilla.PartialError
		conflict    *flotilla.ConflictError
		noQuorum    *flotilla.NoQuorumError
		unavailable *flotilla.UnavailableError
		notLeader   *flotilla.NotLeaderError
		epoch       *flotilla.EpochError
		overloaded  *flotilla.OverloadedError
		limit       *flotilla.LimitError
		argument    *flotilla.ArgumentError
		cross       *flotilla.CrossShardError
		option      *flotilla.OptionError
		open        *flotilla.OpenError
		join        *flotilla.JoinError
		refused     *flotilla.RefusedError
		membership  *flotilla.MembershipError
	)
	switch {
	case errors.As(err, &own):
		return own.code, text, own.try
	case errors.As(err, &membership):
		if membership.Unfinished {
			return exitUnreachable, text, "the same command again; a larger --timeout; flotilla cluster status"
		}
		return exitConflict, text, "flotilla cluster status"
	case errors.Is(err, flotilla.ErrAmbiguous), errors.As(err, &partial):
		return exitUnknown, text, ""
	case errors.As(err, &conflict):
		return exitConflict, text, "flotilla kv get KEY -o json shows the present version"
	case errors.Is(err, flotilla.ErrDiskFull):
		return exitConflict, text, "flotilla cluster status"
	case errors.As(err, &overloaded), errors.Is(err, flotilla.ErrLogBudget), errors.As(err, &open), errors.As(err, &join):
		return exitConflict, text, ""
	case errors.As(err, &limit), errors.As(err, &argument), errors.As(err, &cross), errors.As(err, &option):
		return exitUsage, text, ""
	case errors.Is(err, flotilla.ErrNotFound):
		return exitNotFound, text, ""
	case errors.As(err, &noQuorum), errors.As(err, &unavailable), errors.As(err, &notLeader), errors.As(err, &epoch),
		errors.Is(err, flotilla.ErrClosed):
		return exitUnreachable, text, "flotilla cluster status"
	case errors.As(err, &refused):
		return exitConflict, text, ""
	case errors.Is(err, context.DeadlineExceeded):
		return exitUnreachable, "no answer in time: " + text, "a larger --timeout, or flotilla cluster status"
	case errors.Is(err, context.Canceled):
		return exitFailed, "interrupted", ""
	case errors.Is(err, syscall.EADDRINUSE):
		return exitFailed, text, "another address, or stop the process that holds this one"
	case errors.Is(err, fs.ErrPermission):
		return exitFailed, text, "another directory, or change its owner"
	}
	return exitFailed, text, ""
}

// report prints an error to standard error and returns the exit code.
func (a *app) report(err error) int {
	code, text, try := describe(err)
	var own *cliError
	if errors.As(err, &own) && own.shown {
		return code
	}
	if a.json() {
		b, _ := json.Marshal(struct {
			Error string `json:"error"`
			Code  int    `json:"exit_code"`
			Try   string `json:"try,omitempty"`
		}{text, code, try})
		fmt.Fprintf(a.errOut, "%s\n", b)
		return code
	}
	if code == exitUnknown {
		text += " (exit 6)"
	}
	fmt.Fprintf(a.errOut, "%s %s\n", a.colour(a.errTTY, red, "error:"), text)
	if try != "" {
		fmt.Fprintf(a.errOut, "  try: %s\n", try)
	}
	return code
}
