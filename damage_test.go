package flotilla_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
)

// TestFlippedFiles: one bit of one file of a stopped node is flipped, in the
// middle of every file (package engine tries more places). What then happens is one of three things: the node
// refuses to start with a sentence that names the directory and a way out; it
// starts and stops at the damage, with a reason; or the damage was of no account
// and every record is what it was. It never serves anything else.
func TestFlippedFiles(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	fs := simfs.New()
	options := func(fs engine.FS) flotilla.Options {
		return flotilla.Options{InMemory: true, FS: fs, Dir: "/data/n1", Shards: 2, Limits: flotilla.Limits{Memory: 16 << 20}, Timeout: 10 * time.Second}
	}
	const records = 60
	value := func(i int) string { return strings.Repeat(fmt.Sprintf("%04d", i), 1<<10) }
	for round := range 2 { // the second leaves tables behind, and a log that is not the first
		n, err := flotilla.Open(ctx, options(fs))
		if err != nil {
			t.Fatal(err)
		}
		for i := round; i < records; i += 2 {
			if _, err := n.Put(ctx, fmt.Appendf(nil, "%c%04d", "\x20\xe0"[i%2], i), []byte(value(i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	read := func(n *flotilla.Node) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		for i := range records {
			v, err := n.Get(ctx, fmt.Appendf(nil, "%c%04d", "\x20\xe0"[i%2], i))
			if err != nil {
				return err
			}
			if string(v.Bytes) != value(i) {
				t.Errorf("record %d is another one", i)
			}
		}
		return nil
	}
	var files []string
	for _, dir := range []string{"/data/n1", "/data/n1/db"} {
		names, err := fs.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if info, err := fs.Stat(dir + "/" + name); err == nil && !info.IsDir() && info.Size() > 0 {
				files = append(files, dir+"/"+name)
			}
		}
	}
	counts := map[string]int{}
	var texts []string
	for _, file := range files {
		info, err := fs.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		const places = 1
		for k := range places {
			bit := info.Size() * 8 * int64(2*k+1) / (2 * places)
			img := fs.Image(simfs.All, 1)
			img.Flip(file, bit)
			what := fmt.Sprintf("%s, bit %d of %d", file, bit, info.Size()*8)
			n, err := flotilla.Open(ctx, options(img))
			if err != nil {
				var open *flotilla.OpenError
				if !errors.As(err, &open) || open.Path != "/data/n1" || open.Hint == "" || open.Err == nil || !strings.Contains(err.Error(), open.Hint) {
					t.Errorf("%s: refused with %v", what, err)
				}
				counts["refused"]++
				texts = append(texts, err.Error())
				continue
			}
			err = read(n)
			switch {
			case n.Fatal() != nil:
				counts["stopped"]++
				texts = append(texts, n.Fatal().Error())
			case err != nil:
				t.Errorf("%s: it serves, and says %v", what, err)
			default:
				counts["of no account"]++
			}
			n.Close()
		}
	}
	t.Log(counts, len(files), "files")
	for _, want := range []string{"cluster.json cannot be used: ", `MANIFEST-\d+ is damaged`, "crc32c checksum mismatch", "replaying WAL"} {
		if !regexp.MustCompile(want).MatchString(strings.Join(texts, "\n")) {
			t.Errorf("nothing says %q, but\n%s", want, strings.Join(texts, "\n"))
		}
	}
	if counts["refused"] < 4 {
		t.Errorf("few flips were noticed: %v", counts)
	}
}
