package rafttest

import (
	"fmt"
	"strings"
	"testing"
)

// TestNapReads: an answer to a question from before a nap does not confirm one from
// after it.
func TestNapReads(t *testing.T) {
	if err := napReads(); err != nil {
		t.Fatal(err)
	}
}

func napReads() error {
	e := New()
	e.Run("nodes 3\ncampaign 1\nsettle\nwait 3s\nquiet on")
	// The leader reads; the third node's answer stays on its way.
	e.Run("read 1\ndeliver 1->2\ndeliver 1->3\ndeliver 2->1")
	late := e.net
	e.net = nil
	if len(late) != 1 || late[0].m.From != 3 {
		return fmt.Errorf("%d messages are on their way", len(late))
	}
	if e.Run("wait 3s\nnap 1"); e.nodes[0].nap == nil {
		return fmt.Errorf("the leader does not sleep: %s", e.Run("status"))
	}
	// The others elect another leader, of which the first does not hear.
	e.Run("partition 1|2,3\nlapse\ncampaign 2\nsettle\npropose 2 x\nwait 3s")
	if out := e.Run("holds 3 x"); out != "ok\n" {
		return fmt.Errorf("no other leader: %s", out)
	}
	e.Run("read 1")
	if e.nodes[0].nap != nil {
		return fmt.Errorf("the leader sleeps on")
	}
	e.net = append(e.net, late...)
	e.cut[2][0] = false
	if out := e.Run("deliver 3->1"); strings.Contains(out, "answers read") && strings.Contains(out, "index") {
		return fmt.Errorf("an old answer confirms a new question: %s", out)
	}
	return nil
}

// TestNapUncut: a replica whose log is not cut does not sleep: it could not tell from
// its stub what it holds.
func TestNapUncut(t *testing.T) {
	if err := napUncut(); err != nil {
		t.Fatal(err)
	}
}

func napUncut() error {
	e := New()
	e.Run("nodes 3\ncampaign 1\nsettle\nwait 3s\nquiet on\npropose 1 x\nwait 900ms")
	if e.Run("nap 1"); e.nodes[0].nap != nil {
		return fmt.Errorf("it sleeps at once: %s", e.Run("propose 1 y"))
	}
	if e.Run("wait 3s\nnap 1"); e.nodes[0].nap == nil {
		return fmt.Errorf("it does not sleep: %s", e.Run("status"))
	}
	if out := e.Run("propose 1 y\nwait 3s\nholds 2 y"); strings.Contains(out, "error") {
		return fmt.Errorf("after it woke: %s", out)
	}
	return nil
}
