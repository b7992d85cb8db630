package nemesis

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// packets is a network of namespaces: one for each node, and the one of this
// process for the clients. The only interface of a namespace beside the loopback
// is a TUN device whose other end is here: each packet passes through this
// process, which loses, doubles, delays and reorders it, or holds a direction
// shut. TCP meets all that as it does on a wire, and needs no kernel module for it.
type packets struct {
	shared
	devices map[int]*os.File
	made    []string // namespaces
	subnet  string   // "198.18.7."
	wg      sync.WaitGroup
	late    sync.WaitGroup // packets that wait for their time
	stop    context.CancelFunc
	ctx     context.Context

	queue struct {
		sync.Mutex
		free    map[pair]time.Time // when a direction with a rate is free again
		resets  map[pair]time.Time // until when its packets become resets
		waiting int
	}
}

const (
	// clientHost is the last byte of this process's address; nodes count from 1.
	clientHost = 254
	// queueMax bounds what a direction with a rate holds before it loses.
	queueMax = time.Second
	// waitingMax bounds the packets that are on their way.
	waitingMax = 20_000
	// resetFor is how long the packets of a direction become resets.
	resetFor = 300 * time.Millisecond

	prefixNS = "flotilla-"
)

// packetsPossible says why there can be no such network, in words for a user.
func packetsPossible() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces can only be made by root; run this as root, or without --netns")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return errors.New("network namespaces need the command ip (package iproute2), which is not there")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("%w: the kernel needs TUN devices for --netns", err)
	}
	return nil
}

// newPackets makes the namespaces of a cluster. It needs root.
func newPackets(nodes int) (_ fabric, err error) {
	if err := packetsPossible(); err != nil {
		return nil, err
	}
	sweep()
	n := &packets{devices: map[int]*os.File{}}
	n.shared.init()
	n.queue.free, n.queue.resets = map[pair]time.Time{}, map[pair]time.Time{}
	n.ctx, n.stop = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	if n.subnet, err = freeSubnet(); err != nil {
		return nil, err
	}
	for i := Clients; i < nodes; i++ {
		if err := n.attach(i); err != nil {
			return nil, err
		}
	}
	for i, d := range n.devices {
		n.wg.Go(func() { n.forward(i, d) })
	}
	return n, nil
}

func (n *packets) host(i int) string {
	if i == Clients {
		return n.subnet + strconv.Itoa(clientHost)
	}
	return n.subnet + strconv.Itoa(i+1)
}

func (n *packets) endOf(host byte) (int, bool) {
	i := int(host) - 1
	if host == clientHost {
		i = Clients
	}
	_, ok := n.devices[i]
	return i, ok
}

// namespace names that of a node; it tells whose it is, for sweep.
func namespace(i int) string { return fmt.Sprintf("%s%d-%s", prefixNS, os.Getpid(), endName(i)) }

// attach makes the namespace of a node, if it is one, with its device.
func (n *packets) attach(i int) error {
	name := fmt.Sprintf("fl%d-%d", os.Getpid()%1_000_000, i+1)
	d, err := openTUN(name)
	if err != nil {
		return err
	}
	n.devices[i] = d
	var in []string // of commands within the namespace
	if i != Clients {
		ns := namespace(i)
		if err := command("ip", "netns", "add", ns); err != nil {
			return err
		}
		n.made = append(n.made, ns)
		if err := command("ip", "link", "set", name, "netns", ns); err != nil {
			return err
		}
		in = []string{"-n", ns}
		if err := command("ip", append(in, "link", "set", "lo", "up")...); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"addr", "add", n.host(i) + "/24", "dev", name}, {"link", "set", name, "up"}} {
		if err := command("ip", append(append([]string{}, in...), args...)...); err != nil {
			return err
		}
	}
	return nil
}

// wrap makes a command line run in the namespace of a node.
func (n *packets) wrap(i int, argv []string) []string {
	return append([]string{"ip", "netns", "exec", namespace(i)}, argv...)
}

// reach: a node listens where it is reached.
func (n *packets) reach(i int) (peer, client, peerVia, clientVia string, err error) {
	peer, client = n.host(i)+":7001", n.host(i)+":7002"
	return peer, client, peer, client, nil
}

func (n *packets) lossy() bool { return true }

// forward takes the packets of one end.
func (n *packets) forward(from int, d *os.File) {
	buf := make([]byte, 64<<10)
	for {
		k, err := d.Read(buf)
		if err != nil {
			return
		}
		b := buf[:k]
		if k < 20 || b[0]>>4 != 4 {
			continue // IPv6 of the kernel's own
		}
		to, ok := n.endOf(b[19])
		if !ok || to == from {
			continue
		}
		n.pass(pair{from, to}, b)
	}
}

// pass lets a packet meet the condition of its direction.
func (n *packets) pass(dir pair, b []byte) {
	c := n.at(dir).cond
	if c.Hole || c.Loss > 0 && rand.Float64() < c.Loss {
		return
	}
	if c.Refuse {
		if answer := refusal(b); answer != nil {
			n.write(dir.from, answer)
		}
		return
	}
	wait, resets := n.plan(dir, c, len(b))
	if wait < 0 {
		return
	}
	if resets {
		b = resetOf(b)
	}
	times := 1
	if c.Duplicate > 0 && rand.Float64() < c.Duplicate {
		times = 2
	}
	for range times {
		d := wait
		if c.Delay > 0 {
			d += rand.N(c.Delay)
		}
		if d == 0 {
			n.write(dir.to, b)
			continue
		}
		n.later(d, dir.to, append([]byte(nil), b...))
	}
}

// plan says how long a packet waits for the rate of its direction, negative: it
// is lost; and whether connections of the direction are being reset.
func (n *packets) plan(dir pair, c condition, size int) (wait time.Duration, resets bool) {
	n.queue.Lock()
	defer n.queue.Unlock()
	now := time.Now()
	resets = now.Before(n.queue.resets[dir])
	if c.Rate > 0 {
		free := n.queue.free[dir]
		if free.Before(now) {
			free = now
		}
		free = free.Add(time.Duration(size) * time.Second / time.Duration(c.Rate))
		if wait = free.Sub(now); wait > queueMax {
			return -1, false
		}
		n.queue.free[dir] = free
	}
	return wait, resets
}

func (n *packets) later(d time.Duration, to int, b []byte) {
	n.queue.Lock()
	if n.queue.waiting >= waitingMax || n.ctx.Err() != nil {
		n.queue.Unlock()
		return
	}
	n.queue.waiting++
	n.late.Add(1)
	n.queue.Unlock()
	time.AfterFunc(d, func() {
		defer n.late.Done()
		n.write(to, b)
		n.queue.Lock()
		n.queue.waiting--
		n.queue.Unlock()
	})
}

// write hands a packet to an end; it may be lost there, like any packet.
func (n *packets) write(to int, b []byte) { n.devices[to].Write(b) }

func (n *packets) reset(a, b int) int {
	n.queue.Lock()
	defer n.queue.Unlock()
	until := time.Now().Add(resetFor)
	n.queue.resets[pair{a, b}], n.queue.resets[pair{b, a}] = until, until
	return 1
}

func (n *packets) close() {
	n.queue.Lock()
	n.stop()
	n.queue.Unlock()
	n.late.Wait()
	for _, d := range n.devices {
		d.Close()
	}
	n.wg.Wait()
	for _, ns := range n.made {
		_ = command("ip", "netns", "del", ns) // sweep of the next run tries again
	}
	n.made = nil
}

// sweep removes the namespaces of runs that were killed.
func sweep() {
	all, _ := filepath.Glob("/run/netns/" + prefixNS + "*")
	for _, path := range all {
		ns := filepath.Base(path)
		pid, _, _ := strings.Cut(strings.TrimPrefix(ns, prefixNS), "-")
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
			_ = command("ip", "netns", "del", ns)
		}
	}
}

// freeSubnet picks a network of those reserved for tests of devices (RFC 2544)
// that this machine has no address in.
func freeSubnet() (string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for k := range 256 {
		at := fmt.Sprintf("198.18.%d.", (os.Getpid()+k)%256)
		taken := false
		for _, a := range addrs {
			taken = taken || strings.HasPrefix(a.String(), at)
		}
		if !taken {
			return at, nil
		}
	}
	return "", errors.New("all networks of 198.18.0.0/16 are in use")
}

func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// openTUN makes a device that lasts as long as the file.
func openTUN(name string) (*os.File, error) {
	fd, err := syscall.Open("/dev/net/tun", syscall.O_RDWR|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w; the kernel needs TUN devices for --netns", err)
	}
	const (
		setIff  = 0x400454ca // TUNSETIFF
		iffTUN  = 0x0001
		iffNoPI = 0x1000
	)
	var req struct { // struct ifreq
		name  [16]byte
		flags uint16
		_     [22]byte
	}
	copy(req.name[:15], name)
	req.flags = iffTUN | iffNoPI
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), setIff, uintptr(unsafe.Pointer(&req))); errno != 0 {
		syscall.Close(fd)
		return nil, fmt.Errorf("/dev/net/tun: make device %s: %w", name, errno)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// The bytes of IPv4 and TCP headers that matter here.
const (
	protoTCP       = 6
	flagSYN        = 0x02
	flagRST        = 0x04
	flagACK        = 0x10
	ipHeader       = 20
	tcpHeader      = 20
	ipProto        = 9
	ipSource       = 12
	ipDest         = 16
	tcpSeq, tcpAck = 4, 8
	tcpFlags       = 13
)

// segment returns the TCP part of a packet, or nil.
func segment(b []byte) []byte {
	head := int(b[0]&15) * 4
	if b[ipProto] != protoTCP || head < ipHeader || len(b) < head+tcpHeader {
		return nil
	}
	return b[head:]
}

// resetOf turns a packet of an open connection into one that resets it.
func resetOf(b []byte) []byte {
	s := segment(b)
	if s == nil || s[tcpFlags]&(flagSYN|flagRST) != 0 {
		return b
	}
	return bareSegment(b[ipSource:ipSource+4], b[ipDest:ipDest+4], s[0:2], s[2:4],
		binary.BigEndian.Uint32(s[tcpSeq:]), binary.BigEndian.Uint32(s[tcpAck:]), flagRST|flagACK)
}

// refusal answers a packet that wants a connection as a closed port does, and
// is nil for all others.
func refusal(b []byte) []byte {
	s := segment(b)
	if s == nil || s[tcpFlags]&(flagSYN|flagACK) != flagSYN {
		return nil
	}
	return bareSegment(b[ipDest:ipDest+4], b[ipSource:ipSource+4], s[2:4], s[0:2],
		0, binary.BigEndian.Uint32(s[tcpSeq:])+1, flagRST|flagACK)
}

func bareSegment(source, dest, sourcePort, destPort []byte, seq, ack uint32, flags byte) []byte {
	b := make([]byte, ipHeader+tcpHeader)
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	b[8], b[ipProto] = 64, protoTCP
	copy(b[ipSource:], source)
	copy(b[ipDest:], dest)
	binary.BigEndian.PutUint16(b[10:], checksum(0, b[:ipHeader]))
	s := b[ipHeader:]
	copy(s[0:2], sourcePort)
	copy(s[2:4], destPort)
	binary.BigEndian.PutUint32(s[tcpSeq:], seq)
	binary.BigEndian.PutUint32(s[tcpAck:], ack)
	s[12], s[tcpFlags] = tcpHeader/4<<4, flags
	binary.BigEndian.PutUint16(s[16:], checksum(uint32(protoTCP+tcpHeader), b[ipSource:]))
	return b
}

// checksum is that of the internet protocols, over an even number of bytes.
func checksum(sum uint32, b []byte) uint16 {
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
