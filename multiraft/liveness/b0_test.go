package liveness

import (
	"errors"
	"testing"
	"time"
)

// TestB0_D2 is the rule of the design that a disk which stands still holds up its
// own goroutine alone: the one that steps goes on, keeps the time, and sends what
// rests on nothing new.
func TestB0_D2(t *testing.T) { b0(t, stepsBesideADisk, "B0-D2") }

// b0 runs a scenario, and again without its rule.
func b0(t *testing.T, run func(*testing.T) error, without ...string) {
	t.Helper()
	if err := run(t); err != nil {
		t.Fatal(err)
	}
	for _, id := range without {
		withoutRule(t, id, run)
	}
}

func stepsBesideADisk(t *testing.T) error {
	m, clock, store, net := handManager(t, Config{})
	m.AddPeer(2)
	clock.at(m, 0)
	m.OnCtl(2, clock.now, hb(5, 1, 1))
	clock.at(m, 0)
	m.DiskStep() // node 2's epoch is on the disk
	clock.at(m, time.Millisecond)
	net.take()

	store.mu.Lock()
	stall := make(chan struct{})
	store.stall = stall
	store.mu.Unlock()
	done := make(chan struct{})
	defer func() { <-done }()
	defer close(stall)
	clock.now = clock.now.Add(600 * time.Millisecond)
	m.OnCtl(2, clock.now, hb(5, 1, 2))
	go func() {
		defer close(done)
		m.DiskStep() // stands still, if it has anything to do
	}()
	stepped := make(chan struct{})
	go func() {
		defer close(stepped)
		m.Step()
		m.Step()
	}()
	select {
	case <-stepped:
	case <-time.After(5 * time.Second):
		return errors.New("the disk stands still, and so does everything else")
	}
	if got := net.take(); len(got) == 0 {
		return errors.New("a heartbeat of a supported node gets no answer while the disk stands still")
	}
	return nil
}
