package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func newConfig(a *app) *cobra.Command {
	var origin bool
	show := &cobra.Command{
		Use:   "show",
		Short: "Print the settings serve would use, without starting anything",
		Long: `show prints the settings that serve would use when given the same flags,
environment and file. --origin adds where each value comes from: a flag wins over
the environment, that over the file, that over the default.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := resolve(cmd.Flags(), a.env)
			if err != nil {
				return err
			}
			return a.showConfig(r, origin)
		},
	}
	addSettings(show.Flags())
	show.Flags().BoolVar(&origin, "origin", false, "also print where each value comes from")
	def := &cobra.Command{
		Use:   "default",
		Short: "Print a configuration file with all settings, their defaults and what they mean",
		Args:  arguments(),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprint(a.out, defaultFile())
			return err
		},
	}
	return group(&cobra.Command{Use: "config", Short: "Look at the settings of serve"}, show, def)
}

func (a *app) showConfig(r *resolved, origin bool) error {
	if a.json() {
		type row struct {
			Setting string `json:"setting"`
			Value   any    `json:"value"`
			Origin  string `json:"origin"`
		}
		var rows []row
		for _, s := range settings {
			var v any = r.field(s).Interface()
			switch v.(type) {
			case duration, size:
				v = r.text(s)
			}
			rows = append(rows, row{s.path(), v, r.origin[s.path()]})
		}
		return printList(a, rows)
	}
	t := newTable("", "SETTING", "VALUE", "ORIGIN")
	if !origin {
		t = newTable("", "SETTING", "VALUE")
	}
	for _, s := range settings {
		row := []string{s.path(), r.text(s)}
		if row[1] == "" {
			row[1] = `""`
		}
		if origin {
			row = append(row, r.origin[s.path()])
		}
		t.add(row...)
	}
	_, err := fmt.Fprint(a.out, t)
	return err
}

// defaultFile returns a commented TOML file with every setting at its default.
func defaultFile() string {
	var b strings.Builder
	b.WriteString(`# Settings of a Flotilla node, each at its default. A flag (--heartbeat) wins over
# the environment (FLOTILLA_HEARTBEAT), that over this file, that over the default.
# Durations are written "500ms" or "10s", sizes "64MiB".
`)
	c, section := defaultConfig(), ""
	for _, s := range settings {
		if s.section != section {
			section = s.section
			fmt.Fprintf(&b, "\n[%s]\n", section)
		} else {
			b.WriteString("\n")
		}
		for _, line := range wrap(s.help, 78) {
			fmt.Fprintf(&b, "# %s\n", line)
		}
		value := fmt.Sprintf("%q", c.text(s))
		switch c.field(s).Interface().(type) {
		case int, uint32, bool:
			value = c.text(s)
		case []string:
			value = "[]"
		}
		fmt.Fprintf(&b, "%s = %s\n", s.key, value)
	}
	return b.String()
}

func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines, line = append(lines, line), ""
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	return append(lines, line)
}
