//go:build !linux

package live

import "syscall"

func dieWithParent() *syscall.SysProcAttr { return nil }
