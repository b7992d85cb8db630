//go:build mutants

package score

// memberPlants are planted in the runtime's membership; its own scenarios find them.
func memberPlants() []plant {
	in := func(id, ledger, title, oracle string) plant {
		return tested(id, ledger, title, "multiraft", "TestMembershipMutants", oracle)
	}
	return []plant{
		in("C5", "C5", "a replica's own removal is applied and not written", "S10"),
		in("C5b", "C5", "a removal is told as durable before it is", "S10"),
		in("C6b", "C6", "a leader that is to go does not hand over first", "S10"),
		in("C9", "C9", "a snapshot's configuration is on the disk and not in memory", "S10"),
		in("C10", "C10", "the last voter may be removed", "F2"),
		in("C11", "C11", "a learner that lags is given a vote", "L1"),
		in("C13", "C13", "of two configurations the one heard of last counts as the newest", "S10"),
		in("C15", "C15", "the removal of a replica that is not there is proposed", "F2"),
		in("C18", "C18", "a new replica begins as a voter", "L1"),
		in("F6", "F6", "who waits for a replica that is destroyed is not answered", "L1"),
		in("F7", "F7", "messages are written for a replica that was destroyed", "S11"),
		in("G11", "G11", "a removed replica forgets at a restart who it was", "S11"),
		in("G11b", "G11", "a removed replica goes while others need its vote", "L1"),
		in("G12", "G12", "the tombstone lets the replica come back under its id", "S11"),
		in("G12b", "G12", "a late message is not held against the tombstone", "S11"),
		in("G13", "G13", "a snapshot is installed while the old replica is being destroyed", "S11"),
		in("G14", "G14", "destruction leaves log records", "L5"),
		in("G15", "G15", "a removed replica's state is left behind at a restart", "L5"),
		in("G15b", "G15", "a destroyed replica is created again with the cluster's first shards", "S11"),
	}
}
