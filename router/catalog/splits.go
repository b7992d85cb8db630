package catalog

import "github.com/flotillakv/flotilla/shard"

// SplitKeys returns n-1 ascending split keys for a keyspace of which nothing
// else is known; n below 2 gives none, n above shard.MaxSplits is cut to it.
//
// Cutting the bytes evenly would put all keys of lower-case letters, which most
// keys are, into a tenth of the shards. So the next byte of a key is taken to
// be each lower-case letter and digit with weight 8, each upper-case letter
// with weight 4 and each other byte with weight 1 (of 586 in all: two thirds
// text, one third anything), and the split keys are the quantiles of this.
// Keys that share a long prefix ("user000001") still land in one or two shards;
// whoever knows the keys gives split keys instead.
func SplitKeys(n int) [][]byte {
	n = min(n, shard.MaxSplits)
	if n < 2 {
		return nil
	}
	out := make([][]byte, 0, n-1)
	for i := 1; i < n; i++ {
		out = append(out, quantile(uint64(i), uint64(n)))
	}
	return out
}

// weights of a key's next byte, and the sum of those before each byte.
var weight, weightBefore, weightSum = func() (w, before [256]uint64, sum uint64) {
	for b := range w {
		switch {
		case 'a' <= b && b <= 'z', '0' <= b && b <= '9':
			w[b] = 8
		case 'A' <= b && b <= 'Z':
			w[b] = 4
		default:
			w[b] = 1
		}
		before[b] = sum
		sum += w[b]
	}
	return w, before, sum
}()

// quantile returns a key that the i-th of n equal shares of all keys, by
// weight, lie below: byte after byte, until what the bytes leave open is less
// than an eighth of a share.
func quantile(i, n uint64) []byte { return appendQuantile(nil, i, n) }

func appendQuantile(key []byte, i, n uint64) []byte {
	num, den := i, n // the wanted fraction of the weights of the next byte
	for resolved := uint64(1); resolved <= 8*n && num > 0; {
		b := 255
		for weightBefore[b]*den > num*weightSum {
			b--
		}
		key = append(key, byte(b))
		num = num*weightSum - weightBefore[b]*den
		den *= weight[b]
		resolved *= weightSum / weight[b]
		for den > 1<<44 { // the sums above stay below 2^54
			num, den = num/2, den/2
		}
	}
	return key
}

// share returns which of n equal shares of all keys, by weight, key lies in, from 0,
// but for rounding: the right one may be next to it.
func share(key []byte, n int) int {
	at, width := 0.0, 1.0
	for _, b := range key {
		at += width * float64(weightBefore[b]) / float64(weightSum)
		if width *= float64(weight[b]) / float64(weightSum); width*float64(n) < 1e-3 {
			break
		}
	}
	return min(int(at*float64(n)), n-1)
}
