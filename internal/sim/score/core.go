//go:build mutants

package score

import (
	"context"
	"fmt"
	"strings"

	"github.com/flotillakv/flotilla/internal/sim"
)

// Profiles of the simulator of the cores whose runs look for a bug, in turn.
var (
	anyProfile = []string{"swarm", "log", "elect", "conf"}
	elections  = []string{"elect", "eight", "log", "swarm"}
	reading    = []string{"reads", "elect", "swarm"}
	members    = []string{"conf", "log"}
	small      = []string{"tiny", "log"}
	overwrites = []string{"stall", "late", "eight", "log"}
	forgetful  = []string{"amnesia"}
)

// t0 is a bug that runs of the simulator of the cores find: attempt n runs
// profile n modulo their number, with seed n divided by it, plus one.
func t0(id, ledger, title string, profiles []string) plant {
	return plant{id: id, ledger: ledger, title: title, tier: "T0", profiles: profiles,
		try: func(_ context.Context, _ *Options, n int) (*catch, error) {
			seed, profile := uint64(n/len(profiles))+1, profiles[n%len(profiles)]
			r := sim.Run(sim.Options{Seed: seed, Profile: profile})
			if r.Failure == nil {
				return nil, nil
			}
			detail, _, _ := strings.Cut(r.Failure.Detail, "\n")
			return &catch{oracle: r.Failure.Oracle, where: fmt.Sprintf("%s/%d", profile, seed), detail: detail}, nil
		}}
}

// corePlants are planted in the pure core and in the rules of node liveness.
// Ids name rows of the bug ledger (A: elections, B: log, C: membership,
// D: reads and node liveness, E: snapshots and truncation), with a letter
// behind for variants; K and T are classic errors of a Raft core.
func corePlants() []plant {
	return []plant{
		t0("A1", "A1", "votes go to the longer log although terms differ", elections),
		t0("A1b", "A1", "votes compare the last term only, not the length", elections),
		t0("A2", "A2", "majority of votes off by one in groups of even size", []string{"conf", "elect"}),
		t0("A2b", "A2", "majority for commit off by one in groups of even size", []string{"conf", "log"}),
		t0("A3", "A3", "a removed replica campaigns when TimeoutNow reaches it", []string{"conf", "elect"}),
		t0("A4", "A4", "the vote is forgotten on step-down within a term", elections),
		t0("A4b", "A4", "a second vote in the same term", elections),
		t0("A5", "A5", "a granted pre-vote carries the voter's own, lower term", anyProfile),
		t0("A5b", "B0 A5", "a commit record counts although the log is not a prefix of that leader's", anyProfile),
		t0("A5c", "B0 A5", "after a restart the log counts as accepted in the hard state's term", overwrites),
		t0("A6", "A6", "a stale leader is not told the newer term: the node with that term is stuck", anyProfile),
		t0("A7", "A7", "the target of a transfer starts with a pre-vote", elections),
		t0("A8", "A8", "a pre-vote asked for, granted or not, puts off the own election", anyProfile),
		t0("A9", "A9", "while a member was not heard of yet the quorum counts as lost", members),
		t0("A10", "A10", "no pre-vote and no rule for it: who cannot hear raises the term again and again", anyProfile),
		t0("A14", "A14", "a replica that does not know of its promotion refuses to vote", members),
		t0("A15", "A15", "a group of one commits only when a peer answers", members),
		t0("A16", "A16", "a leader says that it is ready before an entry of its term is committed", elections),
		t0("A17", "A17", "a failed transfer is never given up", elections),
		t0("A18", "A18", "one peer that does not answer holds up the messages to all others", anyProfile),
		t0("A19", "A19", "campaign with a committed configuration that is not applied", []string{"joint", "conf"}),
		t0("A19b", "A19", "a restart forgets that all but the last change in the log are committed", []string{"joint", "conf"}),
		t0("A20", "A20", "the leadership goes to a follower that lags", elections),
		t0("B1", "B1", "a duplicate append cuts matching entries behind it", anyProfile),
		t0("B2", "B2", "a late snapshot replaces a log that holds its last entry already", anyProfile),
		t0("B3", "B3", "an empty append acknowledges the whole log", anyProfile),
		t0("B4", "B4", "an unknown previous entry has term zero on both sides", anyProfile),
		t0("B5", "B5", "the commit index follows each append down", anyProfile),
		t0("B6", "B6", "a late acknowledgement of an overwritten write counts", overwrites),
		t0("B7", "B7", "of committed entries that do not fit into one page the rest is forgotten", small),
		t0("B9", "B9", "bytes in flight survive a change of state: the stream stalls", small),
		t0("B10", "B10", "uncommitted bytes leak: proposals are refused for ever", small),
		t0("B11", "B11", "proposals without a quorum are taken without bound", small),
		t0("B12", "B12", "committed entries are handed out without bound", small),
		t0("B13", "B13", "a divergent tail is reconciled one entry per round trip", overwrites),
		t0("B14", "B14", "durable through an index that was cut since", anyProfile),
		t0("B15", "B15", "whether to write the hard state is judged without the vote", elections),
		t0("B18d", "B18", "a node that peers have seen in a later boot jumps over that epoch and goes on", forgetful),
		t0("B19", "B19", "what a follower lost of what it acknowledged goes unnoticed", forgetful),
		t0("B19b", "B19", "a follower that lost what it acknowledged is taken for one that lags, and repaired", forgetful),
		t0("H5", "H5", "a restarted node votes before anybody could tell it that its disk is old", forgetful),
		t0("B20", "B20", "the tail in memory keeps what was cut", overwrites),
		t0("B21", "B21", "memory of entries under way is written again", overwrites),
		t0("B22", "B22", "appends of an old leader are taken", overwrites),
		t0("B23", "B23", "after a snapshot the log ends where the old one did", []string{"log", "late", "stall"}),
		t0("B24", "B24", "refused during a transfer, appended all the same", elections),
		t0("C1", "C1", "a joint configuration is forgotten on restart", members),
		t0("C2", "C2", "a second configuration change while one is in flight", members),
		t0("C3", "C4", "votes need only the new half of a joint configuration", members),
		t0("C3b", "C4", "commit needs only the new half of a joint configuration", members),
		t0("C4", "C4", "the leader counts by a configuration that is only proposed", members),
		t0("C6", "C6", "the leader may remove itself", members),
		t0("C7", "C7", "acknowledgements of removed members count", members),
		t0("C8", "C8", "a change is in force when appended, and stays when it is cut", members),
		t0("C10b", "C10", "the last voter may be removed", members),
		t0("C15b", "C15", "removing a replica that is not there counts as done", members),
		t0("C3c", "C3", "a change is refused and appended all the same", members),
		t0("C14", "C14", "after a snapshot the configuration of before is in force", []string{"conf", "joint", "log"}),
		t0("C16", "C16", "a leader on its way out takes itself out and leaves nobody", []string{"conf", "joint"}),
		t0("C17", "C17", "a leader that steps down cuts what is not committed", anyProfile),
		t0("D1", "D1", "a read is answered before an entry of the term is committed", reading),
		t0("D2", "D2", "a read joins a round that went out before it", reading),
		t0("D4", "D4", "pending reads survive the end of the leadership", reading),
		t0("D5", "D2", "a read index is the applied, not the committed index", reading),
		t0("D6", "D11", "a read index without a quorum's confirmation", reading),
		t0("D7", "D4", "a replica of a newer term confirms the reads of an older leader", reading),
		t0("D8", "D4", "read rounds of an earlier leadership count", reading),
		t0("D10", "D10", "the leadership goes to a replica that waits for a snapshot", []string{"log", "elect", "late"}),
		t0("D14", "D14", "the end of support is shown before it is durable", anyProfile),
		t0("D14b", "D14", "support is promised before it is durable", anyProfile),
		t0("D14c", "D14", "support counts from its answer, not from its question", anyProfile),
		t0("D14d", "D14", "a restarted supporter forgets its promises", anyProfile),
		t0("D14e", "D14", "a withdrawn epoch is supported again", anyProfile),
		t0("K1", "core", "a vote is sent before it is durable", anyProfile),
		t0("K2", "core", "an append is acknowledged before it is durable", anyProfile),
		t0("K3", "core", "entries of old terms are committed by counting (figure 8)", overwrites),
		t0("K4", "core", "majority for commit off by one", anyProfile),
		t0("K5", "core", "conflicting entries are kept", anyProfile),
		t0("K6", "core", "the previous entry's term is not compared", anyProfile),
		t0("K7", "core", "votes for anybody's log", elections),
		t0("K8", "core", "a vote is never written", anyProfile),
		t0("K9", "core", "answers of older terms count", overwrites),
		t0("K10", "core", "the leader counts its own entries before they are durable", anyProfile),
		t0("K11", "core", "commit is bounded by the log's end, not by what the append proved", anyProfile),
		t0("K13", "core", "a promise to a leader is sent before it is durable", anyProfile),
		t0("K14", "core", "a candidate counts its own vote before it is durable", elections),
		t0("K15", "core", "votes of an earlier campaign count", elections),
		t0("K18", "core", "a new leader keeps what it knew of its peers' logs", overwrites),
		t0("K19", "core", "the hint of a refusal counts as an acknowledgement", anyProfile),
		t0("K20", "core", "what was sent counts as acknowledged", anyProfile),
		tested("K21", "core", "an acknowledgement that completes a quorum is one of which nothing follows", "multiraft/raft", "TestMutants", "L1"),
		tested("K22", "core", "an acknowledgement that opens the window is one of which nothing follows", "multiraft/raft", "TestMutants", "L3"),
		tested("K23", "core", "the own disk completes a quorum, and nothing follows", "multiraft/raft", "TestMutants", "L1"),
		tested("K24", "core", "an acknowledgement that held up the cutting of logs is one of which nothing follows", "multiraft/raft", "TestMutants", "S19"),
		tested("C13b", "found here", "a restarted voter waits for ever for an answer of members that are dead, though others know a newer configuration", "multiraft/raft", "TestMutants", "L1"),
		tested("N1", "found here", "a replica sleeps though its log is not cut", "multiraft/raft/rafttest", "TestNapMutants", "S18"),
		tested("N4", "found here", "rounds of reads begin anew after a nap, and old answers confirm them", "multiraft/raft/rafttest", "TestNapMutants", "S14"),
		tested("N5", "found here", "a follower sleeps with entries that it does not know to be committed", "multiraft/raft/rafttest", "TestNapMutants", "S18"),
		tested("N6", "found here", "a follower that lacks the last notice of a commit never asks for it", "multiraft/raft/rafttest", "TestNapMutants", "L1"),
		tested("N7", "found here", "a leader that wakes with a log that it keeps never tells the others to cut it", "multiraft/raft/rafttest", "TestNapMutants", "S19"),
		tested("N8", "found here", "a follower that sleeps with a log that is kept is not told to cut it", "multiraft", "TestNapMutants", "S19"),
		tested("Z1", "found here", "a sleeping replica without a leader is not woken by who asks for it", "multiraft", "TestNapMutants", "L1"),
		tested("Z7", "found here", "a replica without a leader sleeps though a majority could elect one", "multiraft", "TestNapMutants", "L1"),
		tested("Z6", "found here", "however many sleeping replicas something comes for, all are woken in one round", "multiraft", "TestUntouchedMutants", "S19"),
		tested("Z8", "found here", "all replicas that are asked for the leader of a sleeping group campaign at once", "multiraft", "TestUntouchedMutants", "L1"),
		tested("Z10", "found here", "a replica that is woken again and again falls asleep as soon as the first time", "multiraft", "TestNapMutants", "S19"),
		tested("Z11", "found here", "when a node dies all sleeping replicas that it led wake at once", "multiraft", "TestNapMutants", "S19"),
		tested("Z12", "found here", "a leader sleeps on though a member that lags is back", "multiraft", "TestNapMutants", "L3"),
		tested("Z14", "found here", "who was away while its group slept is never compared with the others", "multiraft", "TestNapMutants", "S20"),
		tested("U4", "found here", "thousands of groups that are used first are led by whichever node has the least to do", "multiraft", "TestUntouchedMutants", "L2"),
		tested("Z9", "found here", "all replicas for whose leader somebody asks wake in one round, and messages wait", "multiraft", "TestUntouchedMutants", "S19"),
		tested("A8c", "found here", "who hears of a campaign begins its own beside it", "multiraft/raft", "TestMutants", "L1"),
		tested("A19c", "found here", "only voters are asked, and none of them knows that the configuration changed", "multiraft/raft", "TestMutants", "L1"),
		tested("F6f", "F6", "who waits for an entry that was cut off is told nothing until another one takes its index", "multiraft", "TestWaiterMutants", "L1"),
		tested("Z2", "found here", "a replica falls asleep while a promise of it is on its way to the disk", "multiraft", "TestNapMutants", "L1"),
		tested("D9l", "found here", "a sleeping leader serves reads after its lease", "multiraft", "TestNapMutants", "S14"),
		tested("U1", "found here", "the first records of a group that was never used are not written before it votes", "multiraft", "TestUntouchedMutants", "S7"),
		tested("Z5", "found here", "a sleeping group is left without a leader if the node that shall wake it does not know that it was used", "multiraft", "TestUntouchedMutants", "L1"),
		tested("U3", "found here", "a replica that was destroyed comes back as one that was never used", "multiraft", "TestUntouchedMutants", "S11"),
		tested("LK1", "found here", "as much log is kept for who is away, however small the data", "multiraft/raft", "TestMutants", "S19"),
		tested("LK2", "found here", "a member that is sent a snapshot is told of its leader only when all has come", "multiraft/raft", "TestMutants", "L1"),
		tested("LK3", "found here", "what a node that comes back lacks of many logs is read for it all at once", "multiraft", "TestFeedMutants", "S19"),
		tested("LC1", "found here", "proposals are taken in though the logs of the node are as large as they may be", "multiraft", "TestLogCapMutants", "S19"),
		tested("LC2", "found here", "entries of leaders are taken in though the logs of the node are as large as they may be", "multiraft", "TestLogCapMutants", "S19"),
		tested("LC4", "found here", "a zone of the log's cap is left right below where it was entered", "multiraft", "TestLogCapMutants", "S19"),
		tested("LB1", "found here", "tables that nobody needs any more stay on the disk", "bench/logbound", "TestBoundsMutants", "S19"),
		tested("LB2", "found here", "what the logs take is not counted, so that no zone of the cap begins", "bench/logbound", "TestBoundsMutants", "S19"),
		tested("CP1", "found here", "an entry that cuts the log cuts up to itself, not through the index it names", "multiraft/raft", "TestCutMutants", "S19"),
		tested("X1", "found here", "a machine outside of the store is handed tries again after a restart that it had left out", "internal/filemachine", "TestOutsideMutants", "S9"),
		tested("X1b", "found here", "it is not noted which commands of an entry such a machine left out", "internal/filemachine", "TestOutsideMutants", "S9"),
		tested("X2", "found here", "a machine outside that is ahead of the store is handed entries twice", "internal/filemachine", "TestOutsideMutants", "S9"),
		tested("X3", "found here", "the log is cut through what a machine outside has not synced", "internal/filemachine", "TestOutsideMutants", "S18"),
		tested("X5", "found here", "a snapshot is installed without the part of the machine outside", "internal/filemachine", "TestOutsideMutants", "S17"),
		tested("CI1", "found here", "the log is cut behind the image that covers the cut", "multiraft/raft", "TestCutMutants", "S19"),
		tested("CI2", "found here", "images are kept without regard to what they may take", "snapshot", "TestKeptMutants", "S19"),
		tested("CI3", "found here", "the files of an image are not durable when it takes the place of the one before", "snapshot", "TestKeptMutants", "S19"),
		tested("CI4", "found here", "images that nobody needs any more stay on the disk", "snapshot", "TestKeptMutants", "S19"),
		tested("CI5", "found here", "an image that rotted is offered again and again", "snapshot", "TestKeptMutants", "S19"),
		tested("CI8", "found here", "an image of which a part has arrived cannot be sent by another transfer", "snapshot", "TestKeptMutants", "L3"),
		tested("CI6", "found here", "a replica that is rebuilt is sent an image of before", "multiraft", "TestImageMutants", "S17"),
		tested("CI7", "found here", "an image that is made of a replica that is found faulty meanwhile is kept", "multiraft", "TestImageMutants", "S17"),
		tested("CP2", "found here", "logs are cut by the number of entries alone", "multiraft/raft", "TestCutMutants", "S19"),
		t0("E8", "E8", "a snapshot that did not arrive is never given up", []string{"log", "late", "swarm"}),
		t0("E10", "E10", "every snapshot that arrives is installed", []string{"log", "late", "stall"}),
		t0("E12", "E12", "commit index off by one after an install", []string{"log", "late", "swarm"}),
		t0("H11", "H11", "a commit index beyond the log is believed", anyProfile),
		t0("G12c", "G12", "the id of a replica is used again", members),
		t0("B0-A2", "B0 A2", "a restart forgets acknowledged entries above the known commit index", anyProfile),
		t0("B0-B3", "B0 B3", "pair epochs are the same in every boot", anyProfile),
		t0("B0-B6", "B0 B6", "support is given back and still counted", anyProfile),
		tested("B0-C1a", "B0 C1", "the former leader gets no vote from whom it is promised", "multiraft/raft", "TestB0Mutants", "L1"),
		t0("B0-C1b", "B0 C1", "the leader's grant does not lift the promise to it", elections),
		tested("B0-C1c", "B0 C1", "proof of a newer leader does not lift the promise to the old one", "multiraft/raft", "TestB0Mutants", "L1"),
		tested("B0-C1d", "B0 C1", "who stops leading does not say so", "multiraft/raft", "TestB0Mutants", "L1"),
		t0("B0-C1e", "B0 C1", "nobody asks a silent leader whether it leads", elections),
		t0("B0-C2", "B0 C2", "an epoch whose support lapsed is asked for again", anyProfile),
		tested("B0-C3a", "B0 C3", "what was lost with a stream stays lost", "multiraft/raft", "TestB0Mutants", "L1"),
		t0("B0-C3b", "B0 C3", "a leader never sends again", anyProfile),
		tested("B0-C3c", "B0 C3", "a follower that knows of uncommitted entries never asks", "multiraft/raft", "TestB0Mutants", "L3"),
		t0("B0-C4", "H1, B0 C4", "heartbeats leave while the disk stands still", []string{"stall", "log", "swarm"}),
		t0("B0-C5", "B0 C5", "a restarted leader waits for itself", anyProfile),
		t0("V1", "found here", "each new epoch of a silent leader is another respite for it", anyProfile),
		t0("V2", "found here", "the refusal of a very old heartbeat ends the present support", []string{"late", "swarm"}),
		t0("T1", "E5", "the log is cut through what is committed, not applied", small),
	}
}
