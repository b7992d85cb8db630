package raft

import (
	"fmt"
	"testing"
)

// The benchmarks named BenchmarkDoor, here and in other packages, are one per
// station of a request's way; docs/performance.md lists them. Values have 128
// bytes; ns/op is per entry or per call, whatever it holds.

// benchCommands returns n puts of a 16-byte key and a 128-byte value.
func benchCommands(n int) []Command {
	cmds := make([]Command, n)
	for i := range cmds {
		cmds[i] = Command{Op: 1, Body: fmt.Appendf(nil, "\x10user%012d%0128d", i, i)}
	}
	return cmds
}

// BenchmarkDoorPropose is the core of a leader of three, per entry: proposal,
// append to two followers, its own disk's word, an acknowledgement of one
// follower and then the other, commit, apply, truncation.
func BenchmarkDoorPropose(b *testing.B) {
	for _, n := range []int{1, 16} {
		b.Run(fmt.Sprintf("cmds=%d", n), func(b *testing.B) {
			r := newRig(b, stateOf(three, HardState{}, nil))
			r.lead()
			for _, n := range []NodeID{2, 3} {
				r.step(Msg{Type: MsgAppResp, From: n, Term: 1, Index: 1})
			}
			c, o := r.c, &r.o
			ack := Msg{Type: MsgAppResp, Shard: 7, To: 1, ToReplica: 1, Term: 1}
			cmds := benchCommands(n)
			b.ReportAllocs()
			for b.Loop() {
				o.Reset()
				mark, err := c.Propose(r.now, EntryHeader{}, cmds, o)
				if err != nil {
					b.Fatal(err)
				}
				c.Flush(r.now, o)
				c.Appended(r.now, mark, o)
				ack.Index = mark.Index
				for _, n := range []NodeID{2, 3} {
					ack.From, ack.FromReplica = n, ReplicaID(n)
					c.Step(r.now, &ack, o)
				}
				c.Flush(r.now, o)
				benchApply(c, o)
			}
			if st := c.Status(); st.Commit != st.Last {
				b.Fatalf("not committed: %+v", st)
			}
		})
	}
}

// BenchmarkDoorAppend is the core of a follower, per entry of 16 commands: the
// append of its leader, which carries the commit of the entry before, its own
// disk's word, apply, truncation.
func BenchmarkDoorAppend(b *testing.B) {
	c := newTestCore(b, 1, three, &fakeLive{}, Tuning{})
	var o Out
	v := EncodeEntry(nil, 1, 1, EntryNormal, EntryHeader{}, benchCommands(16)) // the core does not look into it
	b.ReportAllocs()
	for i := Index(1); b.Loop(); i++ {
		o.Reset()
		m := Msg{
			Type: MsgApp, Shard: 7, From: 2, FromReplica: 2, To: 1, ToReplica: 1, Term: 1,
			Index: i - 1, LogTerm: min(1, Term(i-1)), Commit: i - 1, Entries: []Entry{{Index: i, Term: 1, Type: EntryNormal, Value: v}},
		}
		c.Step(0, &m, &o)
		c.Appended(0, LogMark{Term: 1, Index: i}, &o)
		c.Flush(0, &o)
		benchApply(c, &o)
	}
	if st := c.Status(); st.Commit+1 != st.Last || st.Anomalies != 0 {
		b.Fatalf("not appended: %+v", st)
	}
}

func benchApply(c *Core, o *Out) {
	for _, a := range o.Applies {
		for _, e := range a.Entries {
			c.Applied(e.Index, e.Term, len(e.Value), o)
		}
	}
	for _, t := range o.Truncates {
		c.Truncated(t.Index, t.Term)
	}
}

// BenchmarkDoorEntry encodes and decodes an entry of 16 commands, and looks at
// each of them.
func BenchmarkDoorEntry(b *testing.B) {
	cmds := benchCommands(16)
	b.Run("encode", func(b *testing.B) {
		var buf []byte
		b.ReportAllocs()
		for b.Loop() {
			buf = EncodeEntry(buf[:0], 9, 1, EntryNormal, EntryHeader{}, cmds)
		}
	})
	b.Run("decode", func(b *testing.B) {
		v := EncodeEntry(nil, 9, 1, EntryNormal, EntryHeader{}, cmds)
		b.ReportAllocs()
		for b.Loop() {
			e, err := DecodeEntry(9, v)
			if err != nil {
				b.Fatal(err)
			}
			n := 0
			for range e.Commands() {
				n++
			}
			if n != 16 {
				b.Fatal(n)
			}
		}
	})
}
