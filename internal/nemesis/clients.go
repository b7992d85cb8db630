package nemesis

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/internal/sim/linear"
)

const (
	registers = 24 // groups of one key
	pages     = 12 // groups of linear.KeysMax keys
	groups    = registers + pages
	workers   = 12
)

// load is what clients do in one round: the operations and their history.
type load struct {
	round int
	seed  uint64
	h     *linear.History
	think time.Duration // the mean pause of a worker between two operations

	mu    sync.Mutex // guards what follows
	known map[int]seen
	odd   []string // what no history can hold: a scan out of order, a stranger's key

	ops atomic.Int64 // calls, failed reads included
}

// seen is what clients last saw of a group: a swap wants it. Only a hint.
type seen struct {
	saw  linear.State
	vers [linear.KeysMax]flotilla.Version
}

func newLoad(round int, seed uint64, rate int) *load {
	return &load{round: round, seed: seed, h: linear.NewHistory(), think: time.Duration(workers) * time.Second / time.Duration(rate), known: map[int]seen{}}
}

// worker is one client.
type worker struct {
	l       *load
	id      int
	rand    *rand.Rand
	kv      flotilla.KV
	reads   *door // takes the reads, if set
	patient bool
	err     error // of the last call
}

func (w *worker) reader() flotilla.KV {
	if w.reads != nil {
		return w.reads
	}
	return w.kv
}

// run works until ctx ends.
func (w *worker) run(ctx context.Context) {
	for sleep(ctx, time.Duration(w.rand.Int64N(int64(2*w.l.think)))) {
		w.work(ctx)
	}
}

func (w *worker) work(ctx context.Context) {
	if w.rand.IntN(100) < 60 {
		g := w.rand.IntN(registers)
		switch n := w.rand.IntN(100); {
		case n < 45:
			w.get(ctx, g, 0)
		case n < 70:
			w.put(ctx, g, 0)
		case n < 92:
			w.cas(ctx, g, 0)
		default:
			w.del(ctx, g, 0)
		}
		return
	}
	g := registers + w.rand.IntN(pages)
	k := w.rand.IntN(linear.KeysMax)
	switch n := w.rand.IntN(100); {
	case n < 35:
		w.scan(ctx, g)
	case n < 45:
		w.get(ctx, g, k)
	case n < 55:
		w.put(ctx, g, k)
	case n < 62:
		w.cas(ctx, g, k)
	case n < 80:
		w.batch(ctx, g)
	case n < 94:
		w.txn(ctx, g)
	case n < 97:
		w.del(ctx, g, k)
	default:
		w.delRange(ctx, g)
	}
}

// prefix begins the keys of a group of a round; groups are spread over all shards.
func prefix(round, g int) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(g*65536/groups))
	return append(b, fmt.Sprintf("/%d/%d/", round, g)...)
}

func keyOf(round, g, k int) []byte { return append(prefix(round, g), byte('a'+k)) }

func (w *worker) key(g, k int) []byte { return keyOf(w.l.round, g, k) }

// bytesOf makes the value, of some length.
func bytesOf(v linear.Value) []byte {
	size := 300
	if v%50 == 0 {
		size = 40_000
	}
	b := make([]byte, 4+int(v)*7919%size)
	binary.BigEndian.PutUint32(b, uint32(v))
	return b
}

// stranger stands for bytes that nobody wrote.
const stranger linear.Value = 0xffffffff

func valueOf(b []byte) linear.Value {
	if len(b) < 4 {
		return stranger
	}
	v := linear.Value(binary.BigEndian.Uint32(b))
	if !slices.Equal(b, bytesOf(v)) {
		return stranger
	}
	return v
}

// call runs f within a deadline that is sometimes too short.
func (w *worker) call(ctx context.Context, o *linear.Op, f func(ctx context.Context) error) {
	d := time.Duration(20+w.rand.IntN(1500)) * time.Millisecond
	if w.rand.IntN(10) == 0 {
		d = 5 * time.Second
	}
	if w.patient {
		d = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d)
	defer cancel()
	w.l.ops.Add(1)
	o.Client = w.id
	o.Call = w.l.h.Now()
	w.err = f(ctx)
	o.Return = w.l.h.Now()
	if w.err != nil {
		o.Err = w.err.Error()
	}
}

// wrote records a write.
func (w *worker) wrote(o linear.Op, r flotilla.Receipt) {
	o.Outcome = flotilla.Outcome(w.err)
	if w.err == nil {
		o.Held, o.Receipt = true, r.Version
	}
	w.l.h.Add(o)
}

// read records a read, unless it failed, and what was seen.
func (w *worker) read(o linear.Op) {
	if w.err != nil {
		return
	}
	o.Outcome = flotilla.Applied
	w.learn(&o)
	w.l.h.Add(o)
}

func (w *worker) learn(o *linear.Op) {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	k := w.l.known[o.Group]
	for i := range linear.KeysMax {
		if o.Read.Has(i) {
			k.saw[i], k.vers[i] = o.Saw[i], o.SawVersions[i]
		}
	}
	w.l.known[o.Group] = k
}

func (w *worker) hint(g int) seen {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	return w.l.known[g]
}

func (w *worker) readOption() flotilla.ReadOption {
	switch w.rand.IntN(6) {
	case 0:
		return flotilla.NoClock()
	case 1, 2:
		return flotilla.Follower()
	}
	return flotilla.Linearizable()
}

func (w *worker) get(ctx context.Context, g, k int) {
	o := linear.Op{Group: g, Name: "get", Read: 1 << k}
	w.call(ctx, &o, func(ctx context.Context) error {
		v, err := w.reader().Get(ctx, w.key(g, k), w.readOption())
		if errors.Is(err, flotilla.ErrNotFound) {
			return nil
		}
		if err == nil {
			o.Saw[k], o.SawVersions[k] = valueOf(v.Bytes), v.Version
		}
		return err
	})
	w.read(o)
}

func (w *worker) scan(ctx context.Context, g int) {
	o := linear.Op{Group: g, Name: "scan", Read: 1<<linear.KeysMax - 1}
	r := flotilla.Prefix(prefix(w.l.round, g))
	if r.Reverse = w.rand.IntN(3) == 0; r.Reverse {
		o.Name = "scan back"
	}
	w.call(ctx, &o, func(ctx context.Context) error {
		last := -1
		for p, err := range w.reader().Scan(ctx, r, w.readOption()) {
			if err != nil {
				return err
			}
			k := int(p.Key[len(p.Key)-1]) - 'a'
			if k < 0 || k >= linear.KeysMax || !slices.Equal(p.Key, w.key(g, k)) || last >= 0 && (k > last) == r.Reverse {
				w.l.mu.Lock()
				w.l.odd = append(w.l.odd, fmt.Sprintf("a %s of group %d yields key %q after key %d", o.Name, g, p.Key, last))
				w.l.mu.Unlock()
				return flotilla.ErrNotFound
			}
			last = k
			o.Saw[k], o.SawVersions[k] = valueOf(p.Value), p.Version
		}
		return nil
	})
	w.read(o)
}

func (w *worker) put(ctx context.Context, g, k int) {
	o := linear.Op{Group: g, Name: "put", Write: 1 << k}
	o.Values[k] = w.l.h.Fresh()
	var r flotilla.Receipt
	w.call(ctx, &o, func(ctx context.Context) (err error) {
		r, err = w.kv.Put(ctx, w.key(g, k), bytesOf(o.Values[k]))
		return err
	})
	w.wrote(o, r)
}

func (w *worker) del(ctx context.Context, g, k int) {
	o := linear.Op{Group: g, Name: "delete", Write: 1 << k}
	var r flotilla.Receipt
	w.call(ctx, &o, func(ctx context.Context) (err error) {
		r, err = w.kv.Delete(ctx, w.key(g, k))
		return err
	})
	w.wrote(o, r)
}

func (w *worker) delRange(ctx context.Context, g int) {
	o := linear.Op{Group: g, Name: "delete range", Write: 1<<linear.KeysMax - 1}
	var r flotilla.Receipt
	w.call(ctx, &o, func(ctx context.Context) (err error) {
		r, err = w.kv.DeleteRange(ctx, flotilla.Prefix(prefix(w.l.round, g)))
		return err
	})
	w.wrote(o, r)
}

func (w *worker) cas(ctx context.Context, g, k int) {
	was := w.hint(g)
	o := linear.Op{Group: g, Name: "cas", Write: 1 << k, Conditional: true, CondKey: k, Want: was.saw[k]}
	o.Values[k] = w.l.h.Fresh()
	var r flotilla.Receipt
	w.call(ctx, &o, func(ctx context.Context) (err error) {
		r, err = w.kv.CAS(ctx, w.key(g, k), was.vers[k], bytesOf(o.Values[k]))
		return err
	})
	var conflict *flotilla.ConflictError
	if !errors.As(w.err, &conflict) {
		w.wrote(o, r)
		return
	}
	o.Outcome, o.Have = flotilla.Applied, conflict.Have
	if conflict.Have.IsZero() {
		o.Read |= 1 << k
	}
	w.l.h.Add(o)
}

func (w *worker) batch(ctx context.Context, g int) {
	o := linear.Op{Group: g, Name: "batch"}
	var b flotilla.Batch
	for k := range linear.KeysMax {
		switch w.rand.IntN(8) {
		case 0, 1:
		case 2:
			o.Write |= 1 << k
			b.Delete(w.key(g, k))
		default:
			o.Write |= 1 << k
			o.Values[k] = w.l.h.Fresh()
			b.Put(w.key(g, k), bytesOf(o.Values[k]))
		}
	}
	if o.Write == 0 {
		return
	}
	var r flotilla.Receipt
	w.call(ctx, &o, func(ctx context.Context) (err error) {
		r, err = w.kv.Write(ctx, &b)
		return err
	})
	w.wrote(o, r)
}

// txn reads all keys of a group and, if one of them is as it was last seen,
// writes two.
func (w *worker) txn(ctx context.Context, g int) {
	was := w.hint(g)
	c := w.rand.IntN(linear.KeysMax)
	o := linear.Op{Group: g, Name: "txn", Conditional: true, CondKey: c, Want: was.saw[c]}
	var q flotilla.Txn
	switch {
	case was.saw[c] == 0:
		q.If = append(q.If, flotilla.IfAbsent(w.key(g, c)))
	case w.rand.IntN(2) == 0:
		q.If = append(q.If, flotilla.IfValue(w.key(g, c), bytesOf(was.saw[c])))
	default:
		q.If = append(q.If, flotilla.IfVersion(w.key(g, c), was.vers[c]))
	}
	for k := range linear.KeysMax {
		q.Then = append(q.Then, flotilla.GetOp(w.key(g, k)))
		q.Else = append(q.Else, flotilla.GetOp(w.key(g, k)))
	}
	for _, k := range w.rand.Perm(linear.KeysMax)[:2] {
		o.Write |= 1 << k
		o.Values[k] = w.l.h.Fresh()
		q.Then = append(q.Then, flotilla.PutOp(w.key(g, k), bytesOf(o.Values[k])))
	}
	var r flotilla.TxnResult
	w.call(ctx, &o, func(ctx context.Context) (err error) {
		r, err = w.kv.Txn(ctx, q)
		return err
	})
	o.Outcome = flotilla.Outcome(w.err)
	if gone := new(flotilla.ResultGoneError); errors.As(w.err, &gone) {
		o.Outcome = flotilla.MaybeApplied // carried out, but which way is not known
	}
	if w.err == nil {
		o.Held, o.Receipt = r.Succeeded, r.Receipt.Version
		o.Read = 1<<linear.KeysMax - 1
		for k, v := range r.Gets {
			if v.Found {
				o.Saw[k], o.SawVersions[k] = valueOf(v.Value.Bytes), v.Value.Version
			}
		}
		w.learn(&o)
	}
	w.l.h.Add(o)
}
