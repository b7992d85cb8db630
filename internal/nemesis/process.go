package nemesis

import (
	"bytes"
	"errors"
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
	"time"
)

// node is one place of the cluster: a directory, addresses, and the process
// that runs there, if any.
type node struct {
	i                  int
	dir, log           string
	peer, client       string // where the process listens
	peerVia, clientVia string // where it is reached

	// busy is held by the fault that works on the process.
	busy sync.Mutex

	mu      sync.Mutex // guards what follows
	proc    *process
	paused  bool
	starts  int
	endings []string // processes that ended without being told to
}

// process is one life of a node.
type process struct {
	cmd  *exec.Cmd
	out  *lineWatch
	done chan struct{} // closed when it has ended
	told bool          // to end; guarded by node.mu
	// mute: it ended before it wrote a word; set before done is closed.
	mute bool
}

// cluster is the nodes of a run.
type cluster struct {
	binary string
	args   []string // of every node
	nodes  []*node
	net    fabric
	wg     sync.WaitGroup
}

func (n *node) name() string { return endName(n.i) }

// newCluster lays out directories, addresses and proxies; it starts nothing.
func newCluster(o *Options) (_ *cluster, err error) {
	c := &cluster{binary: o.Binary}
	if o.Netns {
		if c.net, err = newPackets(o.Nodes); err != nil {
			return nil, fmt.Errorf("nemesis: %w", err)
		}
	} else {
		c.net = newProxies(c.pids)
	}
	var join []string
	for i := range o.Nodes {
		n := &node{i: i, dir: filepath.Join(o.Dir, endName(i)), log: filepath.Join(o.Dir, endName(i)+".log")}
		if n.peer, n.client, n.peerVia, n.clientVia, err = c.net.reach(i); err != nil {
			c.net.close()
			return nil, err
		}
		c.nodes = append(c.nodes, n)
		join = append(join, n.peerVia)
	}
	c.args = append([]string{"--bootstrap", fmt.Sprint(o.Nodes), "--join", strings.Join(join, ","), "--shards", fmt.Sprint(o.Shards),
		"--memory", "128MiB", "--log-format", "text", "--log-level", "info"}, o.ServeArgs...)
	return c, nil
}

// pids maps the processes that run to their nodes.
func (c *cluster) pids() map[int]int {
	out := map[int]int{}
	for _, n := range c.nodes {
		n.mu.Lock()
		if n.proc != nil {
			out[n.proc.cmd.Process.Pid] = n.i
		}
		n.mu.Unlock()
	}
	return out
}

// start starts the process of node n unless it runs.
func (c *cluster) start(n *node) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc != nil {
		return nil
	}
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	n.starts++
	fmt.Fprintf(log, "--- start %d at %s\n", n.starts, time.Now().Format("15:04:05.000"))
	from := sizeOf(log)
	p := &process{out: &lineWatch{to: log, ready: make(chan struct{})}, done: make(chan struct{})}
	argv := c.net.wrap(n.i, append([]string{c.binary, "serve", "--ballast", "0", "--dir", n.dir, "--node-id", fmt.Sprint(n.i + 1),
		"--listen", n.peer, "--advertise", n.peerVia, "--client-listen", n.client, "--client-advertise", n.clientVia}, c.args...))
	p.cmd = exec.Command(argv[0], argv[1:]...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "FLOTILLA_") {
			p.cmd.Env = append(p.cmd.Env, v)
		}
	}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.SysProcAttr = p.out, log, ownGroup()
	if err := p.cmd.Start(); err != nil {
		log.Close()
		return err
	}
	n.proc, n.paused = p, false
	c.wg.Go(func() {
		p.cmd.Wait()
		p.mute = sizeOf(log) == from
		n.mu.Lock()
		if n.proc == p {
			n.proc = nil
		}
		if !p.told {
			n.endings = append(n.endings, fmt.Sprintf("node %s ended by itself: %s", n.name(), p.cmd.ProcessState))
		}
		n.mu.Unlock()
		fmt.Fprintf(log, "--- ended at %s: %s\n", time.Now().Format("15:04:05.000"), p.cmd.ProcessState)
		log.Close()
		close(p.done)
	})
	return nil
}

// current returns the process that runs, or nil.
func (n *node) current() *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.proc
}

func sizeOf(f *os.File) int64 {
	i, err := f.Stat()
	if err != nil {
		return -1
	}
	return i.Size()
}

// signal sends a signal to the process, if one runs. told: it is expected to end of it.
func (n *node) signal(s syscall.Signal, told bool) *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.proc
	if p == nil {
		return nil
	}
	p.told = p.told || told
	switch s {
	case syscall.SIGSTOP:
		n.paused = true
	case syscall.SIGCONT:
		n.paused = false
	}
	p.cmd.Process.Signal(s) // it may be gone already
	return p
}

// kill ends the process at once and waits for its end.
func (n *node) kill() {
	if p := n.signal(syscall.SIGKILL, true); p != nil {
		<-p.done
	}
}

// stopLimit bounds the time of a clean stop: the drain of ten seconds and some.
const stopLimit = 30 * time.Second

// stop tells the process to end and says what is wrong with how it did.
func (n *node) stop() error {
	n.signal(syscall.SIGCONT, false)
	p := n.signal(syscall.SIGTERM, true)
	if p == nil {
		return nil
	}
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	select {
	case <-p.done:
	case <-limit.C:
		p.cmd.Process.Signal(syscall.SIGQUIT) // its stacks go to the log
		<-p.done
		return fmt.Errorf("node %s did not stop within %s", n.name(), stopLimit)
	}
	if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() && ws.Signal() == syscall.SIGTERM && p.mute {
		return nil // it had not come to where it listens to signals: the kernel ended it
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("node %s was told to stop and ended with exit code %d", n.name(), code)
	}
	return nil
}

// isReady reports whether the process said so.
func (n *node) isReady() bool {
	p := n.current()
	if p == nil {
		return false
	}
	select {
	case <-p.out.ready:
		return true
	default:
		return false
	}
}

// ended returns what ended by itself.
func (c *cluster) ended() (all []string) {
	for _, n := range c.nodes {
		n.mu.Lock()
		all = append(all, n.endings...)
		n.mu.Unlock()
	}
	return all
}

// close kills all processes and closes the network.
func (c *cluster) close() {
	for _, n := range c.nodes {
		n.kill()
	}
	c.net.close()
	c.wg.Wait()
}

// lineWatch passes on what a process writes and notices the line "ready".
type lineWatch struct {
	to    io.Writer
	rest  []byte
	said  bool
	ready chan struct{} // closed when it came
}

// Write implements io.Writer.
func (w *lineWatch) Write(b []byte) (int, error) {
	if !w.said {
		w.rest = append(w.rest, b...)
		if bytes.HasPrefix(w.rest, []byte("ready")) || bytes.Contains(w.rest, []byte("\nready")) {
			w.said, w.rest = true, nil
			close(w.ready)
		}
	}
	return w.to.Write(b)
}

// addresses returns loopback addresses that are free now, below the ports that
// systems give out by themselves, so that they stay free, and not among those
// given already, to which it adds them.
func addresses(n int, given map[string]bool) ([]string, error) {
	var all []string
	var open []net.Listener
	defer func() {
		for _, l := range open {
			l.Close()
		}
	}()
	for try := 0; len(all) < n; try++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000)))
		if err != nil {
			if try > 1000 {
				return nil, errors.New("no free ports on 127.0.0.1: " + err.Error())
			}
			continue
		}
		open = append(open, l)
		if a := l.Addr().String(); !given[a] {
			given[a] = true
			all = append(all, a)
		}
	}
	return all, nil
}
