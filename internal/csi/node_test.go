package csi_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/mount-utils"

	"keelson.io/keelson/internal/csi"
	"keelson.io/keelson/internal/csi/csitest"
)

// at returns the mount on top at a path, nil if there is none.
func at(t *testing.T, path string) *mount.MountInfo {
	t.Helper()
	all, err := mount.ParseMountInfo("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range slices.Backward(all) {
		if m.MountPoint == path {
			return &m
		}
	}
	return nil
}

func TestVolumeInUse(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs", "ext3"} {
		t.Run(fs, func(t *testing.T) {
			r := newRig(t, "csi.keelson.io", true)
			c := mounted(rwo, fs, "noatime")
			q := request("pvc-1", 310, c)
			q.Parameters = map[string]string{"createOptions": "-q"}
			v := r.make(q)
			staging, target := r.use(v, c)
			m := at(t, target)
			if m == nil || !strings.HasPrefix(fs, m.FsType[:3]) || !slices.Contains(m.SuperOptions, "discard") || !slices.Contains(m.MountOptions, "noatime") {
				t.Fatalf("mounted as %+v", m)
			}
			if has, err := os.ReadDir(target); err != nil || len(has) > 0 {
				t.Errorf("a new volume isn't empty: %v, %v", has, err)
			}
			must(t, os.WriteFile(filepath.Join(target, "file"), []byte("kept"), 0o600))
			// All of it again changes nothing.
			must(t, r.stage(v, c, staging), r.publish(v, c, staging, target, false))
			refused(t, "unstaged while published", r.unstage(v, staging), codes.FailedPrecondition, target)
			for range 2 {
				must(t, r.unpublish(v, target))
			}
			if _, err := os.Stat(target); !os.IsNotExist(err) {
				t.Errorf("the target is still there: %v", err)
			}
			for range 2 {
				must(t, r.unstage(v, staging))
			}
			if at(t, staging) != nil {
				t.Error("still mounted")
			}
			// On another node.
			r2 := serveRig(t, r.cluster, "n2", "csi.keelson.io", r.dir)
			staging, target = r2.use(v, c)
			if b, err := os.ReadFile(filepath.Join(target, "file")); err != nil || string(b) != "kept" {
				t.Errorf("%q, %v", b, err)
			}
			must(t, r2.unpublish(v, target), r2.unstage(v, staging), r.deleteVolume(v.VolumeId))
		})
	}
}

func TestMountOptions(t *testing.T) {
	r := newRig(t, "pxd.portworx.com", true)
	c := mounted(rwo, "ext4", "nodiscard,nodev")
	v := r.make(request("pvc-1", 20, c))
	_, target := r.use(v, c)
	if m := at(t, target); slices.Contains(m.SuperOptions, "discard") || !slices.Contains(m.MountOptions, "nodev") {
		t.Errorf("%+v", m)
	}
	q := request("pvc-2", 20)
	q.Parameters = map[string]string{"nodiscard": "true", "mount_options": "noexec", "repl": "2"}
	v = r.make(q)
	_, target = r.use(v, mounted(rwo, ""))
	if m := at(t, target); slices.Contains(m.SuperOptions, "discard") || !slices.Contains(m.MountOptions, "noexec") || m.FsType != "ext4" {
		t.Errorf("%+v", m)
	}
}

func TestReadOnly(t *testing.T) {
	r := newRig(t, "csi.keelson.io", true)
	c := mounted(rwo, "ext4")
	v := r.make(request("pvc-1", 20, c))
	staging, target := r.use(v, c)
	second := r.path("pod2/mount")
	must(t, r.publish(v, c, staging, second, true), r.publish(v, c, staging, second, true))
	if err := os.WriteFile(filepath.Join(second, "x"), nil, 0o600); err == nil {
		t.Error("a read-only mount can be written")
	}
	must(t, os.WriteFile(filepath.Join(target, "x"), nil, 0o600))
	refused(t, "writable over read-only", r.publish(v, c, staging, second, false), codes.AlreadyExists, second)
	must(t, r.unpublish(v, second), r.unpublish(v, target), r.unstage(v, staging))

	c = mounted(rox, "")
	staging, target = r.use(v, c)
	if m := at(t, target); !slices.Contains(m.SuperOptions, "ro") {
		t.Errorf("ReadOnlyMany is mounted as %+v", m)
	}
	must(t, r.publish(v, c, staging, target, true), r.unpublish(v, target), r.unstage(v, staging))
}

func TestOnePodOnly(t *testing.T) {
	r := newRig(t, "csi.keelson.io", true)
	for _, c := range []*pb.VolumeCapability{mounted(rwop, ""), raw(rwop)} {
		v := r.make(request("pvc-1", 20, c))
		staging, target := r.use(v, c)
		second := r.path("pod2/mount")
		refused(t, "a second pod", r.publish(v, c, staging, second, false), codes.FailedPrecondition, target, "ReadWriteOncePod")
		must(t, r.unpublish(v, target), r.publish(v, c, staging, second, false), r.unpublish(v, second), r.unstage(v, staging), r.deleteVolume("pvc-1"))
	}
}

func TestRawBlock(t *testing.T) {
	r := newRig(t, "csi.keelson.io", true)
	c := raw(rwo)
	v := r.make(request("pvc-1", 20, c))
	staging := r.path("staging")
	refused(t, "published before it is staged", r.publish(v, c, staging, r.path("pod/dev"), false), codes.FailedPrecondition, "staged")
	staging, target := r.use(v, c)
	f, err := os.OpenFile(target, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("raw"), 4096); err != nil {
		t.Error(err)
	}
	must(t, f.Sync(), f.Close())
	got, err := r.NodeGetVolumeStats(t.Context(), &pb.NodeGetVolumeStatsRequest{VolumeId: v.VolumeId, VolumePath: target})
	if err != nil || len(got.Usage) != 1 || got.Usage[0].Total != 20<<20 {
		t.Errorf("%v, %v", got, err)
	}
	must(t, r.stage(v, c, staging), r.publish(v, c, staging, target, false))
	refused(t, "unstaged while published", r.unstage(v, staging), codes.FailedPrecondition, target)
	must(t, r.unpublish(v, target), r.unpublish(v, target), r.unstage(v, staging), r.unstage(v, staging))
	refused(t, "raw, for readers", r.stage(v, raw(rox), staging), codes.InvalidArgument, "raw block")
}

// A device with anything on it is never formatted.
func TestNeverFormatted(t *testing.T) {
	r := newRig(t, "csi.keelson.io", true)
	for name, prepare := range map[string]func(device string) error{
		"swap": func(d string) error { return exec.Command("mkswap", d).Run() },
		"xfs":  func(d string) error { return exec.Command("mkfs.xfs", "-q", d).Run() },
		"table": func(d string) error {
			// A partition table of one partition, as old as disks.
			mbr := make([]byte, 512)
			copy(mbr[446:], []byte{0, 1, 1, 0, 0x83, 0xfe, 0xff, 0xff, 8, 0, 0, 0, 0, 8, 0, 0})
			mbr[510], mbr[511] = 0x55, 0xaa
			return os.WriteFile(d, mbr, 0o600)
		},
	} {
		c := mounted(rwo, "ext4")
		v := r.make(request("pvc-"+name, 310, c))
		device, err := r.cluster.At("n1").Attach(t.Context(), v.VolumeId)
		if err != nil {
			t.Fatal(err)
		}
		if err := prepare(device); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		before := sum(t, device)
		if err := r.stage(v, c, r.path("staging-"+name)); err == nil {
			t.Errorf("%s: a volume that holds it is staged", name)
		} else if name == "xfs" {
			refused(t, name, err, codes.FailedPrecondition, "xfs", "ext4")
		}
		if after := sum(t, device); after != before {
			t.Errorf("%s: the device was changed", name)
		}
		// Without a wish, what is there is taken.
		if name == "xfs" {
			v.VolumeContext = nil
			must(t, r.stage(v, mounted(rwo, ""), r.path("staging-"+name)), r.unstage(v, r.path("staging-"+name)))
		}
	}
}

func sum(t *testing.T, device string) string {
	t.Helper()
	out, err := exec.Command("cksum", device).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// What mkfs leaves when its machine dies in the middle is made anew.
func TestInterruptedMkfs(t *testing.T) {
	r := newRig(t, "csi.keelson.io", true)
	c := mounted(rwo, "xfs")
	v := r.make(request("pvc-1", 310, c))
	device, err := r.cluster.At("n1").Attach(t.Context(), v.VolumeId)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.xfs", "-q", device).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{1}, 126); err != nil { // sb_inprogress
		t.Fatal(err)
	}
	must(t, f.Sync(), f.Close())
	staging, target := r.use(v, c)
	must(t, r.unpublish(v, target), r.unstage(v, staging))
}

func TestHeldElsewhere(t *testing.T) {
	r := newRig(t, "csi.keelson.io", true)
	c := mounted(rwo, "ext4")
	v := r.make(request("pvc-1", 20, c))
	if _, err := r.cluster.At("n2").Attach(t.Context(), v.VolumeId); err != nil {
		t.Fatal(err)
	}
	staging := r.path("staging")
	refused(t, "held by a living node", r.stage(v, c, staging), codes.FailedPrecondition, "n2", "n1")
	// A node that can't be reached is waited for, until its lease has ended.
	r.cluster.SetReachable("n2", false)
	refused(t, "held by a silent node", r.stage(v, c, staging), codes.Aborted, "n2")
	done := make(chan error, 1)
	go func() { done <- r.stage(v, c, staging) }()
	r.cluster.SetNode("n2", func(n *csi.Node) { n.Alive = false })
	must(t, <-done)
	// The old node takes its mounts away, and doesn't detach what isn't its own any more.
	r2 := serveRig(t, r.cluster, "n2", "csi.keelson.io", r.dir)
	must(t, r2.unstage(v, r.path("staging-n2")))
	if got, err := r.cluster.At("n1").Volume(t.Context(), v.VolumeId); err != nil || got.Node != "n1" {
		t.Errorf("%+v, %v", got, err)
	}
	must(t, r.unstage(v, staging))
}

// A mount of a device that the volume had in a former attachment doesn't count, and goes.
func TestMountsFromBefore(t *testing.T) {
	r := newRig(t, "csi.keelson.io", true)
	c := mounted(rwo, "ext4")
	v := r.make(request("pvc-1", 20, c))
	staging, target := r.use(v, c)
	// The node lost the volume and has it again, with another device.
	loops := csitest.Loops{Dir: r.path("loops")}
	second, err := loops.Open(v.VolumeId, 20<<20)
	if err != nil {
		t.Fatal(err)
	}
	must(t, exec.Command("losetup", "--detach", second).Run())
	old := at(t, staging)
	r2 := serveRig(t, csitest.NewMemory(loops), "n1", "pure-csi", r.dir)
	r2.make(request("pvc-1", 20, c))
	// While that can't be found out, a pod gets what is staged.
	cluster := r2.cluster
	cluster.SetAway(&csi.Problem{Kind: csi.ErrUnavailable, Text: "away"})
	must(t, r2.publish(v, c, staging, r.path("pod-meanwhile/mount"), false))
	if m := at(t, r.path("pod-meanwhile/mount")); m == nil || m.Minor != old.Minor {
		t.Errorf("%+v, want what is staged", m)
	}
	cluster.SetAway(nil)
	must(t, r2.unpublish(v, r.path("pod-meanwhile/mount")))
	// kubelet doesn't stage again what it has staged.
	must(t, r2.publish(v, c, staging, target, false))
	for _, path := range []string{staging, target} {
		if m := at(t, path); m == nil || m.Minor == old.Minor && m.Major == old.Major {
			t.Errorf("at %s is still %+v", path, m)
		}
	}
	// Somebody else's mount isn't touched.
	other := r.path("other")
	must(t, os.Mkdir(other, 0o700), exec.Command("mount", "-t", "tmpfs", "theirs", other).Run())
	refused(t, "over somebody's mount", r2.stage(v, c, other), codes.FailedPrecondition, other, "theirs")
	must(t, exec.Command("umount", other).Run(), r2.unpublish(v, target), r2.unstage(v, staging))
}

func TestStats(t *testing.T) {
	r := newRig(t, "csi.keelson.io", true)
	c := mounted(rwo, "ext4")
	v := r.make(request("pvc-1", 20, c))
	staging, target := r.use(v, c)
	r.cluster.Change("pvc-1", func(v *csi.Volume) { v.Healthy, v.Condition = false, "a replica is Stale" })
	got, err := r.NodeGetVolumeStats(t.Context(), &pb.NodeGetVolumeStatsRequest{VolumeId: v.VolumeId, VolumePath: target})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Usage) != 2 || got.Usage[0].Total < 10<<20 || got.Usage[0].Total > 20<<20 || got.Usage[1].Total == 0 || got.Usage[0].Available == 0 {
		t.Errorf("%v", got.Usage)
	}
	if !got.VolumeCondition.GetAbnormal() || got.VolumeCondition.Message != "a replica is Stale" {
		t.Errorf("%v", got.VolumeCondition)
	}
	for what, q := range map[string]*pb.NodeGetVolumeStatsRequest{
		"nowhere":       {VolumeId: v.VolumeId, VolumePath: r.path("nowhere")},
		"not mounted":   {VolumeId: v.VolumeId, VolumePath: r.dir},
		"no volume":     {VolumeId: "pvc-9", VolumePath: target},
		"no such names": {VolumeId: "Pvc 9", VolumePath: target},
	} {
		_, err := r.NodeGetVolumeStats(t.Context(), q)
		refused(t, what, err, codes.NotFound)
	}
	must(t, r.unpublish(v, target), r.unstage(v, staging))
}

// Calls that come at once, in any order, end in what the last successful ones ask for, and leave nothing.
func TestCallsAtOnce(t *testing.T) {
	r := newRig(t, "csi.keelson.io", true)
	c := mounted(rwo, "ext4")
	v := r.make(request("pvc-1", 20, c))
	staging, target := r.path("staging"), r.path("pod/mount")
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			var err error
			switch i % 4 {
			case 0:
				err = r.stage(v, c, staging)
			case 1:
				err = r.publish(v, c, staging, target, false)
			case 2:
				err = r.unpublish(v, target)
			case 3:
				err = r.unstage(v, staging)
			}
			if code := status.Code(err); code != codes.OK && code != codes.Aborted && code != codes.FailedPrecondition {
				t.Errorf("call %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	must(t, r.stage(v, c, staging), r.publish(v, c, staging, target, false))
	must(t, r.unpublish(v, target), r.unstage(v, staging), r.deleteVolume(v.VolumeId))
	if at(t, staging) != nil || at(t, target) != nil {
		t.Error("something is still mounted")
	}
}

func TestNodeRefuses(t *testing.T) {
	r := newRig(t, "csi.keelson.io", false)
	r.make(request("pvc-1", 20))
	v := &pb.Volume{VolumeId: "pvc-1"}
	refused(t, "unknown volume", r.stage(&pb.Volume{VolumeId: "pvc-9"}, mounted(rwo, ""), r.path("s")), codes.NotFound, "pvc-9")
	refused(t, "many nodes", r.stage(v, mounted(rwx, ""), r.path("s")), codes.InvalidArgument)
	refused(t, "not staged", r.publish(v, mounted(rwo, ""), r.path("s"), r.path("t"), false), codes.FailedPrecondition, "staged")
	must(t, r.unpublish(v, r.path("t")), r.unstage(v, r.path("s")), r.unstage(&pb.Volume{VolumeId: "pvc-9"}, r.path("s")))
	// Data in a directory that isn't a mount is nobody's to delete.
	must(t, os.MkdirAll(r.path("t/data"), 0o700))
	if err := r.unpublish(v, r.path("t")); err == nil {
		t.Error("a directory with data was deleted")
	}
	v.VolumeContext = map[string]string{"createOptions": "-d /etc"}
	refused(t, "options that reach out", r.stage(v, mounted(rwo, ""), r.path("s")), codes.Internal)
}
