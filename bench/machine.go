package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sort"
	"time"
)

// usage is what the process and its disk have used so far.
type usage struct {
	cpu        time.Duration
	rssBytes   int64
	diskBytes  int64
	diskSource string
	// objects and bytes are what was allocated on the heap.
	objects, bytes uint64
}

// usage reads what this process and those that count with it have used.
func (c *Config) usage() usage {
	u := readUsage(c.DataDir)
	for _, pid := range c.Processes {
		cpu, rss := processUsage(pid)
		u.cpu += cpu
		u.rssBytes += rss
	}
	return u
}

// since returns what was used after the earlier reading; the resident memory
// is that of the later one.
func (u usage) since(earlier usage) usage {
	u.cpu -= earlier.cpu
	u.diskBytes -= earlier.diskBytes
	u.objects -= earlier.objects
	u.bytes -= earlier.bytes
	return u
}

// heapAllocs returns the objects and bytes allocated on the heap so far.
func heapAllocs() (objects, bytes uint64) {
	s := [2]metrics.Sample{{Name: "/gc/heap/allocs:objects"}, {Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s[:])
	return s[0].Value.Uint64(), s[1].Value.Uint64()
}

// Machine describes where a run takes place.
type Machine struct {
	Cores                  int
	MemoryMiB              int64
	CPU, OS, FileSystem    string
	FsyncP50Ms, FsyncP99Ms float64
	// Durable reports whether the file system keeps what was synced; a file
	// system in memory does not. It is false when no directory was given.
	Durable bool
	// Load is the one-minute load average before the run, or zero.
	Load   float64
	Commit string
}

// Inspect describes the machine and, if dir is not empty, measures how long a
// sync of four kibibytes takes in that directory.
func Inspect(dir string) (Machine, error) {
	m := Machine{Cores: runtime.NumCPU(), OS: runtime.GOOS + "/" + runtime.GOARCH, Commit: commit()}
	m.CPU, m.MemoryMiB, m.Load = hardware()
	if dir == "" {
		return m, nil
	}
	m.FileSystem, m.Durable = fileSystem(dir)
	var err error
	m.FsyncP50Ms, m.FsyncP99Ms, err = measureFsync(dir)
	return m, err
}

// String returns the description in one line.
func (m Machine) String() string {
	s := fmt.Sprintf("%d cores", m.Cores)
	if m.CPU != "" {
		s += " (" + m.CPU + ")"
	}
	if m.MemoryMiB > 0 {
		s += fmt.Sprintf(", %.1f GiB", float64(m.MemoryMiB)/1024)
	}
	if m.FileSystem != "" {
		s += fmt.Sprintf(", %s, fsync p50 %.2f ms p99 %.2f ms", m.FileSystem, m.FsyncP50Ms, m.FsyncP99Ms)
	}
	return s + ", " + m.OS + ", " + runtime.Version()
}

// Busy reports whether other work on the machine will disturb a measurement.
func (m Machine) Busy() bool { return m.Load > float64(m.Cores)/2 }

func commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	rev, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			rev = s.Value[:min(len(s.Value), 12)]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+changes"
		}
	}
	return rev + dirty
}

const fsyncSamples = 50

func measureFsync(dir string) (p50, p99 float64, err error) {
	f, err := os.Create(filepath.Join(dir, "fsync-probe"))
	if err != nil {
		return 0, 0, fmt.Errorf("measuring fsync: %w", err)
	}
	defer func() {
		f.Close()
		os.Remove(f.Name())
	}()
	block := make([]byte, 4096)
	took := make([]float64, fsyncSamples)
	for i := range took {
		if _, err := f.Write(block); err != nil {
			return 0, 0, fmt.Errorf("measuring fsync: %w", err)
		}
		start := time.Now()
		if err := f.Sync(); err != nil {
			return 0, 0, fmt.Errorf("measuring fsync: %w", err)
		}
		took[i] = float64(time.Since(start).Microseconds()) / 1000
	}
	sort.Float64s(took)
	return took[len(took)/2], took[len(took)-1], nil
}
