// Package doctor looks at a machine and says what on it is missing for a node of a cluster, or dangerous for its data. It needs no
// server and no configuration, so that it can be asked before anything is installed.
//
// Each check is a function of a Machine, which is where the kernel's files lie and what a few questions to the system answer; so a
// directory of files stands in for any machine. A check reads; nothing is changed. The package owns no goroutine.
package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// State is how bad a finding is.
type State string

// The states.
const (
	OK      State = "ok"
	Note    State = "note"    // worth knowing, nothing to do
	Warning State = "warning" // it works; something is worse than it could be, or may go wrong
	Danger  State = "danger"  // a node can't work here, or not safely
)

// Finding is what a check found.
type Finding struct {
	Check string `json:"check"`
	State State  `json:"state"`
	Found string `json:"found"`
	Why   string `json:"why,omitempty"` // it matters
	Do    string `json:"do,omitempty"`  // what mends it
}

// Options say what the machine shall be good for. Zero values are left out of the checks.
type Options struct {
	DataDir    string
	RunDir     string
	KubeletDir string // looked at only if it is there
	Ports      []Port
	Devices    []string // that shall become pools
	// Keys looks at the wrapping keys of encrypted volumes.
	Keys func(ctx context.Context) Keys
}

// Port is one that a node listens on.
type Port struct {
	Name   string
	Number int
}

// Clock is what the kernel says of the machine's clock.
type Clock struct {
	Synchronised bool
	MaxError     int64 // microseconds
}

// Machine is where the answers come from.
type Machine struct {
	// Root is before /proc, /sys, /dev and /etc; "" is this machine.
	Root string
	// Release and Version are the kernel's, as uname has them.
	Release, Version string
	// Run runs a program and returns what it writes.
	Run func(ctx context.Context, program string, args ...string) (string, error)
	// LookPath finds a program.
	LookPath func(program string) (string, error)
	// Clock asks the kernel about the clock.
	Clock func() (Clock, error)
	// Uring makes an io_uring as the engine does, and lets it go.
	Uring func() error
	// Cgroup says why the engine can't run in the control group of this process; nil isn't asked.
	Cgroup func() error
	// Device says why no pool can be made of a device.
	Device func(ctx context.Context, path string) error
}

// path returns the path of a file of the machine.
func (m *Machine) path(elem ...string) string {
	return filepath.Join(append([]string{"/", m.Root}, elem...)...)
}

// read returns the trimmed content of a small file, "" if it can't be read.
func (m *Machine) read(elem ...string) string {
	b, err := os.ReadFile(m.path(elem...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (m *Machine) exists(elem ...string) bool {
	_, err := os.Stat(m.path(elem...))
	return err == nil
}

// check is one of the things that are looked at.
type check struct {
	name string
	run  func(ctx context.Context, m *Machine, o Options) []Finding
}

// checks are in the order in which they are shown.
var checks = []check{
	{"kernel", checkKernel},
	{"kernel-list", checkKernelList},
	{"io_uring", checkUring},
	{"fuse", checkFUSE},
	{"fuse-timeout", checkFUSETimeout},
	{"loop", checkLoop},
	{"nbd", checkNBD},
	{"xfs", checkXFS},
	{"programs", checkPrograms},
	{"dev", checkDev},
	{"multipath", checkMultipath},
	{"disks", checkDisks},
	{"data-directory", checkDataDir},
	{"mount-propagation", checkPropagation},
	{"ports", checkPorts},
	{"wrapping-keys", checkKeys},
	{"clock", checkClock},
	{"capabilities", checkCapabilities},
	{"open-files", checkOpenFiles},
	{"control-group", checkCgroup},
	{"swap", checkSwap},
	{"huge-pages", checkHugePages},
}

// Names returns the names of the checks, in their order.
func Names() []string {
	out := make([]string, len(checks))
	for i, c := range checks {
		out[i] = c.name
	}
	return out
}

// Examine runs all checks. Every check has at least one finding.
func Examine(ctx context.Context, m *Machine, o Options) []Finding {
	var out []Finding
	for _, c := range checks {
		for _, f := range c.run(ctx, m, o) {
			f.Check = c.name
			out = append(out, f)
		}
	}
	return out
}

// Dangers counts the findings that keep a node from working, or from working safely.
func Dangers(list []Finding) (n int) {
	for _, f := range list {
		if f.State == Danger {
			n++
		}
	}
	return n
}

// one makes a finding of which nothing has to be said but what was found.
func one(s State, format string, args ...any) []Finding {
	return []Finding{{State: s, Found: fmt.Sprintf(format, args...)}}
}
