package flotilla_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/internal/testca"
)

// lockedBuffer collects log lines of several nodes.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestTLS: three nodes form a cluster whose id and node ids come from their
// certificates; a client with a certificate is served and others are not; a
// fourth node joins with the certificate of node 4 and with no other; a directory
// does not open with the certificate of another node or cluster.
func TestTLS(t *testing.T) {
	const cluster = "0102030405060708090a0b0c0d0e0f10"
	ca := testca.New(t, "ca")
	files := func(name, uri string) *flotilla.TLSFiles {
		cert, key := ca.Issue(name, uri, time.Hour)
		return &flotilla.TLSFiles{CA: ca.File(), Cert: cert, Key: key}
	}
	node := func(i int) *flotilla.TLSFiles {
		return files(fmt.Sprint("n", i), fmt.Sprintf("flotilla://%s/node/%d", cluster, i))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	log := new(lockedBuffer)
	base := t.TempDir()
	options := func(i int, tls *flotilla.TLSFiles, join []string, l net.Listener) flotilla.Options {
		return flotilla.Options{
			Dir: fmt.Sprint(base, "/n", i), TLS: tls, PeerListener: l, ClientListen: "127.0.0.1:0", Join: join,
			Logger: slog.New(slog.NewTextHandler(log, nil)),
		}
	}
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	var listeners []net.Listener
	var addrs []string
	for range 3 {
		l := listen()
		listeners, addrs = append(listeners, l), append(addrs, l.Addr().String())
	}
	nodes := make([]*flotilla.Node, 4)
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			o := options(i+1, node(i+1), addrs, listeners[i])
			o.Bootstrap = 3
			var err error
			if nodes[i], err = flotilla.Open(ctx, o); err != nil {
				t.Errorf("node %d: %v", i+1, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.Fatal(log)
	}
	defer func() {
		for _, n := range nodes {
			if n != nil {
				n.Close()
			}
		}
	}()
	for i, n := range nodes[:3] {
		if n.Cluster() != cluster || n.ID() != uint32(i+1) {
			t.Errorf("node %d of cluster %s", n.ID(), n.Cluster())
		}
	}

	dial := func(tls *flotilla.TLSFiles) error {
		c, err := flotilla.Dial(ctx, []string{nodes[0].Addr()}, flotilla.ClientOptions{TLS: tls, Timeout: 3 * time.Second})
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Put(ctx, []byte("k"), []byte("v"))
		return err
	}
	if err := dial(files("ada", "flotilla://"+cluster+"/client/ada")); err != nil {
		t.Errorf("a client with a certificate: %v", err)
	}
	stranger := testca.New(t, "stranger")
	cert, key := stranger.Issue("eve", "flotilla://"+cluster+"/client/eve", time.Hour)
	for name, tls := range map[string]*flotilla.TLSFiles{
		"without TLS": nil, "of another CA": {CA: ca.File(), Cert: cert, Key: key},
		"that trusts another CA": func() *flotilla.TLSFiles { f := *node(1); f.CA = stranger.File(); return &f }(),
	} {
		err := dial(tls)
		if err == nil || flotilla.Outcome(err) != flotilla.NotApplied {
			t.Errorf("a client %s: %v", name, err)
		}
		if tls == nil && !strings.Contains(fmt.Sprint(err), "if the other side uses TLS, it needs a certificate") {
			t.Errorf("a client %s: %v", name, err)
		}
	}
	if s := log.String(); !strings.Contains(s, "flotilla://"+cluster+"/client/eve") || !strings.Contains(s, "flotilla://"+cluster+"/node/1") || !strings.Contains(s, "a handshake failed") {
		t.Errorf("the log does not name both sides:\n%s", s)
	}

	refused := func(name string, o flotilla.Options, says string) {
		t.Helper()
		n, err := flotilla.Open(ctx, o)
		if err == nil {
			n.Close()
		}
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", name, err, says)
		}
	}
	refused("a joiner with the wrong number", options(9, node(9), addrs, listen()), "the next node to join gets the id 4, and the certificate of this one is of node 9; give it a certificate of node 4")
	var err error
	if nodes[3], err = flotilla.Open(ctx, options(4, node(4), addrs, listen())); err != nil || nodes[3].ID() != 4 {
		t.Fatalf("node 4: %v", err)
	}
	if err := nodes[2].Close(); err != nil {
		t.Fatal(err)
	}
	nodes[2] = nil
	refused("a directory of node 3 with the certificate of node 2", options(3, node(2), addrs, listen()), "and this is node 3 of cluster "+cluster)
	refused("with the certificate of another cluster", options(3, files("x3", "flotilla://ff02030405060708090a0b0c0d0e0f10/node/3"), addrs, listen()), "ff02030405060708090a0b0c0d0e0f10")
	o := options(3, node(3), addrs, listen())
	o.NodeID = 7
	refused("with another id", o, "the certificate is of flotilla://"+cluster+"/node/3")
	refused("with the certificate of a client", options(5, files("bob", "flotilla://"+cluster+"/client/bob"), addrs, listen()), "a node needs a certificate of a node")
	refused("with a file that is not there", options(6, &flotilla.TLSFiles{CA: "/nowhere", Cert: "/nowhere", Key: "/nowhere"}, addrs, listen()), "/nowhere")
	for _, i := range []int{5, 6} {
		if _, err := os.Stat(fmt.Sprint(base, "/n", i)); !os.IsNotExist(err) {
			t.Errorf("node %d, which was refused, left a directory: %v", i, err)
		}
	}
	if nodes[2], err = flotilla.Open(ctx, options(3, node(3), addrs, listen())); err != nil {
		t.Fatalf("node 3 with its own certificate: %v", err)
	}
}
