package workload

import (
	"bytes"
	"math"
	"sort"
	"testing"
)

func newSet(t testing.TB, name string, dist Dist, records uint64) *Set {
	t.Helper()
	spec, err := Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Spec: spec, Dist: dist, Records: records, ValueBytes: 128, Seed: 7})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Each workload mixes its operations in the shares of its definition: 200,000
// draws, each share within half a percentage point.
func TestShares(t *testing.T) {
	const draws = 200_000
	for _, name := range Names() {
		s := newSet(t, name, "", 1000)
		g := s.Client(0)
		var count [OpCount]int
		for range draws {
			g.Next()
			count[g.Op]++
			g.Done()
		}
		for op := range OpCount {
			got := 100 * float64(count[op]) / draws
			if want := float64(s.spec.Share[op]); math.Abs(got-want) > 0.5 {
				t.Errorf("workload %s: %.2f%% %v, want %.0f%%", name, got, op, want)
			}
		}
	}
}

// What goes with an operation: writes carry a value of the right size, scans a
// length in [1, 100] with a mean near 50.5, reads neither; keys have KeySize.
func TestFields(t *testing.T) {
	for _, name := range Names() {
		g := newSet(t, name, "", 1000).Client(3)
		scans, sum := 0, 0
		for range 20_000 {
			g.Next()
			if len(g.Key) != KeySize {
				t.Fatalf("%s: key %q", name, g.Key)
			}
			writes := g.Op == Update || g.Op == Insert || g.Op == ReadModifyWrite
			if writes != (len(g.Value) == 128) || !writes && g.Value != nil {
				t.Fatalf("%s: %v with a value of %d bytes", name, g.Op, len(g.Value))
			}
			if (g.Op == Scan) != (g.ScanLen >= 1 && g.ScanLen <= MaxScanLen) {
				t.Fatalf("%s: %v of length %d", name, g.Op, g.ScanLen)
			}
			if g.Op == Scan {
				scans, sum = scans+1, sum+g.ScanLen
			}
			g.Done()
		}
		if mean := float64(sum) / float64(max(scans, 1)); scans > 0 && math.Abs(mean-50.5) > 1 {
			t.Errorf("%s: mean scan length %.1f", name, mean)
		}
	}
}

// The ranks follow the Zipf law: over 1,000 ranks and 400,000 draws the two
// exact ranks (0 and 1) hit their probability, the rest agree in the cumulative
// distribution within 2 points (the method of Gray et al. is an approximation).
func TestZipfLaw(t *testing.T) {
	const n, draws = 1000, 400_000
	g := newSet(t, "C", "", 1).Client(1)
	z := newZipf(n, zeta(n))
	var count [n]int
	for range draws {
		count[z.draw(&g.rand)]++
	}
	cum, want := 0.0, 0.0
	for i := range n {
		p := math.Pow(float64(i+1), -theta) / zeta(n)
		got := float64(count[i]) / draws
		if i < 2 && math.Abs(got-p) > 0.003 {
			t.Errorf("rank %d: probability %.4f, want %.4f", i, got, p)
		}
		cum, want = cum+got, want+p
		if math.Abs(cum-want) > 0.02 {
			t.Fatalf("ranks 0..%d: %.4f of the draws, want %.4f", i, cum, want)
		}
	}
}

// The scrambled law is YCSB's: the most popular record takes 1/zeta(10^10)
// = 3.8 % of the draws, the second 1.9 %, wherever in the key space they lie,
// and the popular ones do not lie side by side.
func TestScrambledZipfian(t *testing.T) {
	const records, draws = 100_000, 1_000_000
	g := newSet(t, "C", "", records).Client(1)
	count := make([]int, records)
	for range draws {
		g.Next()
		count[g.Record()]++
	}
	order := make([]int, records)
	for i := range order {
		order[i] = i
	}
	sort.Slice(order, func(a, b int) bool { return count[order[a]] > count[order[b]] })
	if order[0] != int(fnv(0)%records) {
		t.Errorf("most popular record is %d, want that of rank 0", order[0])
	}
	for i, want := range []float64{1 / scrambledZeta, math.Pow(2, -theta) / scrambledZeta} {
		if got := float64(count[order[i]]) / draws; math.Abs(got-want) > 0.002 {
			t.Errorf("record of rank %d: %.4f of the draws, want %.4f", i, got, want)
		}
	}
	top, lower := 0, 0
	for i, rec := range order[:1000] {
		top += count[rec]
		if i < 100 && rec < records/2 {
			lower++
		}
	}
	if share := float64(top) / draws; share < 0.25 || share > 0.45 {
		t.Errorf("the top 1%% of the records take %.2f of the draws", share)
	}
	if lower < 30 || lower > 70 {
		t.Errorf("%d of the 100 most popular records lie in the lower half", lower)
	}
}

// Uniform draws pass a chi-square test over 100 records.
func TestUniform(t *testing.T) {
	const records, draws = 100, 200_000
	g := newSet(t, "C", Uniform, records).Client(1)
	var count [records]int
	for range draws {
		g.Next()
		count[g.Record()]++
	}
	chi, want := 0.0, float64(draws)/records
	for _, c := range count {
		chi += (float64(c) - want) * (float64(c) - want) / want
	}
	if chi > 150 { // 99 degrees of freedom: p < 0.001
		t.Errorf("chi-square %.1f over %d records", chi, records)
	}
}

// Latest prefers the youngest record, follows inserts, and never asks for a
// record whose insert is still in flight.
func TestLatestFollowsInserts(t *testing.T) {
	s := newSet(t, "D", "", 1000)
	a, b := s.Client(0), s.Client(1)
	for a.Op != Insert { // a's insert stays in flight
		a.Next()
	}
	hole := a.Record()
	youngest := 0
	for range 50_000 {
		b.Next()
		if b.Op == Read {
			if b.Record() >= hole {
				t.Fatalf("read of record %d while record %d is in flight", b.Record(), hole)
			}
			if b.Record() == hole-1 {
				youngest++
			}
		}
		b.Done()
	}
	if youngest < 4_000 { // 1/zeta(1000) = 13 % of 47,500 reads
		t.Errorf("the youngest record was read %d times", youngest)
	}
	if s.Inserted() != hole {
		t.Errorf("inserted %d, want %d while its insert is in flight", s.Inserted(), hole)
	}
	a.Done()
	if got, want := s.Inserted(), s.next.Load(); got != want {
		t.Errorf("inserted %d, want %d", got, want)
	}
}

// Keys are unique, and Splits cuts them into ranges of nearly equal count.
func TestKeysSpreadOverSplits(t *testing.T) {
	const records, shards = 48_000, 48
	splits := Splits(shards)
	if len(splits) != shards-1 || Splits(1) != nil {
		t.Fatalf("%d splits", len(splits))
	}
	seen := make(map[string]bool, records)
	count := make([]int, shards)
	for i := range uint64(records) {
		k := AppendKey(nil, i)
		if seen[string(k)] {
			t.Fatalf("key %q twice", k)
		}
		seen[string(k)] = true
		count[sort.Search(len(splits), func(j int) bool { return bytes.Compare(splits[j], k) > 0 })]++
	}
	for i, c := range count {
		if c < 800 || c > 1200 {
			t.Errorf("range %d holds %d of %d keys", i, c, records)
		}
	}
}

// zeta by formula equals zeta by summing.
func TestZeta(t *testing.T) {
	sum := 0.0
	for i := 1; i <= 200_000; i++ {
		sum += math.Pow(float64(i), -theta)
	}
	if got := zeta(200_000); math.Abs(got-sum) > 1e-6 {
		t.Errorf("zeta(200000) = %.9f, want %.9f", got, sum)
	}
	if got := zeta(scrambledRanks); math.Abs(got-scrambledZeta) > 1e-4 {
		t.Errorf("zeta(10^10) = %.6f, want YCSB's constant %.6f", got, scrambledZeta)
	}
}

// Equal seeds draw equal operations, other clients others.
func TestSeeds(t *testing.T) {
	trace := func(client int) (out []byte) {
		g := newSet(t, "F", "", 1000).Client(client)
		for range 100 {
			g.Next()
			out = append(append(out, byte(g.Op)), g.Key...)
			g.Done()
		}
		return out
	}
	if !bytes.Equal(trace(1), trace(1)) {
		t.Error("the same client drew two different traces")
	}
	if bytes.Equal(trace(1), trace(2)) {
		t.Error("two clients drew the same trace")
	}
}

func TestRefusals(t *testing.T) {
	if _, err := Parse("G"); err == nil {
		t.Error("workload G was accepted")
	}
	if _, err := ParseDist("normal"); err == nil {
		t.Error("distribution normal was accepted")
	}
	spec, _ := Parse("a")
	for _, c := range []Config{
		{Spec: spec, Records: 0, ValueBytes: 1},
		{Spec: spec, Records: 1, ValueBytes: MaxValueBytes + 1},
		{Spec: Spec{Name: "X"}, Records: 1},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

// Next does not allocate.
func TestNextDoesNotAllocate(t *testing.T) {
	for _, name := range []string{"A", "C", "E", "F"} {
		g := newSet(t, name, "", 100_000).Client(0)
		if n := testing.AllocsPerRun(1000, func() { g.Next() }); n != 0 {
			t.Errorf("workload %s: %.1f allocations per operation", name, n)
		}
	}
}

func BenchmarkNext(b *testing.B) {
	for _, name := range Names() {
		b.Run(name, func(b *testing.B) {
			g := newSet(b, name, "", 100_000).Client(0)
			b.ReportAllocs()
			for b.Loop() {
				g.Next()
				g.Done()
			}
		})
	}
}
