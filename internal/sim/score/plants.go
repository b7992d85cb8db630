//go:build mutants

package score

import "slices"

// planted lists all planted bugs in the order of the table.
func planted() []plant {
	return slices.Concat(corePlants(), leasePlants(), nodePlants(), enginePlants(), sessionPlants(), securityPlants(), memberPlants())
}

// enginePlants are planted in the store's engine; its crash tests find them.
func enginePlants() []plant {
	in := func(id, ledger, title, oracle string) plant {
		return tested(id, ledger, title, "engine", "TestMutants", oracle)
	}
	return []plant{
		in("E-ack-unsynced", "H3", "a write is acknowledged before it is synced", "S6"),
		tested("B16", "B16", "a new manifest is not followed by a sync of its directory", "internal/sim/crashpoint", "TestMutants", "S8"),
		tested("E18", "E18", "chunks of a snapshot are not checked", "snapshot", "TestMutants", "S17"),
		in("E-destroy-unsynced", "E5", "data are deleted before the record that makes it legal is synced", "S8"),
		in("E-ingest-unsynced", "E5", "files are ingested before the writes they rest on are synced", "S8"),
		in("E-ingest-keeps-log", "E11", "an install leaves the old log beside the new state", "S18"),
		in("E-no-reopen", "B18", "a fresh store is not opened again: damage in its first log goes unseen", "F1"),
		in("E17", "E17", "an install leaves the rows of before beside the new ones", "S20"),
		in("E-intent-all", "G14", "an intent to destroy deletes what belongs to a live neighbour", "S12"),
	}
}
