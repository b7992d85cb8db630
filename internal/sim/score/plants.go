//go:build mutants

package score

import "slices"

// planted lists all planted bugs in the order of the table.
func planted() []plant {
	return slices.Concat(corePlants(), leasePlants(), nodePlants(), enginePlants(), sessionPlants(), securityPlants(), transportPlants(), rulePlants(), memberPlants(), crashPlants())
}

// enginePlants are planted in the store's engine; its crash tests find them.
func enginePlants() []plant {
	in := func(id, ledger, title, oracle string) plant {
		return tested(id, ledger, title, "engine", "TestMutants", oracle)
	}
	return []plant{
		in("E-ack-unsynced", "H3", "a write is acknowledged before it is synced", "S6"),
		tested("E18", "E18", "chunks of a snapshot are not checked", "snapshot", "TestMutants", "S17"),
		in("E-destroy-unsynced", "E5", "data are deleted before the record that makes it legal is synced", "S8"),
		in("E-ingest-unsynced", "E5", "files are ingested before the writes they rest on are synced", "S8"),
		in("E-ingest-keeps-log", "E11", "an install leaves the old log beside the new state", "S18"),
		in("LR3", "E6", "a log record is deleted though entries of other groups in it count", "S18"),
		in("LR3b", "E6", "a log record is deleted by a batch that may be durable before the cut it rests on", "S18"),
		in("LR4", "E6", "entries are moved out of a record after its deletion", "S18"),
		in("B18", "B18", "a log whose synced end is missing opens as if nothing had happened", "F1"),
		in("B18c", "B18", "a store found amnesiac once opens the next time", "F1"),
		in("E-narrow-kept", "found here", "a narrower snapshot leaves the rows of the wider replica", "S12"),
		in("E-subsumed-stays", "found here", "a replica whose shard became a part of the snapshot's lives on", "S12"),
		in("E-no-reopen", "B18", "a fresh store is not opened again: damage in its first log goes unseen", "F1"),
		in("E-old-format", "B18", "the log is written without sync chunks: damage in the middle of it goes unseen", "F1"),
		in("E-fatalf-returns", "H4", "Pebble goes on after it asked to be killed", "F1"),
		in("E17", "E17", "an install leaves the rows of before beside the new ones", "S20"),
		in("B18f", "B18", "a damaged list of tables is read up to the damage", "S8"),
		in("H12", "H12", "files of a store can be read by other users", "security"),
		in("H-overlap", "found here", "two replicas with the same keys are booted", "S12"),
		in("F1-read-on", "found here", "a node goes on with a disk that cannot be read", "F1"),
		in("E-intent-all", "G14", "an intent to destroy deletes what belongs to a live neighbour", "S12"),
	}
}

// crashPlants are found by crashes at every operation on the disk of scripted
// scenarios.
func crashPlants() []plant {
	in := func(id, ledger, title, oracle string) plant {
		return tested(id, ledger, title, "internal/sim/crashpoint", "TestMutants", oracle)
	}
	return []plant{
		in("B15b", "B15", "messages that rest on the disk leave with the rest", "S6"),
		in("B16", "B16", "a new manifest is not followed by a sync of its directory", "S8"),
		in("B16b", "B16", "a new directory is not synced into its parent", "S8"),
		in("B18b", "B18", "the watermark runs ahead of what is synced", "F1"),
		in("D14f", "D14", "the boot epoch is not durable before it is used", "S14"),
		in("E5", "E5", "log entries are deleted before the record that makes it legal", "S18"),
		in("E5b", "E5", "staged files of a snapshot are not synced before they count", "S8"),
		in("E11", "E11", "the log of before survives an install", "S18"),
		in("E13", "E13", "the descriptor is there before the state it describes", "S12"),
		in("F2c", "F2", "the applied index and what it covers are written one after the other", "S8"),
		in("H3", "H3", "syncs are left to a timer", "S6"),
		in("H4", "H4", "a failed sync is tried again and believed", "S6"),
		in("E-destroy-first", "E5", "a replica's data goes before its tombstone", "S8"),
		in("E-intent-early", "G14", "the intent to destroy is forgotten before it is carried out", "L5"),
	}
}
