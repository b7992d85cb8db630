//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package logbound

import (
	"io/fs"
	"syscall"
)

// taken returns the bytes of the blocks that a file takes.
func taken(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int64(st.Blocks) * 512
	}
	return info.Size()
}
