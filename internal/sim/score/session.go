//go:build mutants

package score

// sessionPlants are planted where commands of sessions are numbered, judged,
// recorded and answered; tests of those packages find them.
func sessionPlants() []plant {
	return []plant{
		tested("F1", "F1", "commands of a session are told apart while under way only", "multiraft/session", "TestMutants", "S9"),
		tested("F1b", "F1", "session records are lost over a snapshot", "shard/kv", "TestSessionMutants", "S20"),
		tested("F1c", "F1", "the window of sequence numbers moves by one too few", "multiraft/session", "TestMutants", "S9"),
		tested("F1d", "F3", "sessions expire by the wall clock of each replica", "multiraft", "TestSessionMutants", "S20"),
		tested("F1e", "F1", "a full table of sessions evicts one", "multiraft/session", "TestMutants", "S9"),
		tested("F1f", "F1", "a try that meets one under way is acknowledged before that is applied", "multiraft", "TestSessionMutants", "S16"),
		tested("F1g", "F6", "a retry is given the result of another number", "multiraft/session", "TestMutants", "S9"),
		tested("F1h", "F1", "a try that meets one under way is proposed again", "multiraft", "TestSessionMutants", "S9"),
		tested("F1i", "F1", "a retry carries a new deadline", "router", "TestMutants", "S9"),
		tested("F5", "F5", "an expiry of which nothing is known passes for 'not applied'", "router", "TestMutants", "S16"),
		tested("F5b", "F5", "a refusal after an unknown outcome passes for 'not applied'", "router", "TestMutants", "S16"),
		tested("F6b", "F6", "tries that joined one under way are never answered", "multiraft", "TestSessionMutants", "L1"),
		tested("F9", "F9", "a write without a session is tried again after an unknown outcome", "router", "TestMutants", "S9"),
		tested("F9b", "F9", "a pipeline's write that is given up under way passes for 'not applied'", "router", "TestPipelineMutants", "S16"),
		tested("F6e", "F6", "a late answer to a call of a pipeline that was given up reaches the next one", "router", "TestPipelineMutants", "L1"),
		tested("F6d", "F6", "a call of a pipeline goes where its caller's key slice says by now", "router", "TestPipelineMutants", "L1"),
		tested("H9b", "H9", "each call of a pipeline takes a goroutine", "router", "TestPipelineMutants", "S19"),
		tested("S19-wait", "B11", "a node takes in writes however long they would wait", "multiraft", "TestOverloadedHostMutants", "S19"),
		tested("S19-stuck", "B10", "writes of a group that cannot commit shut out the others of its loop", "multiraft", "TestAdmissionMutants", "L1"),
		tested("S19-effect", "F5", "a write that is refused because of overload takes effect", "multiraft", "TestOverloadedHostMutants", "S16"),
		tested("S19-retry", "B11", "an overloaded node does not say when to come back", "multiraft", "TestOverloadedHostMutants", "S19"),
		tested("S19-patience", "B11", "any number of requests wait at the router for an overloaded node", "router", "TestPatienceMutants", "S19"),
		tested("GV1", "H10", "a node whose memory is used up takes in writes", ".", "TestMemoryMutants", "S19"),
		tested("GV2", "H10", "groups keep their entries in memory however many groups there are", ".", "TestMemoryMutants", "S19"),
		tested("GV3", "H10", "a node holds whatever its clients send", "transport", "TestRequestBytesMutants", "S19"),
		tested("GV7", "H10", "a node serves whatever reads its clients ask for", "transport", "TestRequestBytesMutants", "S19"),
		tested("GV4", "H10", "the block cache keeps what others need", ".", "TestMemoryMutants", "S19"),
		tested("GV5", "H10", "what was flushed is kept in memory for ever", ".", "TestMemoryMutants", "S19"),
		failing("GV8", "H10", "what was flushed is kept in memory though nobody reads it", "engine", "TestRest", "S19"),
		failing("GV9", "found here", "the tables of a store at rest lie over each other for ever", "engine", "TestTidy", "S19"),
		failing("GV10", "found here", "logs that wait to be used again stay while the store is at rest", "engine", "TestTidy", "S19"),
		failing("GV11", "found here", "the log of a store at rest takes the room of a memtable", "engine", "TestTidy", "S19"),
		tested("GV6", "H10", "entries in memory are not counted", ".", "TestMemoryMutants", "S19"),
		tested("R-overlay", "found here", "a range of a layout is served beside the record that took its place", "router/catalog", "TestLayoutMutants", "S20"),
		tested("R-limit", "found here", "a router remembers ranges without a bound", "router", "TestTableMutants", "S19"),
		tested("R-headless", "found here", "all replicas of a group that elects are asked for its leader again and again", "router", "TestHeadlessMutants", "S19"),
		tested("R-apart", "found here", "however many requests wait for a leader, each tries as often", "router", "TestHeadlessMutants", "S19"),
		tested("R-dealt", "found here", "the catalog keeps an old term of the node that a shard was dealt to", "router/catalog", "TestLayoutMutants", "S20"),
		tested("S19-pipeline", "H10", "a pipeline takes in any number of calls", "router", "TestPipelineMutants", "S19"),
	}
}

// securityPlants are planted where identities are checked.
func securityPlants() []plant {
	return []plant{
		tested("H11b", "H11", "a term at the end of numbers is taken over", "multiraft/raft", "TestHostileMutants", "F2"),
		tested("H-cert-unpinned", "H11", "a node's certificate is not compared with the id it gives itself", "transport", "TestTLSMutants", "S11"),
	}
}
