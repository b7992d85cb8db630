package linear

import (
	"fmt"
	"strings"

	"github.com/flotillakv/flotilla/shard"
)

// KeysMax is the number of keys of the largest group.
const KeysMax = 4

// Value stands for a value; zero: the key is absent.
type Value uint32

// State is what the keys of a group hold. Groups with fewer keys leave the rest zero.
type State [KeysMax]Value

// Set is a set of a group's keys, bit i for key i.
type Set uint8

// Has reports whether key i is in the set.
func (s Set) Has(i int) bool { return s&(1<<i) != 0 }

// Op is an operation with what became of it.
type Op struct {
	Group  int    `json:"group"`
	Client int    `json:"client"`
	Name   string `json:"name"`
	// Call and Return are nanoseconds since the start of the history.
	Call   int64 `json:"call"`
	Return int64 `json:"return"`

	// Write says which keys are written, and Values with what; zero removes.
	Write  Set   `json:"write,omitempty"`
	Values State `json:"values,omitzero"`
	// Conditional: the writes take place if key CondKey holds Want.
	Conditional bool  `json:"conditional,omitempty"`
	CondKey     int   `json:"cond_key,omitempty"`
	Want        Value `json:"want,omitempty"`

	// Outcome of a write; reads that failed are not recorded. A conditional
	// write that did not take place because of its condition is Applied and not Held.
	Outcome shard.Outcome `json:"outcome"`
	Held    bool          `json:"held,omitempty"`
	// Read says which keys were observed (before the own writes), and Saw what they held.
	Read Set   `json:"read,omitempty"`
	Saw  State `json:"saw,omitzero"`
	// Have is the version of key CondKey that an unheld condition met, if it was told.
	Have shard.Version `json:"have,omitzero"`
	// Versions, where known, are those of Saw and, for writes, the one of Values.
	SawVersions [KeysMax]shard.Version `json:"saw_versions,omitzero"`
	Receipt     shard.Version          `json:"receipt,omitzero"`
	Err         string                 `json:"err,omitempty"`
}

// String describes the operation in one line.
func (o *Op) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", o.Name)
	for i := range KeysMax {
		if o.Write.Has(i) {
			fmt.Fprintf(&b, " %d:=%d", i, o.Values[i])
		}
	}
	if o.Conditional {
		fmt.Fprintf(&b, " if %d=%d (%v)", o.CondKey, o.Want, o.Held)
	}
	for i := range KeysMax {
		if o.Read.Has(i) {
			fmt.Fprintf(&b, " %d=%d", i, o.Saw[i])
		}
	}
	if o.Write != 0 {
		fmt.Fprintf(&b, " %v", o.Outcome)
	}
	return b.String()
}

// step is the sequential behaviour: whether o, with what it saw, can be the
// next operation in state s, and the state after it.
func (o *Op) step(s State) (bool, State) {
	for i := range KeysMax {
		if o.Read.Has(i) && s[i] != o.Saw[i] {
			return false, s
		}
	}
	holds := !o.Conditional || s[o.CondKey] == o.Want
	if o.Conditional && o.Outcome == shard.Applied && holds != o.Held {
		return false, s
	}
	if holds {
		for i := range KeysMax {
			if o.Write.Has(i) {
				s[i] = o.Values[i]
			}
		}
	}
	return true, s
}
