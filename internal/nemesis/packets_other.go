//go:build !linux

package nemesis

import "errors"

func packetsPossible() error {
	return errors.New("network namespaces exist on Linux only; run this without --netns")
}

func newPackets(int) (fabric, error) { return nil, packetsPossible() }
