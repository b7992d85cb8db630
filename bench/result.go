package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"runtime"
	"sort"
	"strings"
	"time"

	"github.com/flotillakv/flotilla/bench/workload"
)

// Latency is the distribution of how long one kind of operation took, in
// milliseconds: from the planned send time in an open loop, from the real one
// in a closed loop.
type Latency struct {
	Count int64   `json:"count"`
	P50   float64 `json:"p50"`
	P95   float64 `json:"p95"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p999"`
	Max   float64 `json:"max"`
}

// Result is what a run measured. Its JSON field names are an interface: they
// are only added to.
type Result struct {
	Engine       string             `json:"engine"`
	Workload     string             `json:"workload"`
	Distribution string             `json:"distribution"`
	Loop         string             `json:"loop"` // "closed" or "open"
	Shards       int                `json:"shards"`
	Replicas     int                `json:"replicas"`
	Clients      int                `json:"clients"`
	Pipelines    int                `json:"pipelines,omitempty"`      // goroutines that did the work of the clients without waiting; 0: one per client
	Rate         float64            `json:"rate"`                     // planned per second; 0 in a closed loop
	PeakPerSec   float64            `json:"peak_ops_per_s,omitempty"` // of the closed loop that set the rate, if one did
	Keys         uint64             `json:"keys"`
	KeyBytes     int                `json:"key_bytes"`
	ValueBytes   int                `json:"value_bytes"`
	Ops          int64              `json:"ops"` // acknowledged in the measured time
	Seconds      float64            `json:"seconds"`
	OpsPerSec    float64            `json:"ops_per_s"`
	Errors       int64              `json:"errors"`
	ErrorKinds   map[string]int64   `json:"errors_by_kind"`
	Shed         int64              `json:"shed"`       // arrivals of an open loop beyond its bound; never sent
	Unfinished   int64              `json:"unfinished"` // operations of an open loop that had not ended when the measured time had
	LatencyMs    map[string]Latency `json:"latency_ms"`
	ServiceMs    Latency            `json:"service_ms"` // from the real send time, all operations

	CPUPer1M        float64 `json:"cpu_s_per_1m_ops"`
	CPUScope        string  `json:"cpu_scope"` // what the CPU time covers
	DiskPerOp       float64 `json:"disk_bytes_per_op"`
	DiskSource      string  `json:"disk_source"`   // where the bytes were counted
	AllocsPerOp     float64 `json:"allocs_per_op"` // objects on the heap of the process that runs the clients
	AllocBytesPerOp float64 `json:"alloc_bytes_per_op"`
	RSSMiB          float64 `json:"rss_mib"` // largest of the samples taken each second

	Verified int `json:"verified"` // records read back and found to hold their last acknowledged write

	Fsync      bool    `json:"fsync"`
	FsyncP50Ms float64 `json:"fsync_p50_ms"` // of the data directory, before the run
	FsyncP99Ms float64 `json:"fsync_p99_ms"`
	Machine    string  `json:"machine"`
	Cores      int     `json:"cores"`
	Go         string  `json:"go"`
	Commit     string  `json:"commit"`
}

func (r *run) result(total *hists, errs map[string]int64, took time.Duration, used usage) *Result {
	ops := total.count(seriesResponse)
	perOp := 1 / math.Max(float64(ops), 1)
	res := &Result{
		Distribution: string(r.Set.Dist()), Loop: "closed", Clients: r.Clients, Pipelines: r.Pipelines, Rate: r.Rate,
		Keys: r.Set.Records(), KeyBytes: workload.KeySize, ValueBytes: len(r.Set.Value(0)),
		Ops: ops, Seconds: round(took.Seconds(), 3), OpsPerSec: round(float64(ops)/took.Seconds(), 1),
		ErrorKinds: errs, LatencyMs: make(map[string]Latency), ServiceMs: latency(total, seriesService),
		CPUPer1M: round(used.cpu.Seconds()*1e6*perOp, 3), CPUScope: "process",
		DiskPerOp: round(float64(used.diskBytes)*perOp, 1), DiskSource: used.diskSource,
		AllocsPerOp: round(float64(used.objects)*perOp, 2), AllocBytesPerOp: round(float64(used.bytes)*perOp, 1),
		Cores: runtime.NumCPU(), Go: runtime.Version(),
	}
	if r.Rate > 0 {
		res.Loop = "open"
	}
	for _, n := range errs {
		res.Errors += n
	}
	for op := range workload.OpCount {
		if op <= workload.Update || total.count(int(op)) > 0 { // read and update always
			res.LatencyMs[op.String()] = latency(total, int(op))
		}
	}
	return res
}

func latency(h *hists, series int) Latency {
	at := func(p float64) float64 { return round(h.millis(series, p), 3) }
	return Latency{Count: h.count(series), P50: at(50), P95: at(95), P99: at(99), P999: at(99.9), Max: at(100)}
}

func round(x float64, digits int) float64 {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return 0
	}
	p := math.Pow10(digits)
	return math.Round(x*p) / p
}

// WriteJSON writes the result as one object on one line.
func (res *Result) WriteJSON(w io.Writer) error {
	b, err := json.Marshal(res)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// WriteTable writes the result for a person, and last one line in the format
// of Go's benchmarks, for benchstat.
func (res *Result) WriteTable(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\ntotal    %.1fs  %s ops  %s ops/s  %d errors", res.Seconds, group(float64(res.Ops), 0), group(res.OpsPerSec, 1), res.Errors)
	kinds := make([]string, 0, len(res.ErrorKinds))
	for kind, n := range res.ErrorKinds {
		kinds = append(kinds, fmt.Sprintf("%s %d", kind, n))
	}
	sort.Strings(kinds)
	if len(kinds) > 0 {
		fmt.Fprintf(&b, " (%s)", strings.Join(kinds, ", "))
	}
	if res.Loop == "open" {
		fmt.Fprintf(&b, "\nload     %s/s planned", group(res.Rate, 0))
		if res.PeakPerSec > 0 {
			fmt.Fprintf(&b, " (%.0f %% of a closed loop's %s/s)", 100*res.Rate/res.PeakPerSec, group(res.PeakPerSec, 0))
		}
		fmt.Fprintf(&b, ", %s shed at the bound, %s not ended in time", group(float64(res.Shed), 0), group(float64(res.Unfinished), 0))
	}
	fmt.Fprintf(&b, "\n\n%-18s %12s %9s %9s %9s %9s %9s\n", "OPERATION", "COUNT", "P50(ms)", "P95(ms)", "P99(ms)", "P99.9(ms)", "MAX(ms)")
	row := func(name string, l Latency) {
		if l.Count > 0 {
			fmt.Fprintf(&b, "%-18s %12s %9.2f %9.2f %9.2f %9.2f %9.2f\n", name, group(float64(l.Count), 0), l.P50, l.P95, l.P99, l.P999, l.Max)
		}
	}
	for op := range workload.OpCount {
		row(op.String(), res.LatencyMs[op.String()])
	}
	if res.Loop == "open" {
		row("all, service time", res.ServiceMs)
	}
	fmt.Fprintf(&b, "\ncpu      %.1f s per million ops (%s)\n", res.CPUPer1M, res.CPUScope)
	fmt.Fprintf(&b, "disk     %s bytes per op (%s), fsync %s\n", group(res.DiskPerOp, 0), res.DiskSource, onOff(res.Fsync))
	fmt.Fprintf(&b, "memory   %.0f MiB resident, %.1f allocations and %s bytes per op\n\n", res.RSSMiB, res.AllocsPerOp, group(res.AllocBytesPerOp, 0))
	worst := res.ServiceMs
	nsPerOp := 0.0
	if res.Ops > 0 {
		nsPerOp = res.Seconds * 1e9 / float64(res.Ops)
	}
	fmt.Fprintf(&b, "BenchmarkYCSB/%s/shards=%d/clients=%d/value=%d-%d %d %.0f ns/op %.1f ops/s %.0f p50-ns %.0f p99-ns %.1f cpu-us/op %.0f disk-B/op\n",
		res.Workload, res.Shards, res.Clients, res.ValueBytes, res.Cores, res.Ops, nsPerOp, res.OpsPerSec,
		worst.P50*1e6, worst.P99*1e6, res.CPUPer1M, res.DiskPerOp)
	_, err := io.WriteString(w, b.String())
	return err
}

// headerEvery is how many lines stand between two headers of the live output.
const headerEvery = 20

// Lines prints a line for each second, with a header now and then.
type Lines struct {
	W io.Writer
	n int
}

// Second prints one line.
func (l *Lines) Second(s Second) {
	if l.n%headerEvery == 0 {
		fmt.Fprintln(l.W, "_elapsed___errors__ops/s(inst)___ops/s(cum)__p50(ms)__p95(ms)__p99(ms)__pMax(ms)___cpu(%)_disk(MB/s)___behind_____shed")
	}
	l.n++
	fmt.Fprintf(l.W, "%8.1fs %8d %12s %12s %8.1f %8.1f %8.1f %9.1f %8.0f %10.1f %8d %8d\n",
		s.Elapsed.Seconds(), s.Errors, group(s.OpsPerSec, 1), group(s.CumPerSec, 1), s.P50, s.P95, s.P99, s.Max, s.CPUPercent, s.DiskMBSec, s.Behind, s.Shed)
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// group formats x with digits decimals and commas between thousands.
func group(x float64, digits int) string {
	s := fmt.Sprintf("%.*f", digits, x)
	whole, frac, _ := strings.Cut(s, ".")
	sign := ""
	if strings.HasPrefix(whole, "-") {
		sign, whole = "-", whole[1:]
	}
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if frac != "" {
		whole += "." + frac
	}
	return sign + whole
}
