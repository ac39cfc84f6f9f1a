package imagecopy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// qemuImage is an image that a qemu-nbd of its own reads or writes.
type qemuImage struct {
	Image
	cmd  *exec.Cmd
	dir  string
	done chan struct{} // closed when the process has ended
}

// errNoQEMU is said where the programs are missing.
func errNoQEMU(program string, err error) error {
	return fmt.Errorf("%s is needed for this format (Debian and Ubuntu: qemu-utils; Fedora: qemu-img): %w", program, err)
}

// OpenQEMU opens a file of a format that qemu knows, through a qemu-nbd process.
func OpenQEMU(ctx context.Context, path, format string, write bool) (_ Image, err error) {
	program, err := exec.LookPath("qemu-nbd")
	if err != nil {
		return nil, errNoQEMU("qemu-nbd", err)
	}
	dir, err := os.MkdirTemp("", "keelson-nbd-")
	if err != nil {
		return nil, err
	}
	q := &qemuImage{dir: dir, done: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, q.Close())
		}
	}()
	socket := filepath.Join(dir, "socket")
	args := []string{"--socket", socket, "--format", format, "--shared", "1", "--persistent", "--discard", "unmap", "--detect-zeroes", "off"}
	if !write {
		args = append(args, "--read-only")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	var stderr bytes.Buffer
	q.cmd = exec.Command(program, append(args, abs)...)
	q.cmd.Stderr = &stderr
	q.cmd.SysProcAttr = dieWithParent()
	if err := q.cmd.Start(); err != nil {
		q.cmd = nil
		return nil, errNoQEMU(program, err)
	}
	go func() {
		_ = q.cmd.Wait() // how it ended is seen by who talks to it
		close(q.done)
	}()
	for {
		// It may listen before it finds out that it can't open the file.
		if _, err := os.Stat(socket); err == nil {
			if q.Image, err = DialNBD(ctx, "nbd+unix:///?socket="+socket); err == nil {
				return q, nil
			}
		}
		select {
		case <-q.done:
			return nil, fmt.Errorf("%s can't be opened as %s: %s", path, format, strings.TrimSpace(stderr.String()))
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// CreateQEMU makes a file of a format that qemu knows, and opens it for writing.
func CreateQEMU(ctx context.Context, path, format string, size int64) (Image, error) {
	program, err := exec.LookPath("qemu-img")
	if err != nil {
		return nil, errNoQEMU("qemu-img", err)
	}
	out, err := exec.CommandContext(ctx, program, "create", "-q", "-f", format, path, fmt.Sprint(size)).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s can't be made: %w: %s", path, err, bytes.TrimSpace(out))
	}
	return OpenQEMU(ctx, path, format, true)
}

// Close ends the process, which writes what it has, and waits for it.
func (q *qemuImage) Close() error {
	var errs []error
	if q.Image != nil {
		errs = append(errs, q.Image.Close())
	}
	if q.cmd != nil {
		if err := q.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
		<-q.done
	}
	return errors.Join(append(errs, os.RemoveAll(q.dir))...)
}
