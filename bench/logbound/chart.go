package logbound

import (
	"encoding/csv"
	"fmt"
	"html"
	"io"
	"strconv"
	"strings"
)

// WriteCSV writes the samples of all runs, with a header.
func WriteCSV(w io.Writer, runs []*Result) error {
	c := csv.NewWriter(w)
	_ = c.Write([]string{"policy", "seconds", "phase", "node", "up", "disk_bytes", "wal_file_bytes", "table_bytes", "staging_bytes", "log_bytes", "wal_bytes", "written_bytes",
		"disk_bound_bytes", "disk_limit_bytes", "log_limit_bytes"})
	num := func(n int64) string { return strconv.FormatInt(n, 10) }
	for _, r := range runs {
		for i := range r.Samples {
			s := &r.Samples[i]
			_ = c.Write([]string{string(r.Policy), strconv.FormatFloat(s.Seconds, 'f', 3, 64), s.Phase, strconv.Itoa(s.Node), strconv.FormatBool(s.Up), num(s.Disk), num(s.WALs),
				num(s.Tables), num(s.Staging), num(s.Logs), num(s.WAL), num(s.Written), num(r.DiskBound), num(r.DiskLimit), num(r.LogLimit)})
		}
	}
	c.Flush()
	return c.Error()
}

// The chart: two panels per run, one above the other.
const (
	chartWidth, panelHeight            = 900, 170
	marginLeft, marginRight, marginTop = 70, 150, 46
	panelGap                           = 34
)

// Colours of the three nodes, told apart without red and green.
var nodeColours = [Nodes]string{"#0072b2", "#e69f00", "#009e73"}

const boundColour, liveColour = "#b00020", "#777777"

type point struct{ x, y float64 }

// line is one series of a panel; gaps separate its pieces.
type line struct {
	name, colour string
	dashed       bool
	pieces       [][]point
}

// WriteChart draws what the nodes took over time, and the bounds, as SVG: for each run a
// panel with the directories and one with the Raft logs.
func WriteChart(w io.Writer, title string, runs []*Result) error {
	var b strings.Builder
	height := marginTop + len(runs)*2*(panelHeight+panelGap) + 20
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %d" font-family="sans-serif" font-size="11">`+"\n", chartWidth, height, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", chartWidth, height)
	fmt.Fprintf(&b, `<text x="%d" y="18" font-size="14" font-weight="bold">%s</text>`+"\n", marginLeft, html.EscapeString(title))
	for i, r := range runs {
		y := marginTop + i*2*(panelHeight+panelGap)
		end := 1.0
		for k := range r.Samples {
			end = max(end, r.Samples[k].Seconds)
		}
		disk := []line{flat("1.3 live + Limits.Log + allowance", boundColour, end, r.DiskBound), flat("1.3 live", liveColour, end, r.Live/10*13)}
		if r.DiskLimit > 0 {
			disk = append(disk, flat("Limits.Disk", "#000000", end, r.DiskLimit))
		}
		logs := []line{flat("Limits.Log", boundColour, end, r.LogLimit)}
		for n := range Nodes {
			name := fmt.Sprintf("node %d", n+1)
			disk = append(disk, series(r, n+1, name, func(s *Sample) int64 { return s.Disk }))
			logs = append(logs, series(r, n+1, name, func(s *Sample) int64 {
				if s.Logs < 0 {
					return -1
				}
				return s.Logs + s.WAL
			}))
		}
		policy := ""
		if r.Policy != "" {
			policy = string(r.Policy) + ": "
		}
		panel(&b, y, policy+"directory, as du counts it (MiB)", r, end, disk)
		panel(&b, y+panelHeight+panelGap, policy+"Raft logs as read, with the write-ahead log (MiB)", r, end, logs)
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func flat(name, colour string, end float64, bytes int64) line {
	y := float64(bytes) / (1 << 20)
	return line{name, colour, true, [][]point{{{0, y}, {end, y}}}}
}

// series is one figure of one node; samples of which it is not known make a gap.
func series(r *Result, node int, name string, of func(*Sample) int64) line {
	l := line{name: name, colour: nodeColours[node-1]}
	var piece []point
	for i := range r.Samples {
		s := &r.Samples[i]
		if s.Node != node {
			continue
		}
		if v := of(s); v >= 0 {
			piece = append(piece, point{s.Seconds, float64(v) / (1 << 20)})
		} else if len(piece) > 0 {
			l.pieces, piece = append(l.pieces, piece), nil
		}
	}
	if len(piece) > 0 {
		l.pieces = append(l.pieces, piece)
	}
	return l
}

func panel(b *strings.Builder, top int, title string, r *Result, end float64, lines []line) {
	most := 1.0
	for _, l := range lines {
		for _, p := range l.pieces {
			for _, q := range p {
				most = max(most, q.y)
			}
		}
	}
	most *= 1.08
	const width = chartWidth - marginLeft - marginRight
	x := func(s float64) float64 { return marginLeft + s/end*width }
	y := func(v float64) float64 { return float64(top+panelHeight) - v/most*panelHeight }
	// The phases, every other one shaded.
	shade := false
	for i := 0; i < len(r.Samples); {
		k := i
		for k < len(r.Samples) && r.Samples[k].Phase == r.Samples[i].Phase {
			k++
		}
		from, to := x(r.Samples[i].Seconds), x(end)
		if k < len(r.Samples) {
			to = x(r.Samples[k].Seconds)
		}
		if shade = !shade; shade {
			fmt.Fprintf(b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="#f2f2f2"/>`+"\n", from, top, to-from, panelHeight)
		}
		fmt.Fprintf(b, `<text x="%.1f" y="%d" fill="#555555" font-size="10">%s</text>`+"\n", from+3, top+11, html.EscapeString(r.Samples[i].Phase))
		i = k
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" font-weight="bold">%s</text>`+"\n", marginLeft, top-6, html.EscapeString(title))
	fmt.Fprintf(b, `<path d="M%d %d V%d H%d" fill="none" stroke="#000000"/>`+"\n", marginLeft, top, top+panelHeight, marginLeft+width)
	for i := range 5 {
		v := most * float64(i) / 4
		fmt.Fprintf(b, `<text x="%d" y="%.1f" text-anchor="end">%.0f</text>`+"\n", marginLeft-6, y(v)+4, v)
		s := end * float64(i) / 4
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle">%.0f s</text>`+"\n", x(s), top+panelHeight+13, s)
	}
	for i, l := range lines {
		dash := ""
		if l.dashed {
			dash = ` stroke-dasharray="6 3"`
		}
		for _, p := range l.pieces {
			var d strings.Builder
			for k, q := range p {
				fmt.Fprintf(&d, "%c%.1f %.1f", "ML"[min(k, 1)], x(q.x), y(q.y))
			}
			fmt.Fprintf(b, `<path d="%s" fill="none" stroke="%s" stroke-width="1.4"%s/>`+"\n", d.String(), l.colour, dash)
		}
		at := top + 14 + i*15
		fmt.Fprintf(b, `<path d="M%d %d h18" stroke="%s" stroke-width="1.4"%s/>`+"\n", marginLeft+width+8, at-4, l.colour, dash)
		fmt.Fprintf(b, `<text x="%d" y="%d" font-size="%d">%s</text>`+"\n", marginLeft+width+30, at, 10-min(3, len(l.name)/20*3), html.EscapeString(l.name))
	}
}
