package csi_test

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"keelson.io/keelson/internal/spec"
)

func capacity(required, limit int64) *pb.CapacityRange {
	return &pb.CapacityRange{RequiredBytes: required, LimitBytes: limit}
}

// A mounted file system gets larger under whoever uses it, and keeps what is in it; repeating a call does nothing.
func TestExpandWhileMounted(t *testing.T) {
	r := newRig(t, "csi.keelson.io", true)
	c := mounted(rwo, "xfs")
	v := r.make(request("pvc-1", 320, c))
	staging, target := r.use(v, c)
	file := filepath.Join(target, "file")
	must(t, os.WriteFile(file, []byte("kept"), 0o600))
	for range 2 {
		got, err := r.ControllerExpandVolume(t.Context(), &pb.ControllerExpandVolumeRequest{VolumeId: v.VolumeId, CapacityRange: capacity(600<<20+1, 0), VolumeCapability: c})
		if err != nil || got.CapacityBytes != 600<<20+4096 || !got.NodeExpansionRequired {
			t.Fatalf("%v, %v", got, err)
		}
		grown, err := r.NodeExpandVolume(t.Context(), &pb.NodeExpandVolumeRequest{
			VolumeId: v.VolumeId, VolumePath: target, StagingTargetPath: staging, CapacityRange: capacity(600<<20+1, 0), VolumeCapability: c})
		if err != nil || grown.CapacityBytes != 600<<20+4096 {
			t.Fatalf("%v, %v", grown, err)
		}
	}
	var st unix.Statfs_t
	must(t, unix.Statfs(target, &st))
	if size := int64(st.Blocks) * st.Bsize; size < 500<<20 {
		t.Errorf("the file system has %d bytes", size)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "kept" {
		t.Errorf("%q, %v", b, err)
	}
	must(t, r.unpublish(v, target), r.unstage(v, staging))
}

// A volume that grew while nobody used it gets a larger file system when it is staged.
func TestExpandedBeforeItIsStaged(t *testing.T) {
	r := newRig(t, "csi.keelson.io", true)
	c := mounted(rwo, "xfs")
	v := r.make(request("pvc-1", 320, c))
	staging, target := r.use(v, c)
	must(t, r.unpublish(v, target), r.unstage(v, staging))
	if _, err := r.ControllerExpandVolume(t.Context(), &pb.ControllerExpandVolumeRequest{VolumeId: v.VolumeId, CapacityRange: capacity(600<<20, 0)}); err != nil {
		t.Fatal(err)
	}
	r.use(v, c)
	var st unix.Statfs_t
	must(t, unix.Statfs(target, &st))
	if size := int64(st.Blocks) * st.Bsize; size < 500<<20 {
		t.Errorf("the file system has %d bytes", size)
	}
	must(t, r.unpublish(v, target), r.unstage(v, staging))
}

func TestExpandRawBlock(t *testing.T) {
	r := newRig(t, "csi.keelson.io", true)
	c := raw(rwo)
	v := r.make(request("pvc-1", 20, c))
	staging, target := r.use(v, c)
	got, err := r.ControllerExpandVolume(t.Context(), &pb.ControllerExpandVolumeRequest{VolumeId: v.VolumeId, CapacityRange: capacity(40<<20, 0), VolumeCapability: c})
	if err != nil || got.NodeExpansionRequired {
		t.Fatalf("%v, %v", got, err)
	}
	if _, err := r.NodeExpandVolume(t.Context(), &pb.NodeExpandVolumeRequest{VolumeId: v.VolumeId, VolumePath: target, VolumeCapability: c}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(target)
	must(t, err)
	defer f.Close()
	if n, err := f.Seek(0, 2); err != nil || n != 40<<20 {
		t.Errorf("the device has %d bytes, %v", n, err)
	}
	f.Close()
	must(t, r.unpublish(v, target), r.unstage(v, staging))
}

func TestExpandRefuses(t *testing.T) {
	r := newRig(t, "csi.keelson.io", false)
	v := r.make(request("pvc-1", 100))
	for what, x := range map[string]struct {
		id    string
		rng   *pb.CapacityRange
		code  codes.Code
		words []string
	}{
		"no volume id": {"", capacity(1<<30, 0), codes.InvalidArgument, []string{"volume id"}},
		"no volume":    {"pvc-9", capacity(1<<30, 0), codes.NotFound, []string{"pvc-9"}},
		"no range":     {v.VolumeId, nil, codes.InvalidArgument, []string{"no range"}},
		"negative":     {v.VolumeId, capacity(-1, 0), codes.InvalidArgument, []string{"no range"}},
		"backwards":    {v.VolumeId, capacity(2<<30, 1<<30), codes.InvalidArgument, []string{"no range"}},
		"no multiple":  {v.VolumeId, capacity(200<<20+1, 200<<20+2), codes.OutOfRange, []string{"4096"}},
		"too large":    {v.VolumeId, capacity(math.MaxInt64, 0), codes.OutOfRange, []string{spec.FormatSize(spec.MaxVolumeSize)}},
		"no room":      {v.VolumeId, capacity(1<<40, 0), codes.ResourceExhausted, []string{"pvc-1"}},
		"smaller":      {v.VolumeId, capacity(50<<20, 50<<20), codes.OutOfRange, []string{"can't be made smaller"}},
	} {
		_, err := r.ControllerExpandVolume(t.Context(), &pb.ControllerExpandVolumeRequest{VolumeId: x.id, CapacityRange: x.rng})
		refused(t, what, err, x.code, x.words...)
	}
	if got, err := r.ControllerExpandVolume(t.Context(), &pb.ControllerExpandVolumeRequest{VolumeId: v.VolumeId, CapacityRange: capacity(50<<20, 0)}); err != nil || got.CapacityBytes != 100<<20 {
		t.Errorf("a size that it has: %v, %v", got, err)
	}
	for what, x := range map[string]struct {
		q    *pb.NodeExpandVolumeRequest
		code codes.Code
	}{
		"no volume id":   {&pb.NodeExpandVolumeRequest{VolumePath: r.dir}, codes.InvalidArgument},
		"no path":        {&pb.NodeExpandVolumeRequest{VolumeId: v.VolumeId}, codes.InvalidArgument},
		"no volume":      {&pb.NodeExpandVolumeRequest{VolumeId: "pvc-9", VolumePath: r.dir}, codes.NotFound},
		"nowhere":        {&pb.NodeExpandVolumeRequest{VolumeId: v.VolumeId, VolumePath: r.path("nowhere")}, codes.NotFound},
		"not staged":     {&pb.NodeExpandVolumeRequest{VolumeId: v.VolumeId, VolumePath: r.dir}, codes.FailedPrecondition},
		"not grown yet":  {&pb.NodeExpandVolumeRequest{VolumeId: v.VolumeId, VolumePath: r.dir, CapacityRange: capacity(1<<30, 0)}, codes.OutOfRange},
		"no such volume": {&pb.NodeExpandVolumeRequest{VolumeId: "Pvc 9", VolumePath: r.dir}, codes.NotFound},
	} {
		_, err := r.NodeExpandVolume(t.Context(), x.q)
		refused(t, what, err, x.code)
	}
}
