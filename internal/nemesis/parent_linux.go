package nemesis

import "syscall"

// ownGroup keeps a process out of reach of the terminal's interrupts, and ends
// it with this one, should this one be killed before it can clean up.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
