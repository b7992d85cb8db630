// Package backup copies a cluster's shards to a store of objects (a directory, a
// bucket) and writes them back into a cluster of any shape.
//
// # What flows
//
//	Create   Source.Shards, then per shard: Source.Open, Cut.Next page by page,
//	         cutter (chunk.go), Store.Put of each chunk that is not there;
//	         the manifest last
//	Verify   Store.Get of the manifest and of every chunk it names
//	Restore  Store.Get, check, Target.Write, many chunks at a time
//
// # One moment per shard
//
// A Cut is one state of one shard, and the manifest says which: the index and
// term applied last, and the group's time. The shards of one backup are cut one
// after the other, so a backup is not one moment of the whole key space; nothing
// in Flotilla writes to two shards atomically.
//
// # Chunks
//
// A chunk holds neighbouring pairs of one shard and is named by the SHA-256 of
// its bytes. Where a chunk ends depends on the keys and sizes of its pairs alone,
// so that what did not change gives the same chunks in the next backup, which
// then are there already. That is all there is to an incremental backup: each is
// complete by itself, and none depends on another one's manifest. Cutting by
// content is from the low-bandwidth file system (Muthitacharoen, Chen, Mazieres,
// SOSP 2001); here the boundary is chosen by a hash of a key instead of a window
// of bytes.
//
// # Objects
//
//	chunks/<two digits>/<SHA-256>   a chunk
//	backups/<id>                    a manifest: a line with its SHA-256, then JSON
//
// A manifest is written when all its chunks are stored, by one atomic Put: a
// backup that was interrupted leaves chunks, which the next one uses, and nothing
// that List shows.
//
// # Goroutines and locks
//
// Create, Verify and Restore start Options.Parallel goroutines each and wait for
// them. Progress may be read meanwhile. Nothing else is shared.
package backup
