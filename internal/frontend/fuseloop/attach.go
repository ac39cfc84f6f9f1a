package fuseloop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/block"
)

// attacherEnv in the environment makes a process of this program an attacher: "volume|file", or "volume|file|" and readOnlyArg.
const (
	attacherEnv = "KEELSON_LOOP_ATTACHER"
	readOnlyArg = "read-only"
)

// attachTries bounds how often another process may take the free loop device that
// we were about to use.
const attachTries = 100

func init() {
	if arg := os.Getenv(attacherEnv); arg != "" {
		os.Exit(attacher(arg))
	}
}

// attachLoop makes a loop device of the file. It reads through the file: the session
// must be serving.
//
// The kernel asks the session while it attaches, and whoever waits for such an answer can't be killed. A thread of
// the process that serves would, after kill -9, keep that process from ending, and with it the
// session's descriptor open: it would wait for itself for ever, and no successor could start. So another process
// attaches. When the server dies, that one waits for the successor, or gets an error.
func attachLoop(ctx context.Context, volume, file string, readOnly bool) (loopDevice, error) {
	self, err := os.Executable()
	if err != nil {
		return loopDevice{}, err
	}
	cmd := exec.CommandContext(ctx, self)
	arg := volume + "|" + file
	if readOnly {
		arg += "|" + readOnlyArg
	}
	cmd.Env = append(os.Environ(), attacherEnv+"="+arg)
	var msg bytes.Buffer
	cmd.Stderr = &msg
	out, err := cmd.Output()
	if ctx.Err() != nil {
		err = errors.Join(ctx.Err(), err)
	}
	if err != nil {
		for _, d := range loopsBelow(filepath.Dir(file)) {
			d.drop() // it was killed after it had attached
		}
		return loopDevice{}, fmt.Errorf("attach a loop device: %w: %s", err, strings.TrimSpace(msg.String()))
	}
	n, err := strconv.Atoi(string(out))
	if err != nil {
		return loopDevice{}, fmt.Errorf("attach a loop device: number %q: %w", out, err)
	}
	return loopDevice{Number: n, Backing: backing(n)}, nil
}

// attacher is the life of the process that attaches: it prints the number of the device.
func attacher(arg string) (code int) {
	volume, file, _ := strings.Cut(arg, "|")
	file, readOnly := strings.CutSuffix(file, "|"+readOnlyArg)
	n, err := configureLoop(volume, file, readOnly)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Print(n)
	return 0
}

// configureLoop attaches the file to a loop device that is free, and returns its number.
func configureLoop(volume, file string, readOnly bool) (int, error) {
	f, err := unix.Open(file, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", file, err)
	}
	defer unix.Close(f)
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open /dev/loop-control: %w (is the loop module loaded?)", err)
	}
	defer unix.Close(control)

	config := unix.LoopConfig{Fd: uint32(f), Size: block.Size}
	config.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	if readOnly {
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], "keelson:"+volume)
	for range attachTries {
		n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return 0, fmt.Errorf("find a free loop device: %w", err)
		}
		d := loopDevice{Number: n}
		err = d.configure(&config)
		if errors.Is(err, unix.EBUSY) {
			continue // somebody else was faster
		}
		if err != nil {
			return 0, fmt.Errorf("configure %s: %w", d.path(), err)
		}
		return n, nil
	}
	return 0, fmt.Errorf("find a free loop device: %d times in a row somebody else took it", attachTries)
}

func (d loopDevice) configure(config *unix.LoopConfig) error {
	fd, err := unix.Open(d.path(), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.IoctlLoopConfigure(fd, config)
}
