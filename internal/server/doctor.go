package server

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio/ring"
	"keelson.io/keelson/internal/doctor"
	"keelson.io/keelson/internal/pool"
)

// DefaultKubeletDir is where kubelet keeps its pods, unless told otherwise.
const DefaultKubeletDir = "/var/lib/kubelet"

// NewDoctor returns this machine as the doctor sees it.
func NewDoctor() (*doctor.Machine, error) {
	m, err := doctor.System()
	if err != nil {
		return nil, err
	}
	m.Uring, m.Device, m.Cgroup = ring.Check, pool.CheckDevice, machine.couldRun
	return m, nil
}

// DoctorOptions says what a node with this configuration needs of its machine.
func (c *Config) DoctorOptions() doctor.Options {
	return doctor.Options{
		DataDir: c.DataDir, RunDir: c.RunDir, KubeletDir: DefaultKubeletDir, Keys: c.lookAtKeys,
		Ports: []doctor.Port{{Name: "the API", Number: c.APIPort}, {Name: "the engine", Number: c.EnginePort},
			{Name: "the metadata's clients", Number: c.EtcdClientPort}, {Name: "the metadata's members", Number: c.EtcdPeerPort}},
	}
}

// couldRun says why a server started like this process would refuse to run the engine: writers of volumes can be in its control
// group, and it can make none of its own.
func (m cgroups) couldRun() error {
	g, ok, err := m.own()
	if err != nil || !ok {
		return err
	}
	err = g.check(m.ofNode)
	if err == nil || !errors.Is(err, ErrCgroup) {
		return err
	}
	if werr := unix.Access(g.mount, unix.W_OK); werr != nil {
		return fmt.Errorf("%w, and no other can be made: %w", err, &os.PathError{Op: "write", Path: g.mount, Err: werr})
	}
	return nil
}
