package workload

import "math/rand/v2"

// Gen draws the operations of one client. It is not safe for concurrent use.
type Gen struct {
	// Op is the operation drawn last by Next.
	Op Op
	// Key is the key it concerns, or the first key of a Scan. It is valid until
	// the next call of Next.
	Key []byte
	// Value is what to write; it is shared between clients, never changes, and
	// is nil for operations that only read.
	Value []byte
	// ScanLen is the number of records a Scan asks for, in [1, MaxScanLen].
	ScanLen int

	set    *Set
	record uint64
	rand   rand.Rand
	pcg    rand.PCG
	zipf   zipf
	buf    [KeySize]byte
}

// Client returns the generator of client i.
func (s *Set) Client(i int) *Gen {
	g := &Gen{set: s}
	g.pcg.Seed(s.seed, mix(uint64(i)+1))
	g.rand = *rand.New(&g.pcg)
	switch s.dist {
	case Zipfian:
		g.zipf = newZipf(scrambledRanks, scrambledZeta)
	case Latest:
		g.zipf = newZipf(s.records, zeta(s.records))
	}
	return g
}

// Next draws the next operation into the fields of g, without allocating.
func (g *Gen) Next() {
	g.Op = g.set.fromOp[g.rand.IntN(len(g.set.fromOp))]
	g.Value, g.ScanLen = nil, 0
	if g.Op == Insert {
		g.record = g.set.next.Add(1) - 1
	} else {
		g.record = g.pick()
	}
	switch g.Op {
	case Scan:
		g.ScanLen = 1 + g.rand.IntN(MaxScanLen)
	case Insert:
		g.Value = g.set.Value(g.record)
	case Update, ReadModifyWrite:
		g.Value = g.set.value(g.rand.Uint64())
	}
	g.Key = AppendKey(g.buf[:0], g.record)
}

// Done tells that the operation drawn last has ended, successfully or not.
// Records inserted become eligible for reads only then.
func (g *Gen) Done() {
	if g.Op == Insert {
		g.set.acked.done(g.record)
	}
}

// Record returns the number of the record the operation drawn last concerns.
func (g *Gen) Record() uint64 { return g.record }

func (g *Gen) pick() uint64 {
	limit := g.set.acked.limit.Load()
	switch g.set.dist {
	case Uniform:
		return g.rand.Uint64N(limit)
	case Latest:
		if limit > g.zipf.n+g.zipf.n/100 { // follow growth in steps of 1 %
			g.zipf = newZipf(limit, zeta(limit))
		}
		return limit - 1 - g.zipf.draw(&g.rand)
	}
	return fnv(g.zipf.draw(&g.rand)) % limit
}
