package explore

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/multiraft/liveness"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// PairScope bounds the model of node liveness.
type PairScope struct {
	// Timing of both nodes. The slack of 5 ms that an asker takes off weighs
	// nothing beside a Duration of 1000 s, and 0.2 % beside one of 2.5 s.
	liveness.Timing
	// AskerPPM and SupporterPPM are how fast the clocks run against real time:
	// 5000 is 0.5 % fast.
	AskerPPM, SupporterPPM int64
	Beats                  int // heartbeats, without those that answer a refusal
	AskerCrashes           int
	SupporterCrashes       int
	Dups                   int // deliveries after which the message stays in flight
	Idles                  int // advances to an instant at which nothing is due
	Relinquish             bool
}

// pairNet bounds the messages in flight; when there is no room any one is lost.
const pairNet = 4

// PairWorld is a state of the pair. Time is relative: every instant in it is as
// far from now as the node's own clock says.
type PairWorld struct {
	half  [2]uint32
	ended raft.Epoch // the supporter has shown that support up to here is over
	used  [pairKinds]uint8
	n     uint8
	net   [pairNet]uint32
}

const (
	pairBeats = iota
	pairAskerCrashes
	pairSupporterCrashes
	pairDups
	pairIdles
	pairRelinquished
	pairKinds
)

// half is one of the two nodes.
type half struct {
	rules   *liveness.Rules
	boot    uint64
	disk    []liveness.Record
	pending *liveness.Persist // being written
	hash    uint64
}

type ctl struct {
	to int
	c  raft.Ctl
}

const (
	pairTick uint8 = iota + 1 // node
	pairAdvance
	pairIdle
	pairDeliver
	pairRepeat
	pairDurable // the supporter's record is written and synced
	pairCrash   // node, and whether what was being written is durable
	pairGiveBack
)

// Pair is the model of one promise: node 1 asks, node 2 supports, both by the
// real liveness.Rules. Other pairs of nodes have no part in it. Clocks run at
// constant rates. Time advances to where something is due at either node, or
// past it (the owner is late), so that what is at the edge of a promise is met
// exactly; messages take any time in between, or get lost.
//
// Invariant: while the asker's own clock is below the end of what it counts, the
// supporter shows that very epoch as standing. And no epoch that was shown as
// ended comes back.
type Pair struct {
	scope PairScope
	halfs []*half
	nums  map[uint64]uint32
	ctls  []ctl
	ctlN  map[ctl]uint32
	fx    liveness.Effects
	buf   []byte
}

const pairNow = raft.FrozenTime

// NewPair returns the model.
func NewPair(s PairScope) *Pair {
	return &Pair{scope: s, nums: map[uint64]uint32{}, ctls: []ctl{{}}, ctlN: map[ctl]uint32{}}
}

// Initial is Model: both nodes have just booted, for the first time.
func (m *Pair) Initial() PairWorld {
	var w PairWorld
	for i := range w.half {
		m.fx.Reset()
		w.half[i] = m.number(m.boot(i, &half{}))
	}
	return w
}

func (m *Pair) boot(i int, old *half) *half {
	n := &half{boot: old.boot + 1, disk: old.disk}
	r, err := liveness.NewRules(liveness.RulesConfig{Node: raft.NodeID(i + 1), BootEpoch: n.boot, Timing: m.scope.Timing}, n.disk, pairNow, &m.fx)
	if err != nil {
		panic(err)
	}
	n.rules = r
	if i == 0 {
		r.AddPeer(pairNow, 2, &m.fx)
	}
	return n
}

func (m *Pair) number(n *half) uint32 {
	m.buf = n.rules.AppendState(m.buf[:0], pairNow)
	m.buf = append(m.buf, byte(n.boot), byte(len(n.disk)), bit(n.pending != nil))
	for _, r := range n.disk {
		m.buf = append(binary.AppendUvarint(m.buf, uint64(r.Epoch)), bit(r.Withdrawn))
	}
	if n.pending != nil {
		m.buf = binary.AppendUvarint(m.buf, n.pending.Token)
		m.buf = append(binary.AppendUvarint(m.buf, uint64(n.pending.Record.Epoch)), bit(n.pending.Record.Withdrawn))
	}
	h := hash(m.buf)
	if i, ok := m.nums[h]; ok {
		return i
	}
	n.hash = h
	m.halfs = append(m.halfs, n)
	m.nums[h] = uint32(len(m.halfs) - 1)
	return uint32(len(m.halfs) - 1)
}

// Fingerprint is Model.
func (m *Pair) Fingerprint(w *PairWorld) uint64 {
	h := mix(m.halfs[w.half[0]].hash, m.halfs[w.half[1]].hash)
	h = mix(h, uint64(w.ended))
	h = mix(h, hash(w.used[:]))
	for _, k := range w.net[:w.n] {
		h = mix(h, uint64(k))
	}
	return h
}

// rate returns how far the clock of node i gets in d of real time.
func (m *Pair) rate(i int, d time.Duration) time.Duration {
	ppm := [2]int64{m.scope.AskerPPM, m.scope.SupporterPPM}[i]
	return d + time.Duration(int64(d)/1_000_000*ppm+int64(d)%1_000_000*ppm/1_000_000)
}

// wait returns the least real time in which the clock of node i gets to t.
func (m *Pair) wait(i int, t raft.Time) time.Duration {
	gap := t.Sub(pairNow)
	d := time.Duration(float64(gap)/(1+float64([2]int64{m.scope.AskerPPM, m.scope.SupporterPPM}[i])/1e6)) - 4
	for m.rate(i, d) < gap {
		d++
	}
	return d
}

// advances returns how far time may advance: to any instant at which something
// is due at either node, or what the asker counts ends.
func (m *Pair) advances(w *PairWorld, dst []time.Duration) []time.Duration {
	add := func(i int, t raft.Time) {
		if t > pairNow && t < liveness.FarFuture {
			if d := m.wait(i, t); !slices.Contains(dst, d) {
				dst = append(dst, d)
			}
		}
	}
	for i, k := range w.half {
		add(i, m.halfs[k].rules.Deadline())
	}
	if _, until := m.halfs[w.half[0]].rules.SupportFrom(2); until != 0 {
		add(0, until)
	}
	return dst
}

// Successors is Model.
func (m *Pair) Successors(w *PairWorld, out []Succ[PairWorld]) []Succ[PairWorld] {
	s := &m.scope
	at := liveness.At{Now: pairNow}
	for i := range w.half {
		n := m.halfs[w.half[i]]
		if pairNow >= n.rules.Deadline() {
			beat := i == 0 && n.rules.BeatDue(pairNow)
			if !beat || int(w.used[pairBeats]) < s.Beats {
				out = m.step(w, out, action(pairTick, i, 0), i, func(n *half, t *PairWorld) {
					n.rules.Tick(at, liveness.Gate{Beat: true, Self: true}, &m.fx)
					t.used[pairBeats] += bit(beat)
				})
			}
		}
		if n.pending != nil {
			out = m.step(w, out, action(pairDurable, i, 0), i, func(n *half, _ *PairWorld) {
				p := n.pending
				n.disk, n.pending = []liveness.Record{p.Record}, nil
				n.rules.Done(at, p.Token, &m.fx)
			})
		}
		kind, limit := pairAskerCrashes, s.AskerCrashes
		if i == 1 {
			kind, limit = pairSupporterCrashes, s.SupporterCrashes
		}
		if int(w.used[kind]) < limit {
			for durable := range 1 + int(bit(n.pending != nil)) {
				out = m.step(w, out, action(pairCrash, i, uint32(durable)), i, func(n *half, t *PairWorld) {
					t.used[kind]++
					if durable == 1 {
						n.disk = []liveness.Record{n.pending.Record}
					}
					*n = *m.boot(i, n)
				})
			}
		}
	}
	if s.Relinquish && w.used[pairRelinquished] == 0 {
		out = m.step(w, out, action(pairGiveBack, 0, 0), 0, func(n *half, t *PairWorld) {
			t.used[pairRelinquished] = 1
			n.rules.Relinquish(pairNow, &m.fx)
		})
	}
	for k := range int(w.n) {
		id := w.net[k]
		c := m.ctls[id]
		deliver := func(n *half, _ *PairWorld) {
			n.rules.Step(at, raft.NodeID(2-c.to), pairNow, c.c, &m.fx)
		}
		v := *w
		copy(v.net[k:], v.net[k+1:v.n])
		v.n--
		v.net[v.n] = 0
		out = m.step(&v, out, action(pairDeliver, c.to, id), c.to, deliver)
		if int(w.used[pairDups]) < s.Dups {
			out = m.step(w, out, action(pairRepeat, c.to, id), c.to, func(n *half, t *PairWorld) {
				t.used[pairDups]++
				deliver(n, t)
			})
		}
	}
	var buf [3]time.Duration
	for k, d := range m.advances(w, buf[:0]) {
		out = m.advance(w, out, action(pairAdvance, 0, uint32(k)), d, 0)
	}
	if int(w.used[pairIdles]) < s.Idles {
		out = m.advance(w, out, action(pairIdle, 0, 0), s.WithDefaults().Interval/3, 1)
	}
	return out
}

// advance lets real time pass.
func (m *Pair) advance(w *PairWorld, out []Succ[PairWorld], act uint64, d time.Duration, idle uint8) []Succ[PairWorld] {
	t := *w
	t.used[pairIdles] += idle
	for i := range t.half {
		n := *m.halfs[t.half[i]]
		n.rules = n.rules.Clone()
		n.rules.Age(pairNow, m.rate(i, d))
		t.half[i] = m.number(&n)
	}
	return append(out, Succ[PairWorld]{Act: act, To: t, Fail: m.check(&t)})
}

// step lets node i do something and puts what it sends in flight.
func (m *Pair) step(w *PairWorld, out []Succ[PairWorld], act uint64, i int, do func(*half, *PairWorld)) []Succ[PairWorld] {
	t := *w
	n := *m.halfs[t.half[i]]
	n.rules = n.rules.Clone()
	m.fx.Reset()
	do(&n, &t)
	for k := range m.fx.Persists {
		p := m.fx.Persists[k]
		n.pending = &p
	}
	n.rules.Age(pairNow, 0)
	t.half[i] = m.number(&n)
	if f := m.check(&t); f != nil {
		return append(out, Succ[PairWorld]{Act: act, Fail: f})
	}
	for _, s := range m.fx.Sends {
		if s.Ctl.Kind == raft.CtlReply && !s.Ctl.Refused && (len(n.disk) == 0 || n.disk[0].Withdrawn || n.disk[0].Epoch != s.Ctl.Epoch) {
			return append(out, Succ[PairWorld]{Act: act, Fail: &Failure{"S6", fmt.Sprintf("the supporter promises epoch %s, durable is %v", epochString(s.Ctl.Epoch), n.disk)}})
		}
	}
	return m.send(out, act, t, m.fx.Sends)
}

func (m *Pair) send(out []Succ[PairWorld], act uint64, t PairWorld, sends []liveness.Send) []Succ[PairWorld] {
	for k, s := range sends {
		c := ctl{int(s.To) - 1, s.Ctl}
		id, ok := m.ctlN[c]
		if !ok {
			id = uint32(len(m.ctls))
			m.ctls = append(m.ctls, c)
			m.ctlN[c] = id
		}
		if slices.Contains(t.net[:t.n], id) {
			continue
		}
		if t.n < pairNet {
			t.net[t.n] = id
			t.n++
			slices.Sort(t.net[:t.n])
			continue
		}
		rest := slices.Clone(sends[k+1:])
		out = m.send(out, act<<4|15, t, rest)
		for j := range t.net {
			u := t
			u.net[j] = id
			slices.Sort(u.net[:])
			out = m.send(out, act<<4|uint64(j), u, rest)
		}
		return out
	}
	return append(out, Succ[PairWorld]{Act: act, To: t})
}

// check is the invariant.
func (m *Pair) check(t *PairWorld) *Failure {
	a, b := m.halfs[t.half[0]].rules, m.halfs[t.half[1]].rules
	shown, live := b.SupportFor(1)
	if live && shown <= t.ended {
		return &Failure{"S14", fmt.Sprintf("the supporter shows epoch %s, whose end it had shown before", epochString(shown))}
	}
	if live && shown > 0 {
		t.ended = max(t.ended, shown-1)
	} else {
		t.ended = max(t.ended, shown)
	}
	epoch, until := a.SupportFrom(2)
	if pairNow < until && (!live || shown != epoch) {
		return &Failure{"S14", fmt.Sprintf("the asker counts epoch %s for another %v, the supporter shows %s live=%v",
			epochString(epoch), until.Sub(pairNow), epochString(shown), live)}
	}
	return nil
}

func epochString(e raft.Epoch) string { return fmt.Sprintf("%d.%d", e>>32, uint32(e)) }

// Describe is Model.
func (m *Pair) Describe(w *PairWorld, act uint64) string {
	for act>>40 > uint64(pairGiveBack) {
		act >>= 4
	}
	kind, i, arg := uint8(act>>40), int(act>>32&0xff), uint32(act)
	who := [2]string{"asker", "supporter"}[i]
	switch kind {
	case pairTick:
		return who + " does what is due"
	case pairAdvance:
		var buf [3]time.Duration
		d := m.advances(w, buf[:0])[arg]
		return fmt.Sprintf("%v pass (asker's clock %v, supporter's %v)", d, m.rate(0, d), m.rate(1, d))
	case pairIdle:
		return fmt.Sprintf("%v pass", m.scope.WithDefaults().Interval/3)
	case pairDeliver, pairRepeat:
		c := m.ctls[arg].c
		name := [...]string{"?", "heartbeat", "reply", "withdrawn", "relinquish"}[c.Kind]
		if c.Refused {
			name = "refusal"
		}
		s := fmt.Sprintf("%s receives %s epoch %s seq %d", who, name, epochString(c.Epoch), c.Seq)
		if kind == pairRepeat {
			s += " (and again, later)"
		}
		return s
	case pairDurable:
		return who + "'s record is durable"
	case pairCrash:
		return fmt.Sprintf("%s crashes and restarts (what it was writing: durable=%v)", who, arg == 1)
	}
	return "asker gives its support back"
}
