package shard

import (
	"testing"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

// TestGrows names the commands that a full disk refuses: those that may add data, and
// nothing that removes, reads or administers.
func TestGrows(t *testing.T) {
	batch := func(ops ...Op) raft.Command {
		b := new(Batch)
		for _, o := range ops {
			switch o.Kind {
			case OpPut:
				b.Put(o.Key, o.Value)
			case OpDelete:
				b.Delete(o.Key)
			case OpDeleteRange:
				b.DeleteRange(o.Key, o.End)
			}
		}
		c, err := b.Command()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	txn := func(x Txn) raft.Command {
		c, err := x.Command()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	k, v := []byte("k"), []byte("v")
	for name, c := range map[string]struct {
		cmd  raft.Command
		want bool
	}{
		"put":                        {raft.Command{Op: OpPut}, true},
		"cas":                        {raft.Command{Op: OpCAS}, true},
		"delete":                     {raft.Command{Op: OpDelete}, false},
		"range delete":               {raft.Command{Op: OpDeleteRange}, false},
		"end of a session":           {raft.Command{Op: OpEndSession}, false},
		"split":                      {raft.Command{Op: OpSplit}, false},
		"another machine's":          {raft.Command{Op: OpUser}, true},
		"another machine's other":    {raft.Command{Op: OpUser + 1}, true},
		"batch with a put":           {batch(DeleteOp(k), PutOp(k, v)), true},
		"batch of deletes":           {batch(DeleteOp(k), DeleteRangeOp(k, v)), false},
		"batch that does not decode": {raft.Command{Op: OpBatch, Body: []byte{1}}, false},
		"transaction that puts then": {txn(Txn{Then: []Op{PutOp(k, v)}, Else: []Op{DeleteOp(k)}}), true},
		"transaction that puts else": {txn(Txn{Then: []Op{DeleteOp(k)}, Else: []Op{GetOp(k), PutOp(k, v)}}), true},
		"transaction without puts":   {txn(Txn{Then: []Op{DeleteOp(k)}, Else: []Op{GetOp(k)}}), false},
	} {
		if got := Grows(c.cmd); got != c.want {
			t.Errorf("%s: grows %t", name, got)
		}
	}
}
