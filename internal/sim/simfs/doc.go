// Package simfs is a file system in memory that knows what would survive a
// power cut. It implements Pebble's vfs.FS.
//
// Each file has a durable image and the list of writes since its last sync;
// each directory has its durable entries and the list of changes since its
// last sync. A file's sync does not make its name durable: only a sync of the
// directory does. From these, Image builds the file system that a machine
// would find after a crash, in one of several modes: nothing unsynced
// survived, everything did, a prefix per file and directory did, the last
// surviving write is torn, names survived independently of each other, a file is
// longer than what was written of it, blocks or writes survived in any order.
// What survives is a pure hash of a seed, the number of the image, the class
// of the file (log, manifest, ...) and its rank in the class, so that an image
// does not depend on how files happen to be numbered.
//
// Hooks see every sync before and after it (to crash there) and every
// operation (to make it fail). Crash freezes a running file system: whatever
// its user does afterwards fails. Record keeps every change in a Journal, from
// which the images of a crash before any of them can be made later. SetFaults
// makes chosen operations fail, lie or damage what they carry; SetSpace fills
// the disk.
//
// One mutex guards the whole tree; it is not held while hooks run. The package
// starts no goroutine. The idea, and the faults it is made for, come from
// Pebble's MemFS and from ALICE (Pillai et al., OSDI 2014), which showed how
// few programs survive all states their writes may leave behind.
package simfs
