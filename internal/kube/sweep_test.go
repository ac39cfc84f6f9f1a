package kube

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// swept is a kubelet's directory and mount table in a test's own directory.
type swept struct {
	*rig
	s     *Sweeper
	dir   string
	lines []string
	taken []string
}

func newSwept(t *testing.T) *swept {
	x := &swept{rig: newRig(t, newMemory(t)), dir: t.TempDir()}
	x.s = &Sweeper{
		API: x.backend, Store: x.store, Log: slog.New(slog.DiscardHandler), Drivers: []string{driver}, Node: "n1",
		KubeletDir: filepath.Join(x.dir, "kubelet"), Devices: filepath.Join(x.dir, "dev"), mountInfo: filepath.Join(x.dir, "mountinfo"),
		unmount: func(path string) error {
			x.taken = append(x.taken, strings.TrimPrefix(path, filepath.Join(x.dir, "kubelet")+"/"))
			return nil
		},
	}
	x.ok(os.MkdirAll(x.s.Devices, 0o755))
	return x
}

// mounted adds a mount of the device major:minor with the data that kubelet writes beside it.
func (x *swept) mounted(rel, device, data string) {
	x.t.Helper()
	path := filepath.Join(x.s.KubeletDir, rel)
	x.ok(os.MkdirAll(path, 0o755))
	if data != "" {
		x.ok(os.WriteFile(filepath.Join(filepath.Dir(path), "vol_data.json"), []byte(data), 0o600))
	}
	x.lines = append(x.lines, fmt.Sprintf("%d 1 %s / %s rw,relatime shared:1 - ext4 /dev/x rw\n", 100+len(x.lines), device, path))
	x.ok(os.WriteFile(x.s.mountInfo, []byte(strings.Join(x.lines, "")), 0o600))
}

func podMount(uid, name string) string {
	return "pods/" + uid + "/volumes/kubernetes.io~csi/" + name + "/mount"
}

func staged(hash string) string {
	return "plugins/kubernetes.io/csi/" + driver + "/" + hash + "/globalmount"
}

func dataOf(volume string) string {
	return fmt.Sprintf(`{"driverName":%q,"volumeHandle":%q,"volumeLifecycleMode":"Persistent"}`, driver, volume)
}

func (x *swept) sweep(left int, want ...string) {
	x.t.Helper()
	x.taken = nil
	got, err := x.s.Sweep(x.t.Context())
	x.ok(err)
	slices.Sort(x.taken)
	slices.Sort(want)
	if got != left || !slices.Equal(x.taken, want) {
		x.t.Errorf("%d dead ones left and taken %q; want %d and %q", got, x.taken, left, want)
	}
}

func TestSweepTakesTheDead(t *testing.T) {
	x := newSwept(t)
	x.volume("moved", "n2", "n1! n2")
	x.mounted(podMount("gone", "moved"), "7:40", dataOf("moved"))
	x.mounted(staged("m"), "7:40", dataOf("moved"))
	x.mounted(podMount("gone", "deleted"), "7:41", dataOf("deleted"))
	x.sweep(0, podMount("gone", "moved"), staged("m"), podMount("gone", "deleted"))
}

func TestSweepLeavesTheLiving(t *testing.T) {
	x := newSwept(t)
	x.volume("here", "n1", "n1 n2")
	x.volume("moved", "n2", "n1! n2")
	x.volume("idle", "", "n1 n2")
	x.pod("p", "n1", nil)
	uid := string(x.allPods(t)["default/p"].UID)
	// Of a volume that is attached here, while nothing shows its device: it may be the one.
	x.mounted(podMount("gone", "here"), "7:40", dataOf("here"))
	x.mounted(staged("h"), "7:40", dataOf("here"))
	// Of a pod that exists, and what it stands on.
	x.mounted(podMount(uid, "moved"), "7:41", dataOf("moved"))
	x.mounted(staged("m"), "7:41", dataOf("moved"))
	// Not ours, or not known to be.
	x.mounted(podMount("gone", "other"), "7:42", `{"driverName":"other.io","volumeHandle":"moved"}`)
	x.mounted(podMount("gone", "nodata"), "7:43", "")
	x.mounted(podMount("gone", "inline"), "7:44", fmt.Sprintf(`{"driverName":%q,"volumeHandle":"csi-1","volumeLifecycleMode":"Ephemeral"}`, driver))
	x.mounted(podMount("gone", "disk"), "8:1", dataOf("moved"))
	x.mounted("pods/gone/volumes/kubernetes.io~empty-dir/moved/mount", "7:45", dataOf("moved"))
	x.mounted("plugins/kubernetes.io/csi/pv/x", "7:46", dataOf("moved"))
	x.sweep(2)
}

// TestSweepLooksAtDevices needs a block device to point at: any will do.
func TestSweepLooksAtDevices(t *testing.T) {
	const device = "/dev/loop0"
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		t.Skipf("%s isn't a block device here (%v); only its number is looked at", device, err)
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	x := newSwept(t)
	x.volume("here", "n1", "n1 n2")
	x.volume("moved", "n2", "n1! n2")
	x.ok(os.Symlink(device, filepath.Join(x.s.Devices, "here")))
	x.mounted(podMount("gone", "here"), number, dataOf("here"))
	// A device that is served is never dead, whatever the metadata says of a volume.
	x.mounted(podMount("gone", "moved"), number, dataOf("moved"))
	x.sweep(0)
	// One from before, while the volume's present device is seen.
	x.mounted(podMount("gone", "old"), "7:99", dataOf("here"))
	x.sweep(0, podMount("gone", "old"))
}

func TestSweepNeedsToKnow(t *testing.T) {
	x := newSwept(t)
	x.volume("moved", "n2", "n1! n2")
	x.mounted(podMount("gone", "moved"), "7:40", dataOf("moved"))
	x.away(true)
	if _, err := x.s.Sweep(t.Context()); err == nil || len(x.taken) > 0 {
		t.Errorf("without the API server: %v, taken %q", err, x.taken)
	}
	x.away(false)
	x.store.SetUnavailable(true)
	if _, err := x.s.Sweep(t.Context()); err == nil || len(x.taken) > 0 {
		t.Errorf("without the metadata: %v, taken %q", err, x.taken)
	}
	x.store.SetUnavailable(false)
	x.sweep(0, podMount("gone", "moved"))
}
