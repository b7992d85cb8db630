//go:build mutants

package score

// rulePlants take out binding rules of the design that simulations do not miss at
// once, because other rules stand in for them or because they are about speed: the
// scenario that is named for the rule fails.
func rulePlants() []plant {
	in := func(id, rule, title, pkg, oracle string) plant {
		return failing(id, "B0 "+rule, title, pkg, "^TestB0_"+rule+"$", oracle)
	}
	return []plant{
		in("B0-A3", "A3", "a command is acknowledged when it is committed, before it could be applied", "multiraft", "S16"),
		in("B0-A6", "A6", "a snapshot over a live neighbour is taken in", "snapshot", "S12"),
		in("B0-A6b", "A6", "a snapshot over a live neighbour is installed", "engine", "S12"),
		in("B0-A7", "A7", "a small install is not synced", "engine", "S6"),
		in("B0-C6", "C6", "entries are stamped with the wall clock as it is", "multiraft", "S20"),
		in("B0-C6b", "C6", "a node whose clock is wrong takes proposals", "multiraft", "S20"),
		in("B0-D1", "D1", "a small group is viewed through a snapshot of the store", "engine", "S19"),
		in("B0-D2", "D2", "the goroutine of the heartbeats waits for the disk", "multiraft/liveness", "L1"),
		in("B0-D3", "D3", "one table of an install spans two prefixes", "engine", "S19"),
		failing("J1", "F2", "the data and the applied state of a flush come to the disk one after the other", "engine", "^TestJ1Flush$", "S8"),
		failing("J2", "E5", "what is applied comes to the disk before the log it stands on", "engine", "^TestJ2LogFirst$", "S8"),
		failing("J4", "E11", "a flush under way brings back what was destroyed", "engine", "^TestJ4UnderWay$", "S11"),
		failing("J4b", "E11", "what memory holds of a replica outlives it", "engine", "^TestJ4Elsewhere$", "S11"),
		failing("J4c", "E11", "what is kept of a flush for reads outlives what took its place", "engine", "^TestCleanTables$", "S11"),
		in("B0-E3", "E3", "log entries of an earlier process are deleted by SINGLEDEL", "engine", "S8"),
		in("B0-E4", "E4", "the store has no log", "engine", "S6"),
	}
}
