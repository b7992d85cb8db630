package logbound

import (
	"io/fs"
	"path/filepath"
	"strings"
)

// du fills in what the files and directories below dir take on the disk. Files that go
// while it counts do not count.
func du(dir string, s *Sample) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		n := taken(info)
		s.Disk += n
		rel, _ := filepath.Rel(dir, path) // it is below dir
		switch {
		case d.IsDir():
		case strings.HasPrefix(rel, "staging"):
			s.Staging += n
		case strings.HasSuffix(rel, ".log"):
			s.WALs += n
		case strings.HasSuffix(rel, ".sst"):
			s.Tables += n
		}
		return nil
	})
}
