package flotilla

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/transport"
)

// How Limits.Memory is shared out. Every consumer has a bound of its own, which follows
// from the limit (memoryPlan), so what may be unbounded is nobody; but the bounds of those
// whose needs come at different times add up to more than there is. So a governor looks
// four times a second at what each of them holds, and
//
//  1. takes what is missing from the block cache, down to its floor, and gives it back
//     when others need less: it is the only consumer that can shrink without harm;
//  2. where the process belongs to the node (Options.WholeProcess), tells Go's runtime how
//     much is left for it (its soft memory limit): garbage is collected earlier then;
//  3. has writes refused with *OverloadedError while what cannot shrink is too much.
//
// What the kernel counts as resident is held to the limit; it may exceed it by a fifth
// for a moment.

// DefaultMemory is Limits.Memory where it is zero.
const DefaultMemory = 512 << 20

// MinMemory is the least that Limits.Memory can be, and MinProcessMemory where it has
// to do for a whole process: the program, its runtime and its stacks take some 40 MiB.
const (
	MinMemory        = 16 << 20
	MinProcessMemory = 128 << 20
)

// memoryPlan is how a limit of memory is shared out, in bytes.
type memoryPlan struct {
	limit int64
	// cache is the block cache and the memtables together, cacheFloor what is left of it
	// however much others need.
	cache, cacheFloor int64
	memtable          int64 // up to four of them
	deferred          int64 // up to three times: filling, being flushed, kept for reads
	proposals         int64
	tails             int64
	inbox             int   // of each loop
	round             int   // of a batch; up to four of them per loop are under way
	queue             int   // of frames, for each peer
	window            int   // of frames that came in, from each peer
	clientWindow      int   // of requests that came in, from each connection
	requests          int64 // of clients that are being served
}

// memtables is how many memtables there may be: Pebble makes writes wait when three are
// full, has made the next one by then, and may keep one that was flushed.
const memtables = 4

// planMemory shares out what the limits say.
func planMemory(l *Limits) memoryPlan {
	m := cmp.Or(l.Memory, DefaultMemory)
	p := memoryPlan{limit: m}
	// Larger ones cost more processor time per write than they save.
	p.memtable = min(max(4<<20, min(128<<20, m/10)), l.log()/16)
	p.deferred = max(2<<20, min(256<<20, m/16))
	p.cache = m - max(min(m/5*3, 3<<30), m/8)
	p.cacheFloor = max(1<<20, p.cache/16)
	p.proposals = max(4<<20, min(256<<20, m/16))
	if l.Proposals > 0 {
		p.proposals = l.Proposals
	}
	p.tails = max(1<<20, min(1<<30, m/32))
	p.inbox = int(max(8<<20, min(64<<20, m/16)))
	p.round = int(max(1<<20, min(4<<20, m/128)))
	p.queue = int(max(4<<20, min(8<<20, m/64)))
	p.window = int(max(1<<20, min(8<<20, m/64)))
	p.clientWindow = int(max(256<<10, min(8<<20, m/256)))
	p.requests = max(8<<20, min(1<<30, m/16))
	return p
}

// MemoryUse is what one consumer of a node's memory holds, in bytes, and what it may.
type MemoryUse struct {
	Name string `json:"name"`
	Held int64  `json:"held_bytes"`
	// Budget is the consumer's own bound. The sum of all of them exceeds the limit: they do
	// not need it at the same time. Zero: it follows from what others hold.
	Budget int64 `json:"budget_bytes"`
}

// MemoryInfo says who holds the memory of a node.
type MemoryInfo struct {
	// Limit is Limits.Memory.
	Limit int64 `json:"limit_bytes"`
	// Resident is what the whole process has in memory; zero: nobody can tell.
	Resident int64 `json:"resident_bytes"`
	// GoLimit is the soft limit that the governor has set for Go's runtime; zero: none, the
	// process is not the node's alone.
	GoLimit int64 `json:"go_limit_bytes,omitempty"`
	// CacheReserved is what the governor has taken from the block cache.
	CacheReserved int64 `json:"cache_reserved_bytes"`
	// Braked: writes are refused because the memory is used up; Brakes counts how often
	// that began.
	Braked bool        `json:"braked"`
	Brakes uint64      `json:"brakes"`
	Uses   []MemoryUse `json:"uses"`
}

// Held returns what the consumer called name holds, zero if there is none.
func (m *MemoryInfo) Held(name string) int64 {
	for i := range m.Uses {
		if m.Uses[i].Name == name {
			return m.Uses[i].Held
		}
	}
	return 0
}

// Counted is the sum of what the consumers hold.
func (m *MemoryInfo) Counted() (sum int64) {
	for i := range m.Uses {
		sum += m.Uses[i].Held
	}
	return sum
}

// governor keeps a node to its limit of memory.
type governor struct {
	plan     memoryPlan
	reserved atomic.Int64 // of the block cache
	goLimit  atomic.Int64
	before   int64 // goLimit of the runtime before it was set; of governLoop
	braked   atomic.Bool
	brakes   atomic.Uint64
	manual   atomic.Bool // nobody looks: a test decides
}

const (
	governTick = 250 * time.Millisecond
	// restTicks is after how many looks the store gives back what nobody read since.
	restTicks = 40
	// brakeRetry is what callers are told that are refused for want of memory: a
	// collection of garbage takes less.
	brakeRetry = 100 * time.Millisecond
)

// memoryUses lists what the consumers hold.
func (n *Node) memoryUses() []MemoryUse {
	p := &n.gov.plan
	e, h := n.eng.MemoryUse(), n.host.MemoryUse()
	peers, queued := int64(0), int64(0)
	for _, s := range n.net.get().Stats() {
		peers, queued = peers+1, queued+s.QueueBytes
	}
	var c transport.Counters
	if t, ok := n.net.get().(*transport.GRPC); ok {
		c = t.Counters()
	}
	loops := int64(n.host.Loops())
	return []MemoryUse{
		{"block cache", e.BlockCache, max(p.cache-e.MemTables-n.gov.reserved.Load(), 0)},
		{"memtables", e.MemTables, memtables * p.memtable},
		{"applied, not in tables", e.Deferred, 3 * p.deferred},
		{"batches", e.Batches, 8 * loops * int64(p.round)},
		{"index of the logs", e.LogIndex, 0},
		{"open tables", e.FileCache, 0},
		{"proposals", h.Proposals, p.proposals},
		{"inboxes", h.Inbox, loops * int64(p.inbox)},
		{"entries in memory", h.Tails, p.tails + 3*p.proposals},
		{"frames to peers", queued, peers * int64(p.queue)},
		{"requests", c.RequestBytes, p.requests},
		{"answers", c.ResponseBytes, 0},
	}
}

// Memory says who holds the memory of this node. It costs some tens of microseconds.
func (n *Node) Memory() MemoryInfo {
	g := &n.gov
	m := MemoryInfo{Limit: g.plan.limit, Uses: n.memoryUses(), GoLimit: g.goLimit.Load(), CacheReserved: g.reserved.Load(), Braked: g.braked.Load(), Brakes: g.brakes.Load()}
	m.Resident, _ = residentBytes()
	r := readRuntime()
	rest := r.total - r.objects - r.stacks
	m.Uses = append(m.Uses, MemoryUse{"goroutine stacks", r.stacks, 0}, MemoryUse{"Go: garbage and overhead", max(rest+r.objects-r.live, 0), 0})
	return m
}

// runtimeUse is what Go's runtime holds, in bytes.
type runtimeUse struct {
	total   int64 // of the operating system, and not given back
	objects int64 // in the heap, garbage included
	live    int64 // found by the last collection
	stacks  int64
}

func readRuntime() runtimeUse {
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(s)
	v := func(i int) int64 { return int64(s[i].Value.Uint64()) }
	return runtimeUse{total: v(0) - v(1), objects: v(2), live: v(3), stacks: v(4)}
}

// residentBytes returns what this process has in memory, as the kernel counts it. Where
// nobody can tell, ok is false.
func residentBytes() (n int64, ok bool) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, false
	}
	f := bytes.Fields(b)
	if len(f) < 2 {
		return 0, false
	}
	pages, err := strconv.ParseInt(string(f[1]), 10, 64)
	return pages * int64(os.Getpagesize()), err == nil
}

// governLoop looks at the memory until the node closes.
func (n *Node) governLoop() {
	t := time.NewTicker(governTick)
	defer t.Stop()
	for looks := 1; ; looks++ {
		select {
		case <-n.stop:
			if n.gov.goLimit.Load() != 0 {
				debug.SetMemoryLimit(n.gov.before)
			}
			return
		case <-t.C:
		}
		if !n.gov.manual.Load() {
			n.govern()
			if looks%restTicks == 0 {
				n.eng.Rest()
			}
		}
	}
}

// govern takes one look.
func (n *Node) govern() {
	g := &n.gov
	uses := n.memoryUses()
	if n.o.WholeProcess {
		rss, _ := residentBytes()
		g.decide(judgeProcess(&g.plan, memoryView{rss: rss, run: readRuntime(), cache: uses[0].Held, memtables: uses[1].Held}), n)
		return
	}
	held := int64(0)
	for _, u := range uses[2:] {
		held += u.Held
	}
	// Those of the smallest limits exceed their share for a moment; writes wait then anyway.
	held += min(uses[1].Held, g.plan.cache)
	g.decide(judgeHeld(&g.plan, held), n)
}

// memoryView is what a governor sees of a process.
type memoryView struct {
	rss              int64 // zero: not known
	run              runtimeUse
	cache, memtables int64
}

// memoryOrder is what a governor wants done.
type memoryOrder struct {
	reserve int64   // of the block cache
	goLimit int64   // zero: none
	press   float64 // above 1: what cannot shrink is more than there may be
}

// judgeHeld decides by what consumers but the block cache hold: their garbage is not
// counted, the runtime is not the node's.
func judgeHeld(p *memoryPlan, held int64) memoryOrder {
	room := p.limit - held
	o := memoryOrder{reserve: max(p.cache-max(room, p.cacheFloor), 0)}
	o.press = float64(held+p.cacheFloor) / float64(p.limit)
	return o
}

// judgeProcess decides by what the process has.
func judgeProcess(p *memoryPlan, v memoryView) memoryOrder {
	other := v.rss - v.run.total // C's heap, the program itself
	if v.rss == 0 {
		other = v.cache + v.memtables + 32<<20
	}
	other = max(other, v.cache)
	// Go gets what the others leave; the cache leaves Go half as much again as it needs.
	need := v.run.live + v.run.live/2 + v.run.stacks + 16<<20
	room := p.limit - (other - v.cache) - need // for the cache
	o := memoryOrder{reserve: p.cache - v.memtables - max(room, p.cacheFloor)}
	o.reserve = min(max(o.reserve, 0), p.cache-p.cacheFloor)
	o.goLimit = max(p.limit-other, p.limit/4)
	o.press = max(float64(v.run.live+v.run.stacks)/(0.9*float64(o.goLimit)), float64(v.rss)/(1.1*float64(p.limit)))
	return o
}

// decide carries an order out.
func (g *governor) decide(o memoryOrder, n *Node) {
	// Small changes are not worth it: each drops blocks, or stops the world.
	if was := g.reserved.Load(); math.Abs(float64(o.reserve-was)) > float64(g.plan.cache)/32 || o.reserve == 0 && was != 0 {
		g.reserved.Store(o.reserve)
		if !mutants.On("GV4") {
			n.eng.ReserveCache(o.reserve)
		}
	}
	if was := g.goLimit.Load(); o.goLimit != 0 && math.Abs(float64(o.goLimit-was)) > float64(g.plan.limit)/64 {
		if old := debug.SetMemoryLimit(o.goLimit); g.goLimit.Swap(o.goLimit) == 0 {
			g.before = old
		}
	}
	switch braked := g.braked.Load(); {
	case !braked && o.press > 1:
		g.braked.Store(true)
		g.brakes.Add(1)
		n.host.Brake(brakeRetry)
		n.log.Warn("the memory is used up: writes are refused", "limit", g.plan.limit, "share", fmt.Sprintf("%.2f", o.press))
	case braked && o.press < 0.95:
		g.braked.Store(false)
		n.host.Brake(0)
		n.log.Info("there is memory again")
	}
}
