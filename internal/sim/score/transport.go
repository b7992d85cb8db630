//go:build mutants

package score

// transportPlants are planted where messages, heartbeats and snapshots travel and
// wait; ordinary tests of those packages find them, those of the transport in
// virtual time.
func transportPlants() []plant {
	in := func(id, ledger, title, tests, oracle string) plant {
		return failing(id, ledger, title, "transport", tests, oracle)
	}
	return []plant{
		in("E16", "E16", "a receiver stops reading in the midst of a snapshot and does not say so", "^TestBubble", "F2"),
		in("H6", "H6", "a queue that is half full takes no heartbeats", "^TestBubble", "L1"),
		in("H7", "H7", "heartbeats queue behind bulk data", "^TestBubble", "L2"),
		in("H8", "H8", "a peer that could not be reached a few times is given up", "^TestBubble", "L3"),
		in("H9", "H9", "the goroutine that watches a stream outlives it", "^TestBubble", "S19"),
		failing("H10", "H10", "messages that a loop does not get to pile up", "multiraft", "^TestInboxBounds$", "S19"),
	}
}
