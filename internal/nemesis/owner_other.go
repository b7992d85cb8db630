//go:build !linux

package nemesis

import "net"

// ownerOf cannot tell here: a cut between two nodes cuts the second off from all.
func ownerOf(net.Conn, []int) (pid int, ok bool) { return 0, false }
