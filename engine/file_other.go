//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package engine

import "os"

func lockOwner(string) int { return 0 }

func allocated(info os.FileInfo) int64 { return info.Size() }

func blocksKnown(os.FileInfo) bool { return false }

func inode(os.FileInfo) uint64 { return 0 }

func links(os.FileInfo) int { return 0 } // not known
