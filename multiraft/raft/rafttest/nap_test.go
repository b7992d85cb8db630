package rafttest

import (
	"errors"
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

// TestB0_E1 is named for the binding rule of the design: of a replica that sleeps the disk
// holds no entry above what is applied, committed or not, since its stub is all that says where
// its log ends. TestNapMutants takes the rule out.
func TestB0_E1(t *testing.T) {
	if err := errors.Join(napUncut(), napCommitBelowLast()); err != nil {
		t.Fatal(err)
	}
}

// TestNapScenarios are what goes wrong with replicas that sleep, by name.
func TestNapScenarios(t *testing.T) {
	for name, run := range napScenarios {
		t.Run(name, func(t *testing.T) {
			if err := run(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

var napScenarios = map[string]func() error{
	"commit-below-last":    napCommitBelowLast,
	"lost-commit-notice":   napLostCommit,
	"nap-races-withdrawal": napWithdrawal,
	"kept-for-the-dead":    napKeptForTheDead,
}

// napCommitBelowLast: a follower whose log ends behind what it knows to be committed does
// not sleep, and what it alone holds besides the leader survives the leader.
func napCommitBelowLast() error {
	e := New()
	e.Run("nodes 3\ncampaign 1\nsettle\nwait 3s\nquiet on")
	e.Run("propose 1 x\nsync 1\ndeliver 1->2\nsync 2") // 3 hears nothing, and nobody that it is committed
	if e.Run("nap 2"); e.nodes[1].nap != nil {
		return fmt.Errorf("it sleeps with an entry that is not committed: %s", e.Run("status\nlog 2"))
	}
	e.Run("deliver 2->1") // the leader has it committed, and dies
	if out := e.Run("holds 1 x"); out != "ok\n" {
		return fmt.Errorf("the leader did not commit: %s", out)
	}
	e.Run("crash 1\ndrop *->*\nlapse\nwait 3s")
	if out := e.Run("holds 2 x\nholds 3 x"); out != "ok\nok\n" && out != "ok\n" {
		return fmt.Errorf("a committed entry is lost: %s%s", out, e.Run("status"))
	}
	return nil
}

// napLostCommit: the leader sleeps once it has told everybody what is committed. Where that
// was lost, who did not hear it asks, and sleeps only then.
func napLostCommit() error {
	e := New()
	e.Run("nodes 3\ncampaign 1\nsettle\nwait 3s\nquiet on\npropose 1 x")
	for range 8 { // everything but what says to 3 that it is committed
		e.Run("sync 1\nsync 2\nsync 3\ndeliver 1->2\ndeliver 2->1\ndeliver 3->1\ndeliver 1->3 App\ndrop 1->3")
		e.now = e.now.Add(2_000_000)
		for _, n := range e.nodes[:2] {
			n.due()
		}
	}
	if out := e.Run("lacks 3 x"); out != "ok\n" {
		return fmt.Errorf("it was told: %s", out)
	}
	if e.Run("nap 3"); e.nodes[2].nap != nil {
		return fmt.Errorf("a follower sleeps that has not heard what is committed: %s", e.Run("status"))
	}
	e.Run("wait 5s")
	if out := e.Run("holds 3 x"); out != "ok\n" {
		return fmt.Errorf("it never hears of it: %s", out)
	}
	if e.Run("wait 3s\nnap 1\nnap 2\nnap 3"); e.naps < 3 {
		return fmt.Errorf("%d of them sleep: %s", e.naps, e.Run("status"))
	}
	return nil
}

// napWithdrawal: the promise to a leader ends while its followers sleep, of which nobody
// tells them. Who wakes one of them finds it without a leader, and free to vote.
func napWithdrawal() error {
	e := New()
	e.Run("nodes 3\ncampaign 1\nsettle\nwait 3s\nquiet on\nnap 2\nnap 3")
	if e.nodes[1].nap == nil || e.nodes[2].nap == nil {
		return fmt.Errorf("they do not sleep: %s", e.Run("status"))
	}
	e.Run("crash 1\nlapse")
	if e.nodes[1].nap == nil || e.nodes[2].nap == nil {
		return fmt.Errorf("a change of liveness woke them")
	}
	e.Run("campaign 2\nsettle\npropose 2 x\nsettle\nwait 100ms")
	if out := e.Run("holds 2 x\nholds 3 x"); strings.Contains(out, "error") {
		return fmt.Errorf("no other leader: %s%s", out, e.Run("status"))
	}
	return nil
}

// napKeptForTheDead: leader and follower sleep while the third node is dead, with the log that it
// lacks. When it is back the leader wakes and sends that, and then all logs are cut.
func napKeptForTheDead() error {
	e := New()
	e.Run("nodes 3\ncampaign 1\nsettle\nwait 3s\nquiet on\ncrash 3\nlapse\npropose 1 x\nsettle\nwait 3s")
	if e.Run("nap 1\nnap 2"); e.nodes[0].nap == nil || e.nodes[1].nap == nil {
		return fmt.Errorf("they do not sleep while the third one is dead: %s", e.Run("status"))
	}
	if !e.nodes[0].nap.Kept || !e.nodes[1].nap.Kept {
		return fmt.Errorf("their logs are cut: %s", e.Run("log 1\nlog 2"))
	}
	e.Run("restart 3\nheal\nsettle\nwait 5s")
	if out := e.Run("holds 3 x"); out != "ok\n" {
		return fmt.Errorf("it never gets what it lacks: %s%s", out, e.Run("status"))
	}
	for i := range e.nodes {
		if s := e.nodes[i].core.Status(); s.Trunc != s.Last {
			return fmt.Errorf("the log of %d is not cut: %s", i+1, e.Run("status"))
		}
	}
	return nil
}
