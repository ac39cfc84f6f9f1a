package ring

import (
	"log/slog"
	"syscall"

	"golang.org/x/sys/unix"
)

// ProtectMemory keeps a process that serves disks from waiting for a disk that it
// serves itself: its threads write nothing back when they reclaim memory
// (PR_SET_IO_FLUSHER, needs CAP_SYS_RESOURCE), and what memory it has touched stays
// (mlockall, needs CAP_IPC_LOCK or a limit high enough). What the system refuses is
// logged, and the process goes on without. Call it early in main: threads inherit it.
func ProtectMemory(log *slog.Logger) {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0)
	if errno == syscall.ENOTSUP {
		// A binary with cgo: at least this thread, and those that come from it.
		errno = 0
		if err := unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0); err != nil {
			errno = err.(syscall.Errno)
		}
	}
	if errno != 0 {
		log.Warn("without PR_SET_IO_FLUSHER the engine can wait for itself when memory is short; give it CAP_SYS_RESOURCE", "error", errno)
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		log.Warn("the engine's memory isn't locked and may be paged out; give it CAP_IPC_LOCK", "error", err)
	}
}
