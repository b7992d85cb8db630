//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package engine

import (
	"io"
	"os"
	"syscall"
)

// links returns how many names a file has.
func links(info os.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Nlink)
	}
	return 0
}

// allocated returns the bytes of the blocks that a file takes.
func allocated(info os.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int64(st.Blocks) * 512
	}
	return info.Size()
}

// blocksKnown says that allocated counts blocks, not the length.
func blocksKnown(info os.FileInfo) bool {
	_, ok := info.Sys().(*syscall.Stat_t)
	return ok
}

// inode tells files of one file system apart; zero: not known.
func inode(info os.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Ino)
	}
	return 0
}

// lockOwner returns the process that holds the lock of a file; zero: not known.
// This process must not hold it.
func lockOwner(name string) int {
	f, err := os.Open(name)
	if err != nil {
		return 0
	}
	defer f.Close()
	l := syscall.Flock_t{Type: syscall.F_WRLCK, Whence: io.SeekStart}
	if syscall.FcntlFlock(f.Fd(), syscall.F_GETLK, &l) != nil || l.Type == syscall.F_UNLCK {
		return 0
	}
	return int(l.Pid)
}
