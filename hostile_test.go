package flotilla_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
	"github.com/flotillakv/flotilla/transport"
)

// three opens a cluster of three nodes on an in-process network.
func three(t *testing.T, ctx context.Context, network *transport.Network, o flotilla.Options) []*flotilla.Node {
	t.Helper()
	nodes := make([]*flotilla.Node, 3)
	errs := make(chan error, 3)
	for i := range nodes {
		go func() {
			o := o
			o.InMemory, o.NodeID, o.Network, o.Bootstrap, o.Join = true, uint32(i+1), network, 3, []string{"n1", "n2", "n3"}
			var err error
			nodes[i], err = flotilla.Open(ctx, o)
			errs <- err
		}()
	}
	if err := errors.Join(<-errs, <-errs, <-errs); err != nil {
		t.Fatal(err)
	}
	return nodes
}

// nobody takes in what nodes send to a hostile one.
type nobody struct{}

func (nobody) OnMessages(raft.NodeID, []raft.Msg) {}
func (nobody) OnCtl(raft.NodeID, []raft.Ctl)      {}
func (nobody) OnPeer(raft.NodeID, bool)           {}
func (nobody) OnSnapshot(raft.NodeID, []byte, func() ([]byte, error), func([]byte) error) error {
	return errors.New("no")
}

// TestHostilePeer: a node that is let into the cluster, and has no replica of
// any shard, sends messages of every type to running nodes: for replicas that are
// not there, in the name of those of others, of terms and indexes beyond reason,
// and control records at random. They are dropped and counted; the shards keep
// their leaders and their records and go on.
func TestHostilePeer(t *testing.T) {
	ctx := badContext(t)
	network := transport.NewNetwork()
	log := new(lockedBuffer)
	nodes := three(t, ctx, network, flotilla.Options{Shards: 2, Logger: slog.New(slog.NewTextHandler(log, nil))})
	for _, n := range nodes {
		defer n.Close()
	}
	put := func(i int) {
		t.Helper()
		if _, err := nodes[i%3].Put(ctx, fmt.Appendf(nil, "%c%d", "\x20\xe0"[i%2], i), []byte("v")); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		put(i)
	}
	cluster, err := hex.DecodeString(nodes[0].Cluster())
	if err != nil {
		t.Fatal(err)
	}
	evil := network.JoinWith(transport.Options{
		Identity: transport.Identity{Cluster: [16]byte(cluster), Node: 9, BootEpoch: 1, Addr: "n9"}, Handler: nobody{},
	})
	defer evil.Close()
	shards, err := nodes[0].Shards(ctx)
	if err != nil {
		t.Fatal(err)
	}
	before := dump(t, nodes[0])
	rng := rand.New(rand.NewPCG(1, 1))
	edge := func() uint64 { return []uint64{0, 1, 2, 30, 1 << 40, 1 << 62, 1<<64 - 1, rng.Uint64()}[rng.IntN(8)] }
	counted := func() (n uint64) {
		for _, n2 := range nodes {
			h := n2.Metrics().Host
			n += h.Anomalies + h.UnknownShard
		}
		return n
	}
	for rounds := 0; rounds < 400 || counted() < 300; rounds++ {
		if rounds%20 == 0 { // what is sent before the links are up is lost
			put(rng.IntN(20))
		}
		for to := raft.NodeID(1); to <= 3; to++ {
			var msgs []raft.Msg
			for range 1 + rng.IntN(5) {
				s := shards[rng.IntN(len(shards))]
				m := raft.Msg{
					Type: raft.MsgType(1 + rng.IntN(19)), Flags: uint8(rng.IntN(256)), Shard: raft.ShardID(s.ID), From: 9, To: to,
					// Of another node, or of this one: never one that the shard could still give out.
					FromReplica: raft.ReplicaID(rng.IntN(4)), ToReplica: raft.ReplicaID(rng.IntN(5)),
					Term: raft.Term(edge()), Index: raft.Index(edge()), LogTerm: raft.Term(edge()), Commit: raft.Index(edge()),
					CompactTo: raft.Index(edge()), Epoch: raft.Epoch(edge()), Round: edge(),
				}
				if rng.IntN(10) == 0 {
					m.Shard = raft.ShardID(edge())
				}
				if m.Type == raft.MsgStepDown || m.Type == raft.MsgLeadQuery {
					// These name a leader that may be gone, and are taken from anybody;
					// in the right term they cost an election, no more.
					m.Term = 0
				}
				if m.Type == raft.MsgApp && rng.IntN(2) == 0 && m.Index < 1<<41 {
					at := m.Index + 1
					m.Entries = []raft.Entry{{Index: at, Term: m.Term, Type: raft.EntryEmpty, Value: raft.EncodeEntry(nil, at, m.Term, raft.EntryEmpty, raft.EntryHeader{}, nil)}}
				}
				msgs = append(msgs, m)
			}
			evil.Send(to, msgs)
			evil.SendCtl(to, raft.Ctl{Kind: raft.CtlKind(rng.IntN(8)), Refused: rng.IntN(2) == 0, Epoch: raft.Epoch(edge()), Seq: edge(), Echo: edge()})
		}
	}
	if after := dump(t, nodes[1]); keysOf(after) != keysOf(before) {
		t.Errorf("the store holds\n%s\nbefore\n%s", after, before)
	}
	for i := range 20 {
		put(i)
	}
	for _, n := range nodes {
		if n.Fatal() != nil {
			t.Errorf("node %d stopped: %v", n.ID(), n.Fatal())
		}
	}
	t.Log(counted(), "messages were counted")
	if n := strings.Count(log.String(), "a message that no correct node sends was dropped"); n == 0 || n > 9 {
		t.Errorf("%d lines in the log about %d messages", n, counted())
	}
}

// keysOf leaves the versions of a dump out.
func keysOf(dump string) string {
	var b strings.Builder
	for line := range strings.Lines(dump) {
		kv, _, _ := strings.Cut(line, "@")
		b.WriteString(kv + "\n")
	}
	return b.String()
}

// TestNothingOfUsersIsLogged: a run with the log at debug: writes, reads,
// refusals of every kind, a lost quorum, sessions, a restart. No key and no value
// shows in the log; a value in no error either. (Errors quote keys where they are
// about them.)
func TestNothingOfUsersIsLogged(t *testing.T) {
	ctx := badContext(t)
	const keyMark, valueMark = "K3yM4rk", "V4lu3M4rk"
	network := transport.NewNetwork()
	log := new(lockedBuffer)
	logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	nodes := three(t, ctx, network, flotilla.Options{SplitAt: [][]byte{[]byte("m")}, Logger: logger, Timeout: 2 * time.Second})
	for _, n := range nodes {
		defer n.Close()
	}
	client, err := flotilla.Dial(ctx, []string{"n1", "n2", "n3"}, flotilla.ClientOptions{Network: network, Logger: logger, Timeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var errs []error
	note := func(err error) { errs = append(errs, err) }
	key := func(i int) []byte { return fmt.Appendf(nil, "%c%s%d", "ax"[i%2], keyMark, i) }
	val := []byte(valueMark)
	use := func(kv flotilla.KV) {
		for i := range 10 {
			_, err := kv.Put(ctx, key(i), val)
			note(err)
			_, err = kv.Get(ctx, key(i))
			note(err)
		}
		_, err := kv.CAS(ctx, key(0), flotilla.Version{}, val)
		note(err)
		_, err = kv.Put(ctx, bytes.Repeat(key(0), flotilla.MaxKeyBytes/4), val)
		note(err)
		_, err = kv.Put(ctx, key(0), bytes.Repeat(val, flotilla.MaxValueBytes/4))
		note(err)
		var b flotilla.Batch
		b.Put(key(0), val)
		b.Put(key(1), val)
		_, err = kv.Write(ctx, &b)
		note(err)
		_, err = kv.Txn(ctx, flotilla.Txn{If: []flotilla.Cond{flotilla.IfValue(key(0), val)}, Then: []flotilla.Op{flotilla.PutOp(key(1), val)}})
		note(err)
		for _, err := range kv.Scan(ctx, flotilla.Range{Start: key(1), End: key(0)}) {
			note(err)
		}
		_, err = kv.DeleteRange(ctx, flotilla.Range{Start: key(0)})
		note(err)
	}
	use(nodes[0])
	use(client)
	s, err := client.NewSession(flotilla.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	use(s)
	note(s.Close())
	put, err := shard.PutCommand(key(1), val)
	if err != nil {
		t.Fatal(err)
	}
	caller := network.Caller(0, 1)
	defer caller.Close()
	for id := range raft.ShardID(5) { // where the key is not, by an old table
		_, err := caller.Do(ctx, &shard.Request{Keyspace: 1, Shard: id, DescVersion: 1, Hop: shard.MaxHops, Kind: shard.KindWrite, Command: put, TimeoutNanos: 1e8})
		note(err)
	}
	network.Isolate(1)
	network.Isolate(2)
	_, err = nodes[0].Put(ctx, key(0), val)
	note(err)
	_, err = client.Put(ctx, key(1), val)
	note(err)
	network.Heal()
	refused := 0
	for _, err := range errs {
		if err != nil {
			refused++
			if strings.Contains(err.Error(), valueMark) {
				t.Errorf("an error quotes a value: %.300v", err)
			}
		}
	}
	if refused < 15 || log.String() == "" {
		t.Errorf("%d refusals, %d bytes of log", refused, len(log.String()))
	}
	for line := range strings.Lines(log.String()) {
		for _, mark := range []string{keyMark, valueMark, hex.EncodeToString([]byte(keyMark)), hex.EncodeToString([]byte(valueMark))} {
			if strings.Contains(line, mark) {
				t.Errorf("the log holds what is the users': %.300s", line)
			}
		}
	}
}
