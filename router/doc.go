// Package router finds the shard of a key and the leader of a shard, and
// carries a request there.
//
// It has two halves. Table is a pure cache of descriptors with leader hints:
// lock-free to read, merged by version. Router is the retry loop around it: it
// looks a key up, sends the request to the node it believes to lead, and lets
// the reply correct it (error replies carry descriptors and leader hints, so
// one round trip heals a stale table); the catalog is asked only for ranges
// the table does not hold.
//
// The same Router serves an embedded node, the front door of a server and a
// remote client. They differ in the Sender they hand in.
package router
