package multiraft

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/flotillakv/flotilla/multiraft/raft"
)

var logCapCases = []struct {
	name string
	run  func(t *testing.T) error
}{
	{"zones", zones},
	{"a share is refused", slowShare},
	{"no room for proposals", noRoomToPropose},
	{"no room for entries", noRoomToFollow},
}

func TestLogCap(t *testing.T) {
	for _, c := range logCapCases {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(t); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// zones are entered at their share of the limit and left at five sixths of that, so
// that no use of the disk makes them flap.
func zones(*testing.T) error {
	const limit = 6000
	for _, c := range []struct {
		used      int64
		was, want LogZone
	}{
		{0, ZoneNone, ZoneNone}, {2999, ZoneNone, ZoneNone}, {3000, ZoneNone, ZoneSoft}, {2501, ZoneSoft, ZoneSoft}, {2499, ZoneSoft, ZoneNone},
		{4199, ZoneSoft, ZoneSoft}, {4200, ZoneSoft, ZoneFirm}, {3501, ZoneFirm, ZoneFirm}, {3499, ZoneFirm, ZoneSoft}, {2000, ZoneFirm, ZoneNone},
		{5100, ZoneNone, ZoneHard}, {4251, ZoneHard, ZoneHard}, {4249, ZoneHard, ZoneFirm}, {6001, ZoneHard, ZoneHard},
	} {
		if got := zoneOf(c.used, limit, c.was); got != c.want {
			return fmt.Errorf("%d of %d, coming from %s: %s, not %s", c.used, limit, c.was, got, c.want)
		}
	}
	for used := int64(0); used <= limit+100; used += 7 {
		for was := ZoneNone; was <= ZoneHard; was++ {
			z := zoneOf(used, limit, was)
			if again := zoneOf(used, limit, z); again != z {
				return fmt.Errorf("%d of %d: %s, then %s", used, limit, z, again)
			}
			if down := zoneOf(used-100, limit, z); z > was && down < z && used > 100 {
				return fmt.Errorf("%d of %d: %s is left 100 bytes below", used, limit, z)
			}
		}
	}
	return nil
}

func slowShare(*testing.T) error {
	for _, share := range []int32{0, 1, 250, 900, 1000} {
		var s logSlow
		s.share.Store(share)
		refused, row := 0, 0
		for range 4000 {
			if row++; !s.refuse() {
				row = 0
			} else if refused++; share <= 500 && row > 1 {
				return fmt.Errorf("%d of a thousand: two in a row", share)
			}
		}
		if refused != 4*int(share) {
			return fmt.Errorf("%d of 4000, not %d", refused, 4*share)
		}
	}
	return nil
}

// used makes the logs of the node take percent of what they may.
func (r *rig) used(percent int64) {
	r.t.Helper()
	n := r.e.LogUsage().Total()
	if n < 100 {
		r.t.Fatalf("the logs take %d bytes", n)
	}
	r.h.logCap.limit = n * 100 / percent
	r.now = r.now.Add(lookEvery)
	r.turn()
}

func noRoomToPropose(t *testing.T) error {
	r := newLeaseRig(t)
	r.ack(2)
	for range 50 {
		r.proposeOnly("a") // nobody acknowledges them: they cannot be cut
		r.turn()
	}
	r.used(90)
	if z := r.h.LogStatus(); z.Zone != ZoneHard {
		return fmt.Errorf("%+v", z)
	}
	s := r.rep().core.Status()
	for len(r.l.in.wake) > 0 {
		<-r.l.in.wake
	}
	o := r.proposeOnly("b")
	if !errors.Is(o.err, ErrLogBudget) || o.n != 1 {
		return fmt.Errorf("%+v", o)
	}
	if len(r.l.in.wake) != 1 || r.l.nextLook() == raft.Never {
		return errors.New("nobody will look whether there is room again")
	}
	if r.turn(); r.rep().core.Status().Last != s.Last {
		return errors.New("it was proposed all the same")
	}
	r.used(10)
	if z := r.h.LogStatus(); z.Zone != ZoneNone {
		return fmt.Errorf("%+v", z)
	}
	if o = r.proposeOnly("c"); o.n != 0 {
		return fmt.Errorf("there is room again: %+v", o)
	}
	if r.turn(); r.rep().core.Status().Last != s.Last+1 {
		return errors.New("it was not proposed")
	}
	return nil
}

func noRoomToFollow(t *testing.T) error {
	r := newRig(t)
	r.follow(0, rigEntry(1, raft.EntryEmpty, ""), rigEntry(2, raft.EntryNormal, "a"))
	r.used(95)
	app := raft.Msg{Type: raft.MsgApp, From: 2, Term: 1, Index: 2, LogTerm: 1, Commit: 2, Entries: []raft.Entry{rigEntry(3, raft.EntryNormal, "b")}}
	r.sent = nil
	r.in(app)
	if s := r.rep().core.Status(); s.Last != 2 || s.Applied != 2 {
		return fmt.Errorf("there is no room: %+v", s)
	}
	for _, m := range r.sent {
		if m.Type == raft.MsgAppResp && m.Index > 2 {
			return fmt.Errorf("it acknowledges what it has not taken in: %+v", m)
		}
	}
	if n := r.h.LogStatus().Turned; n != 1 {
		return fmt.Errorf("%d messages were turned away", n)
	}
	r.used(10)
	app.Entries = []raft.Entry{rigEntry(3, raft.EntryNormal, "b")}
	r.in(app)
	if s := r.rep().core.Status(); s.Last != 3 {
		return fmt.Errorf("there is room again: %+v", s)
	}
	return nil
}

// The logs are looked at in time even if nothing goes on, as long as they are large.
func TestLogCapLooksAgain(t *testing.T) {
	r := newRig(t)
	r.follow(0, rigEntry(1, raft.EntryEmpty, ""))
	if r.l.nextLook() != raft.Never {
		t.Error("there is no limit")
	}
	r.used(60)
	at := r.l.nextLook()
	if at == raft.Never || at > r.now.Add(lookEvery) {
		t.Fatalf("the next look is at %d; now it is %d", at, r.now)
	}
	if d, has, _ := r.l.next(); !has || d > at {
		t.Errorf("the loop sleeps until %d", d)
	}
	r.now = at.Add(time.Millisecond)
	r.turn()
	if again := r.l.nextLook(); again <= at {
		t.Errorf("then at %d", again)
	}
}
