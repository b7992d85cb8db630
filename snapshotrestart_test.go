package flotilla

import (
	"context"
	"errors"
	"testing"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/snapshot"
)

// TestRestartWithStagedTables: a node that crashed while a snapshot came in, with
// a whole table of it on disk, starts again and keeps what it has.
func TestRestartWithStagedTables(t *testing.T) {
	ctx := t.Context()
	fs := engine.NewMemFS()
	o := Options{Dir: "n", InMemory: true, FS: fs, Shards: 1}
	n, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Put(ctx, []byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	var desc raft.Descriptor
	for _, d := range n.descriptors() {
		if d.Keyspace != 0 {
			desc = d
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}

	// Another replica of the shard, which is further on, and its snapshot in tables.
	e, err := engine.Open(engine.Options{Dir: "other", FS: fs, Create: true, Node: 2})
	if err != nil {
		t.Fatal(err)
	}
	b := e.NewBatch()
	b.SetDescriptor(&desc)
	b.SetApplied(desc.Shard, raft.AppliedState{Applied: 1000, AppliedTerm: 5, TruncIndex: 1000, TruncTerm: 5})
	b.SetHardState(desc.Shard, raft.HardState{Term: 5})
	b.Set(desc.Keyspace, append(desc.Start, "key"...), make([]byte, 4096))
	if err := errors.Join(b.Commit(true), b.Wait()); err != nil {
		t.Fatal(err)
	}
	b.Close()
	send, err := snapshot.New(snapshot.Options{Engine: e, Node: 2, SmallBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	own, err := engine.Open(engine.Options{Dir: "n", FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	recv, err := snapshot.New(snapshot.Options{Engine: own, Node: own.Ident().Node})
	if err != nil {
		t.Fatal(err)
	}
	opened := false
	_, _, err = send.Send(ctx, &desc, own.Ident().Node, func(_ context.Context, header []byte) (snapshot.Stream, error) {
		if opened {
			return nil, snapshot.Verdict(errors.New("gone"))
		}
		opened = true
		return &cutStream{snapshot.Pipe(func(next func() ([]byte, error), reply func([]byte) error) error {
			_, err := recv.Handle(2, header, next, reply)
			return err
		}), 2}, nil // the record of the table, and the table
	})
	if !errors.Is(err, snapshot.ErrRefused) {
		t.Fatal(err)
	}
	if err := errors.Join(e.Close(), own.Close()); err != nil { // as after a crash, nobody cleans up
		t.Fatal(err)
	}
	staged, err := fs.List("n/staging")
	if err != nil || len(staged) != 1 {
		t.Fatalf("staged: %v, %v", staged, err)
	}
	dir := "n/staging/" + staged[0]
	info, err := fs.Stat(dir + "/0000.sst")
	if err != nil {
		t.Fatal(err)
	}
	size := info.Size()

	if n, err = Open(ctx, o); err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if v, err := n.Get(ctx, []byte("k")); err != nil || string(v.Bytes) != "v" {
		t.Fatalf("%q, %v", v.Bytes, err)
	}
	if names, err := fs.List(dir); err != nil || len(names) != 2 {
		t.Fatalf("the interrupted reception holds %v, %v", names, err)
	}
	list, err := n.Snapshots(ctx)
	if want := (SnapshotInfo{Node: 1, Shard: uint64(desc.Shard), State: "interrupted", Index: 1000, Bytes: size, Done: size}); err != nil || len(list) != 1 || list[0].State != want.State || list[0].Done != want.Done || list[0].Index != want.Index {
		t.Fatalf("%+v, %v; want %+v", list, err, want)
	}
}

// cutStream breaks after some messages.
type cutStream struct {
	*snapshot.PipeStream
	left int
}

func (s *cutStream) Send(b []byte) error {
	if s.left--; s.left < 0 {
		s.Cut()
	}
	return s.PipeStream.Send(b)
}
