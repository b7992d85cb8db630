package t1

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/flotillakv/flotilla/internal/sim"
	"github.com/flotillakv/flotilla/internal/sim/coverage"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/transport"
)

// network is the model network. Frames pass through the transport's codec. A
// directed link is up while nothing blocks it; blocks are counted so that
// overlapping faults compose.
type network struct {
	w       *World
	blocked [maxNodes][maxNodes]int
	clogged [maxNodes][maxNodes]int64  // until
	last    [maxNodes][maxNodes]int64  // last arrival; FIFO links keep to it
	conn    [maxNodes][maxNodes]uint32 // number of the stream; frames of an older one are lost
	resetAt [maxNodes][maxNodes]int64  // a reset of the pair is under way until then
	seq     [maxNodes][maxNodes]uint64
	drop    [32]int // message types that are lost, counted; 0: control records
	storm   int
	streams []*snapStream
	old     []oldFrame // frames of long ago, some of those that were sent
	olds    int
	buf     []raft.Msg
}

type oldFrame struct {
	a, b int
	data []byte
}

// maxOld bounds the frames that are remembered.
const maxOld = 64

func (t *network) init(w *World) { t.w = w }

// nodeNet is the network as one node sees it.
type nodeNet node

// Send implements multiraft.Net.
func (s *nodeNet) Send(to raft.NodeID, msgs []raft.Msg) { s.w.net.send((*node)(s), to, msgs) }

// SendCtl implements liveness.Net.
func (s *nodeNet) SendCtl(to raft.NodeID, c raft.Ctl) { s.w.net.sendCtl((*node)(s), to, c) }

func (t *network) send(n *node, to raft.NodeID, msgs []raft.Msg) {
	w := t.w
	out := t.buf[:0]
	for i := range msgs {
		m := &msgs[i]
		w.orc.sending(n, m)
		if w.opt.Verbose {
			w.say(n.idx, "send", "shard %d %s", m.Shard, sim.FormatMsg(m))
		}
		if t.drop[m.Type] > 0 && !w.calm {
			w.res.fault("dropped-type", 1)
			cargo{n, false, msgs[i : i+1]}.hit(coverage.DropType)
			continue
		}
		out = append(out, *m)
	}
	t.buf = out[:0]
	if len(out) > 0 {
		t.frame(n, int(to)-1, nil, out)
	}
	clear(out)
}

func (t *network) sendCtl(n *node, to raft.NodeID, c raft.Ctl) {
	if t.w.opt.Verbose {
		t.w.say(n.idx, "ctl", "to node %d: kind %d epoch %d.%d seq %d refused %v", to, c.Kind, c.Epoch>>32, uint32(c.Epoch), c.Seq, c.Refused)
	}
	if t.drop[0] > 0 && !t.w.calm {
		cargo{n, true, nil}.hit(coverage.DropType)
		return
	}
	t.frame(n, int(to)-1, []raft.Ctl{c}, nil)
}

// frame encodes what one node has for another and sends it.
func (t *network) frame(n *node, b int, ctl []raft.Ctl, msgs []raft.Msg) {
	w, a := t.w, n.idx
	if b < 0 || b >= len(w.nodes) || a == b {
		w.fail("S11", "node %d sends to node %d", n.id, b+1)
	}
	t.seq[a][b]++
	h := transport.FrameHeader{From: n.id, To: raft.NodeID(b + 1), BootEpoch: n.eng.BootEpoch(), Seq: t.seq[a][b]}
	data, err := transport.EncodeFrame(nil, h, ctl, msgs, w.p.Compress)
	if err != nil {
		w.fail("F2", "node %d cannot encode a frame: %v", n.id, err)
	}
	w.res.Frames++
	w.log(a, "frame", uint64(b)<<32|uint64(len(data)), hashBytes(data))
	if len(msgs) > 0 && w.rng.IntN(16) == 0 {
		if len(t.old) < maxOld {
			t.old = append(t.old, oldFrame{a, b, data})
		} else {
			t.old[t.olds%maxOld] = oldFrame{a, b, data}
		}
		t.olds++
	}
	load := cargo{n, len(ctl) > 0, msgs}
	first, second := t.route(a, b, load)
	if first > 0 {
		t.fly(a, b, first, data, load)
	}
	if second > 0 {
		t.fly(a, b, second, data, load)
	}
}

// route draws what happens to one frame: the times at which copies arrive.
func (t *network) route(a, b int, load cargo) (first, second int64) {
	w := t.w
	loss, dup := w.p.Loss, w.p.Dup
	if t.storm > 0 {
		loss = max(loss, 0.33)
		if !w.p.Stream {
			dup = max(dup, 0.33)
		}
	}
	if w.calm {
		loss, dup = 0, 0
	}
	if t.blocked[a][b] > 0 {
		w.res.fault("blocked", 1)
		if t.blocked[b][a] > 0 {
			load.hit(coverage.Cut)
		} else {
			load.hit(coverage.OneWay)
		}
		return 0, 0
	}
	if loss > 0 && w.rng.Float64() < loss {
		w.res.fault("lost", 1)
		load.hit(coverage.Drop)
		if w.p.Stream {
			t.reset(a, b)
		}
		return 0, 0
	}
	if t.clogged[a][b] > w.now {
		load.hit(coverage.Clog)
	}
	before := t.last[a][b]
	first = t.delay(a, b)
	if first < before {
		load.hit(coverage.Reorder)
	}
	if dup > 0 && w.rng.Float64() < dup {
		w.res.fault("doubled", 1)
		load.hit(coverage.Dup)
		second = t.delay(a, b)
		if w.rng.IntN(8) == 0 {
			load.hit(coverage.Late)
			second += int64(w.exp(2 * time.Second)) // a very old copy
		}
	}
	return first, second
}

func (t *network) delay(a, b int) int64 {
	w := t.w
	at := w.now + int64(w.p.DelayMin+w.exp(w.p.DelayMean))
	at = max(at, t.clogged[a][b])
	if w.p.Stream {
		at = max(at, t.last[a][b]+1)
	}
	t.last[a][b] = max(at, t.last[a][b])
	return at
}

// fly lets a frame arrive at a time.
func (t *network) fly(a, b int, at int64, data []byte, load cargo) {
	w := t.w
	if w.p.Corrupt > 0 && !w.calm && w.rng.Float64() < w.p.Corrupt {
		load.hit(coverage.Corrupt)
		data = t.spoil(data)
	}
	conn := t.conn[a][b]
	w.at(at, func() {
		n := w.nodes[b]
		if !n.up || w.p.Stream && conn != t.conn[a][b] {
			return
		}
		w.push(event{at: w.now, n: n, gen: n.gen, f: func() { t.arrive(n, a, data) }})
	})
}

// spoil cuts a frame short or flips a bit of it.
func (t *network) spoil(data []byte) []byte {
	w := t.w
	w.res.fault("corrupted", 1)
	if w.rng.IntN(3) == 0 {
		return data[:w.rng.IntN(len(data))]
	}
	data = slices.Clone(data)
	bit := w.rng.IntN(len(data) * 8)
	data[bit/8] ^= 1 << (bit % 8)
	return data
}

// arrive decodes a frame and hands its content to the node.
func (t *network) arrive(n *node, from int, data []byte) {
	w := t.w
	f, err := transport.DecodeFrame(slices.Clone(data))
	if err == nil && (int(f.From) != from+1 || f.To != n.id) {
		err = errors.New("a frame for somebody else")
	}
	if err != nil {
		// A broken frame ends the stream.
		w.res.Refused++
		w.log(n.idx, "refused", uint64(from), 0)
		t.reset(from, n.idx)
		return
	}
	now := n.clock.Now()
	for _, c := range f.Ctl {
		n.live.OnCtl(f.From, now, c)
	}
	if len(f.Msgs) > 0 {
		n.host.OnMessages(f.From, f.Msgs)
	}
}

// replay lets some of the remembered frames arrive once more.
func (t *network) replay(count int) {
	w := t.w
	for range count {
		if len(t.old) == 0 {
			return
		}
		o := t.old[w.rng.IntN(len(t.old))]
		w.res.fault("old-frame", 1)
		t.hitOld(&o)
		w.after(w.exp(time.Millisecond), func() {
			if n := w.nodes[o.b]; n.up {
				w.push(event{at: w.now, n: n, gen: n.gen, f: func() { t.arrive(n, o.a, o.data) }})
			}
		})
	}
}

// block adds or removes (by -1) a block of the link from a to b.
func (t *network) block(a, b, by int) {
	t.blocked[a][b] += by
	if by > 0 {
		for _, s := range t.streams {
			if s.a == a && s.b == b || s.a == b && s.b == a {
				if t.blocked[b][a] > 0 {
					s.hit(coverage.Cut)
				} else {
					s.hit(coverage.OneWay)
				}
			}
		}
		t.breakStreams(a, b)
	}
	if t.blocked[a][b] == 0 && by < 0 && t.w.p.Stream {
		t.reset(a, b)
	}
}

// reset breaks the streams between a and b: both ends are told a little later.
func (t *network) reset(a, b int) {
	w := t.w
	if t.resetAt[a][b] > w.now {
		return
	}
	at := w.now + int64(5*time.Millisecond)
	t.resetAt[a][b], t.resetAt[b][a] = at, at
	t.conn[a][b]++
	t.conn[b][a]++
	t.last[a][b], t.last[b][a] = 0, 0 // what was on its way is lost: nothing waits behind it
	t.breakStreams(a, b)
	w.res.fault("reset", 1)
	w.cover(coverage.Reset, w.nodes[a])
	w.cover(coverage.Reset, w.nodes[b])
	for _, p := range [][2]int{{a, b}, {b, a}} {
		n, peer := w.nodes[p[0]], raft.NodeID(p[1]+1)
		if n.up {
			w.on(n, w.now+int64(w.exp(2*time.Millisecond)), func() {
				n.live.PeerUp(peer)
				n.host.PeerReset(peer)
			})
		}
	}
}

// booted connects a node that has just started.
func (t *network) booted(n *node) {
	for i, o := range t.w.nodes {
		if i != n.idx && o.up {
			t.resetAt[n.idx][i], t.resetAt[i][n.idx] = 0, 0
			t.reset(n.idx, i)
		}
	}
}

// died breaks everything that a node was in.
func (t *network) died(n *node) {
	for i := range t.w.nodes {
		t.conn[n.idx][i]++
		t.conn[i][n.idx]++
		t.breakStreams(n.idx, i)
	}
}

// heal removes every fault among the nodes of set and cuts everybody else off.
func (t *network) heal(set []bool) {
	for a := range t.w.nodes {
		for b := range t.w.nodes {
			t.clogged[a][b], t.blocked[a][b], t.resetAt[a][b] = 0, 0, 0
			if !set[a] || !set[b] {
				t.blocked[a][b] = 1 << 20
			} else if a < b {
				t.reset(a, b)
			}
		}
	}
	t.drop = [32]int{}
	t.storm = 0
}

// snapStream is a snapshot on its way: the sender's end is a transport stream,
// the receiver is a coroutine of the other node.
type snapStream struct {
	t        *network
	a, b     int
	shard    raft.ShardID
	sender   *task
	receiver *task
	chunks   [][]byte
	ended    bool
	broken   bool
	want     func() // wakes the receiver
	answer   error
	answered bool
	wantEnd  func() // wakes the sender
	replies  [][]byte
	last     int64 // when the sender's last message arrives
}

var errSnapBroke = errors.New("t1: the snapshot stream broke")

// openSnapshot opens a stream from the node of t to another node.
func (t *network) openSnapshot(tk *task, shard raft.ShardID, to raft.NodeID, header []byte) (*snapStream, error) {
	w, a, b := t.w, tk.n.idx, int(to)-1
	s := &snapStream{t: t, a: a, b: b, shard: shard, sender: tk}
	if !tk.sleep(time.Duration(t.delay(a, b) - w.now)) {
		return nil, errStopped
	}
	n := w.nodes[b]
	if !n.up || t.blocked[a][b] > 0 || t.blocked[b][a] > 0 {
		return nil, fmt.Errorf("t1: node %d cannot be reached", to)
	}
	t.streams = append(t.streams, s)
	head := slices.Clone(header)
	w.on(n, w.now, func() {
		if s.broken {
			return
		}
		s.receiver = w.spawn(n, func(rt *task) {
			err := n.receiveSnapshot(rt, raft.NodeID(a+1), head, func() ([]byte, error) { return s.next(rt) }, s.reply)
			s.over(err)
		})
	})
	return s, nil
}

// next gives the receiver its next chunk.
func (s *snapStream) next(rt *task) ([]byte, error) {
	for {
		switch {
		case rt.over || s.broken:
			return nil, errSnapBroke
		case len(s.chunks) > 0:
			c := s.chunks[0]
			s.chunks = s.chunks[1:]
			return c, nil
		case s.ended:
			return nil, io.EOF
		}
		s.want = rt.waker()
		if !rt.wait() {
			return nil, errSnapBroke
		}
	}
}

// reply sends a message back.
func (s *snapStream) reply(b []byte) error {
	t := s.t
	if s.broken || !s.sender.n.up || t.blocked[s.b][s.a] > 0 {
		s.fail()
		return errSnapBroke
	}
	c := slices.Clone(b)
	t.w.log(s.b, "reply", uint64(s.a)<<32|uint64(len(c)), hashBytes(c))
	t.w.at(t.delay(s.b, s.a), func() {
		if !s.broken {
			s.replies = append(s.replies, c)
			s.kick()
		}
	})
	return nil
}

// Recv implements snapshot.Stream.
func (s *snapStream) Recv() ([]byte, error) {
	for len(s.replies) == 0 && !s.broken && !s.answered {
		s.wantEnd = s.sender.waker()
		if !s.sender.wait() {
			return nil, errSnapBroke
		}
	}
	if len(s.replies) == 0 {
		return nil, errSnapBroke
	}
	b := s.replies[0]
	s.replies = s.replies[1:]
	return b, nil
}

// over ends the receiver's side; the answer travels back.
func (s *snapStream) over(err error) {
	t := s.t
	if s.broken || !s.sender.n.up || t.blocked[s.b][s.a] > 0 {
		s.fail()
		return
	}
	t.w.at(t.delay(s.b, s.a), func() {
		if s.broken {
			return
		}
		s.answer, s.answered = err, true
		t.forget(s)
		s.kick()
	})
}

// kick resumes a sender that waits for the answer.
func (s *snapStream) kick() {
	if f := s.wantEnd; f != nil {
		s.wantEnd = nil
		if n := s.sender.n; n.up {
			s.t.w.on(n, s.t.w.now, f)
		}
	}
}

// fail breaks the stream for both ends.
func (s *snapStream) fail() {
	if s.broken || s.answered {
		return
	}
	s.broken = true
	s.t.forget(s)
	if f := s.want; f != nil {
		s.want = nil
		if n := s.t.w.nodes[s.b]; n.up {
			s.t.w.on(n, s.t.w.now, f)
		}
	}
	s.kick()
}

func (t *network) forget(s *snapStream) {
	t.streams = slices.DeleteFunc(t.streams, func(o *snapStream) bool { return o == s })
}

func (t *network) breakStreams(a, b int) {
	for _, s := range slices.Clone(t.streams) {
		if s.a == a && s.b == b || s.a == b && s.b == a {
			s.fail()
		}
	}
}

// Send implements snapshot.Stream.
func (s *snapStream) Send(chunk []byte) error {
	w := s.t.w
	c := slices.Clone(chunk)
	if w.p.Corrupt > 0 && !w.calm && w.rng.Float64() < 10*w.p.Corrupt {
		s.hit(coverage.Corrupt)
		c = s.t.spoil(c)
	}
	if s.t.clogged[s.a][s.b] > w.now {
		s.hit(coverage.Clog)
	}
	w.log(s.a, "chunk", uint64(s.b)<<32|uint64(len(c)), hashBytes(c))
	s.last = max(s.last+1, s.t.delay(s.a, s.b)) // a stream keeps its order
	w.at(s.last, func() {
		if s.broken {
			return
		}
		s.chunks = append(s.chunks, c)
		s.feed()
	})
	if !s.sender.sleep(w.exp(w.p.DelayMean+w.p.ChunkDelay)) || s.broken {
		return errSnapBroke
	}
	return nil
}

// feed resumes a receiver that waits for a chunk.
func (s *snapStream) feed() {
	if f := s.want; f != nil {
		s.want = nil
		if n := s.t.w.nodes[s.b]; n.up {
			s.t.w.on(n, s.t.w.now, f)
		}
	}
}

// CloseAndRecv implements snapshot.Stream.
func (s *snapStream) CloseAndRecv() error {
	w := s.t.w
	if !s.broken && !s.answered {
		w.at(max(s.last+1, s.t.delay(s.a, s.b), w.now+int64(20*w.p.DelayMean)), func() {
			s.ended = true
			s.feed()
		})
	}
	for !s.broken && !s.answered {
		s.wantEnd = s.sender.waker()
		if !s.sender.wait() {
			return errSnapBroke
		}
	}
	if s.broken {
		return errSnapBroke
	}
	if s.answer != nil {
		return &transport.SnapshotError{Node: raft.NodeID(s.b + 1), Text: s.answer.Error()}
	}
	return nil
}
