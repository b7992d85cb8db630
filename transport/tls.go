package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	grpcpeer "google.golang.org/grpc/peer"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// CertIdentity is whom a certificate names, by the one URI among its subject
// alternative names that begins with flotilla:
//
//	flotilla://<cluster id>/node/<node id>
//	flotilla://<cluster id>/client/<name>
//
// Host names and the common name mean nothing: a node is who it is wherever it runs.
type CertIdentity struct {
	Cluster [16]byte
	Node    raft.NodeID // zero: a client
	Client  string      // its name; empty: a node
}

// String returns the URI.
func (c CertIdentity) String() string {
	switch {
	case c.Node != 0:
		return fmt.Sprintf("flotilla://%x/node/%d", c.Cluster, c.Node)
	case c.Client != "":
		return fmt.Sprintf("flotilla://%x/client/%s", c.Cluster, c.Client)
	}
	return "nobody"
}

// maxClientName bounds the name of a client in a certificate, in bytes.
const maxClientName = 128

// ParseCertIdentity returns whom a certificate names, or an error that says what
// is wrong with it.
func ParseCertIdentity(c *x509.Certificate) (CertIdentity, error) {
	var found *url.URL
	for _, u := range c.URIs {
		if u.Scheme != "flotilla" {
			continue
		}
		if found != nil {
			return CertIdentity{}, errors.New("the certificate names two flotilla identities")
		}
		found = u
	}
	if found == nil {
		return CertIdentity{}, fmt.Errorf("the certificate of %q has no URI flotilla://CLUSTER/node/ID or flotilla://CLUSTER/client/NAME among its subject alternative names", c.Subject.CommonName)
	}
	var id CertIdentity
	raw, err := hex.DecodeString(found.Host)
	kind, name, ok := strings.Cut(strings.TrimPrefix(found.Path, "/"), "/")
	if err != nil || len(raw) != len(id.Cluster) || !ok || name == "" || found.RawQuery != "" || found.Fragment != "" || found.User != nil {
		return CertIdentity{}, fmt.Errorf("the certificate's URI %q is not flotilla://CLUSTER/node/ID or flotilla://CLUSTER/client/NAME with a cluster id of 32 hexadecimal digits", found.Redacted())
	}
	copy(id.Cluster[:], raw)
	switch kind {
	case "node":
		n, err := strconv.ParseUint(name, 10, 32)
		if err != nil || n == 0 {
			return CertIdentity{}, fmt.Errorf("the certificate's URI %q has no node id", found.Redacted())
		}
		id.Node = raft.NodeID(n)
	case "client":
		if len(name) > maxClientName {
			return CertIdentity{}, fmt.Errorf("the certificate's client name has %d bytes, at most %d are allowed", len(name), maxClientName)
		}
		id.Client = name
	default:
		return CertIdentity{}, fmt.Errorf("the certificate's URI %q names neither a node nor a client", found.Redacted())
	}
	return id, nil
}

// TLSFiles name what a process needs to prove who it is, and to check others.
// All are PEM.
type TLSFiles struct {
	CA   string // authorities whose certificates are accepted
	Cert string // own certificate, then intermediate ones, if any
	Key  string // its private key
}

// TLSError says that TLS files cannot be used. Nothing was opened.
type TLSError struct {
	File string
	Err  error
}

// Error names the file and what is wrong.
func (e *TLSError) Error() string { return fmt.Sprintf("transport: TLS file %s: %v", e.File, e.Err) }

// Unwrap returns the cause.
func (e *TLSError) Unwrap() error { return e.Err }

// HandshakeError says that the other side's certificate was refused.
type HandshakeError struct {
	Own   CertIdentity
	Other string // whom the other certificate names, or its subject
	Why   string
}

// Error names both identities.
func (e *HandshakeError) Error() string {
	return fmt.Sprintf("certificate refused: it is of %s, this is %s: %s", e.Other, e.Own, e.Why)
}

// reloadEvery is how often handshakes look whether the files have changed.
const reloadEvery = time.Second

// TLS is a process's own certificate and its authorities. The files are read
// again when they change: new connections use them, open ones go on. It is safe
// for concurrent use and owns no goroutine.
type TLS struct {
	files TLSFiles
	rlog  *rateLog
	now   func() time.Time

	mu      sync.Mutex // guards what follows; held while files are read
	state   *tlsState
	checked time.Time
}

// tlsState is what the files held at one time.
type tlsState struct {
	id     CertIdentity
	cert   tls.Certificate
	roots  *x509.CertPool
	stamps [3]fileStamp
}

type fileStamp struct {
	size int64
	mod  time.Time
}

// LoadTLS reads the files. Errors are *TLSError.
func LoadTLS(files TLSFiles, log *slog.Logger) (*TLS, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	t := &TLS{files: files, rlog: newRateLog(log), now: time.Now}
	st, err := t.load()
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(files.Key); err == nil && info.Mode().Perm()&0o077 != 0 {
		log.Warn("the private key can be read by others; chmod 600 it", "file", files.Key, "mode", info.Mode().Perm().String())
	}
	t.state, t.checked = st, t.now()
	return t, nil
}

// Identity returns whom the own certificate names. It never changes.
func (t *TLS) Identity() CertIdentity {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state.id
}

func (t *TLS) load() (*tlsState, error) {
	st := new(tlsState)
	stamps, err := t.stamp()
	if err != nil {
		return nil, err
	}
	st.stamps = stamps
	ca, err := os.ReadFile(t.files.CA)
	if err != nil {
		return nil, &TLSError{t.files.CA, err}
	}
	st.roots = x509.NewCertPool()
	if !st.roots.AppendCertsFromPEM(ca) {
		return nil, &TLSError{t.files.CA, errors.New("it holds no certificate in PEM form")}
	}
	certPEM, err := os.ReadFile(t.files.Cert)
	if err != nil {
		return nil, &TLSError{t.files.Cert, err}
	}
	keyPEM, err := os.ReadFile(t.files.Key)
	if err != nil {
		return nil, &TLSError{t.files.Key, err}
	}
	if b, _ := pem.Decode(keyPEM); b == nil {
		return nil, &TLSError{t.files.Key, errors.New("it holds no private key in PEM form")}
	}
	if st.cert, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		return nil, &TLSError{t.files.Cert, fmt.Errorf("with key %s: %w", t.files.Key, err)}
	}
	if st.cert.Leaf == nil {
		if st.cert.Leaf, err = x509.ParseCertificate(st.cert.Certificate[0]); err != nil {
			return nil, &TLSError{t.files.Cert, err}
		}
	}
	if st.id, err = ParseCertIdentity(st.cert.Leaf); err != nil {
		return nil, &TLSError{t.files.Cert, err}
	}
	if t.now().After(st.cert.Leaf.NotAfter) {
		return nil, &TLSError{t.files.Cert, fmt.Errorf("it expired at %s", st.cert.Leaf.NotAfter.UTC().Format(time.RFC3339))}
	}
	return st, nil
}

func (t *TLS) stamp() (s [3]fileStamp, err error) {
	for i, f := range []string{t.files.CA, t.files.Cert, t.files.Key} {
		info, err := os.Stat(f)
		if err != nil {
			return s, &TLSError{f, err}
		}
		s[i] = fileStamp{info.Size(), info.ModTime()}
	}
	return s, nil
}

// current returns the state for a handshake. Files that changed and cannot be
// used, or name somebody else, are reported and the state before stays.
func (t *TLS) current() *tlsState {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if d := now.Sub(t.checked); d >= 0 && d < reloadEvery {
		return t.state
	}
	t.checked = now
	if s, err := t.stamp(); err == nil && s == t.state.stamps {
		return t.state
	}
	next, err := t.load()
	switch {
	case err != nil:
		t.rlog.warn("tls/reload", "changed TLS files cannot be used; the ones before stay in use", "err", err)
	case next.id != t.state.id:
		t.rlog.warn("tls/reload", "the changed certificate names somebody else; the one before stays in use", "was", t.state.id.String(), "now", next.id.String())
	default:
		t.rlog.info("tls/reload", "TLS files were read again", "identity", next.id.String(), "until", next.cert.Leaf.NotAfter)
		t.state = next
	}
	return t.state
}

// verify checks the certificates of the other side: issued by an authority,
// valid now, of the same cluster, and of somebody who may be there. want is the
// node that was meant, zero for any.
func (s *tlsState) verify(certs []*x509.Certificate, clients bool, want raft.NodeID) error {
	if len(certs) == 0 {
		return &HandshakeError{s.id, "nobody", "it presents no certificate"}
	}
	leaf := certs[0]
	other, err := ParseCertIdentity(leaf)
	name := other.String()
	if err != nil {
		name = fmt.Sprintf("%q", leaf.Subject.CommonName)
	}
	refuse := func(why string, args ...any) error { return &HandshakeError{s.id, name, fmt.Sprintf(why, args...)} }
	chain := x509.NewCertPool()
	for _, c := range certs[1:] {
		chain.AddCert(c)
	}
	_, chainErr := leaf.Verify(x509.VerifyOptions{Roots: s.roots, Intermediates: chain, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	switch {
	case chainErr != nil:
		return refuse("%v", chainErr)
	case err != nil:
		return refuse("%v", err)
	case other.Cluster != s.id.Cluster:
		return refuse("it belongs to another cluster")
	case other.Node == 0 && !clients:
		return refuse("this address is for nodes; clients have their own")
	case want != 0 && other.Node != want:
		return refuse("node %d was expected", want)
	}
	return nil
}

// server returns the credentials of a listener, which logs whom it refuses.
func (t *TLS) server(clients bool, log *rateLog) credentials.TransportCredentials {
	base := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		s := t.current()
		return &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{s.cert},
			ClientAuth: tls.RequireAnyClientCert, SessionTicketsDisabled: true,
			VerifyConnection: func(cs tls.ConnectionState) error { return s.verify(cs.PeerCertificates, clients, 0) },
		}, nil
	}
	return &loggedCreds{credentials.NewTLS(base), t, log}
}

// client returns the credentials to reach a node.
func (t *TLS) client(want raft.NodeID) credentials.TransportCredentials {
	if t == nil {
		return insecure.NewCredentials()
	}
	s := t.current()
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{s.cert},
		// The name of the host proves nothing here. VerifyConnection checks the
		// chain and the identity.
		InsecureSkipVerify: true,
		VerifyConnection:   func(cs tls.ConnectionState) error { return s.verify(cs.PeerCertificates, false, want) },
	})
}

// loggedCreds logs the handshakes that a listener refuses.
type loggedCreds struct {
	credentials.TransportCredentials
	t   *TLS
	log *rateLog
}

// ServerHandshake implements credentials.TransportCredentials.
func (c *loggedCreds) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	out, info, err := c.TransportCredentials.ServerHandshake(conn)
	if err != nil {
		var e *HandshakeError
		own := c.t.Identity().String()
		switch {
		case errors.As(err, &e):
			c.log.warn("tls/refused/"+e.Other, "a handshake was refused", "from", conn.RemoteAddr().String(), "own", own, "other", e.Other, "reason", e.Why)
		default:
			c.log.warn("tls/failed", "a handshake failed", "from", conn.RemoteAddr().String(), "own", own, "other", "nobody", "reason", err.Error())
		}
	}
	return out, info, err
}

// Clone implements credentials.TransportCredentials.
func (c *loggedCreds) Clone() credentials.TransportCredentials {
	return &loggedCreds{c.TransportCredentials.Clone(), c.t, c.log}
}

// CallerIdentity returns whom the caller of a call proved to be; ok is false
// without TLS.
func CallerIdentity(ctx context.Context) (id CertIdentity, ok bool) {
	p, has := grpcpeer.FromContext(ctx)
	if !has {
		return id, false
	}
	info, has := p.AuthInfo.(credentials.TLSInfo)
	if !has || len(info.State.PeerCertificates) == 0 {
		return id, false
	}
	id, err := ParseCertIdentity(info.State.PeerCertificates[0])
	return id, err == nil
}
