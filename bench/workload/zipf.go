package workload

import (
	"math"
	"math/rand/v2"
)

const (
	// theta is the exponent of YCSB's zipfian law.
	theta = 0.99
	// scrambledRanks is the number of ranks YCSB's scrambled law draws from
	// before it hashes the rank to a record.
	scrambledRanks = 10_000_000_000
	// scrambledZeta is zeta(scrambledRanks, theta), a constant of YCSB.
	scrambledZeta = 26.46902820178302
)

// zipf draws ranks from [0, n) with probability proportional to
// 1/(rank+1)^theta, by the method of Gray et al., "Quickly Generating
// Billion-Record Synthetic Databases" (SIGMOD 1994), as YCSB does.
type zipf struct {
	n               uint64
	zeta, eta, half float64
}

func newZipf(n uint64, zeta float64) zipf {
	z := zipf{n: n, zeta: zeta, half: 1 + math.Pow(0.5, theta)}
	z.eta = (1 - math.Pow(2/float64(n), 1-theta)) / (1 - z.half/zeta)
	return z
}

func (z *zipf) draw(r *rand.Rand) uint64 {
	u := r.Float64()
	switch uz := u * z.zeta; {
	case uz < 1:
		return 0
	case uz < z.half && z.n > 1:
		return 1
	}
	rank := uint64(float64(z.n) * math.Pow(z.eta*u-z.eta+1, 1/(1-theta)))
	return min(rank, z.n-1)
}

// zeta returns the sum of 1/i^theta for i in [1, n]: exactly for the first
// terms, by the Euler-Maclaurin formula beyond them.
func zeta(n uint64) float64 {
	const exact = 1000
	sum := 0.0
	for i := uint64(1); i <= min(n, exact); i++ {
		sum += math.Pow(float64(i), -theta)
	}
	if n <= exact {
		return sum
	}
	integral := (math.Pow(float64(n), 1-theta) - math.Pow(exact, 1-theta)) / (1 - theta)
	ends := (math.Pow(float64(n), -theta) - math.Pow(exact, -theta)) / 2
	return sum + integral + ends
}
