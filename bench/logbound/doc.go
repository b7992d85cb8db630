// Package logbound overwrites a constant set of keys for as long as it is told to, in a
// cluster of three nodes to which things happen in turn, and keeps two bounds in every
// sample: what a node's directory takes, and what its Raft logs take. Both are counted
// from outside: as du does, and by reading the logs.
package logbound
