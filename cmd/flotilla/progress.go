package main

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

const (
	progressEvery = 200 * time.Millisecond
	barWidth      = 24
)

// progress redraws one line on a terminal; elsewhere it prints nothing. It owns
// the goroutine that redraws, from start to stop.
type progress struct {
	a    *app
	done chan struct{}
	wg   sync.WaitGroup
}

// startProgress shows what state returns: how much of what is done, from 0 to 1
// (negative: unknown), and a text.
func (a *app) startProgress(state func() (share float64, text string)) *progress {
	p := &progress{a: a, done: make(chan struct{})}
	if !a.errTTY || a.quiet || a.json() {
		return p
	}
	p.wg.Go(func() {
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				share, text := state()
				fmt.Fprintf(a.errOut, "\r\x1b[K%s%s", bar(share), text)
			case <-p.done:
				fmt.Fprint(a.errOut, "\r\x1b[K")
				return
			}
		}
	})
	return p
}

// stop clears the line.
func (p *progress) stop() {
	close(p.done)
	p.wg.Wait()
}

func bar(share float64) string {
	if share < 0 {
		return ""
	}
	full := min(barWidth, int(share*barWidth))
	return fmt.Sprintf("[%s%s] %3.0f%%  ", strings.Repeat("#", full), strings.Repeat(".", barWidth-full), 100*min(share, 1))
}
