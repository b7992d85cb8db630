//go:build !linux

package bench

// readUsage measures nothing on this system, and says so.
func readUsage(string) usage { return usage{diskSource: "not measured on this system"} }

func hardware() (cpu string, memoryMiB int64, load float64) { return "", 0, 0 }

func fileSystem(string) (name string, durable bool) { return "", true }
