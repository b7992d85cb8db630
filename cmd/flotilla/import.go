package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla"
)

const (
	// A window is read, sorted by key and written with many batches in flight;
	// the next one begins when all of it is stored, so that of two lines with one
	// key the later wins, and so that there is one line to resume from.
	windowRecords = 1 << 15
	windowBytes   = 16 << 20
	// A batch holds neighbouring keys, so that few shards share it.
	batchRecords = 256
	batchBytes   = 256 << 10
	// importClients is the number of batches in flight.
	importClients = 64
	// badLinesShown is how many refused lines are reported one by one.
	badLinesShown = 20
)

type importer struct {
	a        *app
	c        client
	name     string // of the file, for the hint on how to resume
	format   string
	patience time.Duration
	read     *recordReader
	size     int64 // of the input, or 0

	records, bytes atomic.Int64 // stored
	readBytes      atomic.Int64
	bad            int64
	firstBad       int64
}

// window is a run of lines that is stored as a whole.
type window struct {
	first   int64 // its first line
	records []record
	err     error // why reading ended after these records; nil: it goes on
}

func newImport(a *app) *cobra.Command {
	var format string
	var fromLine int64
	var patience time.Duration
	cmd := &cobra.Command{
		Use:   "import FILE|-",
		Short: "Store the records of a file, one per line",
		Long: `import stores the records of a file, or of standard input ("-").

TSV is raw bytes: the key, one tab, the rest of the line; there are no escapes.
JSONL is {"key": "<base64>", "value": "<base64>"} on each line, for any bytes.

A line that cannot be a record is reported by its number and left out; the others
are stored, and the exit code is 2. Writes are repeated while a node is away, also
when the outcome of the first attempt is unknown: storing a record twice is the
same as storing it once, provided nobody else writes these keys meanwhile. If the
import has to stop, it says from which line to resume. When two lines have one
key, the later line wins.`,
		Example: lines(
			"  flotilla kv import words.tsv",
			"  zcat dump.jsonl.gz | flotilla kv import --format jsonl -"),
		Args: arguments("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			if fromLine < 1 {
				return usageError("--from-line %d: lines count from 1", fromLine)
			}
			im := &importer{a: a, name: args[0], format: format, patience: patience}
			in := a.in
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return failure(exitUsage, err, "", "cannot read the file to import: %v", err)
				}
				defer f.Close()
				if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
					im.size = st.Size()
				}
				in = f
			}
			im.read = newRecordReader(in, format)
			var err error
			if im.c, err = a.connect(cmd.Context()); err != nil {
				return err
			}
			defer im.c.Close()
			return im.run(cmd.Context(), fromLine)
		},
	}
	cmd.Flags().StringVar(&format, "format", formatTSV, "tsv or jsonl")
	cmd.Flags().Int64Var(&fromLine, "from-line", 1, "begin with this line, to resume")
	cmd.Flags().DurationVar(&patience, "retry-for", time.Minute, "how long to repeat a write that the cluster cannot take")
	return cmd
}

func (im *importer) run(ctx context.Context, fromLine int64) error {
	start := time.Now()
	if err := im.read.skip(fromLine); err != nil && err != io.EOF {
		return failure(exitFailed, err, "", "reading %s: %v", im.name, err)
	}
	show := im.a.startProgress(func() (float64, string) {
		share := -1.0
		if im.size > 0 {
			share = float64(im.readBytes.Load()) / float64(im.size)
		}
		n := im.records.Load()
		return share, fmt.Sprintf("%s records  %s  %s/s", countText(n), bytesText(im.bytes.Load()), countText(int64(float64(n)/time.Since(start).Seconds())))
	})
	err := im.store(ctx)
	show.stop()
	took := time.Since(start)
	if err != nil {
		return err
	}
	n := im.records.Load()
	if im.a.json() {
		if err := im.a.printJSON(map[string]any{"records": n, "bytes": im.bytes.Load(), "bad_lines": im.bad, "seconds": took.Seconds()}); err != nil {
			return err
		}
	} else {
		im.a.note("imported %s records (%s) in %s, %s records/s", countText(n), bytesText(im.bytes.Load()), secondsText(took), countText(int64(float64(n)/took.Seconds())))
	}
	if im.bad > 0 {
		return failure(exitUsage, nil, "mend these lines and import them again; the others are stored",
			"%s of the lines were refused, the first is line %d", countText(im.bad), im.firstBad)
	}
	return nil
}

// store writes window after window; the next one is read meanwhile.
func (im *importer) store(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	windows := make(chan window, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		defer close(windows)
		for {
			w := im.readWindow()
			select {
			case windows <- w:
			case <-ctx.Done():
				return
			}
			if w.err != nil {
				return
			}
		}
	})
	for w := range windows {
		if err := im.writeWindow(ctx, w.records); err != nil {
			code, text, _ := describe(err)
			if errors.Is(err, context.Canceled) {
				code, text = exitFailed, "interrupted"
			}
			return failure(code, err, im.resume(w.first), "import stopped: %s; all lines before line %d are stored; resume with --from-line %d", text, w.first, w.first)
		}
		if w.err != nil && w.err != io.EOF {
			return failure(exitFailed, w.err, "", "reading %s after line %d: %v; the lines up to there are stored", im.name, im.read.line, w.err)
		}
	}
	return ctx.Err()
}

func (im *importer) resume(line int64) string {
	format := ""
	if im.format != formatTSV {
		format = " --format " + im.format
	}
	return fmt.Sprintf("flotilla kv import --from-line %d%s %s", line, format, im.name)
}

func (im *importer) readWindow() window {
	w := window{first: im.read.line + 1}
	size := 0
	for len(w.records) < windowRecords && size < windowBytes {
		rec, err := im.read.next()
		if bad := new(badLine); errors.As(err, &bad) {
			im.refuse(bad)
			continue
		}
		if err != nil {
			w.err = err
			break
		}
		size += len(rec.key) + len(rec.value)
		w.records = append(w.records, rec)
	}
	im.readBytes.Store(im.read.bytes)
	return w
}

func (im *importer) refuse(bad *badLine) {
	im.bad++
	if im.firstBad == 0 {
		im.firstBad = bad.line
	}
	switch {
	case im.bad <= badLinesShown:
		fmt.Fprintf(im.a.errOut, "%s: %v\n", im.name, bad)
	case im.bad == badLinesShown+1:
		fmt.Fprintf(im.a.errOut, "%s: more refused lines follow, only their number is given at the end\n", im.name)
	}
}

// writeWindow stores the records and returns the first error, after all
// batches in flight have ended.
func (im *importer) writeWindow(ctx context.Context, records []record) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	batches := make(chan []record)
	var wg sync.WaitGroup
	for range min(importClients, len(records)/batchRecords+1) {
		wg.Go(func() {
			var b flotilla.Batch
			for batch := range batches {
				if err := im.writeBatch(ctx, &b, batch); err != nil {
					cancel(err)
				}
			}
		})
	}
feed:
	for batch := range cutBatches(sortRecords(records)) {
		select {
		case batches <- batch:
		case <-ctx.Done():
			break feed
		}
	}
	close(batches)
	wg.Wait()
	return context.Cause(ctx)
}

func (im *importer) writeBatch(ctx context.Context, b *flotilla.Batch, records []record) error {
	size := 0
	for _, r := range records {
		size += len(r.key) + len(r.value)
	}
	err := retry(ctx, im.a.timeout, im.patience, func(ctx context.Context) error {
		if len(records) == 1 { // may be too large for a batch
			_, err := im.c.Put(ctx, records[0].key, records[0].value)
			return err
		}
		b.Reset()
		for _, r := range records {
			b.Put(r.key, r.value)
		}
		_, err := im.c.Write(ctx, b, flotilla.NonAtomic())
		return err
	})
	if err == nil {
		im.records.Add(int64(len(records)))
		im.bytes.Add(int64(size))
	}
	return err
}

// sortRecords sorts by key; of records with one key it keeps the last line.
func sortRecords(records []record) []record {
	slices.SortStableFunc(records, func(a, b record) int { return bytes.Compare(a.key, b.key) })
	kept := records[:0]
	for i, r := range records {
		if i+1 < len(records) && bytes.Equal(r.key, records[i+1].key) {
			continue
		}
		kept = append(kept, r)
	}
	return kept
}

// cutBatches yields runs of records of bounded number and size, in an order
// that spreads them over the key space.
func cutBatches(records []record) func(yield func([]record) bool) {
	var runs [][]record
	for len(records) > 0 {
		n, size := 0, 0
		for n < len(records) && n < batchRecords {
			size += len(records[n].key) + len(records[n].value)
			if n > 0 && size > batchBytes {
				break
			}
			n++
		}
		runs = append(runs, records[:n])
		records = records[n:]
	}
	const stride = 16
	return func(yield func([]record) bool) {
		for first := range min(stride, len(runs)) {
			for i := first; i < len(runs); i += stride {
				if !yield(runs[i]) {
					return
				}
			}
		}
	}
}
