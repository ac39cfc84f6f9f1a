package csi_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"keelson.io/keelson/internal/csi"
	"keelson.io/keelson/internal/csi/csitest"
	"keelson.io/keelson/internal/spec"
)

// inlineHandle is a handle as kubelet makes them up.
func inlineHandle(n byte) string { return "csi-" + strings.Repeat(string('a'+n%6), 64) }

// inline publishes a volume that is written into a pod, as kubelet does: it has made the directory above the target.
func (r *rig) inline(handle, target string, attributes map[string]string) error {
	r.t.Helper()
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		r.t.Fatal(err)
	}
	context := map[string]string{"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.name": "p"}
	maps.Copy(context, attributes)
	_, err := r.NodePublishVolume(r.t.Context(), &pb.NodePublishVolumeRequest{
		VolumeId: handle, TargetPath: target, VolumeCapability: mounted(pb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, ""), VolumeContext: context})
	return err
}

func (r *rig) inlineGone(handle, target string) error {
	_, err := r.NodeUnpublishVolume(r.t.Context(), &pb.NodeUnpublishVolumeRequest{VolumeId: handle, TargetPath: target})
	return err
}

// volumes returns the names of all volumes.
func (r *rig) volumes() (out []string) {
	r.t.Helper()
	list, err := r.cluster.At("n1").Volumes(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, v := range list {
		out = append(out, v.Name)
	}
	return out
}

// fill writes to a file until the file system takes no more, and returns how much it took.
func fill(t *testing.T, dir string, most int) int {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for n := 0; n < most; {
		k, err := f.Write(block)
		n += k
		if errors.Is(err, syscall.ENOSPC) {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("it takes %d bytes and more", most)
	return 0
}

func TestInlineVolumeEndsWithItsPod(t *testing.T) {
	r := newRig(t, "csi.keelson.io", true)
	target := r.path("pod/mount")
	limited := map[string]string{"size": "32Mi", "iopsLimit": "5000"}
	must(t, r.inline(inlineHandle(0), target, limited), r.inline(inlineHandle(0), target, limited))
	req := r.cluster.Requests()
	if len(req) != 1 || req[0].Limits == (spec.Limits{}) || req[0].Size != 32<<20 || req[0].Replicas != 1 || req[0].Near != "n1" || *req[0].Ephemeral != (spec.Ephemeral{Node: "n1", Path: target}) {
		t.Fatalf("asked for %+v", req)
	}
	st, err := os.Stat(target)
	if err != nil || st.Mode().Perm() != 0o777 {
		t.Errorf("mode %v, %v: everybody in the pod may write", st.Mode(), err)
	}
	if n := fill(t, target, 64<<20); n < 16<<20 || n > 32<<20 {
		t.Errorf("a volume of 32 MiB takes %d bytes", n)
	}
	got, err := r.NodeGetVolumeStats(t.Context(), &pb.NodeGetVolumeStatsRequest{VolumeId: inlineHandle(0), VolumePath: target})
	if err != nil || got.Usage[0].Available > 1<<20 || got.VolumeCondition.GetAbnormal() {
		t.Errorf("statistics: %v, %v", got, err)
	}
	must(t, os.Chmod(target, 0o755), r.inline(inlineHandle(0), target, map[string]string{"size": "32Mi"}))
	if st, err := os.Stat(target); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("mode %v, %v: what the pod has set stays", st.Mode(), err)
	}
	must(t, r.inlineGone(inlineHandle(0), target), r.inlineGone(inlineHandle(0), target))
	if left := r.volumes(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := os.Stat(target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the target is still there: %v", err)
	}
}

func TestInlineVolumeAfterACrashAtAnyStep(t *testing.T) {
	r := newRig(t, "csi.keelson.io", true)
	target, handle := r.path("pod/mount"), inlineHandle(1)
	attributes := map[string]string{"size": "320Mi", "fsType": "xfs"}
	must(t, r.inline(handle, target, attributes), r.inlineGone(handle, target))
	req := r.cluster.Requests()[0]
	k := r.cluster.At("n1")
	made := func() error { _, err := k.Create(t.Context(), req); return err }
	attached := func() error { _, err := k.Attach(t.Context(), req.Name); return err }
	published := func() error { return r.inline(handle, target, attributes) }
	unmounted := func() error { return unix.Unmount(target, 0) }
	detached := func() error { return k.Detach(t.Context(), req.Name) }
	deleted := func() error { return k.Delete(t.Context(), req.Name) }
	for name, steps := range map[string][]func() error{
		"nothing": nil, "made": {made}, "attached": {made, attached}, "published": {published}, "unmounted": {published, unmounted},
		"detached": {published, unmounted, detached}, "deleted": {published, unmounted, detached, deleted},
	} {
		for _, s := range steps {
			must(t, s())
		}
		must(t, r.inlineGone(handle, target)) // the pod went
		if left := r.volumes(); len(left) > 0 {
			t.Errorf("%s, then gone: left: %v", name, left)
		}
		for _, s := range steps {
			must(t, os.MkdirAll(filepath.Dir(target), 0o750), s())
		}
		must(t, published(), os.WriteFile(filepath.Join(target, "x"), nil, 0o600)) // the pod stays
		must(t, r.inlineGone(handle, target))
		if left := r.volumes(); len(left) > 0 {
			t.Errorf("%s, then used: left: %v", name, left)
		}
	}
}

func TestInlineVolumeInMemory(t *testing.T) {
	r := newRig(t, "csi.keelson.io", true)
	target, handle := r.path("pod/mount"), inlineHandle(2)
	attributes := map[string]string{"size": "8Mi", "medium": "Memory"}
	must(t, r.inline(handle, target, attributes), r.inline(handle, target, attributes))
	var fs unix.Statfs_t
	must(t, unix.Statfs(target, &fs))
	if fs.Type != unix.TMPFS_MAGIC {
		t.Fatalf("file system %x", fs.Type)
	}
	if n := fill(t, target, 16<<20); n != 8<<20 {
		t.Errorf("a volume of 8 MiB takes %d bytes", n)
	}
	if _, err := r.NodeGetVolumeStats(t.Context(), &pb.NodeGetVolumeStatsRequest{VolumeId: handle, VolumePath: target}); err != nil {
		t.Error(err)
	}
	if v := r.volumes(); len(v) > 0 {
		t.Errorf("volumes %v", v)
	}
	r.cluster.SetAway(csi.ErrUnavailable)
	defer r.cluster.SetAway(nil)
	must(t, r.inlineGone(handle, target)) // it needs nobody
}

func TestInlineVolumeWhileTheClusterIsAway(t *testing.T) {
	r := newRig(t, "csi.keelson.io", true)
	target, handle := r.path("pod/mount"), inlineHandle(3)
	away := &csi.Problem{Kind: csi.ErrUnavailable, Text: "the metadata doesn't answer"}
	r.cluster.SetAway(away)
	refused(t, "publish", r.inline(handle, target, nil), codes.Unavailable)
	r.cluster.SetAway(nil)
	must(t, r.inline(handle, target, map[string]string{"size": "16Mi"}))
	r.cluster.SetAway(away)
	refused(t, "unpublish", r.inlineGone(handle, target), codes.Unavailable)
	r.cluster.SetAway(nil)
	must(t, r.inlineGone(handle, target))
	if left := r.volumes(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestBadInlineVolumes(t *testing.T) {
	r := newRig(t, "csi.keelson.io", false)
	target := r.path("pod/mount")
	for _, c := range []struct {
		attributes map[string]string
		words      []string
	}{
		{map[string]string{"size": "much"}, []string{"size", "much"}},
		{map[string]string{"size": "-1"}, []string{"size", "-1"}},
		{map[string]string{"size": "0"}, []string{"size", `"0"`}},
		{map[string]string{"medium": "tape"}, []string{"medium", "tape", "memory"}},
		{map[string]string{"medium": "memory"}, []string{"size"}},
		{map[string]string{"medium": "memory", "size": "1Mi", "replicas": "2"}, []string{"replicas", "memory"}},
		{map[string]string{"replicas": "9"}, []string{"replicas", "9"}},
		{map[string]string{"fsType": "ntfs"}, []string{"ntfs"}},
	} {
		refused(t, "inline", r.inline(inlineHandle(4), target, c.attributes), codes.InvalidArgument, c.words...)
	}
	refused(t, "a name as a handle", r.inline("db", target, nil), codes.InvalidArgument, "db")
	request := func(c *pb.VolumeCapability, ro bool) error {
		_, err := r.NodePublishVolume(t.Context(), &pb.NodePublishVolumeRequest{VolumeId: inlineHandle(4), TargetPath: target, VolumeCapability: c, Readonly: ro,
			VolumeContext: map[string]string{"csi.storage.k8s.io/ephemeral": "true"}})
		return err
	}
	refused(t, "raw", request(raw(rwo), false), codes.InvalidArgument, "block")
	refused(t, "read-only", request(mounted(rwo, ""), true), codes.InvalidArgument, "readOnly")
	refused(t, "no room", r.inline(inlineHandle(4), target, map[string]string{"size": "100Gi"}), codes.ResourceExhausted)
	if v := r.volumes(); len(v) > 0 {
		t.Errorf("volumes %v", v)
	}
}

// TestOrphansOfPodsAreCollected: what a node's crash leaves goes, and nothing else.
func TestOrphansOfPodsAreCollected(t *testing.T) {
	m, dir := csitest.NewMemory(nil), shortDir(t)
	r := serveRig(t, m, "n1", "csi.keelson.io", dir, func(c *csi.Config) { c.CollectEvery = 5 * time.Millisecond })
	make := func(name, node, path string) {
		t.Helper()
		v := csi.Request{Name: name, Size: 1 << 30, Replicas: 1}
		if node != "" {
			v.Ephemeral = &spec.Ephemeral{Node: node, Path: path}
		}
		if _, err := m.At("n1").Create(t.Context(), v); err != nil {
			t.Fatal(err)
		}
	}
	goneSoon := func(name string) {
		t.Helper()
		for range 2000 {
			if _, err := m.At("n1").Volume(t.Context(), name); errors.Is(err, csi.ErrNotFound) {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Fatalf("%s isn't collected", name)
	}
	must(t, os.MkdirAll(r.path("pods/known"), 0o755), os.MkdirAll(r.path("pods"), 0o755))
	make("claim", "", "")
	make("known", "n1", r.path("pods/known/mount"))
	make("other", "n2", r.path("pods/gone/mount"))
	make("unseen", "n1", r.path("elsewhere/pods/gone/mount")) // the directory of all pods isn't there
	make("first", "n1", r.path("pods/gone/mount"))
	if _, err := m.At("n1").Attach(t.Context(), "first"); err != nil {
		t.Fatal(err)
	}
	goneSoon("first")
	make("removed", "n9", "/var/lib/kubelet/pods/x/mount")
	goneSoon("removed") // so a whole round has passed since
	for _, name := range []string{"claim", "known", "other", "unseen"} {
		if _, err := m.At("n1").Volume(t.Context(), name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCreateAgainElsewhere: a repeated call that wants the copies elsewhere is another volume.
func TestCreateAgainElsewhere(t *testing.T) {
	r := newRig(t, "csi.keelson.io", false)
	in := func(zones ...string) *pb.CreateVolumeRequest {
		req := request("pvc-1", 64)
		req.Parameters = map[string]string{"replicas": "1"}
		req.AccessibilityRequirements = &pb.TopologyRequirement{}
		for _, z := range zones {
			req.AccessibilityRequirements.Requisite = append(req.AccessibilityRequirements.Requisite, &pb.Topology{Segments: map[string]string{"topology.keelson.io/zone": z}})
		}
		return req
	}
	r.make(in("z1", "z2"))
	r.make(in("z2", "z1"))
	_, err := r.CreateVolume(t.Context(), in("z3"))
	refused(t, "another zone", err, codes.AlreadyExists, "topology", "z3")
	req := request("pvc-2", 64, mounted(rwx, ""))
	_, err = r.CreateVolume(t.Context(), req)
	refused(t, "shared", err, codes.InvalidArgument, "ReadWriteMany", "ReadWriteOnce")
}
