package flotillatest

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"
)

// CheckLeaks fails the test if, at its end, goroutines of Flotilla or its
// storage engine run that did not run when CheckLeaks was called. Call it before
// NewCluster. It is of no use in tests that run in parallel with others.
func CheckLeaks(t testing.TB) {
	t.Helper()
	before := goroutines()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		var left []string
		for d := time.Millisecond; ; d = min(2*d, 100*time.Millisecond) {
			left = left[:0]
			for id, stack := range goroutines() {
				if _, ok := before[id]; !ok {
					left = append(left, stack)
				}
			}
			if len(left) == 0 {
				return
			}
			if ctx.Err() != nil {
				t.Errorf("flotillatest: %d goroutines are left:\n\n%s", len(left), strings.Join(left, "\n\n"))
				return
			}
			pause(ctx, d)
		}
	})
}

// goroutines returns the stacks of our goroutines, by id.
func goroutines() map[string]string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	out := map[string]string{}
	for i, stack := range strings.Split(string(buf), "\n\n") {
		id, _, ok := strings.Cut(strings.TrimPrefix(stack, "goroutine "), " ")
		if !ok || i == 0 || strings.Contains(stack, "testing.tRunner") { // the first is this one
			continue
		}
		// A store that failed is not closed, and Pebble tries its compactions again for as long
		// as the process lives, each time with a new goroutine: that is no leak of this test.
		if strings.Contains(stack, "(*Engine).eventListener") && strings.Contains(stack, "time.Sleep(") {
			continue
		}
		if strings.Contains(stack, "flotillakv/flotilla") || strings.Contains(stack, "cockroachdb/pebble") {
			out[id] = stack
		}
	}
	return out
}
