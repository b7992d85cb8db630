package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// readUsage reads CPU time from getrusage, resident memory from /proc, and
// bytes written from the block device that holds dir: the device counts the
// journal of the file system and everything else that reaches it, which the
// counters of the process miss. Where dir is on no block device, it falls back
// to what the process handed to the kernel, and says so in diskSource.
func readUsage(dir string) usage {
	var u usage
	u.objects, u.bytes = heapAllocs()
	u.cpu = CPUTime()
	u.rssBytes = Resident()
	switch n, name, ok := deviceBytes(dir); {
	case dir == "":
		u.diskSource = "not measured: the data is elsewhere"
	case ok:
		u.diskBytes, u.diskSource = n, "device "+name
	default:
		u.diskBytes, u.diskSource = processBytes(), "this process: no block device found"
	}
	return u
}

// ticksPerSecond is the unit of /proc/PID/stat, which is the same on all systems.
const ticksPerSecond = 100

// processUsage reads CPU time, in steps of ten milliseconds, and resident memory
// of another process. Zero if there is none.
func processUsage(pid int) (cpu time.Duration, rssBytes int64) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	// The name, in parentheses, may hold anything; fields are counted from its end.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 22 {
		return 0, 0
	}
	number := func(i int) int64 {
		n, _ := strconv.ParseInt(string(f[i]), 10, 64)
		return n
	}
	return time.Duration(number(11)+number(12)) * time.Second / ticksPerSecond, number(21) * int64(os.Getpagesize())
}

func deviceBytes(dir string) (n int64, name string, ok bool) {
	var st syscall.Stat_t
	if dir == "" || syscall.Stat(dir, &st) != nil {
		return 0, "", false
	}
	major := st.Dev>>8&0xfff | st.Dev>>32&^0xfff
	minor := st.Dev&0xff | st.Dev>>12&^0xff
	link := fmt.Sprintf("/sys/dev/block/%d:%d", major, minor)
	b, err := os.ReadFile(link + "/stat")
	if err != nil {
		return 0, "", false
	}
	f := bytes.Fields(b)
	if len(f) < 7 {
		return 0, "", false
	}
	sectors, err := strconv.ParseInt(string(f[6]), 10, 64)
	if err != nil {
		return 0, "", false
	}
	name = link
	if real, err := filepath.EvalSymlinks(link); err == nil {
		name = filepath.Base(real)
	}
	return sectors * 512, name, true // the kernel's sectors have 512 bytes
}

// ProcessBytes returns how many bytes this process had written to block devices; zero
// where that is not known.
func ProcessBytes() int64 { return processBytes() }

func processBytes() int64 {
	v, _ := field("/proc/self/io", "write_bytes:")
	n, _ := strconv.ParseInt(v, 10, 64)
	return n
}

func hardware() (cpu string, memoryMiB int64, load float64) {
	cpu, _ = field("/proc/cpuinfo", "model name")
	cpu = strings.TrimSpace(strings.TrimPrefix(cpu, ":"))
	if v, ok := field("/proc/meminfo", "MemTotal:"); ok {
		kib, _ := strconv.ParseInt(strings.TrimSuffix(v, " kB"), 10, 64)
		memoryMiB = kib / 1024
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		first, _, _ := strings.Cut(string(b), " ")
		load, _ = strconv.ParseFloat(first, 64)
	}
	return cpu, memoryMiB, load
}

// field returns what follows a name at the start of a line of a file.
func field(path, name string) (string, bool) {
	f, err := os.Open(path)
	if err != nil {
		return "", false
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), name); ok {
			return strings.TrimSpace(v), true
		}
	}
	return "", false
}

// fileSystem names the file system that holds dir and reports whether a sync
// on it reaches a disk.
func fileSystem(dir string) (name string, durable bool) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return "", false
	}
	switch uint32(st.Type) {
	case 0x01021994:
		return "tmpfs", false
	case 0x858458f6:
		return "ramfs", false
	case 0xef53:
		return "ext4", true
	case 0x58465342:
		return "xfs", true
	case 0x9123683e:
		return "btrfs", true
	case 0x2fc12fc1:
		return "zfs", true
	case 0x794c7630:
		return "overlayfs", true
	}
	return fmt.Sprintf("file system %#x", uint32(st.Type)), true
}

// Blocks returns the bytes of the blocks that a file takes.
func Blocks(info os.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}

// Resident returns the resident memory of this process in bytes, or zero where
// that is not known.
func Resident() int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if f := bytes.Fields(b); err == nil && len(f) > 1 {
		pages, _ := strconv.ParseInt(string(f[1]), 10, 64)
		return pages * int64(os.Getpagesize())
	}
	return 0
}

// Available returns the memory in bytes that processes can still have without
// others having to give some up, or zero where that is not known.
func Available() int64 {
	v, _ := field("/proc/meminfo", "MemAvailable:")
	kib, _ := strconv.ParseInt(strings.TrimSuffix(v, " kB"), 10, 64)
	return kib << 10
}

// LoopbackBytes returns the bytes that all processes of the machine have sent
// over the loopback interface, or zero where that is not known.
func LoopbackBytes() int64 {
	v, _ := field("/proc/net/dev", "    lo:")
	f := strings.Fields(v)
	if len(f) < 9 {
		return 0
	}
	n, _ := strconv.ParseInt(f[8], 10, 64)
	return n
}

// CPUTime returns the processor time this process has taken, or zero where that is
// not known.
func CPUTime() time.Duration {
	var ru syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &ru) != nil {
		return 0
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}
