package t1

import (
	"errors"
	"iter"
	"time"
)

// errStopped is what code in a coroutine gets when its node is gone.
var errStopped = errors.New("t1: the node is gone")

// task is a coroutine of a node: straight code that waits, driven by events. It
// runs only while the driver resumes it, so nothing ever runs beside it.
type task struct {
	w       *World
	n       *node
	resume  func() (struct{}, bool)
	cancel  func()
	yield   func(struct{}) bool
	waiting uint64 // the wait that a wake must name
	running bool
	over    bool
}

// spawn begins a coroutine of n, which runs until its first wait.
func (w *World) spawn(n *node, body func(t *task)) *task {
	t := &task{w: w, n: n}
	t.resume, t.cancel = iter.Pull(func(yield func(struct{}) bool) {
		t.yield = yield
		body(t)
	})
	n.tasks = append(n.tasks, t)
	t.run()
	return t
}

func (t *task) run() {
	if t.over || t.running {
		return
	}
	old := t.w.task
	t.w.task, t.running = t, true
	_, more := t.resume()
	t.w.task, t.running = old, false
	if !more {
		t.end()
	}
}

func (t *task) end() {
	t.over = true
	for i, o := range t.n.tasks {
		if o == t {
			t.n.tasks = append(t.n.tasks[:i:i], t.n.tasks[i+1:]...)
			return
		}
	}
}

// wait gives the driver its turn until somebody calls wake. It reports false if
// the node is gone.
func (t *task) wait() bool {
	t.waiting++
	return !t.over && t.yield(struct{}{})
}

// wake resumes the task, now, if it is still in the wait that it was in then.
// It is called by events only.
func (t *task) waker() func() {
	k := t.waiting + 1
	return func() {
		if t.waiting == k && !t.over {
			t.run()
		}
	}
}

// sleep waits for d of the world's time.
func (t *task) sleep(d time.Duration) bool {
	t.w.on(t.n, t.w.now+int64(d), t.waker())
	return t.wait()
}

// stop ends the task where it waits; its code sees false and cleans up.
func (t *task) stop() {
	if t.over {
		return
	}
	t.over = true
	old := t.w.task
	t.w.task = t
	t.cancel()
	t.w.task = old
	t.end()
}
