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
// remote client. They differ in the Sender they hand in. A router asks nodes
// with Request.Hop = shard.MaxHops, which means: answer yourself or say who
// can. A front door therefore serves such requests locally and hands those of
// a lower Hop to its node's router (Router.Do); nothing is forwarded twice.
//
// Files: table.go (the cache), retry.go (whom to ask next and when to stop, a
// pure step function), router.go (the loop around it), lookup.go (misses),
// space.go (the operations of a client), batch.go (writes over several shards),
// pipeline.go (many operations of one caller under way).
package router
