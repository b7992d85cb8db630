// Package backup copies a cluster's shards to a store of objects (a directory, a
// bucket) and writes them back into a cluster of any shape.
//
// # What flows
//
//	Create   Source.Shards, then per shard: Source.Open, Cut.Next page by page,
//	         cutter (chunk.go), Store.Put of each chunk that is not there;
//	         the manifest last
//	Take     Create for some shards
//	Verify   Store.Get of the manifest and of every chunk it names
//	Restore  Store.Get, check, Target.Write, many chunks at a time
//	Prune    Store.List, Store.Delete: old manifests, then chunks that none names
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
//	snapshots/<id>                  the same, of some shards
//
// A manifest is written when all its chunks are stored, by one atomic Put: a
// backup that was interrupted leaves chunks, which the next one uses, and nothing
// that List shows.
//
// # Who may work at the same time
//
// Backups share a place. A prune must be alone: a backup that is being made relies on
// chunks that no manifest names yet. They keep apart by locks, which are objects too
// (lock.go). Prune removes manifests before chunks, so that what is listed is whole
// wherever it stops. Before its manifest, Create makes sure that all chunks are there.
//
// # Goroutines and locks
//
// Create, Verify, Restore and Prune start Options.Parallel goroutines each and wait
// for them, and Create and Prune one that renews their lock. Progress may be read meanwhile. Nothing else is shared.
package backup
