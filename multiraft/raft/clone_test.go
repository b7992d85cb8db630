package raft

import (
	"bytes"
	"fmt"
	"reflect"
	"testing"
	"unsafe"
)

// noForm lists the fields that AppendState leaves out, with the reason.
var noForm = map[string]string{
	"live":                "belongs to the owner",
	"tun":                 "the same for all",
	"rng":                 "Freeze resets it",
	"now":                 "Freeze sets it",
	"self":                "follows from id and peers",
	"queryAt":             "Freeze resets it",
	"cutRetry":            "Freeze resets it",
	"quorumFrom":          "Freeze resets it",
	"waitAll":             "Freeze resets it",
	"waitMost":            "Freeze resets it",
	"sizeDue":             "Freeze resets it",
	"attempts":            "Freeze resets it",
	"gaveWay":             "Freeze resets it",
	"stirred":             "Freeze resets it",
	"anomalies":           "Freeze resets it",
	"lastSeen":            "Freeze sets it to log.last",
	"appliedAt":           "Freeze sets it to log.applied",
	"seldom.asking.tries": "Freeze resets it",
	"seldom.image.wanted": "Freeze resets it",
	"seldom.image.spared": "Freeze resets it",
	"log.bytes":           "follows from log.ents",
	"log.diskBytes":       "Freeze resets it",
	"log.deadEnts":        "Freeze resets it",
	"log.deadBytes":       "Freeze resets it",
	"log.free[]":          "Freeze resets it",
	"log.chunk":           "Freeze resets it",

	"desc.Shard":      "never changes",
	"desc.Keyspace":   "of no concern to a core",
	"desc.Start[]":    "of no concern to a core",
	"desc.End[]":      "of no concern to a core",
	"desc.MergeState": "of no concern to a core",

	"peers[].retryAt":          "Freeze sets it",
	"peers[].behind.snapSince": "Freeze sets it",
}

// TestAppendStateSeesEveryField changes every field that a core has, one after
// the other, and shows that its form changes: a field that AppendState forgets
// would let the explorer take different states for equal ones.
func TestAppendStateSeesEveryField(t *testing.T) {
	seen := map[string]bool{}
	var f StateForm
	want := filled().AppendState(nil, &f)
	for i := 0; ; i++ {
		c := filled()
		n, path := 0, ""
		walk(reflect.ValueOf(c).Elem(), "", func(p string, v reflect.Value) {
			if n == i {
				path = p
				bump(v)
			}
			n++
		})
		if path == "" {
			break
		}
		seen[path] = true
		changed := !bytes.Equal(c.AppendState(nil, &f), want)
		if _, out := noForm[path]; changed == out {
			if out {
				t.Errorf("Core.%s is in the list of what AppendState leaves out, but is written", path)
			} else {
				t.Errorf("Core.%s is not in AppendState: write it there, or reset it in Freeze and name it in noForm with the reason", path)
			}
		}
	}
	if len(seen) < 100 {
		t.Errorf("only %d fields found: the test looks in the wrong place", len(seen))
	}
	for p := range noForm {
		if p != "live" && p != "rng" && p != "tun" && !seen[p] {
			t.Errorf("Core.%s does not exist any more", p)
		}
	}
}

// TestCloneIsDeep shows that a clone is equal and that nothing which a core
// changes in place is shared between the two.
func TestCloneIsDeep(t *testing.T) {
	c := filled()
	n := c.Clone(nil)
	if !reflect.DeepEqual(c, n) {
		t.Fatal("a clone differs from its origin")
	}
	if cap(n.log.ents) != len(n.log.ents) {
		t.Error("a clone could append into the entries of its origin")
	}
	shared := map[string]string{
		"log.ents":         "entries are never rewritten, and the clone's slice is full",
		"log.ents[].Value": "bytes of entries are immutable",
		"desc":             "a descriptor is replaced, not changed",
		"desc.Start":       "a descriptor is replaced, not changed",
		"desc.End":         "a descriptor is replaced, not changed",
		"desc.Replicas":    "a descriptor is replaced, not changed",
	}
	at := map[string]uintptr{}
	slicesOf(reflect.ValueOf(c).Elem(), "", func(p string, v reflect.Value) { at[p] = v.Pointer() })
	slicesOf(reflect.ValueOf(n).Elem(), "", func(p string, v reflect.Value) {
		if _, ok := shared[p]; !ok && at[p] == v.Pointer() {
			t.Errorf("Core.%s: clone and origin share memory: copy it in Clone", p)
		}
	})
	if len(at) < 9 {
		t.Errorf("only %d slices found: the test looks in the wrong place", len(at))
	}
}

// filled returns a core of which no number is zero.
func filled() *Core {
	c := new(Core)
	fill(reflect.ValueOf(c).Elem(), new(uint64))
	for i := range c.peers {
		c.peers[i].inflight.head = 0
	}
	return c
}

// open makes an unexported field writable.
func open(v reflect.Value) reflect.Value {
	return reflect.NewAt(v.Type(), unsafe.Pointer(v.UnsafeAddr())).Elem()
}

// fill gives every number a value of its own and every slice one element.
func fill(v reflect.Value, next *uint64) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(open(v.Field(i)), next)
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), next)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 2))
		fill(v.Index(0), next)
	case reflect.Bool:
	case reflect.Interface:
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		if v.Type() != reflect.TypeFor[*Tuning]() { // which is shared and never changes
			fill(v.Elem(), next)
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		*next = *next%100 + 1
		v.SetInt(int64(*next))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		*next = *next%100 + 1
		v.SetUint(*next)
	default:
		panic(fmt.Sprintf("a core holds a %v: teach Clone, AppendState and this test", v.Type()))
	}
}

// walk calls leaf for every leaf, named by its path.
func walk(v reflect.Value, path string, leaf func(string, reflect.Value)) {
	switch {
	case path == "tun" || path == "rng" || path == "live":
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			name := v.Type().Field(i).Name
			if path != "" {
				name = path + "." + name
			}
			walk(open(v.Field(i)), name, leaf)
		}
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			walk(v.Index(i), path+"[]", leaf)
		}
	case v.Kind() == reflect.Pointer:
		walk(v.Elem(), path, leaf)
	default:
		leaf(path, v)
	}
}

func slicesOf(v reflect.Value, path string, see func(string, reflect.Value)) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			name := v.Type().Field(i).Name
			if path != "" {
				name = path + "." + name
			}
			slicesOf(open(v.Field(i)), name, see)
		}
	case reflect.Slice:
		see(path, v)
		for i := range v.Len() {
			slicesOf(v.Index(i), path+"[]", see)
		}
	case reflect.Pointer:
		if v.Type() != reflect.TypeFor[*Tuning]() {
			see(path, v)
			slicesOf(v.Elem(), path, see)
		}
	}
}

func bump(v reflect.Value) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(v.Int() + 1)
	default:
		v.SetUint(v.Uint() + 1)
	}
}
