// Package house holds no code, only the tests that hold the house up: which
// package may import which, what an embedder links, what pure packages keep
// away from, and that every exported name says what it is.
package house
