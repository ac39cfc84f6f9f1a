package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/lab"
)

// record is what has to be undone, in a file, so that another process can do it.
type record struct {
	path string
	mu   sync.Mutex
	recorded
}

type recorded struct {
	Processes []process         `json:"processes"`
	Sysctls   map[string]string `json:"sysctls"`
	// Loops are the loop devices that were in use before.
	Loops []string `json:"loops"`
}

// process is one that can't be mistaken for another that has its number later.
type process struct {
	PID   int    `json:"pid"`
	Start string `json:"start"` // field 22 of /proc/PID/stat
}

// sysctls are what kubelet sets on the machine.
var sysctls = []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"}

func newRecord(dir string) *record { return &record{path: filepath.Join(dir, "record.json")} }

// begin notes how the machine is now.
func (r *record) begin() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Sysctls = map[string]string{}
	for _, name := range sysctls {
		b, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			continue
		}
		r.Sysctls[name] = strings.TrimSpace(string(b))
	}
	r.Loops = usedLoops()
	return r.save()
}

func (r *record) save() error {
	b, err := json.MarshalIndent(r.recorded, "", " ")
	if err != nil {
		return err
	}
	tmp := r.path + ".new"
	return errors.Join(os.WriteFile(tmp, b, 0o600), os.Rename(tmp, r.path))
}

// add notes a process that was started.
func (r *record) add(pid int) (process, error) {
	start, err := startOf(pid)
	if err != nil {
		return process{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p := process{pid, start}
	r.Processes = append(r.Processes, p)
	return p, r.save()
}

func startOf(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	const field = 22 - 3 // what is cut off are the first two
	if len(f) <= field {
		return "", fmt.Errorf("/proc/%d/stat can't be read", pid)
	}
	return f[field], nil
}

func (p process) alive() bool {
	s, err := startOf(p.PID)
	return err == nil && s == p.Start
}

// endLimit is how long killed processes may take to be gone.
const endLimit = time.Minute

// kill ends the processes, and with the first process of a PID namespace all in it.
//
// What a node has mounted of volumes is unmounted by the last of its processes, which waits for the volume to be flushed: for an answer that
// nobody gives any more, and if that process has the descriptor of the connection, for ever. So those connections are ended.
func (r *record) kill() error {
	mine := map[uint64]bool{}
	for _, p := range r.Processes {
		for dev := range lab.FUSEDevicesOf(p.PID) {
			mine[dev] = true
		}
	}
	for dev := range lab.FUSEDevicesOf(0) {
		delete(mine, dev)
	}
	for _, p := range r.Processes {
		if p.alive() {
			_ = unix.Kill(p.PID, unix.SIGKILL)
		}
	}
	deadline := time.Now().Add(endLimit)
	for _, p := range r.Processes {
		for p.alive() {
			if time.Now().After(deadline) {
				return fmt.Errorf("process %d doesn't end: something in it waits for a device that nobody serves", p.PID)
			}
			time.Sleep(20 * time.Millisecond)
			if err := abortFUSE(mine, r.Loops); err != nil {
				return err
			}
		}
	}
	return nil
}

// down undoes what is recorded in the directory, and removes it. Without one there is nothing to do.
func down(dir string) error {
	r := newRecord(dir)
	b, err := os.ReadFile(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return os.RemoveAll(dir)
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &r.recorded); err != nil {
		return fmt.Errorf("%s: %w", r.path, err)
	}
	err = r.kill()
	err = errors.Join(err, removeLoops(dir, r.Loops), removeNetwork(), removeGroups())
	for name, value := range r.Sysctls {
		if b, rerr := os.ReadFile("/proc/sys/" + name); rerr == nil && strings.TrimSpace(string(b)) != value {
			err = errors.Join(err, os.WriteFile("/proc/sys/"+name, []byte(value), 0o644))
		}
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(dir)
}
