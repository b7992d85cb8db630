package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/snapshot/backup"
)

// defaultAddr is where commands look for a cluster, and where serve and dev
// listen for clients unless told otherwise.
const defaultAddr = "127.0.0.1:7002"

// app is what every command works with: its streams, the global flags, and the
// way to reach a cluster. Tests replace its fields.
type app struct {
	in          io.Reader
	out, errOut io.Writer
	env         func(string) (string, bool)
	// outTTY and errTTY tell whether a person watches the stream.
	outTTY, errTTY bool
	dial           func(ctx context.Context, addrs []string, o flotilla.ClientOptions) (client, error)

	// Global flags.
	addrs     []string
	clusterID string
	tls       flotilla.TLSFiles
	output    string
	timeout   time.Duration
	quiet     bool
	noColor   bool
	planted   string // id of a planted bug; builds with them only
}

// client is what the commands need of a connection to a cluster.
type client interface {
	flotilla.KV
	Status(ctx context.Context) (flotilla.ClusterStatus, error)
	Nodes(ctx context.Context) ([]flotilla.NodeInfo, error)
	Shards(ctx context.Context) ([]flotilla.ShardInfo, error)
	ShardsFrom(ctx context.Context, key []byte, limit int) ([]flotilla.ShardInfo, error)
	Shard(ctx context.Context, id uint64) (flotilla.ShardInfo, error)
	ChangeReplicas(ctx context.Context, shard uint64, changes ...flotilla.ReplicaChange) (flotilla.ShardInfo, error)
	TransferLeader(ctx context.Context, shard uint64, to uint32) error
	RemoveNode(ctx context.Context, id uint32, o flotilla.RemovalOptions) (flotilla.Removal, error)
	Snapshots(ctx context.Context) ([]flotilla.SnapshotInfo, error)
	TakeSnapshot(ctx context.Context, dst backup.Store, shards []uint64, o backup.Options) (*backup.Manifest, error)
	Backup(ctx context.Context, dst backup.Store, o backup.Options) (*backup.Manifest, error)
	Restore(ctx context.Context, src backup.Store, m *backup.Manifest, how backup.IfNotEmpty, o backup.Options) error
	Close() error
}

func newApp() *app {
	return &app{
		in: os.Stdin, out: os.Stdout, errOut: os.Stderr, env: os.LookupEnv,
		outTTY: term.IsTerminal(int(os.Stdout.Fd())), errTTY: term.IsTerminal(int(os.Stderr.Fd())),
		dial: func(ctx context.Context, addrs []string, o flotilla.ClientOptions) (client, error) {
			return flotilla.Dial(ctx, addrs, o)
		},
	}
}

// connect dials the cluster at --addr, else at FLOTILLA_ADDR, else at the
// default address.
func (a *app) connect(ctx context.Context) (client, error) {
	addrs := a.addrs
	if len(addrs) == 0 {
		if v, ok := a.env("FLOTILLA_ADDR"); ok && v != "" {
			addrs = strings.Split(v, ",")
		} else {
			addrs = []string{defaultAddr}
		}
	}
	tls, err := a.tlsFiles()
	if err != nil {
		return nil, err
	}
	dialCtx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	c, err := a.dial(dialCtx, addrs, flotilla.ClientOptions{ClusterID: a.clusterID, Timeout: a.timeout, TLS: tls})
	if err != nil {
		return nil, reachError(addrs, err)
	}
	return c, nil
}

// tlsFiles returns the files of --tls-ca, --tls-cert and --tls-key, else of the
// environment; nil without any. One of them needs the others.
func (a *app) tlsFiles() (*flotilla.TLSFiles, error) {
	t := a.tls
	missing, given := "", false
	for _, f := range []struct {
		p    *string
		name string
	}{{&t.CA, "tls-ca"}, {&t.Cert, "tls-cert"}, {&t.Key, "tls-key"}} {
		if *f.p == "" {
			*f.p, _ = a.env("FLOTILLA_" + strings.ToUpper(strings.ReplaceAll(f.name, "-", "_")))
		}
		if given = given || *f.p != ""; *f.p == "" {
			missing = f.name
		}
	}
	switch {
	case !given:
		return nil, nil
	case missing != "":
		return nil, usageError("--%s: TLS needs --tls-ca, --tls-cert and --tls-key", missing)
	}
	return &t, nil
}

// with connects, runs f under the global timeout, and disconnects.
func (a *app) with(ctx context.Context, f func(ctx context.Context, c client) error) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	return f(ctx, c)
}

// note prints a line for the person, unless --quiet.
func (a *app) note(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.errOut, format+"\n", args...)
	}
}

// json reports whether the output is for a program.
func (a *app) json() bool { return a.output != "table" }

// colour wraps s in an ANSI colour if the stream is a terminal and colour is wanted.
func (a *app) colour(tty bool, code, s string) string {
	if v, _ := a.env("NO_COLOR"); v != "" || a.noColor || !tty {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

const (
	red   = "31"
	green = "32"
	bold  = "1"
)
