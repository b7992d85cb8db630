//go:build mutants

package t1

// Plant is a bug that is planted in what only whole nodes have, with the
// profiles that find it.
type Plant struct {
	ID       string
	Ledger   string // the row of the bug ledger
	Title    string
	Profiles []string
}

// Plants are all of them.
var Plants = []Plant{
	{"B15c", "B15", "messages that rest on a batch leave before it is synced", []string{"swarm"}},
	{"B17b", "B1", "an overwritten suffix of the log stays on disk", []string{"net", "crash"}},
	{"A16b", "D11", "a read is served before its index is applied", []string{"snap", "swarm"}},
	{"E4", "E4", "a truncation of the log is not recorded beside it", []string{"swarm"}},
	{"J3", "E5", "what is applied in memory only is cut from the log", []string{"crash", "swarm"}},
	{"F6c", "F6", "the answer of an entry goes to who proposed another one at its index", []string{"net", "snap"}},
	{"E6", "E6", "a snapshot says an index beyond its content", []string{"snap", "conf"}},
	{"B10b", "B10", "the bytes of proposals that the core refuses count as pending for ever", []string{"crash", "net"}},
	{"S19-reads", "B10", "reads that are refused count as waiting for ever", []string{"crash", "net"}},
	{"ST1", "found here", "what is committed behind a change of configuration that waits is applied before it", []string{"conf", "swarm"}},
	{"G14c", "G14", "a destroyed replica's keys stay on the disk", []string{"conf"}},
	{"L2-restless", "A9", "leaders hand over for no reason", []string{"calm", "net"}},
	{"E15", "E15", "a snapshot that was not sent keeps its slot", []string{"conf", "snap"}},
}
