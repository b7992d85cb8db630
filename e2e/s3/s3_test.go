package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/flotillakv/flotilla"
	"github.com/flotillakv/flotilla/flotillatest"
	"github.com/flotillakv/flotilla/snapshot/backup"
	"github.com/flotillakv/flotilla/snapshot/backup/s3"
)

const bucket = "bucket"

// server is a process of versitygw; what it serves lies below root.
type server struct {
	bin, addr, root, log string
	cmd                  *exec.Cmd
	ended                chan struct{}
}

// newServer builds the server and starts it on an empty directory with one bucket.
func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{bin: filepath.Join(t.TempDir(), "versitygw"), root: t.TempDir(), log: filepath.Join(t.TempDir(), "log")}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "build", "-o", s.bin, "github.com/versity/versitygw/cmd/versitygw")
	build.Dir = "server"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build of the server: %v\n%s", err, out)
	}
	if err := os.Mkdir(filepath.Join(s.root, bucket), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	l.Close()
	s.start(t)
	t.Cleanup(s.kill)
	return s
}

// start runs the server. It prints a line per request, and stands still when nobody
// reads them: so they go to a file.
func (s *server) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command(s.bin, "--port", s.addr, "posix", s.root)
	s.cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY_ID=the-key", "ROOT_SECRET_ACCESS_KEY=the-secret")
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	s.ended = ended
	go func() { _ = s.cmd.Wait(); close(ended) }()
	limit := time.After(30 * time.Second)
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		if c, err := net.Dial("tcp", s.addr); err == nil {
			c.Close()
			tick.Stop()
			return
		}
		select {
		case <-tick.C:
		case <-ended:
			t.Fatalf("the server ended: %s", s.said())
		case <-limit:
			t.Fatalf("the server does not answer: %s", s.said())
		}
	}
}

func (s *server) said() []byte {
	b, _ := os.ReadFile(s.log)
	return b[:min(len(b), 4<<10)]
}

// kill ends the process group, at once.
func (s *server) kill() {
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	<-s.ended
}

func (s *server) open(t *testing.T, prefix string) *s3.Store {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "the-key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
	st, err := s3.Open(s3.Options{Endpoint: "http://" + s.addr, Bucket: bucket, Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// within bounds every request: a server that stands still fails the test.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func export(t *testing.T, c *flotillatest.Cluster) string {
	t.Helper()
	var b strings.Builder
	for p, err := range c.KV().Scan(within(t), flotilla.Range{}) {
		check(t, err)
		fmt.Fprintf(&b, "%q %q\n", p.Key, p.Value)
	}
	return b.String()
}

// What Store promises holds at a real server: objects of all sizes whole, many of
// them in a list, nothing after a removal, and what is not there.
func TestStore(t *testing.T) {
	srv := newServer(t)
	for _, prefix := range []string{"", "a/b"} {
		s, ctx := srv.open(t, prefix), within(t)
		if list, err := s.List(ctx, "chunks/"); err != nil || len(list) != 0 {
			t.Fatalf("an empty place: %v, %v", list, err)
		}
		for _, size := range []int{0, 1, 64<<10 - 1, 5 << 20, 8<<20 + 3} {
			name := fmt.Sprintf("chunks/%02x/%d", size%251, size)
			data := bytes.Repeat([]byte{byte(size), 2, 3}, size/3+1)[:size]
			for range 2 { // the second replaces the first
				check(t, s.Put(ctx, name, data))
			}
			if got, err := s.Get(ctx, name, 9<<20); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
			if n, err := s.Size(ctx, name); err != nil || n != int64(size) {
				t.Errorf("%s: size %d, %v", name, n, err)
			}
		}
		if _, err := s.Get(ctx, "chunks/none", 10); !errors.Is(err, backup.ErrNoObject) {
			t.Errorf("Get of nothing: %v", err)
		}
		if _, err := s.Size(ctx, "chunks/none"); !errors.Is(err, backup.ErrNoObject) {
			t.Errorf("Size of nothing: %v", err)
		}
		if prefix == "" {
			continue
		}
		var next atomic.Int64
		errs := make(chan error, 16)
		for range cap(errs) {
			go func() {
				for i := next.Add(1) - 1; i < 1100; i = next.Add(1) - 1 { // more than a page
					if err := s.Put(ctx, fmt.Sprintf("locks/%04d", i), []byte("x")); err != nil {
						errs <- err
						return
					}
				}
				errs <- nil
			}()
		}
		for range cap(errs) {
			check(t, <-errs)
		}
		list, err := s.List(ctx, "locks/")
		if err != nil || len(list) != 1100 || list[0] != (backup.Object{Name: "locks/0000", Size: 1}) || list[1099].Name != "locks/1099" {
			t.Errorf("a list of %d, %v", len(list), err)
		}
		for range 2 {
			check(t, s.Delete(ctx, "locks/0000"))
		}
		if list, err = s.List(ctx, "locks/"); err != nil || len(list) != 1099 || list[0].Name != "locks/0001" {
			t.Errorf("after a removal a list of %d, %v", len(list), err)
		}
	}
}

// A cluster is backed up, the server is killed in the middle of a second backup,
// which is not listed and completed by the next; old backups are removed; a flipped
// bit is named; the backup comes back into a cluster of other shards.
func TestBackups(t *testing.T) {
	srv := newServer(t)
	s, ctx := srv.open(t, "p"), within(t)
	c := flotillatest.NewCluster(t, 1, flotillatest.WithShards(4))
	fill := func(with string) {
		var b flotilla.Batch
		for i := range 400 {
			b.Put(fmt.Appendf([]byte{byte(i)}, "key%d", i), bytes.Repeat(fmt.Appendf(nil, "%s %d.", with, i), 1000))
			if i%50 == 49 {
				_, err := c.KV().Write(ctx, &b, flotilla.NonAtomic())
				check(t, err)
				b.Reset()
			}
		}
	}
	fill("first")
	first, err := c.Client().Backup(ctx, s, backup.Options{})
	check(t, err)
	var p backup.Progress
	second, err := c.Client().Backup(ctx, s, backup.Options{Progress: &p})
	check(t, err)
	if first.Chunks() < 4 || p.Chunks.Load() != 0 || p.Reused.Load() != second.Chunks() {
		t.Errorf("%d chunks; unchanged, %d were stored again", first.Chunks(), p.Chunks.Load())
	}

	fill("second")
	var n atomic.Int64
	_, err = c.Client().Backup(ctx, &killing{s, func() {
		if n.Add(1) == 3 {
			srv.kill()
		}
	}}, backup.Options{Parallel: 1})
	if err == nil {
		t.Fatal("a backup was made at a server that is dead")
	}
	srv.start(t)
	list, err := backup.List(ctx, s, backup.Backup)
	if err != nil || len(list) != 2 || list[1].ID != second.ID {
		t.Fatalf("after the crash: %v, %v", list, err)
	}
	p = backup.Progress{}
	third, err := c.Client().Backup(ctx, s, backup.Options{Progress: &p})
	check(t, err)
	if p.Reused.Load() < 2 {
		t.Errorf("of %d chunks %d are used that the interrupted backup stored", third.Chunks(), p.Reused.Load())
	}
	want := export(t, c)

	// The interrupted backup left its lock behind: its node cannot know. Its name says whose it is.
	locks, err := s.List(ctx, "locks/")
	if err != nil || len(locks) != 1 || !strings.HasPrefix(locks[0].Name, "locks/backup-") {
		t.Fatalf("%v, %v", locks, err)
	}
	var busy *backup.BusyError
	if _, err := backup.Prune(ctx, s, backup.PruneOptions{Options: backup.Options{Wait: time.Nanosecond}}); !errors.As(err, &busy) || busy.Who[0] != locks[0].Name {
		t.Fatalf("a prune besides a lock: %v", err)
	}
	check(t, s.Delete(ctx, locks[0].Name))
	pruned, err := backup.Prune(ctx, s, backup.PruneOptions{})
	check(t, err)
	if len(pruned.Removed) != 2 || pruned.Chunks < first.Chunks()/2 {
		t.Errorf("removed %d backups and %d chunks", len(pruned.Removed), pruned.Chunks)
	}
	left, err := s.List(ctx, "")
	if err != nil || int64(len(left)) != third.Chunks()+1 {
		t.Errorf("%d objects are left of %d chunks and a manifest: %v", len(left), third.Chunks(), err)
	}

	list, err = backup.List(ctx, s, backup.Backup)
	check(t, err)
	if damage, err := backup.Verify(ctx, s, list, backup.Options{}); err != nil || len(damage) > 0 || len(list) != 1 {
		t.Fatalf("%d backups: %v, %v", len(list), damage, err)
	}
	d := flotillatest.NewCluster(t, 1, flotillatest.WithShards(7))
	check(t, d.Client().Restore(ctx, s, third, backup.Refuse, backup.Options{}))
	if got := export(t, d); got != want {
		t.Errorf("restored %d bytes, want %d", len(got), len(want))
	}

	var chunk string
	err = filepath.WalkDir(filepath.Join(srv.root, bucket, "p", "chunks"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			chunk = path
		}
		return err
	})
	check(t, err)
	f, err := os.OpenFile(chunk, os.O_RDWR, 0) // in place: the server keeps attributes of the file
	check(t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, 100)
	check(t, err)
	b[0] ^= 8
	_, err = f.WriteAt(b, 100)
	check(t, errors.Join(err, f.Close()))
	damage, err := backup.Verify(ctx, s, list, backup.Options{})
	if err != nil || len(damage) != 1 || filepath.Base(damage[0].Object) != filepath.Base(chunk) {
		t.Errorf("a flipped bit in %s: %v, %v", chunk, damage, err)
	}
}

// killing calls before each object that is stored and is no lock.
type killing struct {
	backup.Store
	before func()
}

func (k *killing) Put(ctx context.Context, name string, data []byte) error {
	if !strings.HasPrefix(name, "locks/") {
		k.before()
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second) // the client of S3 tries for long
	defer cancel()
	return k.Store.Put(ctx, name, data)
}
