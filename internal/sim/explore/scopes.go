package explore

import "github.com/flotillakv/flotilla/multiraft/raft"

var (
	threeVoters = [nodesMax]raft.Role{raft.Voter, raft.Voter, raft.Voter}
	twoVoters   = [nodesMax]raft.Role{raft.Voter, raft.Voter, raft.Learner}
)

// Scopes are the scopes that are explored by name, the small ones first.
func Scopes() []Scope {
	return []Scope{
		// Exhausted within seconds.
		{Name: "elect", Roles: threeVoters, Terms: 1, Campaigns: 2, Symmetry: true},
		{Name: "append", Roles: threeVoters, Led: true, Terms: 1, Proposals: 2, Dups: 1, Symmetry: true},
		{Name: "lapse", Roles: threeVoters, Led: true, Terms: 2, Campaigns: 1, Proposals: 1, Lapses: 1, Symmetry: true},
		{Name: "reads", Roles: threeVoters, Led: true, Terms: 1, Proposals: 1, Reads: 2, Symmetry: true},
		{Name: "swap", Roles: twoVoters, Led: true, Terms: 1, Conf: SwapConf, Symmetry: true},
		// Within a minute or two.
		{Name: "slow", Roles: threeVoters, Led: true, Terms: 1, Proposals: 2, Slow: 1, Dups: 1, Symmetry: true},
		{Name: "elect2", Roles: threeVoters, Terms: 2, Campaigns: 2, Symmetry: true},
		{Name: "lapse2", Roles: threeVoters, Led: true, Terms: 3, Campaigns: 2, Proposals: 1, Lapses: 1, Symmetry: true},
		{Name: "depose2", Roles: threeVoters, Led: true, Terms: 3, Campaigns: 2, Proposals: 1, Cuts: 1, Symmetry: true},
		{Name: "swap2", Roles: twoVoters, Led: true, Terms: 2, Campaigns: 1, Conf: SwapConf, Cuts: 1, Symmetry: true},
		{Name: "remove", Roles: threeVoters, Led: true, Terms: 2, Campaigns: 1, Conf: RemoveConf, Cuts: 1, Symmetry: true},
		{Name: "alone", Roles: threeVoters, Led: true, Terms: 2, Campaigns: 1, Conf: AloneConf, Cuts: 1, Symmetry: true},
		{Name: "alonecrash", Roles: threeVoters, Led: true, Terms: 2, Campaigns: 1, Conf: AloneConf, Crashes: 1, Symmetry: true},
		{Name: "swapcrash", Roles: twoVoters, Led: true, Terms: 2, Campaigns: 1, Conf: SwapConf, Crashes: 1, Slow: 1, Symmetry: true},
		{Name: "oldread", Roles: threeVoters, Led: true, Terms: 2, Campaigns: 1, Cuts: 1, Reads: 1, Symmetry: true},
		// Large: within a distance, or as far as memory goes.
		{Name: "depose", Roles: threeVoters, Led: true, Terms: 2, Campaigns: 1, Proposals: 1, Cuts: 1, Symmetry: true},
		{Name: "crash", Roles: threeVoters, Led: true, Terms: 2, Campaigns: 1, Proposals: 1, Crashes: 1, Symmetry: true},
		{Name: "lost", Roles: threeVoters, Led: true, Terms: 2, Campaigns: 1, Proposals: 1, Crashes: 1, Slow: 1, Symmetry: true},
		{Name: "transfer", Roles: threeVoters, Led: true, Terms: 2, Proposals: 1, Transfers: 1, Reads: 1, Symmetry: true},
		{Name: "longlog", Roles: threeVoters, Led: true, Terms: 3, Campaigns: 2, Proposals: 2, Cuts: 1, Symmetry: true},
		{Name: "figure8", Roles: threeVoters, Led: true, Terms: 4, Campaigns: 3, Proposals: 1, Cuts: 1, OneEntry: true, Symmetry: true},
		// Everything at once: three terms, up to four entries and a configuration
		// change through a joint one.
		{Name: "all", Roles: threeVoters, Led: true, Terms: 3, Campaigns: 2, Proposals: 1, Conf: AloneConf, Crashes: 1, Slow: 1, Dups: 1,
			Lapses: 1, Reads: 1, Transfers: 1, Resends: 1, Symmetry: true},
		{Name: "new", Roles: threeVoters, Terms: 3, Campaigns: 3, Proposals: 1, Crashes: 1, Slow: 1, Dups: 1, Cuts: 1, Symmetry: true},
	}
}

// ScopeOf returns the scope of that name.
func ScopeOf(name string) (Scope, bool) {
	for _, s := range Scopes() {
		if s.Name == name {
			return s, true
		}
	}
	return Scope{}, false
}
