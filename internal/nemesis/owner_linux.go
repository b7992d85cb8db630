package nemesis

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ownerOf finds which of the processes holds the other end of a connection over
// the loopback interface. It fails when none does, or when it has ended meanwhile.
func ownerOf(c net.Conn, pids []int) (pid int, ok bool) {
	far, isTCP := c.RemoteAddr().(*net.TCPAddr)
	near, _ := c.LocalAddr().(*net.TCPAddr)
	if !isTCP || far.IP.To4() == nil {
		return 0, false
	}
	inode, ok := inodeOf(kernelAddr(far), kernelAddr(near))
	if !ok {
		return 0, false
	}
	want := "socket:[" + inode + "]"
	for _, p := range pids {
		links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p))
		if err != nil {
			continue
		}
		if slices.ContainsFunc(links, func(l string) bool { t, err := os.Readlink(l); return err == nil && t == want }) {
			return p, true
		}
	}
	return 0, false
}

// kernelAddr writes an address as /proc/net/tcp does.
func kernelAddr(a *net.TCPAddr) string {
	ip := slices.Clone(a.IP.To4())
	slices.Reverse(ip)
	return strings.ToUpper(hex.EncodeToString(ip)) + ":" + fmt.Sprintf("%04X", a.Port)
}

// inodeOf finds the socket that is bound to local and connected to remote.
func inodeOf(local, remote string) (string, bool) {
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		sc := bufio.NewScanner(f)
		for sc.Scan() {
			w := strings.Fields(sc.Text())
			if len(w) < 10 || !strings.HasSuffix(w[1], local) || !strings.HasSuffix(w[2], remote) {
				continue
			}
			if n, err := strconv.Atoi(w[9]); err == nil && n > 0 {
				f.Close()
				return w[9], true
			}
		}
		f.Close()
	}
	return "", false
}
