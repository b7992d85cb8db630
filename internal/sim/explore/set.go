package explore

// set holds 64-bit fingerprints and, if numbered, in which order they came: open
// addressing, at most two thirds full.
//
// Two different states with one fingerprint would be taken for the same. With n
// states of a search that happens with probability below n*n/2^65: 1e-5 for 20
// million, 3e-4 for 100 million.
type set struct {
	slots    []uint64
	numbered bool
	nums     []uint32
	n        uint32
}

const zeroPrint = 0x9e3779b97f4a7c15 // stands for the fingerprint zero

// add returns whether fingerprint f is new, and its number (zero for one that is
// not new, unless the set is numbered).
func (s *set) add(f uint64) (num uint32, fresh bool) {
	if f == 0 {
		f = zeroPrint
	}
	if uint64(s.n)*3 >= uint64(len(s.slots))*2 {
		s.grow()
	}
	mask := uint64(len(s.slots) - 1)
	i := f * 0xbf58476d1ce4e5b9 >> 7 & mask
	for s.slots[i] != 0 {
		if s.slots[i] == f {
			if s.numbered {
				num = s.nums[i]
			}
			return num, false
		}
		i = (i + 1) & mask
	}
	s.slots[i] = f
	if s.numbered {
		s.nums[i] = s.n
	}
	s.n++
	return s.n - 1, true
}

func (s *set) grow() {
	old, oldNums := s.slots, s.nums
	size := max(1<<12, 2*len(old))
	s.slots = make([]uint64, size)
	if s.numbered {
		s.nums = make([]uint32, size)
	}
	mask := uint64(size - 1)
	for k, f := range old {
		if f == 0 {
			continue
		}
		i := f * 0xbf58476d1ce4e5b9 >> 7 & mask
		for s.slots[i] != 0 {
			i = (i + 1) & mask
		}
		s.slots[i] = f
		if s.numbered {
			s.nums[i] = oldNums[k]
		}
	}
}

func (s *set) bytes() uint64 { return uint64(len(s.slots))*8 + uint64(len(s.nums))*4 }

// queue holds the states that wait: first in, first out, or last in, first out.
type queue[S any] struct {
	last   bool
	chunks [][]item[S]
	head   int // in chunks[0]
	n      int
	free   []item[S]
}

const chunkLen = 4096

func (q *queue[S]) push(it item[S]) {
	k := len(q.chunks) - 1
	if k < 0 || len(q.chunks[k]) == chunkLen {
		c := q.free
		q.free = nil
		if c == nil {
			c = make([]item[S], 0, chunkLen)
		}
		q.chunks = append(q.chunks, c[:0])
		k++
	}
	q.chunks[k] = append(q.chunks[k], it)
	q.n++
}

func (q *queue[S]) pop() item[S] {
	q.n--
	if q.last {
		k := len(q.chunks) - 1
		c := q.chunks[k]
		it := c[len(c)-1]
		q.chunks[k] = c[:len(c)-1]
		if len(c) == 1 {
			q.free = q.chunks[k]
			q.chunks = q.chunks[:k]
		}
		return it
	}
	it := q.chunks[0][q.head]
	q.head++
	if q.head == len(q.chunks[0]) {
		if q.head == chunkLen {
			q.free = q.chunks[0]
		}
		q.chunks, q.head = q.chunks[1:], 0
	}
	return it
}
