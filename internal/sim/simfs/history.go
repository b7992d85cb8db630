package simfs

// A file system with a history can go back: ImageAt builds the image of a crash
// in the past, at any sync since the last Settle. That is how a disk is modelled
// that has synced something and has not told anybody yet: the store's own
// goroutines see every sync return at once, the rest of the program is told
// later by whoever steps it (and then settles), and a crash before that may lose
// what was synced.
//
// Syncs are numbered from 1, over all files. The image at sync k holds what was
// synced by k, and in addition, as the mode says, operations that were begun
// before sync k+1 returned: later ones could rest on it. Of the log what survives
// is drawn by bytes, so that it does not depend on how the writes happened to be
// cut.

// syncPoint is a sync that is not settled: its number and how many writes or
// changes of the node it covers.
type syncPoint struct{ n, covers int }

// Keep begins the history. It is called before the file system is used.
func (f *FS) Keep() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keeps = true
}

// Settle makes everything final that was synced by sync k: no image goes back
// behind it any more.
func (f *FS) Settle(k int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if k <= f.settled {
		return
	}
	f.settled = k
	keep := f.unsettled[:0]
	for _, n := range f.unsettled {
		n.settle(k)
		if len(n.points) > 0 {
			keep = append(keep, n)
		}
	}
	clear(f.unsettled[len(keep):])
	f.unsettled = keep
}

// Settled returns the newest sync that was settled.
func (f *FS) Settled() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.settled
}

// ImageAt returns the file system that a crash right after sync k left behind,
// or some time later, but before sync k+1 returned. k is at least Settled.
func (f *FS) ImageAt(mode Mode, seed uint64, k int) *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	img := &FS{locks: map[string]bool{}, noReuse: f.noReuse}
	b := builder{mode: mode, seed: seed, fs: img, made: map[*node]*node{}, rank: map[Class]int{}, past: true, at: max(k, f.settled)}
	img.root = b.build(f.root, "/")
	return img
}

// LastSync returns the number of the newest sync of a file of a class, 0 if there
// was none since Keep.
func (f *FS) LastSync(c Class) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lastSync[c]
}

// noteSync records a sync of n, which has a name, as the next one. f.mu is held.
func (f *FS) noteSync(n *node, name string) {
	if f.lastSync == nil {
		f.lastSync = map[Class]int{}
	}
	f.lastSync[classOf(name)] = f.syncs
	if len(n.points) == 0 {
		f.unsettled = append(f.unsettled, n)
	}
	n.points = append(n.points, syncPoint{f.syncs, len(n.writes) + len(n.changes)})
}

func (n *node) settle(k int) {
	i, covers := 0, 0
	for i < len(n.points) && n.points[i].n <= k {
		covers = n.points[i].covers
		i++
	}
	if covers == 0 {
		n.points = n.points[i:]
		return
	}
	if n.dir {
		for _, c := range n.changes[:covers] {
			c.apply(n.durableNames)
		}
		n.changes = append([]change(nil), n.changes[covers:]...)
	} else {
		if n.durableShared {
			n.durable, n.durableShared = append([]byte(nil), n.durable...), false
		}
		for _, w := range n.writes[:covers] {
			n.durable = w.apply(n.durable)
		}
		n.writes = append([]write(nil), n.writes[covers:]...)
	}
	n.points = append([]syncPoint(nil), n.points[i:]...)
	for j := range n.points {
		n.points[j].covers -= covers
	}
}

// dropUnsynced forgets what no sync has covered.
func (n *node) dropUnsynced() {
	covers := 0
	if k := len(n.points); k > 0 {
		covers = n.points[k-1].covers
	}
	if n.dir {
		n.changes = n.changes[:covers]
	} else {
		n.writes = n.writes[:covers]
	}
}

// asOf returns n as it was to be lost or kept at the image's sync: a node whose
// unsynced operations are those that may survive. What was written to a log after
// its newest sync is left out: Pebble's goroutine writes what is committed without
// sync there when it happens to wake up, or leaves it to the next sync, so it
// would differ from run to run.
func (b *builder) asOf(n *node, class Class) *node {
	if !b.past {
		return n
	}
	covers := 0
	for _, p := range n.points {
		if p.n <= b.at {
			covers = p.covers
		}
	}
	m := &node{dir: n.dir, mod: n.mod}
	if n.dir {
		end := len(n.changes)
		for end > covers && n.changes[end-1].at > b.at {
			end--
		}
		m.durableNames = make(map[string]*node, len(n.durableNames))
		for name, c := range n.durableNames {
			m.durableNames[name] = c
		}
		for _, c := range n.changes[:covers] {
			c.apply(m.durableNames)
		}
		m.changes = n.changes[covers:end]
		if b.mode == All {
			m.names = m.durableNames
			for _, c := range m.changes {
				c.apply(m.names)
			}
		}
		return m
	}
	end := len(n.writes)
	if class == ClassWAL {
		end = 0
		if k := len(n.points); k > 0 {
			end = n.points[k-1].covers
		}
	}
	for end > covers && n.writes[end-1].at > b.at {
		end--
	}
	m.durable, n.durableShared = n.durable, true
	if covers > 0 {
		m.durable = append([]byte(nil), n.durable...)
		for _, w := range n.writes[:covers] {
			m.durable = w.apply(m.durable)
		}
	}
	m.writes = n.writes[covers:end]
	if b.mode == All {
		m.data = append([]byte(nil), m.durable...)
		for _, w := range m.writes {
			m.data = w.apply(m.data)
		}
	}
	return m
}

// logContent returns what survives of a write-ahead log with a history: a part
// of what was not synced, cut at a sector.
func (b *builder) logContent(n *node) []byte {
	data := append([]byte(nil), n.durable...)
	lo, hi := n.writes[0].off, n.writes[0].off
	for _, w := range n.writes {
		lo, hi = min(lo, w.off), max(hi, w.off+int64(len(w.data)))
	}
	cut := lo + int64(b.draw(ClassWAL, 0, 2, int(hi-lo)+1))
	if cut < hi {
		cut = max(lo, cut/sector*sector)
	}
	if b.mode == Blocks || b.mode == Reordered {
		all := append([]byte(nil), data...)
		for _, w := range n.writes {
			all = w.apply(all)
		}
		for at := lo; at < hi; {
			end := min(hi, at/block*block+block)
			if b.draw(ClassWAL, 0, 3+int(at/block), 2) == 0 {
				data = write{off: at, data: all[at:end]}.apply(data)
			}
			at = end
		}
		return data
	}
	for _, w := range n.writes {
		if w.off < cut {
			w.data = w.data[:min(int64(len(w.data)), cut-w.off)]
			data = w.apply(data)
		}
	}
	if b.mode == Zeroed && int64(len(data)) < hi {
		data = append(data, make([]byte, hi-int64(len(data)))...)
	}
	return data
}
