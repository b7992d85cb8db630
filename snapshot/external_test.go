package snapshot

import (
	"errors"
	"testing"

	"github.com/flotillakv/flotilla/internal/fuzzing"
)

// TestExternalFormat: the head of a machine's state is fixed, and one that cannot be right
// is refused, as are manifests whose pieces are not where they belong.
func TestExternalFormat(t *testing.T) {
	b := append(appendExternalHead(nil, 1000), "state"...)
	golden(t, "external", b)
	m := sampleMeta()
	if at, err := m.externalIndex(b); err != nil || at != 1000 {
		t.Fatal(at, err)
	}
	m.Index = 1001 // the store is ahead of the machine
	if _, err := m.externalIndex(b); !errors.Is(err, ErrCorrupt) {
		t.Errorf("behind the store: %v", err)
	}
	m = sampleMeta()
	for _, bad := range [][]byte{nil, b[:8], append([]byte{2}, b[1:]...)} {
		if _, err := m.externalIndex(bad); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%x: %v", bad, err)
		}
	}
	piece := File{Kind: FileExternal, Size: 3, Sums: []uint32{1}}
	m.Files = append(m.Files, piece, piece)
	if got, err := DecodeMeta(m.Encode(nil)); err != nil || !got.HasExternal() {
		t.Errorf("two pieces: %v", err)
	}
	for what, f := range map[string]File{
		"a table behind": m.Files[0], "a list behind": m.Files[2], "a piece with a key": {Kind: FileExternal, Size: 3, Sums: []uint32{1}, First: []byte("k")},
	} {
		bad := m
		bad.Files = append(append([]File(nil), m.Files...), f)
		if _, err := DecodeMeta(bad.Encode(nil)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// FuzzExternalHead: whatever a stream begins with, no index comes out that is below that
// of the snapshot, and what is taken is what the encoder writes.
func FuzzExternalHead(tf *testing.F) {
	f := fuzzing.New(tf)
	f.Add(append(appendExternalHead(nil, 1000), "state"...))
	f.Add([]byte{1})
	f.Fuzz(func(t testing.TB, b []byte) {
		m := Meta{Index: 7}
		if at, err := m.externalIndex(b); err == nil && (at < 7 || string(appendExternalHead(nil, at)) != string(b[:externalHead])) {
			t.Fatalf("%x became index %d", b, at)
		}
	})
}
