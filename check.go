package flotilla

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/multiraft/session"
	"github.com/flotillakv/flotilla/shard"
)

// CheckReport is what CheckDir found.
type CheckReport = engine.CheckReport

// CheckFault is one thing that is wrong with a store.
type CheckFault = engine.Fault

// CheckOptions says how CheckDir looks at a directory. The zero value is of use.
type CheckOptions struct {
	// Digest has a digest of the applied data of each shard computed, to be compared
	// with those of other replicas.
	Digest bool
	// FS is the file system. Nil: that of the operating system.
	FS engine.FS
}

// CheckDir looks at everything in the directory of a stopped node, and reports all that
// is wrong with it: checksums of all files, logs, what the replicas have promised and
// applied, ranges, sessions and records. It changes nothing, and creates nothing. An
// *OpenError says that nothing was checked: there is no store, or it is in use, or
// it cannot be read. Records of a machine of one's own are taken for those of the
// built-in one.
func CheckDir(ctx context.Context, dir string, o CheckOptions) (*CheckReport, error) {
	r, err := engine.Check(ctx, dir, engine.CheckOptions{
		FS: o.FS, Digest: o.Digest,
		Group: func(_ raft.ShardID, suffix, val []byte) error { return session.CheckRecord(suffix, val) },
		Value: func(_ uint32, _, val []byte) error {
			_, err := shard.DecodeRecord(val)
			return err
		},
	})
	if err != nil {
		return nil, err
	}
	if o.FS == nil {
		o.FS = engine.OSFS()
	}
	checkFormation(o.FS, dir, r)
	return r, nil
}

// checkFormation looks at the file with the formation.
func checkFormation(files engine.FS, dir string, r *CheckReport) {
	bad := func(format string, args ...any) {
		r.Add(CheckFault{Kind: engine.FaultFormation, File: formationFile, Offset: -1, What: fmt.Sprintf(format, args...), Next: formationHint})
	}
	file, err := files.Open(files.PathJoin(dir, formationFile))
	if errors.Is(err, fs.ErrNotExist) {
		if r.Node != 0 {
			bad("it is missing")
		}
		return
	}
	if err != nil {
		bad("it cannot be read: %v", err)
		return
	}
	b, err := io.ReadAll(io.LimitReader(file, 256<<20))
	if err = errors.Join(err, file.Close()); err != nil {
		bad("it cannot be read: %v", err)
		return
	}
	r.Bytes += int64(len(b))
	f, err := decodeFormation(b)
	if err == nil {
		// A name that is not known is one with a flipped bit: a newer release would have
		// raised the version.
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		err = d.Decode(new(formation))
	}
	switch {
	case err != nil:
		bad("%v", err)
	case r.Node != 0 && uint32(r.Node) != f.Node:
		bad("it is of node %d, the store is of node %d", f.Node, r.Node)
	case r.Node != 0 && r.Cluster != f.Cluster:
		bad("it is of cluster %s, the store is of cluster %s", f.Cluster, r.Cluster)
	}
}
