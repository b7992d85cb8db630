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
