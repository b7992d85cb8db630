package sim

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strconv"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// traceVersion is the version of traces as data.
const traceVersion = 1

// Feed writes the trace of a run as JSON, one object per line: a first line that
// names the run, a line per event, a last line with the outcome. It is the same
// for equal runs. docs/testing.md describes the fields.
type Feed struct {
	w   *bufio.Writer
	buf []byte
	n   uint64
	err error
}

// NewFeed begins a trace of a run of tier ("t0", "t1").
func NewFeed(w io.Writer, tier string, seed uint64, profile string) *Feed {
	f := &Feed{w: bufio.NewWriterSize(w, 1<<16)}
	f.buf = append(f.buf[:0], `{"trace":`...)
	f.buf = strconv.AppendInt(f.buf, traceVersion, 10)
	f.str("tier", tier)
	f.num("seed", seed)
	f.str("profile", profile)
	f.line()
	return f
}

// Begin begins the line of an event; node counts from 1, 0 means none.
func (f *Feed) Begin(at int64, node int, event string) {
	f.n++
	f.buf = append(f.buf[:0], `{"n":`...)
	f.buf = strconv.AppendUint(f.buf, f.n, 10)
	f.num("ns", uint64(at))
	if node > 0 {
		f.num("node", uint64(node))
	}
	f.str("event", event)
}

// Num adds a number to the line.
func (f *Feed) Num(name string, v uint64) { f.num(name, v) }

// Str adds a text to the line.
func (f *Feed) Str(name, v string) { f.str(name, v) }

// Line ends the line.
func (f *Feed) Line() { f.line() }

// End writes the outcome and flushes; it returns the first error of writing.
func (f *Feed) End(at int64, hash uint64, oracle, detail string) error {
	f.Begin(at, 0, "end")
	f.str("hash", fmt.Sprintf("%016x", hash))
	if oracle != "" {
		f.str("oracle", oracle)
		f.str("detail", detail)
	}
	f.line()
	if err := f.w.Flush(); f.err == nil {
		f.err = err
	}
	return f.err
}

func (f *Feed) num(name string, v uint64) {
	f.buf = append(append(append(f.buf, `,"`...), name...), `":`...)
	f.buf = strconv.AppendUint(f.buf, v, 10)
}

func (f *Feed) str(name, v string) {
	f.buf = append(append(append(f.buf, `,"`...), name...), `":`...)
	text, _ := json.Marshal(v) // of a string it cannot fail
	f.buf = append(f.buf, text...)
}

func (f *Feed) line() {
	f.buf = append(f.buf, "}\n"...)
	if _, err := f.w.Write(f.buf); f.err == nil {
		f.err = err
	}
}

// put writes one record.
func (f *Feed) put(r *record) {
	if r.act {
		f.Begin(r.at, r.node+1, "action")
		f.str("do", r.what)
	} else {
		f.Begin(r.at, r.node+1, r.what)
	}
	if r.msg != nil {
		f.msg(r.msg)
	} else {
		r.named(f.num)
	}
	f.line()
}

// msg writes the fields of a message; what is zero is left out.
func (f *Feed) msg(m *raft.Msg) {
	name := fmt.Sprintf("type%d", m.Type)
	if int(m.Type) < len(msgNames) && msgNames[m.Type] != "" {
		name = msgNames[m.Type]
	}
	f.str("type", name)
	f.num("from", uint64(m.From))
	f.num("to", uint64(m.To))
	for _, x := range []struct {
		name string
		v    uint64
	}{
		{"from_replica", uint64(m.FromReplica)}, {"to_replica", uint64(m.ToReplica)}, {"term", uint64(m.Term)}, {"index", uint64(m.Index)},
		{"log_term", uint64(m.LogTerm)}, {"commit", uint64(m.Commit)}, {"compact_to", uint64(m.CompactTo)}, {"epoch", uint64(m.Epoch)}, {"round", m.Round},
		{"reject", uint64(m.Flags & raft.FlagReject)}, {"fortify", uint64(m.Flags & raft.FlagFortify >> 1)}, {"grant", uint64(m.Flags & raft.FlagGrant >> 2)},
		{"probe", uint64(m.Flags & raft.FlagProbe >> 3)}, {"entries", uint64(len(m.Entries))},
	} {
		if x.v != 0 {
			f.num(x.name, x.v)
		}
	}
	if k := len(m.Entries); k > 0 {
		f.num("first_term", uint64(m.Entries[0].Term))
		f.num("last_term", uint64(m.Entries[k-1].Term))
	}
}
