//go:build mutants

package raft

import (
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestMutants plants one bug at a time and shows that the case of its rule fails.
func TestMutants(t *testing.T) {
	cases := map[string]func(*testing.T) error{}
	for _, c := range leaseCases {
		cases[c.name] = c.run
	}
	for _, c := range stirredCases {
		cases[c.name] = c.run
	}
	for _, c := range pressCases {
		cases[c.name] = c.run
	}
	for _, c := range electCases {
		cases[c.name] = c.run
	}
	for _, c := range keepCases {
		cases[c.name] = c.run
	}
	for id, name := range map[string]string{
		"A8c":  "give way",
		"A19c": "a learner knows",
		"C13b": "a vote for a stranger",
		"LK1":  "the size of the data bounds what is kept",
		"LK2":  "who gets a snapshot knows its leader before",
		"A11":  "restarted voter", "A12": "voter keeps its promise",
		"A20b": "step down is final",
		"A13":  "grant", "A13b": "given up transfer",
		"D2b": "follower read, earlier answer", "D2c": "follower read, earlier life",
		"D9d": "epochs", "D9e": "joint", "D9f": "majority", "D9g": "learners", "D9k": "joint",
		"D11": "own term first", "D13": "question to a follower",
		"K21": "acknowledgements of one write", "K22": "the window opens",
		"K23": "a quorum by the own disk", "K24": "the cutting of logs waits",
	} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			err := cases[name](t)
			if err == nil {
				t.Fatal("not found")
			}
			t.Logf("found: %.200v", err)
		})
	}
}
