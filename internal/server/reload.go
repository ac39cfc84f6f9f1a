package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/server/fdstore"
)

// envHandover is the environment variable with the number of the descriptor from which a supervisor that
// replaced another one in the same process reads what that one left.
const envHandover = "KEELSON_HANDOVER_FD"

// handover is what a supervisor leaves to the one that replaces it in the same process.
type handover struct {
	keepers map[string]*fdstore.Keeper
	left    map[string]Left
	upgrade *upgrade
}

// handoverFile is a handover as it is written. Other versions read it: fields are added, never changed.
type handoverFile struct {
	Kept    map[string][]fdstore.Entry `json:"kept"`
	Left    map[string]leftFile        `json:"left"`
	Upgrade *upgrade                   `json:"upgrade"`
}

type leftFile struct {
	PID  int `json:"pid"`
	Line int `json:"line"` // descriptor
}

// replaceSelf becomes the binary that is at path now, with everything that is handed over. It returns only if
// it can't.
func replaceSelf(path string, h handover) error {
	out := handoverFile{Kept: map[string][]fdstore.Entry{}, Left: map[string]leftFile{}, Upgrade: h.upgrade}
	var fds []int
	for name, k := range h.keepers {
		out.Kept[name] = k.Entries()
		for _, e := range out.Kept[name] {
			fds = append(fds, e.FDs...)
		}
	}
	for name, l := range h.left {
		out.Left[name] = leftFile{PID: l.PID, Line: int(l.Line.Fd())}
		fds = append(fds, int(l.Line.Fd()))
	}
	b, err := json.Marshal(out)
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("keelson-handover", 0)
	if err != nil {
		return fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "keelson-handover")
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	defer func() {
		for _, n := range fds {
			unix.CloseOnExec(n)
		}
	}()
	for _, n := range fds {
		if _, err := unix.FcntlInt(uintptr(n), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("descriptor %d: %w", n, err)
		}
	}
	return syscall.Exec(path, os.Args, append(os.Environ(), envHandover+"="+strconv.Itoa(fd)))
}

// takeHandover returns what the supervisor that this one replaced left; nothing if it replaced none.
func takeHandover() (handover, error) {
	h := handover{keepers: map[string]*fdstore.Keeper{}, left: map[string]Left{}}
	v := os.Getenv(envHandover)
	if v == "" {
		return h, nil
	}
	os.Unsetenv(envHandover)
	fd, err := strconv.Atoi(v)
	if err != nil {
		return h, fmt.Errorf("%s=%q is no descriptor", envHandover, v)
	}
	f := os.NewFile(uintptr(fd), "keelson-handover")
	if f == nil {
		return h, errors.New(envHandover + ": bad descriptor")
	}
	defer f.Close()
	var in handoverFile
	if err := json.NewDecoder(f).Decode(&in); err != nil {
		return h, fmt.Errorf("what the supervisor before this one left can't be read: %w", err)
	}
	for name, es := range in.Kept {
		h.keepers[name] = fdstore.NewKeeper()
		for _, e := range es {
			for _, n := range e.FDs {
				unix.CloseOnExec(n)
			}
			h.keepers[name].Keep(e)
		}
	}
	for name, l := range in.Left {
		unix.CloseOnExec(l.Line)
		h.left[name] = Left{PID: l.PID, Line: os.NewFile(uintptr(l.Line), "line of "+name)}
	}
	h.upgrade = in.Upgrade
	return h, nil
}
