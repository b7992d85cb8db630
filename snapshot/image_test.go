package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/flotillakv/flotilla/internal/fuzzing"
)

// sampleImage is an image with one pair and one record of the group.
func sampleImage() []byte {
	m := sampleMeta()
	m.Files = nil
	b := appendBytes([]byte{imageVersion}, m.Encode(nil))
	b = appendBytes(append(b, byte(FileData)), appendKV(nil, []byte("key"), []byte("value")))
	b = appendBytes(append(b, byte(FileState)), appendKV(nil, []byte("s"), []byte("record")))
	return binary.BigEndian.AppendUint32(b, sum(b))
}

// TestImageFormat: an image is what its golden file says; each cut of it, and each
// flipped bit, is refused.
func TestImageFormat(t *testing.T) {
	b := sampleImage()
	golden(t, "image", b)
	m, files, err := decodeImage(b)
	check(t, err)
	if m.Index != 1000 || len(files) != 2 || files[0].file.Kind != FileData || files[1].file.Kind != FileState {
		t.Fatalf("%v, %d files", &m, len(files))
	}
	for n := range b {
		if _, _, err := decodeImage(b[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
		for bit := range 8 {
			c := bytes.Clone(b)
			c[n] ^= 1 << bit
			if _, _, err := decodeImage(c); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("bit %d of byte %d: %v", bit, n, err)
			}
		}
	}
}

func FuzzDecodeImage(tf *testing.F) {
	f := fuzzing.New(tf)
	f.Add(sampleImage())
	f.Fuzz(func(t testing.TB, b []byte) {
		if len(b) > 4 { // look behind the checksum
			b = binary.BigEndian.AppendUint32(bytes.Clone(b[:len(b)-4]), sum(b[:len(b)-4]))
		}
		fuzzing.DecodeList(t, len(b), 16, func() { decodeImage(b) })
		if _, _, err := decodeImage(b); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
	})
}
