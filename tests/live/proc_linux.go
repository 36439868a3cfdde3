package live

import "syscall"

// dieWithParent has the kernel kill the server when the test process itself is killed.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
