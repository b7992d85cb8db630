package nemesis

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A packet that wants a connection, and one of an open connection, are turned
// into resets that their receivers take for genuine: ports, numbers and
// checksums fit.
func TestResets(t *testing.T) {
	ports := []byte{0x9c, 0x40, 0x1b, 0x59}
	out := bareSegment([]byte{198, 18, 0, 1}, []byte{198, 18, 0, 2}, ports[:2], ports[2:], 7000, 9000, flagACK)
	verify := func(b []byte) {
		t.Helper()
		if checksum(0, b[:ipHeader]) != 0 || checksum(protoTCP+tcpHeader, b[ipSource:]) != 0 {
			t.Errorf("a checksum of % x is wrong", b)
		}
	}
	verify(out)
	open := append(append([]byte(nil), out...), "data"...)
	r := resetOf(open)
	verify(r)
	if s := segment(r); s[tcpFlags] != flagRST|flagACK || binary.BigEndian.Uint32(s[tcpSeq:]) != 7000 || string(s[:4]) != string(ports) || r[19] != 2 {
		t.Errorf("reset % x", r)
	}
	if refusal(open) != nil {
		t.Error("a packet of an open connection is refused")
	}
	syn := bareSegment([]byte{198, 18, 0, 1}, []byte{198, 18, 0, 2}, ports[:2], ports[2:], 7000, 0, flagSYN)
	if got := resetOf(syn); string(got) != string(syn) {
		t.Error("the first packet of a connection is changed")
	}
	no := refusal(syn)
	verify(no)
	if s := segment(no); s[tcpFlags] != flagRST|flagACK || binary.BigEndian.Uint32(s[tcpAck:]) != 7001 || string(s[:2]) != string(ports[2:]) || no[19] != 1 {
		t.Errorf("refusal % x", no)
	}
	udp := append([]byte(nil), out...)
	udp[ipProto] = 17
	if segment(udp) != nil || segment(out[:30]) != nil || string(resetOf(udp)) != string(udp) {
		t.Error("what is not TCP is taken for it")
	}
}

// Packets reach the namespace of a node and come back; a hole in either
// direction keeps them. Namespaces are gone after close. Without the right to
// make them the error says so.
func TestNamespaces(t *testing.T) {
	f, err := newPackets(1)
	if err != nil {
		cause := "/dev/net/tun"
		if os.Geteuid() != 0 {
			cause = "root"
		}
		if !strings.Contains(err.Error(), cause) && !strings.Contains(err.Error(), "Operation not permitted") {
			t.Fatalf("the error does not name %q: %v", cause, err)
		}
		t.Logf("no namespaces here: %v", err)
		return
	}
	defer f.close()
	peer, _, _, _, _ := f.reach(0)
	// Nothing listens there: the kernel of the other namespace answers that.
	refused := func(within time.Duration) bool {
		c, err := net.DialTimeout("tcp", peer, within)
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	}
	if !refused(10 * time.Second) {
		t.Fatal("no answer from the namespace")
	}
	for _, dir := range []pair{{Clients, 0}, {0, Clients}} {
		f.cut(true, dir)
		if refused(100 * time.Millisecond) {
			t.Errorf("an answer although %v is cut", dir)
		}
		f.cut(false, dir)
	}
	// Now the answer comes from the network: the way back is cut.
	f.change(pair{Clients, 0}, func(c *condition) { c.Refuse = true })
	f.cut(true, pair{0, Clients})
	if !refused(10 * time.Second) {
		t.Error("a link that refuses does not answer")
	}
	f.heal()
	f.close()
	if left, err := filepath.Glob("/run/netns/" + namespace(0)); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
