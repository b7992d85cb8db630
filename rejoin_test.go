package flotilla_test

import (
	"errors"
	"net"
	"testing"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/internal/sim/simfs"
)

// TestRejoin: a node that lost its disk is refused as long as it is started as
// before; with Rejoin it joins under a new id, and restarts as that.
func TestRejoin(t *testing.T) {
	ctx := badContext(t)
	var listeners []net.Listener
	var addrs []string
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners, addrs = append(listeners, l), append(addrs, l.Addr().String())
	}
	options := func(i int) flotilla.Options {
		return flotilla.Options{InMemory: true, FS: simfs.New(), Dir: "/data", Listen: addrs[i], ClientListen: "127.0.0.1:0", Bootstrap: 3, Join: addrs}
	}
	nodes := make([]*flotilla.Node, 3)
	errs := make(chan error, 3)
	for i := range nodes {
		go func() {
			o := options(i)
			o.PeerListener = listeners[i]
			var err error
			nodes[i], err = flotilla.Open(ctx, o)
			errs <- err
		}()
	}
	if err := errors.Join(<-errs, <-errs, <-errs); err != nil {
		t.Fatal(err)
	}
	defer nodes[0].Close()
	defer nodes[1].Close()
	if _, err := nodes[0].Put(ctx, []byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	lost := nodes[2].ID()
	if err := nodes[2].Close(); err != nil {
		t.Fatal(err)
	}
	o := options(2) // with an empty disk
	if n, err := flotilla.Open(ctx, o); err == nil {
		n.Close()
		t.Fatal("a node without its disk is let in")
	} else if bad := is[*flotilla.JoinError](nil)(err); bad != nil {
		t.Fatal(bad)
	}
	o = options(2)
	o.Rejoin = true
	var id uint32
	for range 2 { // the second time it is no more than a restart
		n, err := flotilla.Open(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		if n.ID() == lost || n.ID() <= 3 || id != 0 && n.ID() != id {
			t.Errorf("it is node %d; the lost one was %d", n.ID(), lost)
		}
		id = n.ID()
		if v, err := n.Get(ctx, []byte("k")); err != nil || string(v.Bytes) != "v" {
			t.Errorf("%q, %v", v.Bytes, err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
