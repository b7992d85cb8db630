package snapshot

import (
	"errors"
	"io"
	"iter"
	"slices"
)

// Pipe is a Stream within one goroutine, for simulators and tests: handle runs as a
// coroutine that goes on while the sender waits for it. Its two functions are those
// that Store.Handle takes.
func Pipe(handle func(next func() ([]byte, error), reply func([]byte) error) error) *PipeStream {
	p := &PipeStream{}
	p.resume, p.cancel = iter.Pull(func(yield func(struct{}) bool) {
		p.err = handle(func() ([]byte, error) {
			for len(p.to) == 0 && !p.closed && !p.cut {
				if !yield(struct{}{}) {
					p.cut = true
				}
			}
			if p.cut {
				return nil, errCut
			}
			if len(p.to) == 0 {
				return nil, io.EOF
			}
			b := p.to[0]
			p.to = p.to[1:]
			return b, nil
		}, func(b []byte) error {
			p.back = append(p.back, slices.Clone(b))
			return nil
		})
		p.over = true
	})
	return p
}

// PipeStream is what Pipe returns.
type PipeStream struct {
	resume   func() (struct{}, bool)
	cancel   func()
	to, back [][]byte
	closed   bool
	cut      bool
	over     bool
	err      error
}

var errCut = errors.New("snapshot: the stream was cut")

// run lets the receiver go on until it waits or ends.
func (p *PipeStream) run() {
	if !p.over {
		p.resume()
	}
}

// Send implements Stream.
func (p *PipeStream) Send(msg []byte) error {
	if p.cut || p.over {
		return errCut
	}
	p.to = append(p.to, slices.Clone(msg))
	p.run()
	return nil
}

// Recv implements Stream.
func (p *PipeStream) Recv() ([]byte, error) {
	if len(p.back) == 0 {
		p.run()
	}
	if len(p.back) == 0 {
		return nil, errCut
	}
	b := p.back[0]
	p.back = p.back[1:]
	return b, nil
}

// Cut breaks the stream for both ends.
func (p *PipeStream) Cut() {
	p.cut = true
	p.run()
	p.cancel()
}

// CloseAndRecv implements Stream.
func (p *PipeStream) CloseAndRecv() error {
	p.closed = true
	for !p.over && !p.cut {
		p.run()
	}
	p.cancel()
	if p.cut {
		return errCut
	}
	return p.err
}
