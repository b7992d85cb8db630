package flotilla

// Halt ends the node's work at once, as a power cut would: from here on nothing
// that it writes is acknowledged to anybody. Close or Kill has to follow. For
// tests of crashes.
func (n *Node) Halt() {
	if n.host != nil {
		n.host.Halt()
	}
}
