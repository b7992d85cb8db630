package house

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/flotillakv/flotilla"

// layers says what each package may import of ours ("all": everything below
// it), and which foreign modules. Docs: docs/architecture.md, Layers.
var layers = []struct {
	pkg     string // relative to the module; "..." at the end takes subfolders in
	level   int
	ours    string
	foreign string
}{
	{"internal/invariants", 0, "", ""},
	{"internal/mutants", 0, "", ""},
	{"internal/fuzzing", 0, "", ""},
	{"transport/transportpb", 0, "", "google.golang.org/protobuf google.golang.org/grpc"},
	{"multiraft/raft", 1, "internal/invariants internal/mutants", ""},
	{"multiraft/raft/rafttest", 2, "multiraft/raft", ""},
	{"multiraft/session", 2, "multiraft/raft internal/invariants internal/mutants", ""},
	{"shard", 3, "multiraft/raft multiraft/session internal/invariants internal/mutants", ""},
	{"engine", 2, "multiraft/raft internal/invariants internal/mutants", "github.com/cockroachdb/pebble/v2"},
	{"multiraft/liveness", 2, "multiraft/raft internal/invariants internal/mutants", ""},
	{"snapshot", 3, "multiraft/raft engine internal/invariants internal/mutants", "github.com/golang/snappy"},
	{"snapshot/backup", 3, "internal/mutants", "github.com/golang/snappy"},
	{"snapshot/backup/s3", 4, "snapshot/backup", "github.com/minio/minio-go/v7"},
	{"transport", 4, "multiraft/raft shard transport/transportpb internal/invariants internal/mutants", "google.golang.org/grpc google.golang.org/protobuf github.com/golang/snappy"},
	{"router", 4, "multiraft/raft multiraft/session shard internal/invariants internal/mutants", "golang.org/x/sync"},
	{"router/catalog", 4, "multiraft/raft shard internal/invariants internal/mutants", ""},
	{"multiraft", 4, "multiraft/raft multiraft/session multiraft/liveness engine snapshot internal/invariants internal/mutants", "golang.org/x/sync"},
	{"shard/kv", 5, "multiraft/raft multiraft/session shard engine multiraft internal/invariants internal/mutants", ""},
	{"internal/filemachine", 5, "multiraft/raft engine multiraft", ""},
	{"", 6, "all", "github.com/prometheus/client_golang"},
	{"internal/sim/...", 6, "all", "github.com/cockroachdb/pebble/v2 github.com/anishathalye/porcupine"},
	{"flotillatest", 7, "all", ""},
	{"internal/localcluster", 7, "all", ""},
	{"internal/piped", 7, "all", ""},
	{"internal/testca", 0, "", ""},
	{"internal/house", 10, "", ""},
	{"internal/nemesis", 8, "all", ""},
	{"bench/floors", 9, "all", "github.com/cockroachdb/pebble/v2 google.golang.org/grpc google.golang.org/grpc/credentials/insecure google.golang.org/grpc/mem"},
	{"bench/...", 8, "all", "github.com/HdrHistogram/hdrhistogram-go golang.org/x/sync"},
	{"cmd/flotilla/...", 9, "all", "github.com/spf13/cobra github.com/spf13/pflag github.com/pelletier/go-toml/v2 golang.org/x/term golang.org/x/sync github.com/HdrHistogram/hdrhistogram-go"},
	{"examples/...", 8, "all", ""},
	{"e2e", 9, "", ""},
}

// pure packages decide; they have no clock, goroutine, lock, logger or shared random source.
var pure = map[string][]string{ // package -> files that are not pure (the goroutine around the rules)
	"multiraft/raft":     nil,
	"multiraft/session":  nil,
	"shard":              nil,
	"router/catalog":     nil,
	"multiraft/liveness": {"manager.go", "table.go"},
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

type source struct {
	pkg  string // relative to the module
	path string
	file *ast.File
	fset *token.FileSet
}

// sources parses every non-test file of the module's packages.
func sources(t *testing.T) []source {
	t.Helper()
	top := root(t)
	var out []source
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != top && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && path != top {
				return filepath.SkipDir // a nested module
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, filepath.Dir(path))
		if err != nil {
			return err
		}
		if rel == "." {
			rel = ""
		}
		out = append(out, source{filepath.ToSlash(rel), path, f, fset})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 50 {
		t.Fatalf("only %d files found: the test looks in the wrong place", len(out))
	}
	return out
}

func layerOf(pkg string) int {
	for i, l := range layers {
		if l.pkg == pkg {
			return i
		}
		if base, ok := strings.CutSuffix(l.pkg, "/..."); ok && (pkg == base || strings.HasPrefix(pkg, base+"/")) {
			return i
		}
	}
	return -1
}

// TestLayers: every import of every package is in the layer table.
func TestLayers(t *testing.T) {
	for _, s := range sources(t) {
		i := layerOf(s.pkg)
		if i < 0 {
			t.Errorf("package %q is not in the layer table", s.pkg)
			continue
		}
		l := layers[i]
		for _, im := range s.file.Imports {
			path, _ := strconv.Unquote(im.Path.Value)
			if rel, ok := strings.CutPrefix(path, module); ok {
				rel = strings.TrimPrefix(rel, "/")
				j := layerOf(rel)
				switch {
				case j < 0:
					t.Errorf("%s imports %q, which is not in the layer table", s.path, rel)
				case l.ours == "all" && (layers[j].level < l.level || i == j):
				case slices.Contains(strings.Fields(l.ours), rel):
				default:
					t.Errorf("%s: %q may not import %q", s.path, s.pkg, rel)
				}
				continue
			}
			if !strings.Contains(strings.Split(path, "/")[0], ".") {
				continue // standard library
			}
			if filepath.Base(s.path) == "metrics.go" && strings.HasPrefix(path, "github.com/prometheus/client_golang") {
				continue
			}
			if !slices.ContainsFunc(strings.Fields(l.foreign), func(m string) bool { return path == m || strings.HasPrefix(path, m+"/") }) {
				t.Errorf("%s: %q may not import %q", s.path, s.pkg, path)
			}
		}
	}
}

// TestPurePackages: no clock, goroutine, lock, logger or shared random source.
func TestPurePackages(t *testing.T) {
	banned := map[string]string{
		"sync": "locks", "sync/atomic": "shared memory", "log": "a logger", "log/slog": "a logger", "os": "I/O",
		"net": "I/O", "io/fs": "I/O", "math/rand": "a shared random source", "crypto/rand": "a random source", "context": "waiting",
	}
	calls := []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"}
	for _, s := range sources(t) {
		except, ok := pure[s.pkg]
		if !ok || slices.Contains(except, filepath.Base(s.path)) {
			continue
		}
		for _, im := range s.file.Imports {
			path, _ := strconv.Unquote(im.Path.Value)
			if why, bad := banned[path]; bad && !(path == "context" && s.pkg == "router/catalog") && !(path == "context" && s.pkg == "shard") {
				t.Errorf("%s imports %q: a pure package has no %s", s.path, path, why)
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s: a pure package starts no goroutine", s.fset.Position(n.Pos()))
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(calls, n.Sel.Name) {
					t.Errorf("%s: a pure package does not call time.%s", s.fset.Position(n.Pos()), n.Sel.Name)
				}
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "rand" && !slices.Contains([]string{"Rand", "PCG", "New", "NewPCG", "Source"}, n.Sel.Name) {
					t.Errorf("%s: a pure package draws only from a source handed in, not rand.%s", s.fset.Position(n.Pos()), n.Sel.Name)
				}
			}
			return true
		})
	}
}

// TestBadInputsPage: every test that docs/bad-inputs.md names is there, and every
// package it names before one holds it.
func TestBadInputsPage(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(root(t), "docs", "bad-inputs.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("(?:`([a-z0-9/]+)` )?`(Test[A-Za-z]+)`").FindAllStringSubmatch(string(doc), -1)
	if len(names) < 60 {
		t.Fatalf("only %d tests are named", len(names))
	}
	all := map[string]string{} // package directory -> text of its tests
	err = filepath.WalkDir(root(t), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(root(t), filepath.Dir(path))
		all[filepath.ToSlash(rel)] += string(b)
		all["*"] += string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		pkg, test := n[1], n[2]
		if pkg == "" {
			pkg = "*"
		}
		if !strings.Contains(all[pkg], "func "+test+"(") {
			t.Errorf("docs/bad-inputs.md names %s of %q, which is not there", test, n[1])
		}
	}
}

// TestNoDebugDoor: nothing that serves profiles, variables or traces is compiled
// in, so that no listener can come to show them.
func TestNoDebugDoor(t *testing.T) {
	for _, s := range sources(t) {
		for _, im := range s.file.Imports {
			switch path, _ := strconv.Unquote(im.Path.Value); path {
			case "net/http/pprof", "expvar", "golang.org/x/net/trace", "google.golang.org/grpc/channelz/service":
				t.Errorf("%s imports %q", s.path, path)
			}
		}
	}
}

// TestNoGlobalEffects: a library installs no signal handler, flag, default
// logger, default handler or registry, and does not end the process. The
// engine's last resort, when nobody told it whom to ask, is the one exception.
func TestNoGlobalEffects(t *testing.T) {
	banned := []string{"signal.Notify", "signal.NotifyContext", "flag.Parse", "slog.SetDefault", "log.SetOutput", "log.Fatal", "log.Fatalf", "prometheus.MustRegister", "http.Handle", "http.HandleFunc", "os.Exit", "encoding.RegisterCodecV2", "grpclog.SetLoggerV2"}
	for _, s := range sources(t) {
		if strings.HasPrefix(s.pkg, "cmd/") || s.pkg == "bench" || strings.HasPrefix(s.pkg, "bench/") || s.pkg == "transport/transportpb" {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := sel.X.(*ast.Ident)
			if !ok {
				return true
			}
			name := x.Name + "." + sel.Sel.Name
			if slices.Contains(banned, name) && !(name == "os.Exit" && s.pkg == "engine") {
				t.Errorf("%s: a library does not call %s", s.fset.Position(n.Pos()), name)
			}
			return true
		})
	}
}

// TestDocumented: every package and every exported name has a doc comment.
func TestDocumented(t *testing.T) {
	packages := map[string]bool{}
	for _, s := range sources(t) {
		if s.pkg == "transport/transportpb" {
			continue
		}
		packages[s.pkg] = packages[s.pkg] || s.file.Doc != nil
		if s.file.Name.Name == "main" {
			continue
		}
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) && !wellKnown(d) {
					t.Errorf("%s: %s has no doc comment", s.fset.Position(d.Pos()), d.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch spec := spec.(type) {
					case *ast.TypeSpec:
						if spec.Name.IsExported() && d.Doc == nil && spec.Doc == nil && spec.Comment == nil {
							t.Errorf("%s: %s has no doc comment", s.fset.Position(spec.Pos()), spec.Name.Name)
						}
					case *ast.ValueSpec:
						for _, n := range spec.Names {
							if n.IsExported() && d.Doc == nil && spec.Doc == nil && spec.Comment == nil {
								t.Errorf("%s: %s has no doc comment", s.fset.Position(n.Pos()), n.Name)
							}
						}
					}
				}
			}
		}
	}
	for p, ok := range packages {
		if !ok {
			t.Errorf("package %q has no package comment", p)
		}
	}
}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	e := d.Recv.List[0].Type
	if st, ok := e.(*ast.StarExpr); ok {
		e = st.X
	}
	if ix, ok := e.(*ast.IndexExpr); ok {
		e = ix.X
	}
	id, ok := e.(*ast.Ident)
	return ok && id.IsExported()
}

// wellKnown methods say by their name what they do.
func wellKnown(d *ast.FuncDecl) bool {
	return d.Recv != nil && slices.Contains([]string{"Error", "Unwrap", "Is", "String"}, d.Name.Name)
}

// TestEmbedderLinks: the modules that a program links by importing the root
// package are the committed list, and a client without the engine links no Pebble.
func TestEmbedderLinks(t *testing.T) {
	linked := func(pkgs ...string) []string {
		args := append([]string{"list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}"}, pkgs...)
		cmd := exec.Command("go", args...)
		cmd.Dir = root(t)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		var mods []string
		sc := bufio.NewScanner(strings.NewReader(string(out)))
		for sc.Scan() {
			if m := sc.Text(); m != "" && m != module {
				mods = append(mods, m)
			}
		}
		slices.Sort(mods)
		return slices.Compact(mods)
	}
	b, err := os.ReadFile("testdata/embedder-modules.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields(string(b))
	got := linked(module)
	for _, m := range got {
		if !slices.Contains(want, m) {
			t.Errorf("an embedder links %s, which is not in testdata/embedder-modules.txt", m)
		}
	}
	for _, m := range want {
		if !slices.Contains(got, m) {
			t.Errorf("testdata/embedder-modules.txt lists %s, which nobody links", m)
		}
	}
	for _, m := range linked(module+"/router", module+"/transport") {
		if strings.Contains(m, "pebble") {
			t.Errorf("a client made of router and transport links %s", m)
		}
	}
}
