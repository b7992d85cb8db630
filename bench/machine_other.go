//go:build !linux

package bench

import (
	"os"
	"time"
)

// readUsage measures next to nothing on this system, and says so.
func readUsage(string) usage {
	u := usage{diskSource: "not measured on this system"}
	u.objects, u.bytes = heapAllocs()
	return u
}

func processUsage(int) (cpu time.Duration, rssBytes int64) { return 0, 0 }

func hardware() (cpu string, memoryMiB int64, load float64) { return "", 0, 0 }

func fileSystem(string) (name string, durable bool) { return "", true }

// Blocks returns the length of a file: blocks are not known on this system.
func Blocks(info os.FileInfo) int64 { return info.Size() }

// Resident is not known on this system.
func Resident() int64 { return 0 }

// Available is not known on this system.
func Available() int64 { return 0 }

// LoopbackBytes is not known on this system.
func LoopbackBytes() int64 { return 0 }

// ProcessBytes is not known on this system.
func ProcessBytes() int64 { return 0 }

// CPUTime is not known on this system.
func CPUTime() time.Duration { return 0 }
