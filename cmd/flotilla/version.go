package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla"
)

// buildInfo says which program this is.
type buildInfo struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"`
	Modified bool   `json:"modified"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func readBuild() buildInfo {
	b := buildInfo{Version: flotilla.ReleaseVersion, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value[:min(len(s.Value), 12)]
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

func (b buildInfo) String() string {
	s := fmt.Sprintf("flotilla v%s (%s", b.Version, b.Go)
	if b.Commit != "" {
		s += ", commit " + b.Commit
	}
	if b.Modified {
		s += " with changes"
	}
	return s + ")"
}

func newVersion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  arguments(),
		RunE: func(*cobra.Command, []string) error {
			b := readBuild()
			if a.json() {
				return a.printJSON(b)
			}
			fmt.Fprintf(a.out, "%s %s\n", b, b.Platform)
			return nil
		},
	}
}
