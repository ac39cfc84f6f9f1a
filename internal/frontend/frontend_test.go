package frontend_test

import (
	"errors"
	"fmt"
	"math"
	"syscall"
	"testing"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/frontend"
)

func TestCheck(t *testing.T) {
	const size = 1 << 20
	for _, tc := range []struct {
		op     block.Op
		off, n int64
		want   syscall.Errno
	}{
		{block.OpRead, 0, 4096, 0},
		{block.OpWrite, 0, size, 0},
		{block.OpWrite, size - 4096, 4096, 0},
		{block.OpRead, size, 0, 0},
		{block.OpFlush, 1, 1, 0},
		{block.OpRead, 1, 4096, syscall.EINVAL},
		{block.OpRead, 0, 512, syscall.EINVAL},
		{block.OpRead, -4096, 4096, syscall.EINVAL},
		{block.OpRead, 0, -4096, syscall.EINVAL},
		{block.OpRead, size, 4096, syscall.EINVAL},
		{block.OpTrim, size - 4096, 8192, syscall.EINVAL},
		{block.OpWrite, size, 4096, syscall.ENOSPC},
		{block.OpZero, size - 4096, 8192, syscall.ENOSPC},
		{block.OpWrite, 4096, math.MaxInt64 - 4095, syscall.ENOSPC},
		{block.OpWrite, math.MaxInt64 - 4095, 4096, syscall.ENOSPC},
	} {
		if got := frontend.Check(tc.op, tc.off, tc.n, size); got != tc.want {
			t.Errorf("%v [%d, +%d) of %d: %v, want %v", tc.op, tc.off, tc.n, size, got, tc.want)
		}
	}
}

func TestErrno(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{syscall.ENOSPC, syscall.ENOSPC},
		{fmt.Errorf("write: %w", syscall.ESHUTDOWN), syscall.ESHUTDOWN},
		{errors.New("something else"), syscall.EIO},
		{syscall.Errno(0), syscall.EIO},
	} {
		if got := frontend.Errno(tc.err); got != tc.want {
			t.Errorf("%v: %v, want %v", tc.err, got, tc.want)
		}
	}
}

func TestBusyError(t *testing.T) {
	err := fmt.Errorf("detach: %w", &frontend.BusyError{Volume: "v", Path: "/dev/loop7", By: "mounted on /mnt/a"})
	if !errors.Is(err, frontend.ErrBusy) || errors.Is(err, syscall.EBUSY) {
		t.Errorf("%v isn't classified as ErrBusy", err)
	}
}
