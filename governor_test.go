package flotilla

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/shard"
)

// TestMemoryIsCounted: a node of 200 shards with the smallest limit takes 50 MiB. All the
// while every consumer of memory keeps to the bound that the node states for it; and
// afterwards Go's heap holds no more than the consumers say that they hold, and a fixed
// allowance: so nobody holds anything that is not counted.
func TestMemoryIsCounted(t *testing.T) {
	if err := checkMemoryCounted(t); err != nil {
		t.Error(err)
	}
}

func checkMemoryCounted(t *testing.T) error {
	const shards, valueBytes, perShard = 200, 16 << 10, 16
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var split [][]byte
	for i := range shards - 1 {
		split = append(split, fmt.Appendf(nil, "%03d", i+1))
	}
	n, err := Open(ctx, Options{Dir: t.TempDir(), SplitAt: split, Limits: Limits{Memory: MinMemory, Wait: time.Minute}, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	before, counted := liveHeap(), heapCounted(n)

	look := func() error {
		m := n.Memory()
		for _, u := range m.Uses {
			if u.Budget > 0 && u.Held > u.Budget && u.Name != "block cache" { // which shrinks behind what others take
				return fmt.Errorf("%s: %d KiB held, the bound is %d KiB", u.Name, u.Held>>10, u.Budget>>10)
			}
		}
		return nil
	}
	value := make([]byte, valueBytes)
	var wg sync.WaitGroup
	errs := make(chan error, 64)
	for w := range cap(errs) {
		wg.Go(func() {
			for i := w; i < shards*perShard; i += cap(errs) {
				if _, err := n.Put(ctx, fmt.Appendf(nil, "%03d/%d", i%shards, i/shards), value); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { defer close(done); wg.Wait() }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for running := true; running; {
		if err := look(); err != nil {
			cancel()
			<-done
			return err
		}
		select {
		case <-done:
			running = false
		case <-tick.C:
		}
	}
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}
	if err := look(); err != nil {
		return err
	}
	// While flushes are behind writes may have been held up; not any more.
	for deadline := time.Now().Add(20 * time.Second); n.Memory().Braked; runtime.Gosched() {
		if time.Now().After(deadline) {
			return fmt.Errorf("nobody writes any more, and the memory is used up:%s", usesText(n))
		}
	}
	// Batches and pools are let go of soon after the last write; and before replicas fall
	// asleep, which then hold nothing.
	const allowance = 24 << 20
	var grown, said int64
	for deadline := time.Now().Add(2 * time.Second); ; runtime.Gosched() {
		grown, said = liveHeap()-before, heapCounted(n)-counted
		if grown <= said+allowance {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("Go's heap grew by %d KiB, of which %d KiB are counted:%s", grown>>10, said>>10, usesText(n))
		}
	}
	if m := n.Memory(); m.Held("entries in memory") > n.gov.plan.tails+1<<20 {
		return fmt.Errorf("nothing waits, and entries take %d KiB of at most %d", m.Held("entries in memory")>>10, n.gov.plan.tails>>10)
	}
	return nil
}

func usesText(n *Node) string {
	var b strings.Builder
	m := n.Memory()
	for _, u := range m.Uses {
		fmt.Fprintf(&b, " %s %d KiB,", u.Name, u.Held>>10)
	}
	return b.String()
}

// liveHeap is what a collection leaves in Go's heap.
func liveHeap() int64 {
	runtime.GC() // twice: for pools
	runtime.GC()
	return readRuntime().live
}

// heapCounted is what a node says that it holds in Go's heap.
func heapCounted(n *Node) (sum int64) {
	for _, u := range n.memoryUses() {
		if u.Name != "block cache" && u.Name != "memtables" {
			sum += u.Held
		}
	}
	return sum
}

// TestGovernor: what a governor orders is carried out. The block cache shrinks to what
// is left for it, and has its room back when it is there; writes are refused with the
// typed error while there is too little, and taken again afterwards; the catalog's are not refused.
func TestGovernor(t *testing.T) {
	if err := checkGovernor(t); err != nil {
		t.Error(err)
	}
}

func checkGovernor(t *testing.T) error {
	ctx := t.Context()
	n, err := Open(ctx, Options{Dir: t.TempDir(), Limits: Limits{Memory: 64 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	key := func(i int) []byte { return fmt.Appendf(nil, "k%04d", i) }
	const keys = 1024
	for i := range keys {
		if _, err := n.Put(ctx, key(i), make([]byte, 16<<10)); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.eng.Flush(); err != nil {
		t.Fatal(err)
	}
	read := func() int64 {
		for i := range keys {
			if _, err := n.Get(ctx, key(i)); err != nil {
				t.Fatal(err)
			}
		}
		m := n.Memory()
		return m.Held("block cache")
	}
	full := read()
	if full < 4<<20 {
		t.Fatalf("the block cache holds %d KiB of 16 MiB that were read", full>>10)
	}
	n.gov.manual.Store(true)
	n.govern() // ends what the loop may have begun
	floor := n.gov.plan.cacheFloor
	n.gov.decide(memoryOrder{reserve: n.gov.plan.cache - floor, press: 2}, n)
	if held := read(); held > floor {
		return fmt.Errorf("the block cache holds %d KiB, and was told to hold %d", held>>10, floor>>10)
	}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	_, err = n.Put(short, key(0), []byte("refused"))
	var busy *OverloadedError
	if !errors.As(err, &busy) || busy.RetryAfter <= 0 || shard.OutcomeOf(err) != shard.NotApplied || !strings.Contains(busy.Why, "memory") {
		return fmt.Errorf("a write while there is no memory: %w", err)
	}
	if m := n.Memory(); !m.Braked || m.Brakes != 1 {
		return fmt.Errorf("writes are refused, and the node says %t, %d", m.Braked, m.Brakes)
	}
	if v, err := n.Get(ctx, key(0)); err != nil || len(v.Bytes) < 10 {
		return fmt.Errorf("what was refused took effect: %q, %w", v.Bytes, err)
	}
	n.gov.decide(memoryOrder{}, n)
	if _, err := n.Put(ctx, key(0), make([]byte, 16<<10)); err != nil {
		return fmt.Errorf("a write when there is memory again: %w", err)
	}
	if held := read(); held < full/2 {
		return fmt.Errorf("the block cache holds %d KiB when it may hold what it held before, %d", held>>10, full>>10)
	}
	return nil
}

// TestMemoryPlan: for every limit, what has to be there at the same time fits into it,
// and nobody gets less than what one largest value needs.
func TestMemoryPlan(t *testing.T) {
	for m := int64(MinMemory); m <= 1<<40; m += m / 3 {
		p := planMemory(&Limits{Memory: m})
		// Memtables are part of the cache; those of the smallest limits have to be.
		atOnce := max(p.cache, 2*p.memtable) + 2*p.deferred
		if atOnce > m*93/100 || p.cacheFloor > p.cache || p.memtable*2 > max(p.cache, 8<<20) {
			t.Errorf("%d MiB: %+v needs %d MiB at once", m>>20, p, atOnce>>20)
		}
		if p.proposals < 4<<20 || p.inbox < 8<<20 || p.queue < 4<<20 || p.requests < 8<<20 || p.round < 1<<20 {
			t.Errorf("%d MiB: %+v leaves no room for the largest value", m>>20, p)
		}
		if m >= MinProcessMemory && p.cache+p.deferred*3+p.proposals+p.tails+40<<20 > m*11/10 {
			t.Errorf("%d MiB: %+v does not fit into a process", m>>20, p)
		}
	}
	if p := planMemory(&Limits{}); p.limit != DefaultMemory || p.memtable < 51<<20 || p.deferred < 32<<20 {
		t.Errorf("the default is %+v", p)
	}
}

// TestJudgeMemory: what is missing is taken from the block cache first; only when that is
// at its floor, or the process is well above its limit, writes are refused.
func TestJudgeMemory(t *testing.T) {
	const mib = 1 << 20
	p := planMemory(&Limits{Memory: 512 * mib})
	at := func(rss, total, live, cache, mem int64) memoryOrder {
		return judgeProcess(&p, memoryView{rss: rss * mib, run: runtimeUse{total: total * mib, live: live * mib}, cache: cache * mib, memtables: mem * mib})
	}
	idle := at(60, 20, 5, 0, 1)
	if idle.reserve > 0 || idle.press >= 0.5 || idle.goLimit < 400*mib {
		t.Errorf("idle: %+v", idle)
	}
	cached := at(300, 50, 20, 200, 1)
	if cached.reserve > 0 || cached.press >= 1 {
		t.Errorf("a full cache and little else: %+v", cached)
	}
	busy := at(500, 250, 180, 100, 100)
	if busy.reserve == 0 || busy.press >= 1 || busy.goLimit > 300*mib {
		t.Errorf("a busy heap: %+v", busy)
	}
	worse := at(520, 300, 230, 100, 100)
	if worse.reserve <= busy.reserve {
		t.Errorf("a busier heap: %+v after %+v", worse, busy)
	}
	if full := at(520, 400, 380, 12, 100); full.press <= 1 {
		t.Errorf("a heap of what is in use: %+v", full)
	}
	if over := at(600, 300, 100, 100, 100); over.press <= 1 {
		t.Errorf("a process above its limit: %+v", over)
	}
	if held := judgeHeld(&p, 100*mib); held.reserve != 0 || held.press >= 1 {
		t.Errorf("embedded, little held: %+v", held)
	}
	if held := judgeHeld(&p, 400*mib); held.reserve == 0 || held.press >= 1 {
		t.Errorf("embedded, much held: %+v", held)
	}
	if held := judgeHeld(&p, 520*mib); held.press <= 1 {
		t.Errorf("embedded, too much held: %+v", held)
	}
}
