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

// envKept is the environment variable with the number of the descriptor from which a supervisor that
// replaced another one reads what that one kept.
const envKept = "KEELSON_KEPT_FD"

// replaceSelf becomes the binary that is at path now, with everything that the keepers keep. It returns only if
// it can't.
func replaceSelf(path string, keepers map[string]*fdstore.Keeper) error {
	kept := map[string][]fdstore.Entry{}
	for name, k := range keepers {
		kept[name] = k.Entries()
	}
	b, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("keelson-kept", 0)
	if err != nil {
		return fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "keelson-kept")
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for _, es := range kept {
		for _, e := range es {
			for _, n := range e.FDs {
				if _, err := unix.FcntlInt(uintptr(n), unix.F_SETFD, 0); err != nil {
					return fmt.Errorf("descriptor %d of %q: %w", n, e.Name, err)
				}
			}
		}
	}
	return syscall.Exec(path, os.Args, append(os.Environ(), envKept+"="+strconv.Itoa(fd)))
}

// keptBefore returns the keepers of the supervisor that this one replaced; none if it replaced none.
func keptBefore() (map[string]*fdstore.Keeper, error) {
	keepers := map[string]*fdstore.Keeper{}
	v := os.Getenv(envKept)
	if v == "" {
		return keepers, nil
	}
	os.Unsetenv(envKept)
	fd, err := strconv.Atoi(v)
	if err != nil {
		return nil, fmt.Errorf("%s=%q is no descriptor", envKept, v)
	}
	f := os.NewFile(uintptr(fd), "keelson-kept")
	if f == nil {
		return nil, errors.New(envKept + ": bad descriptor")
	}
	defer f.Close()
	var kept map[string][]fdstore.Entry
	if err := json.NewDecoder(f).Decode(&kept); err != nil {
		return nil, fmt.Errorf("what the supervisor before this one kept can't be read: %w", err)
	}
	for name, es := range kept {
		keepers[name] = fdstore.NewKeeper()
		for _, e := range es {
			for _, n := range e.FDs {
				unix.CloseOnExec(n)
			}
			keepers[name].Keep(e)
		}
	}
	return keepers, nil
}
