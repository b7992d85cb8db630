package shard

import (
	"errors"
	"reflect"
	"testing"

	"github.com/flotillakv/flotilla/internal/fuzzing"
)

func sampleResults() []struct {
	name string
	res  Result
} {
	at := Receipt{v1}
	return []struct {
		name string
		res  Result
	}{
		{"ok", Result{Receipt: at}},
		{"txn", Result{Receipt: at, Txn: &TxnResult{Succeeded: true, Receipt: at, Gets: []TxnGet{{}, {Found: true, Value: Value{Bytes: []byte("x"), Version: v1}}}}}},
		{"conflict", Result{Receipt: at, Status: StatusConflict, Have: v1}},
		{"epoch", Result{Receipt: at, Status: StatusEpoch, DescVersion: 3}},
		{"range", Result{Receipt: at, Status: StatusRange, DescVersion: 300}},
		{"malformed", Result{Receipt: at, Status: StatusMalformed, Text: "key: it is empty"}},
		{"limit", Result{Receipt: at, Status: StatusLimit, Text: "bytes of a key", Limit: 10, Got: 11}},
		{"expired", Result{Receipt: at, Status: StatusExpired, Known: true, Deadline: 1 << 40, Now: 1<<40 + 1}},
		{"sessionsfull", Result{Receipt: at, Status: StatusSessionsFull, Limit: 10000}},
		{"settled", Result{Receipt: at, Status: StatusSettled}},
	}
}

// Shows that the bytes of a command's result are those on record, and decode.
func TestResultGolden(t *testing.T) {
	g := openGolden(t, "results")
	for _, c := range sampleResults() {
		enc := c.res.Append(nil)
		g.check(c.name, enc)
		got, err := DecodeResult(enc, v1)
		if err != nil || !reflect.DeepEqual(got, c.res) {
			t.Errorf("%s: got %+v, %v", c.name, got, err)
		}
	}
}

// Shows that the result of a session's earlier try decodes to that result, at
// the position where it was executed, and that a replay of a replay does not.
func TestReplayGolden(t *testing.T) {
	g := openGolden(t, "replays")
	earlier := Version{Lineage: 9, Index: 5, Slot: 1}
	for _, c := range sampleResults() {
		for _, cut := range []bool{false, true} {
			c, enc := c, c.res.Append(nil)
			if cut {
				if c.name != "txn" {
					continue
				}
				c.name = "txncut"
				enc = c.res.AppendShort(nil)
				c.res.Txn = &TxnResult{Succeeded: true}
			}
			c.res.Receipt, c.res.Cut = Receipt{earlier}, cut
			if c.res.Txn != nil {
				txn := *c.res.Txn
				txn.Receipt = c.res.Receipt
				c.res.Txn = &txn
			}
			enc = AppendReplay(nil, earlier, cut, enc)
			g.check("replay-"+c.name, enc)
			got, err := DecodeResult(enc, v1)
			if err != nil || !reflect.DeepEqual(got, c.res) {
				t.Errorf("%s: got %+v, %v; want %+v", c.name, got, err, c.res)
			}
			if _, err := DecodeResult(AppendReplay(nil, earlier, cut, enc), v1); err != ErrBadResult {
				t.Errorf("%s: a replay of a replay: %v", c.name, err)
			}
			if n := len(c.res.AppendShort(nil)); n > 32 {
				t.Errorf("%s: the short form has %d bytes", c.name, n)
			}
		}
	}
}

// Shows that every rejection becomes a typed error that says "not applied".
func TestResultErr(t *testing.T) {
	d := &Descriptor{Shard: 7, Start: []byte("a"), End: []byte("m"), Version: 3}
	for _, c := range sampleResults() {
		err := c.res.Err(d)
		want := NotApplied
		switch c.res.Status {
		case StatusOK:
			want = Applied
		case StatusSettled:
			want = MaybeApplied
		}
		if got := OutcomeOf(err); got != want {
			t.Errorf("%s: %v is %v", c.name, err, got)
		}
	}
	_, err := DecodeBatch(make([]byte, MaxBatchBytes+1))
	rej := Rejection(err)
	if got := rej.Err(d); !reflect.DeepEqual(got, err) {
		t.Errorf("a rejected limit became %v", got)
	}
	rej = Rejection(errors.New("x"))
	if OutcomeOf(rej.Err(d)) != NotApplied {
		t.Error("an unknown rejection is not definite")
	}
}

// FuzzResult: no panic, and what decodes survives encoding.
func FuzzResult(tf *testing.F) {
	f := fuzzing.New(tf)
	for _, c := range sampleResults() {
		f.Add(c.res.Append(nil))
		f.Add(AppendReplay(nil, Version{Lineage: 9, Index: 5}, false, c.res.Append(nil)))
	}
	f.Fuzz(func(t testing.TB, b []byte) {
		fuzzing.Decode(t, len(b), func() { DecodeResult(b, v1) })
		res, err := DecodeResult(b, v1)
		if err != nil {
			return
		}
		enc := res.Append(nil)
		if res.Receipt.Version != v1 || res.Cut { // of an earlier try
			enc = AppendReplay(nil, res.Receipt.Version, res.Cut, enc)
		}
		again, err := DecodeResult(enc, v1)
		if err != nil || !reflect.DeepEqual(res, again) {
			t.Fatalf("%+v became %+v, %v", res, again, err)
		}
	})
}
