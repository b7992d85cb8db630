package shard

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/flotillakv/flotilla/internal/fuzzing"
)

// Shows that the bytes of a value record are those on record, and decode.
func TestRecordGolden(t *testing.T) {
	g := openGolden(t, "records")
	for _, c := range []struct {
		name string
		rec  Record
	}{
		{"plain", Record{Version: v1, Bytes: []byte("value")}},
		{"empty", Record{Version: Version{Lineage: 1, Index: 1}, Bytes: []byte{}}},
		{"expiry", Record{Version: v1, Expiry: 1 << 40, Bytes: []byte("value")}},
		{"large", Record{Version: Version{Lineage: 1<<64 - 1, Index: 1<<64 - 1, Slot: 1<<32 - 1}, Bytes: []byte{0}}},
	} {
		enc := AppendRecord(nil, c.rec.Version, c.rec.Expiry, c.rec.Bytes)
		g.check(c.name, enc)
		got, err := DecodeRecord(enc)
		if err != nil || !reflect.DeepEqual(got, c.rec) {
			t.Errorf("%s: got %+v, %v", c.name, got, err)
		}
	}
}

// Shows that damaged and newer records are refused.
func TestRecordRefused(t *testing.T) {
	for _, b := range [][]byte{nil, {0}, {0x20, 1, 1, 1}, {0x12, 1, 1, 1}, {0x10}, {0x10, 1, 1}, {0x11, 1, 1, 1, 0, 0}, {0x10, 1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 1}} {
		if _, err := DecodeRecord(b); !errors.Is(err, ErrBadRecord) {
			t.Errorf("%x: got %v", b, err)
		}
	}
}

// FuzzRecord: no panic, and what decodes survives encoding.
func FuzzRecord(tf *testing.F) {
	f := fuzzing.New(tf)
	f.Add(AppendRecord(nil, v1, 0, []byte("value")))
	f.Add(AppendRecord(nil, v1, 9, nil))
	f.Fuzz(func(t testing.TB, b []byte) {
		fuzzing.Decode(t, len(b), func() { DecodeRecord(b) })
		rec, err := DecodeRecord(b)
		if err != nil {
			return
		}
		again, err := DecodeRecord(AppendRecord(nil, rec.Version, rec.Expiry, rec.Bytes))
		if err != nil || again.Version != rec.Version || again.Expiry != rec.Expiry || !bytes.Equal(again.Bytes, rec.Bytes) {
			t.Fatalf("%+v became %+v, %v", rec, again, err)
		}
	})
}
