package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/mount-utils"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// Sweeper takes away the mounts of kubelet's that show a device which is dead, because its volume was moved to another node, and
// whose pod doesn't exist any more. Kubelet does that itself as long as it knows of the pod; what it forgot, it never does.
//
// A mount of a device that is served now is never touched, nor one of a pod that exists, nor one of which anything isn't
// known. They are unmounted lazily: a dead device answers nothing that could be waited for.
type Sweeper struct {
	API        API
	Store      Store
	Log        *slog.Logger
	Drivers    []string
	Node       string // in Keelson
	KubeletDir string
	// Devices is the directory with a link to the device of each volume that is attached here, by its name.
	Devices string

	mountInfo string // for tests; "" is the kernel's
	unmount   func(path string) error
}

// When mounts are looked at after a start, or after the lease came back: kubelet is given time to do it itself.
const (
	sweepFirst = 15 * time.Second
	sweepMax   = 5 * time.Minute
	sweeps     = 12 // after that, what is left waits for the next start or lease
)

const kernelMountInfo = "/proc/self/mountinfo"

// Run sweeps when this process has started and after each word on again, until there is nothing dead left or it was tried
// for long. It returns when ctx ends.
func (s *Sweeper) Run(ctx context.Context, again <-chan struct{}) {
	for {
		pause := sweepFirst
		for range sweeps {
			if !sleep(ctx, pause) {
				return
			}
			left, err := s.Sweep(ctx)
			if err != nil && ctx.Err() == nil {
				s.Log.Warn("dead mounts can't be looked for; it is tried again", "err", err)
			}
			if err == nil && left == 0 {
				break
			}
			pause = min(2*pause, sweepMax)
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		}
	}
}

// place is a mount of kubelet's that shows a volume of Keelson's.
type place struct {
	path   string
	volume string
	pod    string // uid; "" where the volume is staged for all pods
	major  int
	minor  int
}

// Sweep takes dead mounts away once, and returns how many dead ones it had to leave.
func (s *Sweeper) Sweep(ctx context.Context) (left int, err error) {
	places, err := s.places()
	if err != nil {
		return 0, err
	}
	var dead []place
	for _, p := range places {
		is, err := s.dead(ctx, p)
		if err != nil {
			return 0, err
		}
		if is {
			dead = append(dead, p)
		}
	}
	if len(dead) == 0 {
		return 0, nil
	}
	pods, err := s.pods(ctx)
	if err != nil {
		return 0, err
	}
	gone, left := sweepable(dead, pods)
	for _, p := range gone {
		s.Log.Warn("a dead mount is taken away: its volume was moved to another node, and its pod is gone", "volume", p.volume, "path", p.path)
		if uerr := s.take(p.path); uerr != nil {
			err = errors.Join(err, fmt.Errorf("volume %s: unmount %s: %w", p.volume, p.path, uerr))
		}
	}
	return left, err
}

// sweepable returns which dead mounts may go, pods first, and how many have to stay: those of pods that exist, and what
// these stand on.
func sweepable(dead []place, pods map[string]bool) (gone []place, left int) {
	stands := map[string]bool{}
	for _, p := range dead {
		switch {
		case p.pod == "":
		case pods[p.pod]:
			stands[p.volume] = true
			left++
		default:
			gone = append(gone, p)
		}
	}
	for _, p := range dead {
		switch {
		case p.pod != "":
		case stands[p.volume]:
			left++
		default:
			gone = append(gone, p)
		}
	}
	return gone, left
}

func (s *Sweeper) take(path string) error {
	if s.unmount != nil {
		return s.unmount(path)
	}
	return unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}

// pods returns the uids of the pods that are on this node.
func (s *Sweeper) pods(ctx context.Context) (map[string]bool, error) {
	kube, err := newNodeNames(s.API, s.Drivers).kube(ctx, s.Node)
	if err != nil {
		return nil, err
	}
	list, _, err := s.API.Pods(ctx, kube)
	out := map[string]bool{}
	for i := range list {
		out[string(list[i].UID)] = true
	}
	return out, err
}

// places returns kubelet's mounts of Keelson's volumes.
func (s *Sweeper) places() ([]place, error) {
	file := s.mountInfo
	if file == "" {
		file = kernelMountInfo
	}
	all, err := mount.ParseMountInfo(file)
	if err != nil {
		return nil, err
	}
	var out []place
	for _, m := range all {
		rel, err := filepath.Rel(s.KubeletDir, m.MountPoint)
		if err != nil || strings.HasPrefix(rel, "..") {
			continue
		}
		pod, ours := kubeletPath(rel)
		if !ours {
			continue
		}
		data, ok := volumeData(filepath.Dir(m.MountPoint))
		if !ok || !slices.Contains(s.Drivers, data.DriverName) || data.Lifecycle == "Ephemeral" {
			continue
		}
		out = append(out, place{path: m.MountPoint, volume: data.VolumeHandle, pod: pod, major: m.Major, minor: m.Minor})
	}
	return out, nil
}

// kubeletPath reports whether a path below kubelet's directory is where CSI volumes are mounted, and of which pod.
func kubeletPath(rel string) (pod string, ok bool) {
	p := strings.Split(rel, "/")
	switch {
	case len(p) == 6 && p[0] == "pods" && p[2] == "volumes" && p[3] == "kubernetes.io~csi" && p[5] == "mount":
		return p[1], true
	case len(p) == 6 && p[0] == "plugins" && p[1] == "kubernetes.io" && p[2] == "csi" && p[5] == "globalmount":
		return "", true
	}
	return "", false
}

// csiData is what kubelet writes beside a mount.
type csiData struct {
	DriverName   string `json:"driverName"`
	VolumeHandle string `json:"volumeHandle"`
	Lifecycle    string `json:"volumeLifecycleMode"`
}

func volumeData(dir string) (d csiData, ok bool) {
	b, err := os.ReadFile(filepath.Join(dir, "vol_data.json"))
	return d, err == nil && json.Unmarshal(b, &d) == nil && d.VolumeHandle != ""
}

// loopMajor is the number of loop devices.
const loopMajor = 7

// dead reports whether a mount shows a device that its volume doesn't have any more.
func (s *Sweeper) dead(ctx context.Context, p place) (bool, error) {
	if p.major != loopMajor || spec.CheckName("volume", p.volume) != nil {
		return false, nil
	}
	served, link := s.served(p)
	if served {
		return false, nil
	}
	v, err := s.Store.VolumeByName(ctx, p.volume)
	if errors.Is(err, meta.ErrNotFound) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("volume %s: %w", p.volume, err)
	}
	if v.Value.State.Node == s.Node && v.Value.State.Frontend != spec.FrontendNone {
		// It is attached here, with another device: only where that is seen is this one known to be dead.
		return link, nil
	}
	return true, nil
}

// served reports whether the device of a mount is one that any volume has here now, and whether the mount's volume has one.
func (s *Sweeper) served(p place) (served, link bool) {
	entries, err := os.ReadDir(s.Devices)
	if err != nil {
		return !errors.Is(err, os.ErrNotExist), false
	}
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(s.Devices, e.Name()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
			continue
		}
		if int(unix.Major(st.Rdev)) == p.major && int(unix.Minor(st.Rdev)) == p.minor {
			return true, true
		}
		link = link || e.Name() == p.volume
	}
	return false, link
}
