//go:build mutants

package score

// leasePlants are planted where leaders claim leases, voters keep promises, and
// followers ask for a read index.
func leasePlants() []plant {
	return []plant{
		t0("A11", "A11", "a restarted voter forgets whom it promised not to vote", elections),
		t0("A12", "A12", "a voter votes although its promise to a leader stands", elections),
		t0("A13", "A13", "a leader serves by its lease after it granted a campaign", []string{"elect", "reads"}),
		t0("A13b", "A13", "a transfer that is given up brings the lease of the term back", []string{"elect", "reads"}),
		tested("A20b", "B0 C1", "messages from before its StepDown bring a leader back", "multiraft/raft", "TestMutants", "L1"),
		t0("D2b", "D2", "the leader's answer settles reads that began after the question", reading),
		tested("D2c", "D2", "answers to an earlier life of a replica count", "multiraft/raft", "TestMutants", "S15"),
		tested("D8b", "D8", "a round judges leases by the time of its beginning", "multiraft", "TestLeaseMutants", "S15"),
		tested("D8c", "B0 B5", "clients are told of a write before what covers it is published", "multiraft", "TestLeaseMutants", "S15"),
		tested("D7b", "D7", "a read does not notice that its replica was replaced", "shard/kv", "TestMutants", "S15"),
		tested("D7c", "D7", "a read on the short way does not notice that its replica was replaced", "multiraft", "TestLeaseMutants", "S15"),
		tested("D9h", "D9", "the end of a lease is not looked at", "multiraft", "TestLeaseMutants", "S14"),
		t0("D9", "D9", "leases are judged by the wall clock", anyProfile),
		t0("D9b", "D9", "clocks are taken to run at the same rate", anyProfile),
		t0("D9c", "D9", "a suspended machine keeps its leases", anyProfile),
		t0("D9d", "D14", "support at an epoch the voter did not promise at counts", anyProfile),
		tested("D9e", "C4", "a lease rests on the old half of a joint configuration alone", "multiraft/raft", "TestMutants", "S14"),
		t0("D9f", "D9", "one promise is enough for a lease", anyProfile),
		tested("D9g", "C8", "promises of learners count for a lease", "multiraft/raft", "TestMutants", "S14"),
		tested("D9i", "D4", "a lease is in sight while the news that it ended is on its way", "multiraft", "TestLeaseMutants", "S14"),
		tested("D9k", "C4", "a lease rests on the new half of a joint configuration alone", "multiraft/raft", "TestMutants", "S14"),
		t0("D3", "D3", "what a follower asked its leader it answers itself once it leads", reading),
		t0("D11", "D11", "a lease before an entry of the term is committed", reading),
		t0("D13", "D13", "a follower answers a question for a read index from what it knows", reading),
	}
}
