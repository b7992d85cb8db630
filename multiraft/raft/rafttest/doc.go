// Package rafttest runs scenarios for package raft that read like a trace: a
// file of testdata holds commands for a small cluster of cores, comments that
// tell the story, and what the cores did in answer. `go test -rewrite` writes
// the answers anew; a changed line has to be explained in its commit.
//
// A scenario is a list of blocks, separated by empty lines:
//
//	# A comment.
//	command argument...
//	----
//	what happened, one line per event
//
// Nothing happens by itself: messages lie in a queue and batches in the nodes'
// disk caches until a command moves them ("frame" moves what is there now,
// "settle" moves everything until it is quiet), and time stands still between
// "wait" commands. Env documents the commands.
package rafttest
