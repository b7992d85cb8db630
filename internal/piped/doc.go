// Package piped is a flotilla.KV whose single operations go through one Pipeline,
// so that a test of calls that wait is one of pipelines as well: callers at the
// same time have calls under way in the same pipeline, with contexts of their own.
//
// Goroutines: a KV owns one, which receives and hands each call to its caller;
// Close ends it.
package piped
