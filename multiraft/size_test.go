package multiraft

import (
	"testing"
	"unsafe"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// allocated returns what Go takes for an object of n bytes that holds pointers.
func allocated(n uintptr) int {
	if n > 512 {
		n += 8 // says where they are
	}
	return cap(append([]byte(nil), make([]byte, n)...))
}

// TestAwakeBytes: what a replica of a group of three takes while it is awake, but for its
// log and what is under way, stays within 2 KiB.
func TestAwakeBytes(t *testing.T) {
	core, peer := raft.CoreBytes()
	desc := allocated(unsafe.Sizeof(raft.Descriptor{})) + allocated(3*unsafe.Sizeof(raft.Replica{})) + 2*allocated(16) // and two keys
	parts := []int{allocated(unsafe.Sizeof(replica{})), allocated(core), allocated(3 * peer), allocated(unsafe.Sizeof(standing{})), desc}
	sum := 0
	for _, n := range parts {
		sum += n
	}
	t.Logf("%d bytes: replica, core, its members, what others see, descriptor: %v", sum, parts)
	if sum > 2<<10 {
		t.Errorf("%d bytes", sum)
	}
}
