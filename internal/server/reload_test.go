package server

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/server/fdstore"
)

// reloadMark has the test binary keep a descriptor, replace itself, and say through it what it found.
const reloadMark = "keelson-test-reload"

func fakeReload() int {
	if os.Getenv(envHandover) == "" {
		fd, err := unix.FcntlInt(1, unix.F_DUPFD_CLOEXEC, 10)
		if err != nil {
			return 3
		}
		k := fdstore.NewKeeper()
		k.Keep(fdstore.Entry{Name: "fuse/a", State: []byte("state"), FDs: []int{fd}})
		err = replaceSelf("/proc/self/exe", handover{keepers: map[string]*fdstore.Keeper{"engine": k, "etcd": fdstore.NewKeeper()}})
		fmt.Fprintln(os.Stderr, err)
		return 4
	}
	h, err := takeHandover()
	keepers := h.keepers
	if err != nil || len(keepers) != 2 || os.Getenv(envHandover) != "" {
		fmt.Fprintln(os.Stderr, keepers, err)
		return 5
	}
	es := keepers["engine"].Entries()
	if len(es) != 1 || len(es[0].FDs) != 1 {
		return 6
	}
	flags, err := unix.FcntlInt(uintptr(es[0].FDs[0]), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		return 7
	}
	f := os.NewFile(uintptr(es[0].FDs[0]), "kept")
	fmt.Fprintf(f, "%s %s", es[0].Name, es[0].State)
	return 0
}

func TestReplaceSelfKeepsDescriptors(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", reloadMark)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil || string(out) != "fuse/a state" {
		t.Fatalf("%q, %v", out, err)
	}
}
