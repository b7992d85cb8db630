package flotilla_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/flotillakv/flotilla"
)

// tally is a state machine with its state in files of its own: sums by name. A command is
// a number that is added to the sum of its key.
type tally struct {
	dir string

	mu     sync.Mutex
	shards map[flotilla.ShardID]*sums
}

// sums is the state of a shard, and the index as of which it is: they are kept together.
type sums struct {
	At  flotilla.Index
	Sum map[string]int
}

func (t *tally) file(s flotilla.ShardID) string { return filepath.Join(t.dir, fmt.Sprint(s)) }

// of returns the state of a shard, from its file if it is the first time.
func (t *tally) of(s flotilla.ShardID) (*sums, error) {
	if x := t.shards[s]; x != nil {
		return x, nil
	}
	x := &sums{Sum: map[string]int{}}
	b, err := os.ReadFile(t.file(s))
	if err == nil {
		err = json.Unmarshal(b, x)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	t.shards[s] = x
	return x, nil
}

func (t *tally) Applied(s flotilla.ShardID) (flotilla.Index, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x, err := t.of(s)
	if err != nil {
		return 0, err
	}
	return x.At, nil
}

func (t *tally) Apply(e *flotilla.ExternalEntry) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	x, err := t.of(e.Shard)
	if err != nil {
		return err
	}
	for i := range e.Commands {
		c := &e.Commands[i]
		n, err := strconv.Atoi(string(c.Body))
		if err != nil {
			c.Err = errors.New("not a number") // the same on every node
			continue
		}
		x.Sum[string(c.Key)] += n
		c.Result = []byte(strconv.Itoa(x.Sum[string(c.Key)]))
	}
	x.At = e.Index
	return nil
}

func (t *tally) Query(s flotilla.ShardID, key, _ []byte) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x, err := t.of(s)
	if err != nil {
		return nil, err
	}
	return []byte(strconv.Itoa(x.Sum[string(key)])), nil
}

// write makes x the state that a crash leaves, as a whole.
func (t *tally) write(s flotilla.ShardID, x *sums) error {
	b, err := json.Marshal(x)
	if err != nil {
		return err
	}
	f, err := os.Create(t.file(s) + ".new")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(t.file(s)+".new", t.file(s)); err != nil {
		return err
	}
	d, err := os.Open(t.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (t *tally) Sync(s flotilla.ShardID, at flotilla.Index) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	x, err := t.of(s)
	if err != nil {
		return err
	}
	x.At = at
	return t.write(s, x)
}

func (t *tally) Save(s flotilla.ShardID) (io.ReadCloser, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x, err := t.of(s)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(x)
	return io.NopCloser(bytes.NewReader(b)), err
}

func (t *tally) Load(s flotilla.ShardID, at flotilla.Index, r io.Reader) error {
	x := &sums{Sum: map[string]int{}}
	if err := json.NewDecoder(r).Decode(x); err != nil {
		return err
	}
	x.At = at
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.write(s, x); err != nil {
		return err
	}
	t.shards[s] = x
	return nil
}

func (t *tally) Drop(s flotilla.ShardID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.shards, s)
	if err := os.Remove(t.file(s)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// A state machine of one's own, with its state in files of its own. What the node had
// applied and the machine had not made durable is applied again after a restart, once.
func ExampleExternalMachine() {
	ctx := context.Background()
	dir := must(os.MkdirTemp("", "tally"))
	defer os.RemoveAll(dir)
	if err := os.Mkdir(filepath.Join(dir, "tally"), 0o700); err != nil {
		log.Fatal(err)
	}
	open := func() *flotilla.Node {
		m := &tally{dir: filepath.Join(dir, "tally"), shards: map[flotilla.ShardID]*sums{}}
		return must(flotilla.Open(ctx, flotilla.Options{Dir: filepath.Join(dir, "node"), Machine: flotilla.ExternalMachine(m)}))
	}

	n := open()
	for _, cmd := range []string{"3", "4", "five"} {
		sum, _, err := n.Propose(ctx, []byte("apples"), []byte(cmd))
		var refused *flotilla.MachineError
		if errors.As(err, &refused) {
			fmt.Println(cmd, "is refused:", refused.Text)
			continue
		}
		fmt.Println("sum", string(must(sum, err)))
	}
	if err := n.Close(); err != nil {
		log.Fatal(err)
	}

	n = open()
	defer n.Close()
	fmt.Println("after a restart", string(must(n.Query(ctx, []byte("apples"), nil))))
	// Output:
	// sum 3
	// sum 7
	// five is refused: not a number
	// after a restart 7
}
