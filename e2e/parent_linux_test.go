package e2e

import "syscall"

// dieWithParent ends a process with the test that started it, should the test be
// killed before it can clean up.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
