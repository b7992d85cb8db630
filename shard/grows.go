package shard

import (
	"github.com/flotillakv/flotilla/internal/mutants"
	"github.com/flotillakv/flotilla/multiraft/raft"
)

// Grows reports whether a command may add data to its shard: puts, whatever holds
// one, and what only the embedder's state machine understands. Deletes do not,
// nor does the end of a session, nor administration; of a transaction it is not
// known which branch will be taken, so either counts. A body that does not decode
// does not grow: it is refused elsewhere.
func Grows(c raft.Command) bool {
	puts := func(v OpView) bool {
		for op := range v.All() {
			if op.Kind == OpPut {
				return true
			}
		}
		return false
	}
	switch c.Op {
	case OpPut, OpCAS, OpUser:
		return true
	case OpBatch:
		v, err := DecodeBatch(c.Body)
		return err == nil && (puts(v) || mutants.On("H2g"))
	case OpTxn:
		v, err := DecodeTxn(c.Body)
		return err == nil && (puts(v.Then) || puts(v.Else))
	}
	return c.Op >= OpUser
}
