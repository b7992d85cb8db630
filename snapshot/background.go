package snapshot

// aside runs f on a goroutine of its own; the channel gives what it returns. Whoever
// gets the channel waits for it.
func aside[T any](f func() T) <-chan T {
	done := make(chan T, 1)
	go func() { done <- f() }()
	return done
}
