//go:build mutants

package score

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotillakv/flotilla/internal/mutants"
)

// plant is one planted bug and what should find it.
type plant struct {
	id     string
	ledger string
	title  string
	tier   string
	// profiles are those of the simulator of the cores, where that is the tier.
	profiles []string
	// try makes attempt n (0, 1, ...) to find the bug, which is switched on.
	// It returns nil where the attempt found nothing, errDone when no further
	// attempt makes sense, and errSkip (wrapped) if the bug cannot be tried here.
	try func(ctx context.Context, o *Options, n int) (*catch, error)
	// test is a pattern of the tests of the package tier that find it, where that
	// is no simulator.
	test string
	// alone: attempts do not run side by side.
	alone bool
}

// catch is what an attempt found.
type catch struct {
	oracle, where, detail string
	// core is processor time spent in another process.
	core time.Duration
}

var (
	errDone = errors.New("no further attempt")
	errSkip = errors.New("skipped")
)

// Run plants one bug after the other and prints a table of what caught each,
// and the score. The error is nil if every one that ran was caught or skipped.
// It must not run beside other code that asks for planted bugs. When ctx ends,
// Run returns what it has, with ctx's error.
func Run(ctx context.Context, w io.Writer, o Options) (Summary, error) {
	if o.Budget <= 0 {
		o.Budget = 10 * time.Minute
	}
	o.Workers = max(o.Workers, 1)
	todo, err := choose(o.Only)
	if err != nil {
		return Summary{}, err
	}
	if o.Root == "" {
		o.Root = findRoot()
	}
	defer closeTests()
	defer mutants.Set("")
	var s Summary
	header(w)
	for i := range todo {
		if ctx.Err() != nil {
			break
		}
		r := hunt(ctx, &todo[i], &o)
		if ctx.Err() != nil && !r.Caught() {
			break
		}
		s.add(r)
		r.line(w)
	}
	fmt.Fprintln(w, s.String())
	switch {
	case ctx.Err() != nil:
		return s, ctx.Err()
	case s.Caught < s.Planted:
		return s, fmt.Errorf("%d planted bugs were not caught", s.Planted-s.Caught)
	}
	return s, nil
}

// IDs returns the ids of all planted bugs, in the order of the table.
func IDs() []string {
	var ids []string
	for _, p := range planted() {
		ids = append(ids, p.id)
	}
	return ids
}

func choose(only []string) ([]plant, error) {
	all := planted()
	if len(only) == 0 {
		return all, nil
	}
	var out []plant
	for _, id := range only {
		i := slices.IndexFunc(all, func(p plant) bool { return strings.EqualFold(p.id, id) })
		if i < 0 {
			return nil, fmt.Errorf("no planted bug %q; there are: %s", id, strings.Join(IDs(), " "))
		}
		out = append(out, all[i])
	}
	return out, nil
}

// hunt plants p and tries until something finds it or the budget is spent.
func hunt(ctx context.Context, p *plant, o *Options) Row {
	row := Row{ID: p.id, Ledger: p.ledger, Title: p.title, Tier: p.tier}
	mutants.Set(p.id)
	defer mutants.Set("")
	workers := o.Workers
	if p.alone {
		workers = 1
	}
	began, start := processorTime(), time.Now()
	spent := func() time.Duration {
		if began < 0 {
			return time.Since(start) * time.Duration(workers)
		}
		return processorTime() - began
	}
	var (
		mu    sync.Mutex
		next  atomic.Int64
		found = -1 // the first attempt that caught it
		hit   *catch
		bad   error
		stop  atomic.Bool
		wg    sync.WaitGroup
	)
	for range workers {
		wg.Go(func() {
			for !stop.Load() && ctx.Err() == nil && spent() < o.Budget {
				n := int(next.Add(1)) - 1
				c, err := p.try(ctx, o, n)
				if c == nil && err == nil {
					continue
				}
				stop.Store(true)
				mu.Lock()
				if c != nil && (found < 0 || n < found) {
					found, hit = n, c
				} else if c == nil && bad == nil {
					bad = err
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	row.Tries = int(next.Load())
	row.Core = spent()
	switch {
	case hit != nil:
		row.Oracle, row.Where, row.Detail, row.Tries = hit.oracle, hit.where, hit.detail, found+1
		if hit.core > 0 {
			row.Core = hit.core
		}
	case errors.Is(bad, errSkip):
		row.Skipped, row.Detail = true, bad.Error()
	case bad != nil:
		row.Detail = bad.Error()
	}
	return row
}
