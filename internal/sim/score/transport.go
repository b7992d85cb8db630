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
		in("B18e", "B18", "a copy of a store that reaches the boot epoch of the original gets in", "^TestInboundForks$", "F1"),
		in("E16", "E16", "a receiver stops reading in the midst of a snapshot and does not say so", "^TestBubble", "F2"),
		in("F9c", "F9", "after a break, writes that were sent pass for not sent", "^TestClientStartConnectionLost$", "S16"),
		in("H6", "H6", "a queue that is half full takes no heartbeats", "^TestBubble", "L1"),
		in("H7", "H7", "heartbeats queue behind bulk data", "^TestBubble", "L2"),
		in("H8", "H8", "a peer that could not be reached a few times is given up", "^TestBubble", "L3"),
		in("H9", "H9", "the goroutine that watches a stream outlives it", "^TestBubble", "S19"),
		failing("D12", "D12", "a loop that stands still passes for alive", "multiraft", "^TestB0_C4$", "L1"),
		failing("E1", "E1", "a snapshot of nothing is built and sent", "snapshot", "^TestNothingApplied$", "S17"),
		failing("E3", "E3", "a snapshot that was overtaken while it came in is installed", "multiraft", "^TestInstallNotNeeded$", "S4"),
		failing("E2", "E2", "after a restart what came half passes for whole", "snapshot", "^TestReceiverRestartsInTheMiddle$", "S17"),
		failing("E-same-sum", "found here", "a chunk with the same checksum as one that came before is taken for the same", "snapshot", "^TestSameSum", "S17"),
		failing("E-cut-forgets", "found here", "what came of a cut snapshot is sent again by the next one", "snapshot", "^TestTenCuts$", "L3"),
		failing("G16", "G16", "a member confirms a formation that is not on its disk", ".", "^Test(Formation|Gather)", "F2"),
		failing("G16b", "G16", "a node without a disk forms a second cluster of the first one's members", ".", "^Test(Formation|Gather)", "S1"),
		failing("H2", "H2", "a store on a full disk neither opens nor says why", "engine", "^TestFullDisk$", "F1"),
		failing("H2b", "H2", "a flush that finds no space is the end of the node", "engine", "^TestFullDisk$", "L3"),
		tested("H-backup-early", "found here", "a backup is listed before all of it is there", "snapshot/backup", "TestMutants", "S17"),
		tested("H-backup-tail", "found here", "the last chunk of a shard is not stored", "snapshot/backup", "TestMutants", "S17"),
		tested("H-backup-unchecked", "found here", "chunks of a backup are not checked", "snapshot/backup", "TestMutants", "S17"),
		tested("H-backup-short", "found here", "an object of another size is taken for the chunk that is wanted", "snapshot/backup", "TestMutants", "S17"),
		tested("H-prune-alone", "found here", "a prune does not wait for a backup that is being made", "snapshot/backup", "TestMutants", "S17"),
		tested("H-prune-order", "found here", "a prune removes chunks before the backups that name them", "snapshot/backup", "TestMutants", "S17"),
		tested("H-prune-snapshots", "found here", "a prune removes chunks that a snapshot names", "snapshot/backup", "TestMutants", "S17"),
		tested("H-cut-moves", "found here", "a backup reads a shard at several moments", ".", "TestBackupMutants", "S17"),
		tested("H-cut-stale", "found here", "a cut is taken without asking how far the shard is", ".", "TestBackupMutants", "S17"),
		tested("E-check-blocks", "found here", "flotilla check does not read the blocks of tables", "engine", "TestCheckMutants", "F1"),
		tested("E-check-wal", "found here", "flotilla check does not read the write-ahead log", "engine", "TestCheckMutants", "F1"),
		tested("E-check-mark", "found here", "flotilla check passes a log that ends before what was durable", "engine", "TestCheckMutants", "F1"),
		tested("E-check-tomb", "found here", "flotilla check passes a replica that was removed", "engine", "TestCheckMutants", "F1"),
		tested("E-check-gap", "found here", "flotilla check passes a log with a gap", "engine", "TestCheckMutants", "F1"),
		tested("E-check-entry", "found here", "flotilla check does not look into entries", "engine", "TestCheckMutants", "F1"),
		tested("E-check-term", "found here", "flotilla check passes terms that go back", "engine", "TestCheckMutants", "F1"),
		tested("E-check-overlap", "found here", "flotilla check passes shards that overlap", "engine", "TestCheckMutants", "F1"),
		tested("E-check-stray", "found here", "flotilla check passes keys of nobody", "engine", "TestCheckMutants", "F1"),
		tested("E-check-session", "found here", "flotilla check does not look at sessions", "engine", "TestCheckMutants", "F1"),
		tested("E-check-value", "found here", "flotilla check does not look at values", "engine", "TestCheckMutants", "F1"),
		tested("E-check-writes", "found here", "flotilla check writes to what it checks", "engine", "TestCheckMutants", "F1"),
		tested("IG1", "found here", "replicas that differ are said to agree", "multiraft", "TestIntegrityMutants", "S20"),
		tested("IG2", "found here", "less than a majority decides who is wrong", "multiraft", "TestIntegrityMutants", "S20"),
		tested("IG3", "found here", "a damaged table of one replica stops its node", ".", "TestDamageMutants", "F1"),
		tested("IG5", "found here", "a quarantine is forgotten by a restart", "multiraft", "TestIntegrityMutants", "S20"),
		tested("IG6", "found here", "a rebuilt replica forgets what it acknowledged", "multiraft", "TestIntegrityMutants", "S6"),
		tested("IG7", "found here", "what was read from a quarantined replica counts", "multiraft", "TestIntegrityMutants", "S15"),
		tested("IG8", "found here", "a quarantined replica goes on to apply", "multiraft", "TestIntegrityMutants", "S20"),
		tested("IG9", "found here", "a damaged table is dropped while its replicas serve", ".", "TestDamageMutants", "S15"),
		tested("IG10", "found here", "a dispute under an earlier leader never ends", "multiraft", "TestIntegrityMutants", "L3"),
		failing("ST3", "H1", "a change of configuration writes all that memory holds of its shard through the log, and every group waits", ".", "^TestChangeOfAFullShard$", "L1"),
		failing("H1a", "H1", "a node whose disk stands still keeps the support of the others until it runs out", ".", "^TestDiskStall$", "L1 bound"),
		failing("H2c", "H2", "writes are taken until the disk is full", ".", "^TestDiskFull$", "L3"),
		failing("H2d", "H2", "a disk at the edge of a state goes in and out of it", "engine", "^TestSpaceRule", "L3"),
		failing("H2e", "H2", "the ballast is never given up", "engine", "^TestBallast$", "L3"),
		failing("H2f", "H2", "a store on a full disk does not open, with the ballast beside it", "engine", "^TestBallast$", "L3"),
		failing("H2g", "H2", "a batch of deletes is refused on a full disk", "shard", "^TestGrows$", "L3"),
		failing("H2h", "H2", "what is written between two looks at the space does not count", "engine", "^TestSpaceGoing$", "L3"),
		failing("H2i", "H2", "snapshots are taken in for which there is no room", "snapshot", "^TestNoSpace$", "L3"),
		failing("H10", "H10", "messages that a loop does not get to pile up", "multiraft", "^TestInboxBounds$", "S19"),
	}
}
