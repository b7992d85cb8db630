package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// stepFiles decide: they are stepped by the product's goroutines and by the
// simulator alike, and reach time, chance, the network and the disk only through
// what they were handed (Clock, Net, Store or Engine, a seeded source). A file
// that names functions is held to the rules but for those.
var stepFiles = map[string][]string{ // file -> functions that are not step code
	"multiraft/loop.go":             nil,
	"multiraft/replica.go":          nil,
	"multiraft/lease.go":            nil,
	"multiraft/removal.go":          nil,
	"multiraft/syncer.go":           nil,
	"multiraft/inbox.go":            nil,
	"multiraft/stepper.go":          nil,
	"multiraft/statemachine.go":     nil,
	"multiraft/liveness/rules.go":   nil,
	"multiraft/liveness/manager.go": {"Start", "NewSystemClock", "Now", "Wall", "Wait", "Instant"},
	"snapshot/policy.go":            nil,
	"snapshot/limiter.go":           nil,
	"snapshot/manifest.go":          nil,
	"snapshot/installer.go":         nil,
	"snapshot/source.go":            nil,
	"snapshot/message.go":           nil,
	"snapshot/leftovers.go":         nil,
	"shard/kv/machine.go":           nil,
	"shard/kv/read.go":              nil,
	"router/table.go":               nil,
}

// stepFaults returns what a step file must not do: start goroutines, look at the
// time or sleep, draw from a shared random source, touch the operating system,
// or decide by the order of a map. A map may be ranged over only to fill another
// map or a slice that is sorted in the same function.
func stepFaults(fset *token.FileSet, f *ast.File, except []string) (faults []string) {
	say := func(n ast.Node, what string) {
		faults = append(faults, fset.Position(n.Pos()).String()+": step code "+what)
	}
	for _, im := range f.Imports {
		switch path, _ := strconv.Unquote(im.Path.Value); path {
		case "math/rand", "math/rand/v2", "crypto/rand":
			say(im, "draws only from a source handed in, and imports "+path)
		case "net", "os", "os/exec", "syscall":
			say(im, "does not reach the operating system, and imports "+path)
		}
	}
	maps := mapNames(f)
	banned := []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"}
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Body == nil || slices.Contains(except, fn.Name.Name) {
			continue
		}
		sorts := false
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := s.X.(*ast.Ident); ok && (x.Name == "slices" || x.Name == "sort") && strings.HasPrefix(s.Sel.Name, "Sort") {
					sorts = true
				}
			}
			return true
		})
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				say(n, "starts no goroutine")
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(banned, n.Sel.Name) {
					say(n, "does not call time."+n.Sel.Name)
				}
			case *ast.RangeStmt:
				if name := lastName(n.X); maps[name] && !sorts && !fillsMap(n) {
					say(n, "does not depend on the order of the map "+name)
				}
			}
			return true
		})
	}
	return faults
}

// mapNames returns the names that are declared as maps in a file.
func mapNames(f *ast.File) map[string]bool {
	out := map[string]bool{}
	isMap := func(e ast.Expr) bool {
		if c, ok := e.(*ast.CompositeLit); ok {
			e = c.Type
		}
		if c, ok := e.(*ast.CallExpr); ok && len(c.Args) > 0 {
			if id, ok := c.Fun.(*ast.Ident); ok && id.Name == "make" {
				e = c.Args[0]
			}
		}
		_, ok := e.(*ast.MapType)
		return ok
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			for _, name := range n.Names {
				out[name.Name] = out[name.Name] || isMap(n.Type)
			}
		case *ast.ValueSpec:
			for i, name := range n.Names {
				out[name.Name] = out[name.Name] || n.Type != nil && isMap(n.Type) || i < len(n.Values) && isMap(n.Values[i])
			}
		case *ast.AssignStmt:
			for i, l := range n.Lhs {
				if id, ok := l.(*ast.Ident); ok && i < len(n.Rhs) {
					out[id.Name] = out[id.Name] || isMap(n.Rhs[i])
				}
			}
		}
		return true
	})
	return out
}

func lastName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

// fillsMap reports whether a loop does nothing but assign to elements by key.
func fillsMap(r *ast.RangeStmt) bool {
	for _, s := range r.Body.List {
		a, ok := s.(*ast.AssignStmt)
		if !ok || len(a.Lhs) != 1 {
			return false
		}
		if _, ok := a.Lhs[0].(*ast.IndexExpr); !ok {
			return false
		}
	}
	return true
}

// TestStepCode: what the simulator steps is decided by what it is handed alone.
func TestStepCode(t *testing.T) {
	for name, except := range stepFiles {
		fset := token.NewFileSet()
		path := filepath.Join(root(t), filepath.FromSlash(name))
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		f, err := parser.ParseFile(fset, path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, fault := range stepFaults(fset, f, except) {
			t.Error(fault)
		}
	}
}

// TestStepCodeFails: each kind of offence is found, and what is allowed is not.
func TestStepCodeFails(t *testing.T) {
	for src, want := range map[string]string{
		`import "time"; func f() { _ = time.Now() }`:                                                              "time.Now",
		`import "time"; func f() { time.Sleep(1) }`:                                                               "time.Sleep",
		`import "time"; func start() { _ = time.Now() }`:                                                          "",
		`import "time"; func f(d time.Duration) time.Duration { return d * time.Second }`:                         "",
		`import "math/rand/v2"; func f() int { return rand.IntN(2) }`:                                             "source handed in",
		`import "os"; func f() { os.Exit(1) }`:                                                                    "operating system",
		`func f() { go f() }`:                                                                                     "goroutine",
		`type t struct { m map[int]int }; func (x *t) f() { for k := range x.m { g(k) } }`:                        "order of the map m",
		`func f() { m := map[int]int{}; for k := range m { g(k) } }`:                                              "order of the map m",
		`func f() { m := make(map[int]int); var s []int; for k := range m { s = append(s, k) }; slices.Sort(s) }`: "",
		`func f(m map[int]int) { o := map[int]int{}; for k, v := range m { o[k] = v } }`:                          "",
		`func f(s []int) { for _, k := range s { g(k) } }`:                                                        "",
	} {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, "x.go", "package x; "+src, 0)
		if err != nil {
			t.Fatal(src, err)
		}
		faults := stepFaults(fset, f, []string{"start"})
		switch {
		case want == "" && len(faults) > 0:
			t.Errorf("%s: %v", src, faults)
		case want != "" && (len(faults) == 0 || !strings.Contains(faults[0], want)):
			t.Errorf("%s: %v, want %q", src, faults, want)
		}
	}
}
