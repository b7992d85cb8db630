//go:build mutants

package main

import (
	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// plant lets a build with planted bugs switch one of them on, in this process
// and in those it starts.
func plant(a *app, root *cobra.Command) {
	root.PersistentFlags().StringVar(&a.planted, "plant", "", "id of a planted bug to switch on")
	before := root.PersistentPreRunE
	root.PersistentPreRunE = func(cmd *cobra.Command, args []string) error {
		if a.planted != "" {
			mutants.Set(a.planted)
		}
		return before(cmd, args)
	}
}

// plantForReplay switches a planted bug on and reports whether this build has it.
func plantForReplay(id string) bool {
	mutants.Set(id)
	return true
}
