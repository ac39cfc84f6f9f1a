package server

import (
	"bufio"
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settleAfter is when a process that has begun has done what its start takes.
const settleAfter = 10 * time.Second

// settleLater has the process settle once; stop calls it off.
func settleLater(log *slog.Logger) (stop func()) {
	t := time.AfterFunc(settleAfter, func() {
		debug.FreeOSMemory()
		if err := unmapProgram(); err != nil {
			log.Debug("memory that only the start needed can't be given back; it stays", "err", err)
		}
	})
	return func() { t.Stop() }
}

// unmapProgram takes the program's own pages out of this process's memory: its start goes through all of the program, as every
// package initialises itself, and most of that isn't needed again in a process that then waits. What is needed again comes back by a
// page fault, from the page cache, 64 KiB at a time.
//
// Not for the engine: its memory is locked, and it must not wait for a page.
func unmapProgram() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return err
	}
	for _, r := range programPages(maps, self) {
		if err := madvise(r, unix.MADV_DONTNEED); err != nil {
			return fmt.Errorf("give back %x to %x: %w", r.from, r.to, err)
		}
	}
	return nil
}

// addresses are those from one up to another one.
type addresses struct{ from, to uintptr }

func madvise(r addresses, advice int) error {
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, r.from, r.to-r.from, uintptr(advice)); errno != 0 {
		return errno
	}
	return nil
}

// programPages returns what of a file is mapped to be read or executed only, from the text of smaps.
//
// Invariant: no page in it was ever changed, as a loader does before it takes the right to write away: it would come back as it is in
// the file. Nor is any locked.
func programPages(smaps []byte, file string) []addresses {
	var list []addresses
	var now addresses
	clean := 0 // counters that say that now can be given back
	s := bufio.NewScanner(bytes.NewReader(smaps))
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 2 {
			continue
		}
		if key, isField := strings.CutSuffix(f[0], ":"); isField {
			if (key == "Anonymous" || key == "Swap" || key == "Locked") && f[1] == "0" {
				clean++
			}
			if key == "Locked" && clean == 3 && now.to > now.from {
				list = append(list, now)
			}
			continue
		}
		now, clean = addresses{}, 0
		if len(f) >= 6 && (f[1] == "r-xp" || f[1] == "r--p") && strings.Join(f[5:], " ") == file {
			now = parseAddresses(f[0])
		}
	}
	return list
}

func parseAddresses(text string) (a addresses) {
	from, to, _ := strings.Cut(text, "-")
	x, err1 := strconv.ParseUint(from, 16, 64)
	y, err2 := strconv.ParseUint(to, 16, 64)
	if err1 != nil || err2 != nil {
		return a
	}
	return addresses{uintptr(x), uintptr(y)}
}
