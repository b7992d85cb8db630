package linear

import (
	"fmt"
	"math"
	"os"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/flotillakv/flotilla/shard"
)

// Violation is a contradiction in a history.
type Violation struct {
	Group int
	What  string
	info  porcupine.LinearizationInfo
	model *porcupine.Model
}

// Error describes it.
func (v *Violation) Error() string { return fmt.Sprintf("group %d: %s", v.Group, v.What) }

// Draw writes a picture of the group's operations (HTML) to a file, if the
// violation is one of order.
func (v *Violation) Draw(path string) error {
	if v.model == nil {
		return nil
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = porcupine.Visualize(*v.model, v.info, f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// model is porcupine's view of Op.step.
var model = porcupine.Model{
	Init: func() any { return State{} },
	Step: func(state, input, _ any) (bool, any) {
		ok, next := input.(*Op).step(state.(State))
		return ok, next
	},
	Equal: func(a, b any) bool { return a.(State) == b.(State) },
	Hash: func(state any) uint64 {
		h := uint64(14695981039346656037)
		for _, v := range state.(State) {
			h = (h ^ uint64(v)) * 1099511628211
		}
		return h
	},
	DescribeOperation: func(input, _ any) string { return input.(*Op).String() },
	DescribeState:     func(state any) string { return fmt.Sprint(state) },
}

// Check returns the contradictions of a history, and how many groups were
// found in order. Each group may take timeout to be checked; one that takes
// longer is reported as a violation of its own kind.
func Check(h *History, timeout time.Duration) (good int, bad []*Violation) {
	ops := h.Ops()
	bad = audit(ops)
	byGroup := map[int][]Op{}
	for _, o := range ops {
		byGroup[o.Group] = append(byGroup[o.Group], o)
	}
	groups := make([]int, 0, len(byGroup))
	for g := range byGroup {
		groups = append(groups, g)
	}
	slices.Sort(groups)
	for _, g := range groups {
		v := checkGroup(g, byGroup[g], timeout)
		if v == nil {
			good++
			continue
		}
		bad = append(bad, v)
	}
	return good, bad
}

func checkGroup(g int, ops []Op, timeout time.Duration) *Violation {
	history := operations(ops)
	// Without a limit a contradiction may take for ever to prove: porcupine's
	// search is exponential at worst.
	switch porcupine.CheckOperationsTimeout(model, history, timeout) {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return &Violation{Group: g, What: fmt.Sprintf("%d operations were not decided within %v", len(history), timeout)}
	}
	_, info := porcupine.CheckOperationsVerbose(model, history, timeout)
	return &Violation{Group: g, What: fmt.Sprintf("no order of its %d operations explains what was seen", len(history)), info: info, model: &model}
}

// operations makes porcupine's history of a group's.
func operations(ops []Op) []porcupine.Operation {
	resolve(ops)
	seenBy := map[Value]int64{} // when the first who saw the value had its answer
	blind := false              // some condition met a value that we cannot name
	for i := range ops {
		o := &ops[i]
		if o.Outcome != shard.Applied && o.Write != 0 {
			continue
		}
		for k := range KeysMax {
			if o.Read.Has(k) && o.Saw[k] != 0 {
				note(seenBy, o.Saw[k], o.Return)
			}
		}
		if o.Conditional && o.Held && o.Want != 0 {
			note(seenBy, o.Want, o.Return)
		}
		blind = blind || o.Conditional && !o.Held && !o.Read.Has(o.CondKey)
	}
	var out []porcupine.Operation
	for i := range ops {
		o := &ops[i]
		ret := o.Return
		if o.Write != 0 && o.Outcome == shard.NotApplied {
			continue
		}
		if o.Write != 0 && o.Outcome == shard.MaybeApplied {
			ret = math.MaxInt64
			removes := false
			for k := range KeysMax {
				if !o.Write.Has(k) {
					continue
				}
				removes = removes || o.Values[k] == 0
				if at, ok := seenBy[o.Values[k]]; ok && o.Values[k] != 0 {
					ret = min(ret, at)
				}
			}
			if ret == math.MaxInt64 && !removes && !blind {
				continue // nobody saw it: an order with it is one without it, too
			}
			// It was not called after it was seen; audit would have told.
			ret = max(ret, o.Call)
		}
		out = append(out, porcupine.Operation{ClientId: o.Client, Input: o, Call: o.Call, Return: ret})
	}
	return out
}

func note(m map[Value]int64, v Value, at int64) {
	if old, ok := m[v]; !ok || at < old {
		m[v] = at
	}
}

// resolve turns the versions that unheld conditions met into values, where
// somebody else told which value has that version.
func resolve(ops []Op) {
	type place struct {
		key int
		ver shard.Version
	}
	of := map[place]Value{}
	for i := range ops {
		o := &ops[i]
		for k := range KeysMax {
			if o.Read.Has(k) && o.Saw[k] != 0 && !o.SawVersions[k].IsZero() {
				of[place{k, o.SawVersions[k]}] = o.Saw[k]
			}
			if o.Write.Has(k) && o.Values[k] != 0 && !o.Receipt.IsZero() {
				of[place{k, o.Receipt}] = o.Values[k]
			}
		}
	}
	for i := range ops {
		o := &ops[i]
		if !o.Conditional || o.Held || o.Outcome != shard.Applied || o.Read.Has(o.CondKey) {
			continue
		}
		if o.Have.IsZero() {
			continue // absence may be told without a version; the condition says enough
		}
		if v, ok := of[place{o.CondKey, o.Have}]; ok {
			o.Read |= 1 << o.CondKey
			o.Saw[o.CondKey] = v
		}
	}
}

// audit finds what needs no order to be wrong.
func audit(ops []Op) (bad []*Violation) {
	say := func(g int, format string, a ...any) {
		if len(bad) < 20 {
			bad = append(bad, &Violation{Group: g, What: fmt.Sprintf(format, a...)})
		}
	}
	type home struct {
		op  *Op
		key int
	}
	by := map[Value]home{}
	for i := range ops {
		o := &ops[i]
		for k := range KeysMax {
			if o.Write.Has(k) && o.Values[k] != 0 {
				if old, ok := by[o.Values[k]]; ok {
					say(o.Group, "value %d is written twice: %v, %v", o.Values[k], old.op, o)
				}
				by[o.Values[k]] = home{o, k}
			}
		}
	}
	versions := map[Value]shard.Version{}
	for i := range ops {
		o := &ops[i]
		if o.Write != 0 && o.Held && !o.Receipt.IsZero() {
			for k := range KeysMax {
				if o.Write.Has(k) && o.Values[k] != 0 {
					versions[o.Values[k]] = o.Receipt
				}
			}
		}
	}
	for i := range ops {
		o := &ops[i]
		for k := range KeysMax {
			v := o.Saw[k]
			if !o.Read.Has(k) || v == 0 {
				continue
			}
			w, ok := by[v]
			switch {
			case !ok || w.op.Group != o.Group || w.key != k:
				say(o.Group, "%v saw value %d at key %d, which nobody wrote there", o, v, k)
				continue
			case w.op.Outcome == shard.NotApplied:
				say(o.Group, "value %d was seen by %v, but its write was refused: %v: %s", v, o, w.op, w.op.Err)
			case w.op.Outcome == shard.Applied && !w.op.Held:
				say(o.Group, "value %d was seen by %v, but the condition of its write did not hold: %v", v, o, w.op)
			case w.op.Call > o.Return:
				say(o.Group, "value %d was seen by %v before it was written by %v", v, o, w.op)
			}
			if have := o.SawVersions[k]; !have.IsZero() {
				if old, ok := versions[v]; ok && old != have {
					say(o.Group, "value %d has version %v and, as seen by %v, version %v", v, old, o, have)
				}
				versions[v] = have
			}
		}
	}
	return bad
}
