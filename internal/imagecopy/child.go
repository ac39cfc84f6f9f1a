package imagecopy

import "syscall"

// dieWithParent has a child end when this program does, also if it is killed.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
}
