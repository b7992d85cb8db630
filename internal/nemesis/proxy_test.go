package nemesis

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// echo answers every line with itself, and is told of connections.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

// The proxy knows this process as the clients. Bytes pass; a hole in either
// direction holds them, and they pass when it is mended; a reset breaks the
// connection; a refusing link takes no new one; delays and rates take their time.
func TestProxyLinks(t *testing.T) {
	n := newProxies(func() map[int]int { return nil })
	t.Cleanup(n.close)
	addr, err := n.proxy(0, echo(t))
	if err != nil {
		t.Fatal(err)
	}
	dial := func() (net.Conn, *bufio.Reader) {
		t.Helper()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c, bufio.NewReader(c)
	}
	there, back := pair{Clients, 0}, pair{0, Clients}
	say := func(c net.Conn, r *bufio.Reader, word string, within time.Duration) error {
		if word != "" {
			if _, err := io.WriteString(c, word+"\n"); err != nil {
				return err
			}
		}
		c.SetReadDeadline(time.Now().Add(within))
		_, err := r.ReadString('\n')
		return err
	}
	const soon, never = 10 * time.Second, 80 * time.Millisecond

	c, r := dial()
	if err := say(c, r, "hello", soon); err != nil {
		t.Fatalf("nothing passes: %v", err)
	}
	for _, dir := range []pair{there, back} {
		n.cut(true, dir)
		if err := say(c, r, "held", never); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%v is cut, and: %v", dir, err)
		}
		n.cut(false, dir)
		if err := say(c, r, "", soon); err != nil {
			t.Fatalf("%v was mended, and what it held does not come: %v", dir, err)
		}
	}
	// The other direction of an open connection is not concerned.
	n.cut(true, pair{1, 0}, pair{0, 1})
	if err := say(c, r, "other", soon); err != nil {
		t.Fatalf("a cut between others: %v", err)
	}

	n.change(there, func(c *condition) { c.Delay = time.Nanosecond; c.Rate = 100 })
	began := time.Now()
	if err := say(c, r, "slowly, 20 bytes...", soon); err != nil || time.Since(began) < 150*time.Millisecond {
		t.Fatalf("20 bytes at 100 bytes per second took %v: %v", time.Since(began), err)
	}
	n.heal()

	if k := n.reset(0, Clients); k != 1 {
		t.Fatalf("%d connections were reset", k)
	}
	if err := say(c, r, "", soon); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a connection that was reset: %v", err)
	}

	n.change(back, func(c *condition) { c.Refuse = true })
	// The reset may come before the connection counts as made, or after.
	if c, err := net.Dial("tcp", addr); err == nil {
		err = say(c, bufio.NewReader(c), "refused?", soon)
		if c.Close(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a link that refuses: %v", err)
		}
	}
	n.heal()
	n.cut(true, back)
	c, r = dial()
	if err := say(c, r, "connected?", never); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a connection through a hole: %v", err)
	}
	n.heal()
	if err := say(c, r, "", soon); err != nil {
		t.Fatalf("the hole is gone: %v", err)
	}
}
