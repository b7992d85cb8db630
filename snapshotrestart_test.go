package flotilla

import (
	"encoding/binary"
	"errors"
	"io"
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
	s, err := snapshot.New(snapshot.Options{Engine: e, Node: 2, SmallBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	built, err := s.Build(ctx, &desc)
	if err != nil {
		t.Fatal(err)
	}

	dir := "n/staging/in-" + built.Meta.ID.String()
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) {
		f, err := fs.Create(dir+"/"+name, "unspecified")
		if err == nil {
			_, err = f.Write(data)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	write("MANIFEST", built.Meta.Encode(binary.BigEndian.AppendUint32(nil, 2)))
	table, err := fs.Open("other/staging/out-" + built.Meta.ID.String() + "/0000.sst")
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(table)
	if err != nil {
		t.Fatal(err)
	}
	write("0000.sst", data)
	if err := errors.Join(table.Close(), built.Close(), e.Close()); err != nil {
		t.Fatal(err)
	}

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
}
