package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotillakv/flotilla"
)

// scanPage is how many records a long scan asks for at a time, so that a page,
// not the whole, stands under the time limit and can be repeated.
const scanPage = 4096

// scanAll calls f for each pair of a range in key order, page by page. A page
// that meets a lost leader is asked for again until patience ends; f sees every
// pair once. An error of f ends the scan.
func (a *app) scanAll(ctx context.Context, c client, r flotilla.Range, read []flotilla.ReadOption, patience time.Duration, f func(flotilla.Pair) error) error {
	left := r.Limit
	for {
		page := r
		page.Limit = scanPage
		if left > 0 {
			page.Limit = min(left, scanPage)
		}
		var pairs []flotilla.Pair
		err := retry(ctx, a.timeout, patience, func(ctx context.Context) error {
			pairs = pairs[:0]
			for p, err := range c.Scan(ctx, page, read...) {
				if err != nil {
					return err
				}
				pairs = append(pairs, p)
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, p := range pairs {
			if err := f(p); err != nil {
				return err
			}
		}
		if left > 0 {
			if left -= len(pairs); left == 0 {
				return nil
			}
		}
		if len(pairs) < page.Limit {
			return nil
		}
		last := pairs[len(pairs)-1].Key
		if r.Reverse {
			r.End = append([]byte(nil), last...)
		} else {
			r.Start = append(append([]byte(nil), last...), 0)
		}
	}
}

func newExport(a *app) *cobra.Command {
	var format string
	var patience time.Duration
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write all records to standard output, in key order",
		Long: `export writes all records to standard output, one per line, in key order, in a
form that import reads.

TSV is raw bytes: the key, one tab, the value. A record that TSV cannot hold (a
tab or a line feed in the key, a line feed in the value) ends the export with exit
code 2; use --format jsonl then, which holds any bytes in base64.

Each page is read as of one moment; writes during the export may or may not be in it.`,
		Example: lines(
			"  flotilla kv export > all.tsv",
			"  flotilla kv export --format jsonl | gzip > all.jsonl.gz"),
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			return a.export(cmd.Context(), c, format, patience)
		},
	}
	cmd.Flags().StringVar(&format, "format", formatTSV, "tsv or jsonl")
	cmd.Flags().DurationVar(&patience, "retry-for", time.Minute, "how long to repeat a read that the cluster cannot answer")
	return cmd
}

func (a *app) export(ctx context.Context, c client, format string, patience time.Duration) error {
	start := time.Now()
	var records, size atomic.Int64
	show := a.startProgress(func() (float64, string) {
		return -1, fmt.Sprintf("%s records  %s", countText(records.Load()), bytesText(size.Load()))
	})
	w := bufio.NewWriterSize(a.out, 256<<10)
	var line []byte
	err := a.scanAll(ctx, c, flotilla.Range{}, nil, patience, func(p flotilla.Pair) error {
		var err error
		if line, err = appendRecord(line[:0], format, p.Key, p.Value); err != nil {
			return err
		}
		records.Add(1)
		size.Add(int64(len(line)))
		_, err = w.Write(line)
		return outputError(err)
	})
	if flushErr := outputError(w.Flush()); err == nil {
		err = flushErr
	}
	show.stop()
	if err != nil {
		code, text, try := describe(err)
		return failure(code, err, try, "export stopped after %s records: %s", countText(records.Load()), text)
	}
	a.note("exported %s records (%s) in %s", countText(records.Load()), bytesText(size.Load()), secondsText(time.Since(start)))
	return nil
}

func outputError(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return failure(exitFailed, err, "", "standard output does not take the data: %v", err)
}
