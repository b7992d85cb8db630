// Package e2e tests the flotilla command as a user meets it: it builds the binary
// once and drives real processes on loopback sockets and real directories, kills
// them, and compares what comes out with what went in.
//
// go test ./e2e runs the short form on generated records. The long form takes
// more rounds, also runs the demo, and imports files of one's own:
//
//	go test ./e2e -run 'Import|Demo' -long -rounds 3 -files words.tsv,packages.tsv
//
// A file holds one record per line: a key without a tab, one tab, a value; no key
// twice.
package e2e
