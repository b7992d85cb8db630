// Package flotilla is a durable, replicated, range-sharded key-value store to
// be embedded: many Raft groups, one per shard, share one Pebble on every node,
// one gRPC stream joins every pair of nodes, and a router maps keys to shards.
//
//	node, err := flotilla.Open(ctx, flotilla.Options{Dir: dir}) // a durable store on this machine
//	_, err = node.Put(ctx, []byte("user/1"), []byte("ada"))
//	v, err := node.Get(ctx, []byte("user/1"))
//	err = node.Close()
//
// The same interface, KV, is served by an embedded Node, by a Client of a remote
// cluster (Dial), and by the in-process test cluster of package flotillatest.
//
// # Promises
//
// A write that was acknowledged is on stable storage of a majority of its
// shard's voters. Reads are linearizable by default. A batch or transaction
// within one shard is atomic; one that spans shards is refused unless the caller
// gives atomicity up. Every error tells whether the write may have happened
// (Outcome).
//
// A lost answer leaves the outcome of a write unknown (ErrAmbiguous). In a Session
// (Node.NewSession, Client.NewSession) such a write is tried again and takes effect
// exactly once.
//
// A goroutine that wants many calls under way starts them at a Pipeline
// (KV.NewPipeline) and receives them when they are over.
//
// Every call takes a context; no deadline is needed (Options.Timeout applies).
// Key and value slices are copied, both ways. Nothing global is touched: no
// signal handler, flag, default logger or default registry, and no goroutine is
// left after Close.
package flotilla
