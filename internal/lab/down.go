package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Down removes the lab of that name in dir and everything that it made. It needs no
// intact record and can be repeated; it returns ErrNoLab if there was nothing.
func Down(name, dir string) error {
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	if name == "" || dir == "" || filepath.Clean(dir) == "/" {
		return fmt.Errorf("lab %q in %q can't be removed: give its name and directory", name, dir)
	}
	if exists(dir) && !exists(filepath.Join(dir, stateFile)) && !exists(filepath.Join(dir, stateFile+".new")) {
		return fmt.Errorf("%s has no %s, so it is not a lab's and stays: remove it by hand", dir, stateFile)
	}
	found := exists(dir)
	procs := strays(name, dir)
	if l, err := Load(dir); err == nil {
		for _, n := range l.state.Nodes {
			if n.Keeper.alive() {
				procs = append(procs, n.Keeper)
			}
		}
	}
	found = found || len(procs) > 0
	// Which devices are the lab's can only be told while its mounts are there.
	var pids []int
	for _, p := range procs {
		pids = append(pids, p.PID)
	}
	held, err := labLoops(dir, pids)
	if err != nil {
		return err
	}
	if err := endAll(procs, held); err != nil {
		return err
	}
	// They may be of another lab that is just going down, which sees to them itself: so what doesn't go is no failure here.
	if orphans := orphanLoops(); abortFUSE(orphans) == nil {
		_ = detach(orphans)
	}
	if err := errors.Join(detach(held), unmountBelow(dir), removeNetwork(name), removeGroups(dir)); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("%s: %w", name, ErrNoLab)
	}
	return nil
}

// endAll ends nodes in order where their keeper is known, and then whatever else there is.
func endAll(procs []process, held []loop) error {
	var errs []error
	for _, p := range procs {
		if cmd := commandLine(p.PID); len(cmd) > 2 && cmd[2] == "keeper" {
			errs = append(errs, end(p, held))
		}
	}
	errs = append(errs, abortFUSE(held))
	left, err := killAll(procs, 20*time.Second)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("processes %v are still there 20 s after they were killed", left)
	}
	return errors.Join(append(errs, err)...)
}

// unmountBelow unmounts what somebody mounted below dir on the host itself.
func unmountBelow(dir string) error {
	all := mountsHere()
	var errs []error
	for i := len(all) - 1; i >= 0; i-- {
		if !below(all[i].point, dir) {
			continue
		}
		if err := unix.Unmount(all[i].point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", all[i].point, err))
		}
	}
	return errors.Join(errs...)
}
