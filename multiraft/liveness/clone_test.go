package liveness

import (
	"bytes"
	"reflect"
	"testing"
	"unsafe"
)

// noForm lists the fields that AppendState leaves out, with the reason.
var noForm = map[string]string{
	"cfg.Node":          "the same for all",
	"cfg.Interval":      "the same for all",
	"cfg.Duration":      "the same for all",
	"cfg.Rho":           "the same for all",
	"anchor.diff":       "of wall clocks",
	"anchor.known":      "of wall clocks",
	"peers[].offset":    "of wall clocks",
	"peers[].offsetAt":  "of wall clocks",
	"peers[].hasOffset": "of wall clocks",
}

// TestAppendStateSeesEveryField changes every field of the rules, one after the
// other, and shows that the form changes and that a clone made before does not.
func TestAppendStateSeesEveryField(t *testing.T) {
	base := func() *Rules {
		r := &Rules{peers: []*peer{{}}}
		n := uint64(0)
		leaves(reflect.ValueOf(r).Elem(), "", func(_ string, v reflect.Value) {
			n = n%100 + 1
			set(v, n)
		})
		return r
	}
	want := base().AppendState(nil, 5)
	seen := 0
	for i := 0; ; i++ {
		r := base()
		c := r.Clone()
		n, path := 0, ""
		leaves(reflect.ValueOf(r).Elem(), "", func(p string, v reflect.Value) {
			if n == i {
				path = p
				set(v, 101)
			}
			n++
		})
		if path == "" {
			break
		}
		seen++
		if !bytes.Equal(c.AppendState(nil, 5), want) {
			t.Errorf("Rules.%s: clone and origin share memory: copy it in Clone", path)
		}
		if _, out := noForm[path]; bytes.Equal(r.AppendState(nil, 5), want) != out {
			t.Errorf("Rules.%s: write it in AppendState, or name it in noForm with the reason (listed: %v); an instant has to be in Age, too", path, out)
		}
	}
	if seen < 60 {
		t.Errorf("only %d fields found: the test looks in the wrong place", seen)
	}
}

func leaves(v reflect.Value, path string, leaf func(string, reflect.Value)) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			name := v.Type().Field(i).Name
			f := v.Field(i)
			f = reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Elem()
			switch {
			case v.Type().Field(i).Anonymous:
				name = path
			case path != "":
				name = path + "." + name
			}
			leaves(f, name, leaf)
		}
	case reflect.Pointer:
		leaves(v.Elem(), path, leaf)
	case reflect.Slice:
		for i := range v.Len() {
			leaves(v.Index(i), path+"[]", leaf)
		}
	case reflect.Array:
		for i := range v.Len() {
			leaves(v.Index(i), path+"[]", leaf)
		}
	default:
		leaf(path, v)
	}
}

func set(v reflect.Value, n uint64) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(n > 100)
	case reflect.Float64:
		v.SetFloat(float64(n))
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(n))
	default:
		v.SetUint(n)
	}
}
