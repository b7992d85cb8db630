package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"
)

// checkOutput refuses an output format that does not exist.
func (a *app) checkOutput() error {
	switch a.output {
	case "table", "json", "jsonl":
		return nil
	}
	bad := a.output
	a.output = "table" // for the error itself
	return usageError("output format %q does not exist: choose table, json or jsonl", bad)
}

// printJSON prints one value on one line.
func (a *app) printJSON(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = a.out.Write(append(b, '\n'))
	return err
}

// printList prints a list for a program: one array on one line, or with jsonl
// one element per line.
func printList[T any](a *app, list []T) error {
	if a.output == "json" {
		if list == nil {
			list = []T{}
		}
		return a.printJSON(list)
	}
	for _, v := range list {
		if err := a.printJSON(v); err != nil {
			return err
		}
	}
	return nil
}

// table prints aligned columns; cells of a row are separated by tabs. Columns
// named in right are right-aligned.
type table struct {
	rows  [][]string
	right map[int]bool
}

func newTable(right string, header ...string) *table {
	t := &table{rows: [][]string{header}, right: make(map[int]bool)}
	for i, h := range header {
		for _, r := range strings.Fields(right) {
			if r == strings.Fields(h + " -")[0] {
				t.right[i] = true
			}
		}
	}
	return t
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) String() string {
	widths := make([]int, len(t.rows[0]))
	for _, row := range t.rows {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', tabwriter.StripEscape)
	for _, row := range t.rows {
		for i, c := range row {
			if t.right[i] {
				c = strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)) + c
			}
			fmt.Fprint(w, c)
			if i < len(row)-1 {
				fmt.Fprint(w, "\t")
			}
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	lines := strings.Split(b.String(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

// bytesText formats a size with a unit.
func bytesText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	x, i := float64(n)/1024, 0
	for x >= 1024 && i < len(units)-1 {
		x, i = x/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", x, units[i])
}

// countText formats a whole number with commas between thousands.
func countText(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// secondsText formats a duration as seconds with one decimal.
func secondsText(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }

// plain returns a key or value for a person: as it is when it can be printed on
// one line, else quoted.
func plain(b []byte) string {
	s := string(b)
	if !utf8.ValidString(s) || strings.HasPrefix(s, `"`) {
		return strconv.Quote(s)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return strconv.Quote(s)
		}
	}
	return s
}
