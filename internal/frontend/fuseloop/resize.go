package fuseloop

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// resizerEnv in the environment makes a process of this program a resizer: "loop number|file".
const resizerEnv = "KEELSON_LOOP_RESIZER"

// sectorSize is the unit in which the kernel tells the sizes of block devices, whatever their own sectors.
const sectorSize = 512

func init() {
	if arg := os.Getenv(resizerEnv); arg != "" {
		if err := resizeLoop(arg); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// Resize makes the block device as large as the volume is now; those who have it open see that. It does nothing if it is. When
// ctx ends it returns, and what it began may still be done.
func (s *Server) Resize(ctx context.Context) error {
	s.mu.Lock()
	dev, ended := s.dev, s.ended
	s.mu.Unlock()
	if ended || !dev.attached() {
		return nil
	}
	var want int64
	s.onLoop(func() { want = s.cfg.Device.Size() })
	if have, err := dev.size(); err != nil || have == want {
		return err
	}
	if err := s.runResizer(ctx, dev); err != nil {
		return fmt.Errorf("volume %q: make %s larger: %w", s.cfg.Name, dev.path(), err)
	}
	if have, err := dev.size(); err != nil || have < want {
		return fmt.Errorf("volume %q: %s has %d bytes, and should have %d (%v)", s.cfg.Name, dev.path(), have, want, err)
	}
	s.cfg.Log.Info("block device grown", "device", dev.path(), "size", want)
	return nil
}

// runResizer has another process do it, for the reason that attachLoop gives. It isn't waited for beyond ctx: it may wait for
// the successor of this process.
func (s *Server) runResizer(ctx context.Context, dev loopDevice) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), resizerEnv+"="+strconv.Itoa(dev.Number)+"|"+s.File())
	var msg bytes.Buffer
	cmd.Stderr = &msg
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("%w: %s", err, strings.TrimSpace(msg.String()))
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// resizeTries is how often the kernel is told a size that the volume hasn't any more by then.
const resizeTries = 10

// resizeLoop has the kernel take the volume's size for that of the file, and then the loop device that of the file.
//
// Asking for the file's attributes isn't enough: the kernel drops an answer that a write overtakes, and reads beyond the size that
// it goes on to believe in return nothing, which a loop device makes an I/O error. Setting the file's size to what it is does it: the
// session agrees to no other.
func resizeLoop(arg string) error {
	number, file, _ := strings.Cut(arg, "|")
	n, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	for try := range resizeTries {
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, file, unix.AT_STATX_FORCE_SYNC, unix.STATX_SIZE, &st); err != nil {
			return fmt.Errorf("ask for the size of %s: %w", file, err)
		}
		if err = os.Truncate(file, int64(st.Size)); err == nil || try == resizeTries-1 {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("tell the kernel the size of %s: %w", file, err)
	}
	d := loopDevice{Number: n}
	fd, err := unix.Open(d.path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", d.path(), err)
	}
	defer unix.Close(fd)
	if err := unix.IoctlSetInt(fd, unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("LOOP_SET_CAPACITY: %w", err)
	}
	return nil
}

// size is the device's size in bytes.
func (d loopDevice) size() (int64, error) {
	b, err := os.ReadFile(d.sysfs("size"))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n * sectorSize, err
}
