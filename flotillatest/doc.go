// Package flotillatest runs a whole cluster inside one test: real nodes with
// real engines, on a network in this process and on file systems in memory that
// know what a power cut leaves behind. It is for tests of programs that embed
// Flotilla, and Flotilla tests itself with it.
//
//	c := flotillatest.NewCluster(t, 3, flotillatest.WithShards(8))
//	c.KV().Put(ctx, key, value)
//	c.Kill(0)      // the process is gone; what it had written is there
//	c.Restart(0)
//	c.PowerLoss()  // all machines; what was not synced is gone
//	c.Partition([]int{0}, []int{1, 2})
//	c.Heal()
//	c.AwaitCaughtUp()
//
// Nodes are numbered from 0; node i has the id i+1 and, on the network, the
// address "n<id>".
//
// # What a crash is
//
// Kill and PowerLoss first hold back all syncs of the node's file system, then
// take its image (as of that moment), then stop the node, and only then let the
// held syncs return. So nothing that was acknowledged to anybody, within the
// node or outside, rests on a sync that the image does not hold; and the node
// that comes back knows no more than a machine would after a real crash.
//
// The cluster's faults are drawn from one seed (WithSeed); goroutines are
// scheduled as they like, so that two runs of a seed differ in detail.
//
// All goroutines belong to the nodes and to the cluster's client; both are gone
// when the test has ended. CheckLeaks proves it.
package flotillatest
