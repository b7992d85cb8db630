package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	long   = flag.Bool("long", false, "run the long form")
	rounds = flag.Int("rounds", 1, "rounds of the import and of the kills")
	built  = flag.String("binary", "", "command to test instead of one built from this module")
	files  = flag.String("files", "", "comma-separated TSV files to import instead of generated records")
)

// binary is the path of the command under test.
var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if *built != "" {
		binary = *built
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "flotilla-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "flotilla")
	build := exec.Command("go", "build", "-o", binary, "github.com/flotillakv/flotilla/cmd/flotilla")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "building the command:", err)
		return 1
	}
	return m.Run()
}

// environment is that of this process without settings of Flotilla.
func environment(extra ...string) []string {
	env := []string{}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "FLOTILLA_") {
			env = append(env, v)
		}
	}
	return append(env, extra...)
}

// result is what a finished command left.
type result struct {
	code     int
	out, err string
}

// invocation is a command that is run to its end.
type invocation struct {
	args  []string
	env   []string
	stdin io.Reader
	out   io.Writer // instead of result.out
	limit time.Duration
}

func (c invocation) run(t *testing.T) result {
	t.Helper()
	if c.limit == 0 {
		c.limit = time.Minute
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, c.args...)
	var out, errOut bytes.Buffer
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = environment(c.env...), c.stdin, &out, &errOut
	if c.out != nil {
		cmd.Stdout = c.out
	}
	err := cmd.Run()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatalf("flotilla %s: %v", strings.Join(c.args, " "), err)
	}
	if ctx.Err() != nil {
		t.Fatalf("flotilla %s: still running after %s\n%s", strings.Join(c.args, " "), c.limit, errOut.String())
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errOut.String()}
}

func command(t *testing.T, args ...string) result {
	t.Helper()
	return invocation{args: args}.run(t)
}

// must runs a command that has to succeed and returns its standard output.
func must(t *testing.T, args ...string) string {
	t.Helper()
	r := command(t, args...)
	if r.code != 0 {
		t.Fatalf("flotilla %s: exit code %d\n%s", strings.Join(args, " "), r.code, r.err)
	}
	return r.out
}

// refused runs a command that has to end with an exit code and an error whose
// text has all the parts, and nothing on standard output.
func refused(t *testing.T, r result, code int, parts ...string) {
	t.Helper()
	if r.code != code || r.out != "" {
		t.Errorf("exit code %d, want %d; standard output %q; standard error:\n%s", r.code, code, r.out, r.err)
		return
	}
	if n := strings.Count(r.err, "error: "); n != 1 {
		t.Errorf("%d errors were reported, want one:\n%s", n, r.err)
	}
	for _, p := range parts {
		if !strings.Contains(r.err, p) {
			t.Errorf("the error does not say %q:\n%s", p, r.err)
		}
	}
}

// decode reads one JSON value and nothing after it.
func decode[T any](t *testing.T, text string) (v T) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	if rest, err := d.Token(); err != io.EOF {
		t.Fatalf("after the JSON value comes %v, %v", rest, err)
	}
	return v
}

// wait polls until done reports true.
func wait(t *testing.T, limit time.Duration, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s did not happen within %s", what, limit)
		}
	}
}

// buffer is what a process has written so far.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// process is a command that runs until it is stopped.
type process struct {
	args     []string
	cmd      *exec.Cmd
	out, err *buffer
	done     chan struct{} // closed when the process has ended
	started  time.Time
}

func start(t *testing.T, args ...string) *process {
	t.Helper()
	return startWith(t, nil, args...)
}

func startWith(t *testing.T, stdin io.Reader, args ...string) *process {
	t.Helper()
	p := &process{args: args, out: new(buffer), err: new(buffer), done: make(chan struct{}), started: time.Now()}
	p.cmd = exec.Command(binary, args...)
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = environment(), p.out, p.err
	p.cmd.Stdin = stdin
	p.cmd.SysProcAttr = dieWithParent()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("flotilla %s:\n%s%s", strings.Join(args, " "), p.out, p.err)
		}
	})
	return p
}

// kill ends the process with SIGKILL.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// ready waits for the line that begins with "ready".
func (p *process) ready(t *testing.T) {
	t.Helper()
	wait(t, time.Minute, "ready of flotilla "+strings.Join(p.args, " "), func() bool {
		if !p.running() {
			t.Fatalf("flotilla %s ended with %d before it was ready:\n%s", strings.Join(p.args, " "), p.cmd.ProcessState.ExitCode(), p.err)
		}
		return strings.Contains("\n"+p.out.String(), "\nready")
	})
}

// stop sends SIGTERM and returns the exit code.
func (p *process) stop(t *testing.T) int {
	t.Helper()
	p.cmd.Process.Signal(syscall.SIGTERM)
	return p.end(t)
}

// end waits until the process has ended by itself and returns the exit code.
func (p *process) end(t *testing.T) int {
	t.Helper()
	return p.endWithin(t, 20*time.Second)
}

func (p *process) endWithin(t *testing.T, limit time.Duration) int {
	t.Helper()
	wait(t, limit, "end of flotilla "+strings.Join(p.args, " "), func() bool { return !p.running() })
	return p.cmd.ProcessState.ExitCode()
}

// loud returns the log lines of the process above INFO, and those that are not
// log lines and speak of trouble.
func (p *process) loud() []string {
	var loud []string
	for line := range strings.Lines(p.err.String()) {
		var l struct{ Level string }
		if json.Unmarshal([]byte(line), &l) == nil && l.Level != "" {
			if l.Level != "INFO" && l.Level != "DEBUG" {
				loud = append(loud, line)
			}
		} else if strings.Contains(line, "error") || strings.Contains(line, "panic") {
			loud = append(loud, line)
		}
	}
	return loud
}

// given holds the ports that were handed out: tests run side by side.
var given sync.Map

// addresses returns loopback addresses that are free now. They lie below the
// ports that systems give out by themselves, so that they stay free.
func addresses(t *testing.T, n int) []string {
	t.Helper()
	var all []string
	var open []net.Listener
	for try := 0; len(all) < n; try++ {
		port := 10000 + rand.IntN(20000)
		if _, taken := given.LoadOrStore(port, true); taken {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			if try > 1000 {
				t.Fatal(err)
			}
			continue
		}
		open = append(open, l)
		all = append(all, l.Addr().String())
	}
	for _, l := range open {
		l.Close()
	}
	return all
}

// cluster is a cluster of serve processes.
type cluster struct {
	dir            string
	peers, clients []string
	nodes          []*process
	extra          []string // flags of every node
	addr           string   // of all clients
}

// startCluster starts n nodes and waits until all of them are ready.
func startCluster(t *testing.T, n int, extra ...string) *cluster {
	t.Helper()
	a := addresses(t, 2*n)
	c := &cluster{dir: t.TempDir(), peers: a[:n], clients: a[n:], extra: extra, addr: strings.Join(a[n:], ","), nodes: make([]*process, n)}
	for i := range n {
		c.start(t, i)
	}
	for i := range n {
		c.nodes[i].ready(t)
	}
	return c
}

func (c *cluster) data(i int) string { return filepath.Join(c.dir, fmt.Sprintf("n%d", i+1)) }

// start starts node i (from 0), without waiting for it.
func (c *cluster) start(t *testing.T, i int) {
	t.Helper()
	c.nodes[i] = start(t, append([]string{"serve", "--ballast", "0", "--dir", c.data(i), "--listen", c.peers[i], "--client-listen", c.clients[i],
		"--bootstrap", fmt.Sprint(len(c.peers)), "--join", strings.Join(c.peers, ",")}, c.extra...)...)
}

// restart starts node i again and waits until it is ready.
func (c *cluster) restart(t *testing.T, i int) {
	t.Helper()
	c.start(t, i)
	c.nodes[i].ready(t)
}

type nodeInfo struct {
	ID         int     `json:"id"`
	Addr       string  `json:"addr"`
	ClientAddr string  `json:"client_addr"`
	State      string  `json:"state"`
	Leaders    int     `json:"leaders"`
	Replicas   int     `json:"replicas"`
	DiskBytes  float64 `json:"disk_bytes"`
	Lag        int     `json:"lag"`
	Version    string  `json:"version"`
}

type clusterStatus struct {
	State            string     `json:"state"`
	Cluster          string     `json:"cluster"`
	Nodes            []nodeInfo `json:"nodes"`
	Shards           int        `json:"shards"`
	ShardsWithLeader int        `json:"shards_with_leader"`
	UnderReplicated  int        `json:"under_replicated"`
}

func (c *cluster) status(t *testing.T, addr string) clusterStatus {
	t.Helper()
	return decode[clusterStatus](t, must(t, "cluster", "status", "-o", "json", "--addr", addr))
}

// healthy waits until every shard has a leader and every replica is up.
func (c *cluster) healthy(t *testing.T) {
	t.Helper()
	wait(t, time.Minute, "a healthy cluster", func() bool {
		r := command(t, "cluster", "status", "-o", "json", "--addr", c.addr)
		return r.code == 0 && decode[clusterStatus](t, r.out).State == "HEALTHY"
	})
}

// stopAll stops every node at once and expects them to end well.
func (c *cluster) stopAll(t *testing.T) {
	t.Helper()
	for _, p := range c.nodes {
		p.cmd.Process.Signal(syscall.SIGTERM)
	}
	for i, p := range c.nodes {
		if code := p.end(t); code != 0 {
			t.Errorf("node %d ended with %d:\n%s", i+1, code, p.err)
		}
	}
}
