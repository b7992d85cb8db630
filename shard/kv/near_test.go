package kv

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/engine"
	"github.com/flotillakv/flotilla/multiraft"
	"github.com/flotillakv/flotilla/multiraft/raft"
	"github.com/flotillakv/flotilla/shard"
)

// leased is the world of a node without peers whose clock may be trusted.
type leased struct{ lonely }

func (leased) LeaseArm() int64                        { return 0 }
func (l leased) LeaseNow(int64) (t raft.Time, b bool) { return l.Now(), true }

func openLeased(t testing.TB, descs ...raft.Descriptor) *realStore {
	t.Helper()
	e := openEngine(t)
	l := leased{lonely{time.Now()}}
	h, err := multiraft.New(multiraft.Config{Node: 1, Engine: e, Net: l, Liveness: l, Clock: l, Machine: NewMachine(), Loops: 1, Seed: 1, Leases: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.CreateGroups(descs); err != nil {
		t.Fatal(err)
	}
	h.Start()
	t.Cleanup(h.Close)
	return &realStore{NewStore(Options{Host: h, Engine: e}), e, h}
}

// nearDesc is a shard of the keys from "b" to "m".
func nearDesc() raft.Descriptor {
	return raft.Descriptor{Shard: 2, Keyspace: 1, Version: 3, ConfVer: 1, NextReplica: 2, Start: bs("b"), End: bs("m"),
		Replicas: []raft.Replica{{Node: 1, ID: 1, Role: raft.Voter}}}
}

// TestReadNear: what the short way answers is what the long way does, and it
// answers nothing where a descriptor is not the shard's or a key not of its range.
func TestReadNear(t *testing.T) {
	d := nearDesc()
	s := openLeased(t, d)
	if _, _, ok := s.ReadNear(&d, bs("c")); ok {
		t.Error("read without a leader")
	}
	w := s.do(t, &shard.Request{Shard: 2, Keyspace: 1, Kind: shard.KindWrite, Command: put("c", "1")})
	if w.Err != nil {
		t.Fatal(w.Err)
	}
	v, found, ok := s.ReadNear(&d, bs("c"))
	if !ok || !found || string(v.Bytes) != "1" || v.Version != w.Receipt.Version {
		t.Errorf("a key: %v %v %v, written %v", v, found, ok, w.Receipt.Version)
	}
	if _, found, ok := s.ReadNear(&d, bs("d")); !ok || found {
		t.Errorf("an absent key: %v %v", found, ok)
	}
	for name, change := range map[string]func(*raft.Descriptor){
		"shard":    func(d *raft.Descriptor) { d.Shard = 9 },
		"version":  func(d *raft.Descriptor) { d.Version = 2 },
		"keyspace": func(d *raft.Descriptor) { d.Keyspace = 2 },
	} {
		other := nearDesc()
		change(&other)
		if _, _, ok := s.ReadNear(&other, bs("c")); ok {
			t.Errorf("read by a descriptor of another %s", name)
		}
	}
	for _, key := range []string{"a", "m"} {
		if _, _, ok := s.ReadNear(&d, bs(key)); ok {
			t.Errorf("read %q of another shard", key)
		}
	}
	plain := NewStore(Options{Host: newHost(t, d), Engine: s.e})
	if _, _, ok := plain.ReadNear(&d, bs("c")); ok {
		t.Error("read without a grant")
	}
	s.Store.Close()
	if _, _, ok := s.ReadNear(&d, bs("c")); ok {
		t.Error("read after the end")
	}
}

// TestReadNearOrder: each of many readers sees what was acknowledged before its
// read began, and never an older value than before.
func TestReadNearOrder(t *testing.T) {
	d := nearDesc()
	s := openLeased(t, d)
	var (
		wg    sync.WaitGroup
		done  = make(chan struct{})
		mu    sync.Mutex
		acked uint64 // of the counter
	)
	for range 4 {
		wg.Go(func() {
			var last uint64
			for served := 0; ; {
				select {
				case <-done:
					if served == 0 {
						t.Error("never served")
					}
					return
				default:
				}
				mu.Lock()
				want := acked
				mu.Unlock()
				v, found, ok := s.ReadNear(&d, bs("c"))
				if !ok || !found {
					if found || want > 0 && ok {
						t.Errorf("absent, after %d was acknowledged", want)
						return
					}
					continue
				}
				served++
				var n uint64
				fmt.Sscan(string(v.Bytes), &n)
				if n < want || n < last {
					t.Errorf("read %d, after %d was acknowledged and %d was read", n, want, last)
					return
				}
				last = n
			}
		})
	}
	for i := range uint64(500) {
		if w := s.do(t, &shard.Request{Shard: 2, Keyspace: 1, Kind: shard.KindWrite, Command: put("c", fmt.Sprint(i+1))}); w.Err != nil {
			t.Error(w.Err)
			break
		}
		mu.Lock()
		acked = i + 1
		mu.Unlock()
	}
	close(done)
	wg.Wait()
}

// TestReadNearClose: a node that is closed under its readers ends their reads and
// does not fail.
func TestReadNearClose(t *testing.T) {
	d := nearDesc()
	s := openLeased(t, d)
	if w := s.do(t, &shard.Request{Shard: 2, Keyspace: 1, Kind: shard.KindWrite, Command: put("c", "1")}); w.Err != nil {
		t.Fatal(w.Err)
	}
	var wg sync.WaitGroup
	began := make(chan struct{}, 4)
	for range 4 {
		wg.Go(func() {
			for n := 0; ; n++ {
				v, found, ok := s.ReadNear(&d, bs("c"))
				if n == 0 {
					began <- struct{}{}
				}
				switch {
				case !ok:
					return
				case !found || string(v.Bytes) != "1":
					t.Errorf("read %q, %v", v.Bytes, found)
					return
				}
			}
		})
	}
	for range 4 {
		<-began
	}
	s.h.Close()
	s.Store.Close()
	if err := s.e.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	r := s.Do(bg, &shard.Request{Shard: 2, Keyspace: 1, Kind: shard.KindGet, Key: bs("c")})
	if !errors.Is(r.Err, shard.ErrClosed) {
		t.Errorf("afterwards: %v", r.Err)
	}
	if _, _, err := s.e.Get(1, bs("c"), nil); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("the engine: %v", err)
	}
}

// TestYielder: yields become as seldom as they may when they cost nothing, as
// frequent as they may while a line is long, and stay where they are in between.
func TestYielder(t *testing.T) {
	run := func(less uint32, took time.Duration, want uint32) {
		t.Helper()
		for range 20 {
			less = nextYield(less, took)
		}
		if less != want {
			t.Errorf("after yields of %v: once in %d, want %d", took, less+1, want+1)
		}
	}
	run(yieldOften-1, 0, yieldSeldom-1)
	run(yieldSeldom-1, time.Second, yieldOften-1)
	run(15, (yieldLong+yieldShort)/2, 15)
	for less := range uint32(yieldSeldom) {
		if less&(less+1) == 0 && less >= yieldOften-1 {
			for _, took := range []time.Duration{0, yieldLong, time.Hour} {
				if n := nextYield(less, took); n&(n+1) != 0 || n < yieldOften-1 || n >= yieldSeldom {
					t.Errorf("%d becomes %d", less, n)
				}
			}
		}
	}
}

// TestNearAsync: gets of a leader that come in through DoAsync are read the short
// way, each by its own request, though what they are read with is used again; what
// is out of the ordinary is answered as on the long way.
func TestNearAsync(t *testing.T) {
	d := nearDesc()
	s := openLeased(t, d)
	big := strings.Repeat("x", 2*readerKeep)
	for key, value := range map[string]string{"c": "1", "e": big, "f": ""} {
		if r := s.do(t, &shard.Request{Shard: 2, Keyspace: 1, Kind: shard.KindWrite, Command: put(key, value)}); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	type answer struct {
		id    uint64
		found bool
		value string
		err   error
	}
	const rounds = 200
	answers := make(chan answer, 16*rounds)
	ask := func(q shard.Request) {
		q.Kind = shard.KindGet
		s.DoAsync(&q, shard.AnswerFunc(func(r *shard.Response) {
			a := answer{id: r.ID, found: r.Found, err: r.Err}
			if r.Value != nil {
				a.value = string(r.Value.Bytes)
			}
			answers <- a
		}))
	}
	var epoch *shard.EpochError
	var argument *shard.ArgumentError
	cases := []struct {
		q     shard.Request
		found bool
		value string
		err   any
	}{
		{q: shard.Request{Key: bs("c")}, found: true, value: "1"},
		{q: shard.Request{Key: bs("e")}, found: true, value: big},
		{q: shard.Request{Key: bs("d")}},
		{q: shard.Request{Key: bs("f")}, found: true},
		{q: shard.Request{Key: bs("c"), Consistency: shard.NoClock}, found: true, value: "1"},
		{q: shard.Request{Key: bs("z")}, err: &epoch},
		{q: shard.Request{Key: bs("")}, err: &argument},
		{q: shard.Request{Key: bs("c"), DescVersion: 2}, err: &epoch},
	}
	for i := range rounds * len(cases) {
		q := cases[i%len(cases)].q
		q.ID, q.Shard, q.Keyspace = uint64(i), 2, 1
		if q.DescVersion == 0 {
			q.DescVersion = d.Version
		}
		ask(q)
	}
	seen := map[uint64]bool{}
	for range rounds * len(cases) {
		a := <-answers
		c := cases[a.id%uint64(len(cases))]
		if seen[a.id] || a.found != c.found || a.value != c.value || (a.err != nil) != (c.err != nil) || c.err != nil && !errors.As(a.err, c.err) {
			t.Fatalf("%d, key %q: found %t, %.20q, %v", a.id, c.q.Key, a.found, a.value, a.err)
		}
		seen[a.id] = true
	}
	s.Store.Close()
	ask(shard.Request{Shard: 2, Keyspace: 1, DescVersion: d.Version, Key: bs("c")})
	if a := <-answers; a.err != shard.ErrClosed {
		t.Errorf("after the end: %v", a.err)
	}
}
