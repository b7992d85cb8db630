//go:build mutants

package sim

// plant is one planted bug: its switch, what it does, and the profiles whose
// runs look for it.
type plant struct {
	id       string
	title    string
	profiles []string
	// rare: needs more seeds than a short run has.
	rare bool
}

var (
	anyProfile = []string{"swarm", "log", "elect", "conf"}
	elections  = []string{"elect", "eight", "log", "swarm"}
	reading    = []string{"reads", "elect", "swarm"}
	members    = []string{"conf", "log"}
	small      = []string{"tiny", "log"}
)

// planted lists the planted bugs. A: elections, B: log, C: membership, D: reads
// and node liveness; K: classic errors of a Raft core; S, T: incarnations and
// truncation.
var planted = []plant{
	{"A1", "votes go to the longer log although terms differ", elections, false},
	{"A1b", "votes compare the last term only, not the length", elections, false},
	{"A2", "majority of votes off by one in groups of even size", []string{"conf", "elect"}, false},
	{"A2b", "majority for commit off by one in groups of even size", []string{"conf", "log"}, false},
	{"A3", "a removed replica campaigns when TimeoutNow reaches it", []string{"conf", "elect"}, true},
	{"A4", "the vote is forgotten on step-down within a term", elections, false},
	{"A4b", "a second vote in the same term", elections, false},
	{"A5", "a granted pre-vote carries the voter's own, lower term", anyProfile, false},
	{"A5b", "a commit record counts although the log is not a prefix of that leader's", anyProfile, false},
	{"A5c", "after a restart the log counts as accepted in the hard state's term", anyProfile, true},
	{"A7", "the target of a transfer starts with a pre-vote", elections, false},
	{"A10", "a leader that restarted unnoticed is believed for ever", elections, true},
	{"A14", "a replica that does not know of its promotion refuses to vote", members, false},
	{"A15", "a group of one commits only when a peer answers", members, false},
	{"A17", "a failed transfer is never given up", elections, false},
	{"A19", "campaign with a committed configuration that is not applied", members, true},
	{"A19b", "a restart forgets that all but the last change in the log are committed", members, true},
	{"B1", "a duplicate append cuts matching entries behind it", anyProfile, false},
	{"B2", "a late snapshot replaces a log that holds its last entry already", anyProfile, true},
	{"B3", "an empty append acknowledges the whole log", anyProfile, false},
	{"B4", "an unknown previous entry has term zero on both sides", anyProfile, false},
	{"B5", "the commit index follows each append down", anyProfile, false},
	{"B6", "a late acknowledgement of an overwritten write counts", anyProfile, true},
	{"B9", "bytes in flight survive a change of state: the stream stalls", small, false},
	{"B10", "uncommitted bytes leak: proposals are refused for ever", small, false},
	{"B14", "durable through an index that was cut since", anyProfile, false},
	{"B22", "appends of an old leader are taken", anyProfile, true},
	{"B24", "refused during a transfer, appended all the same", elections, false},
	{"C1", "a joint configuration is forgotten on restart", members, false},
	{"C3", "votes need only the new half of a joint configuration", members, false},
	{"C3b", "commit needs only the new half of a joint configuration", members, false},
	{"C4", "the leader counts by a configuration that is only proposed", members, false},
	{"C6", "the leader may remove itself", members, false},
	{"C7", "acknowledgements of removed members count", members, false},
	{"C17", "a leader that steps down cuts what is not committed", anyProfile, false},
	{"D1", "a read is answered before an entry of the term is committed", reading, false},
	{"D2", "a read joins a round that went out before it", reading, false},
	{"D4", "pending reads survive the end of the leadership", reading, false},
	{"D5", "a read index is the applied, not the committed index", reading, false},
	{"D6", "a read index without a quorum's confirmation", reading, false},
	{"D7", "a replica of a newer term confirms the reads of an older leader", reading, false},
	{"D8", "read rounds of an earlier leadership count", reading, false},
	{"D14", "the end of support is shown before it is durable", anyProfile, false},
	{"D14b", "support is promised before it is durable", anyProfile, false},
	{"D14c", "support counts from its answer, not from its question", anyProfile, false},
	{"D14d", "a restarted supporter forgets its promises", anyProfile, false},
	{"D14e", "a withdrawn epoch is supported again", anyProfile, false},
	{"K1", "a vote is sent before it is durable", anyProfile, false},
	{"K2", "an append is acknowledged before it is durable", anyProfile, false},
	{"K3", "entries of old terms are committed by counting (figure 8)", elections, false},
	{"K4", "majority for commit off by one", anyProfile, false},
	{"K5", "conflicting entries are kept", anyProfile, false},
	{"K6", "the previous entry's term is not compared", anyProfile, false},
	{"K7", "votes for anybody's log", elections, false},
	{"K8", "a vote is never written", anyProfile, false},
	{"K9", "answers of older terms count", anyProfile, true},
	{"K10", "the leader counts its own entries before they are durable", anyProfile, false},
	{"K11", "commit is bounded by the log's end, not by what the append proved", anyProfile, false},
	{"K13", "a promise to a leader is sent before it is durable", anyProfile, false},
	{"K14", "a candidate counts its own vote before it is durable", elections, false},
	{"K15", "votes of an earlier campaign count", elections, false},
	{"K18", "a new leader keeps what it knew of its peers' logs", elections, true},
	{"K19", "the hint of a refusal counts as an acknowledgement", anyProfile, false},
	{"K20", "what was sent counts as acknowledged", anyProfile, false},
	{"T1", "the log is cut through what is committed, not applied", small, false},
}
