//go:build mutants

package snapshot

import (
	"errors"
	"testing"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// TestMutants plants one bug at a time and shows that it is found.
func TestMutants(t *testing.T) {
	for id, run := range map[string]func() error{"E18": damagedChunk} {
		t.Run(id, func(t *testing.T) {
			mutants.Set("")
			if err := run(); err != nil {
				t.Fatalf("without the bug: %v", err)
			}
			mutants.Set(id)
			defer mutants.Set("")
			err := run()
			if err == nil {
				t.Fatal("not found")
			}
			t.Logf("found: %v", err)
		})
	}
}

// damagedChunk changes one byte of a chunk; it must be refused.
func damagedChunk() error {
	rows := []byte("the rows of a shard")
	f := &File{Kind: FileTable, Size: int64(len(rows)), Sums: []uint32{sum(rows)}}
	chunk := encodeChunk(nil, FileTable, 0, 0, rows)[messageHead:]
	if _, err := f.decodeChunk(reader{b: chunk}, 0, 0); err != nil {
		return err
	}
	chunk[chunkHead-messageHead+3] ^= 1
	if _, err := f.decodeChunk(reader{b: chunk}, 0, 0); err == nil {
		return errors.New("a damaged chunk is taken")
	}
	return nil
}

// TestKeptMutants plants one bug at a time and shows that a case of TestKept finds it.
func TestKeptMutants(t *testing.T) {
	for _, id := range []string{"CI2", "CI3", "CI4", "CI5", "CI8"} {
		t.Run(id, func(t *testing.T) {
			mutants.Set(id)
			defer mutants.Set("")
			for _, c := range keptCases {
				if err := c.run(t); err != nil {
					t.Logf("found by %q: %v", c.name, err)
					return
				}
			}
			t.Fatal("not found")
		})
	}
}
