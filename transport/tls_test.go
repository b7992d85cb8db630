package transport

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotillakv/flotilla/internal/testca"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

func nodeURI(cluster [16]byte, n raft.NodeID) string {
	return CertIdentity{Cluster: cluster, Node: n}.String()
}

// load makes a certificate and loads it.
func loadTLS(t testing.TB, ca, trust *testca.CA, name, uri string) *TLS {
	t.Helper()
	cert, key := ca.Issue(name, uri, time.Hour)
	c, err := LoadTLS(TLSFiles{CA: trust.File(), Cert: cert, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestTLSExchange: two nodes with certificates talk to each other, and a client
// with one of its own is served; without one it is not.
func TestTLSExchange(t *testing.T) {
	checkLeaks(t)
	ca := testca.New(t, "ca")
	a, ra := startNode(t, 1, 1, Options{TLS: loadTLS(t, ca, ca, "n1", nodeURI(testCluster, 1)), Requests: tlsEcho{}, ClientListen: "127.0.0.1:0"})
	b, rb := startNode(t, 2, 1, Options{TLS: loadTLS(t, ca, ca, "n2", nodeURI(testCluster, 2)), OnJoin: func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
		id, ok := CallerIdentity(ctx)
		return []byte(fmt.Sprint(id, ok)), nil
	}})
	a.SetPeer(2, b.Addr())
	b.SetPeer(1, a.Addr())
	ra.waitUp(t, 2)
	rb.waitUp(t, 1)
	ctx := testContext(t)
	joiner := loadTLS(t, ca, ca, "n3", nodeURI(testCluster, 3))
	if out, err := joiner.JoinCall(ctx, b.Addr(), []byte("{}")); err != nil || string(out) != nodeURI(testCluster, 3)+" true" {
		t.Errorf("join: %q, %v", out, err)
	}
	if _, err := JoinCall(ctx, b.Addr(), nil); err == nil {
		t.Error("a join call without TLS was answered")
	}
	do := func(tls *TLS) error {
		c := NewClient(a.ClientAddr(), ClientOptions{Cluster: testCluster, Node: 1, TLS: tls})
		defer c.Close()
		_, err := c.Do(ctx, &shard.Request{Shard: 1, Kind: shard.KindGet, Key: []byte("k")})
		return err
	}
	for name, c := range map[string]struct {
		tls *TLS
		bad bool
	}{
		"a client":                    {loadTLS(t, ca, ca, "ada", clientURI(testCluster, "ada")), false},
		"a node":                      {loadTLS(t, ca, ca, "n2b", nodeURI(testCluster, 2)), false},
		"nobody":                      {nil, true},
		"a client of another cluster": {loadTLS(t, ca, ca, "eve", clientURI([16]byte{9}, "eve")), true},
		"a client of another CA":      {loadTLS(t, testca.New(t, "other"), ca, "eve", clientURI(testCluster, "eve")), true},
	} {
		err := do(c.tls)
		if (err != nil) != c.bad || c.bad && shard.OutcomeOf(err) != shard.NotApplied {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func clientURI(cluster [16]byte, name string) string {
	return CertIdentity{Cluster: cluster, Client: name}.String()
}

// tlsEcho answers every read.
type tlsEcho struct{}

func (tlsEcho) Do(_ context.Context, r *shard.Request) *shard.Response {
	return &shard.Response{ID: r.ID}
}
func (tlsEcho) Admin(context.Context, string, []byte) ([]byte, error) { return []byte("{}"), nil }

// checkTLSRefusals shows that who may not be at the peers' door is refused there,
// and that the log names both sides.
func checkTLSRefusals(t *testing.T) error {
	ca, other := testca.New(t, "ca"), testca.New(t, "other")
	for _, c := range []struct {
		name string
		tls  *TLS
		log  []string // what the log of node 1 names
	}{
		{"another CA", loadTLS(t, other, ca, "n2", nodeURI(testCluster, 2)), []string{nodeURI(testCluster, 2), "unknown authority"}},
		{"a client's certificate", loadTLS(t, ca, ca, "ada", clientURI(testCluster, "ada")), []string{clientURI(testCluster, "ada"), "this address is for nodes"}},
		// It refuses the server before it shows its own certificate.
		{"another cluster", loadTLS(t, ca, ca, "x2", nodeURI([16]byte{9}, 2)), []string{"a handshake failed"}},
		{"the certificate of another node", loadTLS(t, ca, ca, "n3", nodeURI(testCluster, 3)), []string{"calls itself node 2", nodeURI(testCluster, 3)}},
		{"no TLS", nil, []string{"a handshake failed"}},
	} {
		log := new(logBuffer)
		a, ra := startNode(t, 1, 1, Options{TLS: loadTLS(t, ca, ca, "n1", nodeURI(testCluster, 1)), Logger: newTestLogger(log)})
		b, rb := startNode(t, 2, 1, Options{TLS: c.tls, BackoffMin: time.Millisecond, BackoffMax: 10 * time.Millisecond})
		b.SetPeer(1, a.Addr())
		eventually(t, c.name+" is refused", func() bool {
			return b.Stats()[0].LastError != "" && strings.Contains(log.String(), nodeURI(testCluster, 1)) || rb.isUp(1)
		})
		if rb.isUp(1) || ra.isUp(2) {
			return fmt.Errorf("%s: it was let in", c.name)
		}
		if c.name == "another cluster" {
			eventually(t, c.name+": the other side names both", func() bool {
				e := b.Stats()[0].LastError
				return strings.Contains(e, nodeURI([16]byte{9}, 2)) && strings.Contains(e, nodeURI(testCluster, 1))
			})
		}
		for _, want := range c.log {
			eventually(t, fmt.Sprintf("%s: %q is logged, not %s", c.name, want, log), func() bool { return strings.Contains(log.String(), want) })
		}
		if err := errors.Join(a.Close(), b.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (r *recorder) isUp(n raft.NodeID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.up[n]
}

func TestTLSRefusals(t *testing.T) {
	checkLeaks(t)
	if err := checkTLSRefusals(t); err != nil {
		t.Error(err)
	}
}

// TestTLSWrongServer: a node does not talk to an address where another node, or a
// client's certificate, answers.
func TestTLSWrongServer(t *testing.T) {
	checkLeaks(t)
	ca := testca.New(t, "ca")
	own := loadTLS(t, ca, ca, "n1", nodeURI(testCluster, 1))
	for name, uri := range map[string]string{"another node": nodeURI(testCluster, 3), "a client": clientURI(testCluster, "eve")} {
		b, _ := startNode(t, 2, 1, Options{TLS: loadTLS(t, ca, ca, "x", uri)})
		a, ra := startNode(t, 1, 1, Options{TLS: own, BackoffMin: time.Millisecond})
		a.SetPeer(2, b.Addr())
		eventually(t, name, func() bool {
			e := a.Stats()[0].LastError
			return strings.Contains(e, uri) && strings.Contains(e, nodeURI(testCluster, 1))
		})
		if ra.isUp(2) {
			t.Errorf("%s: the stream is up", name)
		}
		a.Close()
		b.Close()
	}
	if _, err := joinCall(testContext(t), own, "127.0.0.1:1", nil); status.Code(err) == codes.OK {
		t.Error("a call to nowhere succeeded")
	}
}

// TestTLSReload: new certificates are used from the next connection on, without a
// restart; files that cannot be used, or name somebody else, are not.
func TestTLSReload(t *testing.T) {
	log := new(logBuffer)
	ca := testca.New(t, "ca")
	uri := nodeURI(testCluster, 1)
	cert, key := ca.Issue("n1", uri, time.Hour)
	c, err := LoadTLS(TLSFiles{CA: ca.File(), Cert: cert, Key: key}, newTestLogger(log))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	c.now = func() time.Time { return now }
	c.rlog.every = 0
	serial := func() string { return c.current().cert.Leaf.SerialNumber.String() }
	first := serial()
	step := func(what string, change func(), moved bool, says string) {
		t.Helper()
		before := serial()
		change()
		for i, f := range []string{cert, key} { // a file system may keep times coarsely
			if err := os.Chtimes(f, now, now.Add(time.Duration(i+1)*time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
		if serial() != before {
			t.Errorf("%s: the files were read within the second", what)
		}
		now = now.Add(2 * time.Second)
		if got := serial() != before; got != moved || !strings.Contains(log.String(), says) {
			t.Errorf("%s: changed %v, the log says %s", what, got, log)
		}
	}
	step("a new certificate", func() { ca.Issue("n1", uri, time.Hour) }, true, "read again")
	step("a damaged certificate", func() { os.WriteFile(cert, []byte("x"), 0o600) }, false, "cannot be used")
	step("the certificate of another node", func() { ca.Issue("n1", nodeURI(testCluster, 2), time.Hour) }, false, "names somebody else")
	step("an expired certificate", func() { ca.Issue("n1", uri, -time.Hour) }, false, "it expired at")
	step("a good one again", func() { ca.Issue("n1", uri, time.Hour) }, true, "read again")
	if serial() == first {
		t.Error("the first certificate is in use again")
	}
}

// TestTLSFiles: files that cannot be used are refused with the file and the reason.
func TestTLSFiles(t *testing.T) {
	ca := testca.New(t, "ca")
	good, goodKey := ca.Issue("n1", nodeURI(testCluster, 1), time.Hour)
	junk := t.TempDir() + "/junk"
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	issue := func(name, uri string, valid time.Duration) TLSFiles {
		cert, key := ca.Issue(name, uri, valid)
		return TLSFiles{ca.File(), cert, key}
	}
	otherKey := issue("n2", nodeURI(testCluster, 2), time.Hour).Key
	for _, c := range []struct {
		name  string
		files TLSFiles
		says  string
	}{
		{"no such CA", TLSFiles{"/nowhere/ca", good, goodKey}, "/nowhere/ca"},
		{"a CA that is none", TLSFiles{junk, good, goodKey}, "no certificate in PEM form"},
		{"a key that is none", TLSFiles{ca.File(), good, junk}, "no private key in PEM form"},
		{"a certificate that is none", TLSFiles{ca.File(), junk, goodKey}, junk},
		{"the key of another certificate", TLSFiles{ca.File(), good, otherKey}, "does not match"},
		{"an expired certificate", issue("old", nodeURI(testCluster, 1), -time.Minute), "it expired at"},
		{"no identity", issue("plain", "", time.Hour), "has no URI flotilla://"},
		{"no cluster id", issue("a", "flotilla://home/node/1", time.Hour), "32 hexadecimal digits"},
		{"node zero", issue("b", nodeURI(testCluster, 1)[:49]+"0", time.Hour), "no node id"},
		{"neither", issue("c", strings.Replace(nodeURI(testCluster, 1), "/node/", "/king/", 1), time.Hour), "neither a node nor a client"},
		{"a query", issue("d", nodeURI(testCluster, 1)+"?x=1", time.Hour), "is not flotilla://"},
	} {
		_, err := LoadTLS(c.files, nil)
		var e *TLSError
		if !errors.As(err, &e) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
	}
}
