package flotilla

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"

	"github.com/flotillakv/flotilla/transport"
)

// TLSFiles name the PEM files with which a node or a client proves who it is, and
// checks others: the authorities (CA), the own certificate (Cert) and its key
// (Key). TLS is mutual, of version 1.3, on both listeners. A certificate names its
// owner by one URI among its subject alternative names:
//
//	flotilla://CLUSTER/node/ID       a node; also serves and asks as a client
//	flotilla://CLUSTER/client/NAME   a client; refused at the address for nodes
//
// where CLUSTER is the cluster id, 32 hexadecimal digits. Host names mean nothing.
// The files are read again when they change, for new connections.
type TLSFiles = transport.TLSFiles

// loadTLS reads the certificate before anything else is touched, and takes from
// it what the options leave open: the cluster, and the id of one of the first nodes.
func (n *Node) loadTLS() error {
	o := &n.o
	if o.TLS == nil {
		return nil
	}
	t, err := loadTLS(o.TLS, n.log)
	if err != nil {
		return err
	}
	id := t.Identity()
	bad := func(field, value, why string) error { return &OptionError{Field: field, Value: value, Reason: why} }
	cluster := hex.EncodeToString(id.Cluster[:])
	switch {
	case id.Node == 0:
		return bad("TLS.Cert", o.TLS.Cert, fmt.Sprintf("it is of %s; a node needs a certificate of a node", id))
	case o.ClusterID != "" && o.ClusterID != cluster:
		return bad("ClusterID", o.ClusterID, fmt.Sprintf("the certificate is of %s", id))
	case o.NodeID != 0 && o.NodeID != uint32(id.Node):
		return bad("NodeID", fmt.Sprint(o.NodeID), fmt.Sprintf("the certificate is of %s", id))
	}
	o.ClusterID = cluster
	if o.Bootstrap > 0 || o.alone() {
		o.NodeID = uint32(id.Node)
	}
	n.tls = t
	return nil
}

func loadTLS(f *TLSFiles, log *slog.Logger) (*transport.TLS, error) {
	t, err := transport.LoadTLS(*f, log)
	var e *transport.TLSError
	if errors.As(err, &e) {
		return nil, &OptionError{Field: "TLS", Value: e.File, Reason: e.Err.Error()}
	}
	return t, err
}

// checkTLS compares the certificate with the cluster and the node that the
// directory belongs to.
func (n *Node) checkTLS() error {
	if n.tls == nil {
		return nil
	}
	id := n.tls.Identity()
	if hex.EncodeToString(id.Cluster[:]) != n.Cluster() || uint32(id.Node) != n.ID() {
		return &OptionError{Field: "TLS.Cert", Value: n.o.TLS.Cert, Reason: fmt.Sprintf("it is of %s, and this is node %d of cluster %s", id, n.ID(), n.Cluster())}
	}
	return nil
}

// certified returns the node that a join message's sender proved to be; zero
// without TLS.
func certified(ctx context.Context) uint32 {
	id, _ := transport.CallerIdentity(ctx)
	return uint32(id.Node)
}
