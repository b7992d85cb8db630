//go:build !mutants

package main

import "github.com/spf13/cobra"

// plant does nothing: this build holds no planted bugs.
func plant(*app, *cobra.Command) {}

// plantForReplay switches a planted bug on and reports whether this build has it.
func plantForReplay(string) bool { return false }
