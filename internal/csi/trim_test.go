package csi_test

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"keelson.io/keelson/internal/csi"
	"keelson.io/keelson/internal/csi/csitest"
	"keelson.io/keelson/internal/csi/dialect"
	"keelson.io/keelson/internal/spec"
)

// TestTrimBySchedule: what a file system that is mounted without discard has freed is given back when it is due, and that is recorded.
func TestTrimBySchedule(t *testing.T) {
	needRoot(t)
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			dir := shortDir(t)
			r := serveRig(t, csitest.NewMemory(csitest.Loops{Dir: filepath.Join(dir, "loops")}), "n1", dialect.DriverKeelson, dir,
				func(c *csi.Config) { c.TrimLook = 20 * time.Millisecond })
			v := r.make(&pb.CreateVolumeRequest{Name: "trim-" + fs, CapacityRange: &pb.CapacityRange{RequiredBytes: 512 << 20},
				Parameters:         map[string]string{"nodiscard": "true", "fsType": fs},
				VolumeCapabilities: []*pb.VolumeCapability{mounted(pb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, fs)}})
			_, target := r.use(v, mounted(pb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, fs))
			file := filepath.Join(target, "f")
			free := func() int64 {
				var st unix.Statfs_t
				must(t, unix.Statfs(target, &st))
				return int64(st.Bfree) * st.Bsize
			}
			empty := free()
			must(t, os.WriteFile(file, bytes.Repeat([]byte("x"), 64<<20), 0o600))
			flush(t, target)
			must(t, os.Remove(file))
			// XFS frees a removed file's blocks later, on a thread of its own, and a trim leaves out what isn't free in the log as well.
			for deadline := time.Now().Add(30 * time.Second); free() < empty-1<<20; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%d bytes are free, %d were before the file", free(), empty)
				}
			}
			flush(t, target)
			used := func() int64 {
				var st syscall.Stat_t
				must(t, syscall.Stat(filepath.Join(dir, "loops", v.VolumeId, "volume"), &st))
				return st.Blocks * 512
			}
			before := used()
			if before < 64<<20 {
				t.Fatalf("%d bytes are used: the file system trims by itself", before)
			}
			state := func() spec.TrimState {
				got, err := r.cluster.At("n1").Volume(t.Context(), v.VolumeId)
				must(t, err)
				return got.Trim
			}
			if !state().Last.IsZero() {
				t.Error("it was trimmed, which nobody asked for")
			}
			// A volume's first turn is within the interval; the last one makes it due at once.
			r.cluster.Change(v.VolumeId, func(v *csi.Volume) { v.Trim.Every, v.Trim.Last = time.Hour, time.Now().Add(-2*time.Hour) })
			for deadline := time.Now().Add(30 * time.Second); state().Node == ""; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("it isn't trimmed")
				}
			}
			if s := state(); s.Node != "n1" || s.Problem != "" || s.Bytes < 64<<20 || time.Since(s.Last) > time.Minute {
				t.Errorf("recorded: %+v", s)
			}
			if after := used(); after > before-60<<20 {
				t.Errorf("%d bytes are used, %d were before", after, before)
			}
		})
	}
}

// flush has the file system at dir write all it has.
func flush(t *testing.T, dir string) {
	t.Helper()
	d, err := os.Open(dir)
	must(t, err)
	defer d.Close()
	must(t, unix.Syncfs(int(d.Fd())))
}

// TestModify: limits and the like change of a volume that is there; nothing else does.
func TestModify(t *testing.T) {
	r := newRig(t, dialect.DriverKeelson, false)
	req := request("pg", 64, mounted(pb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, ""))
	req.Parameters = map[string]string{"iopsLimit": "1000", "bandwidthLimit": "10M", "group": "g", "groupRule": "apart"}
	req.MutableParameters = map[string]string{"iopsLimit": "500", "locality": "prefer"}
	v := r.make(req)
	limits := func() spec.Limits {
		got, err := r.cluster.At("n1").Volume(t.Context(), v.VolumeId)
		must(t, err)
		return got.Limits
	}
	if l := limits(); l != (spec.Limits{IOPS: 500, Bandwidth: 10 << 20}) {
		t.Errorf("made with %+v", l)
	}
	if p := r.cluster.Requests()[0].Placement; p != (spec.Placement{Group: "g", GroupRule: "apart", Locality: "prefer"}) {
		t.Errorf("made with %+v", p)
	}
	modify := func(id string, params map[string]string) error {
		_, err := r.ControllerModifyVolume(t.Context(), &pb.ControllerModifyVolumeRequest{VolumeId: id, MutableParameters: params})
		return err
	}
	for range 2 { // it can be repeated
		must(t, modify(v.VolumeId, map[string]string{"iopsLimit": "0", "writeBandwidthLimit": "1M"}))
		if l := limits(); l != (spec.Limits{Bandwidth: 10 << 20, WriteBandwidth: 1 << 20}) {
			t.Errorf("now %+v", l)
		}
	}
	refused(t, "too few", modify(v.VolumeId, map[string]string{"iopsLimit": "99"}), codes.InvalidArgument, "iopsLimit", "99", "100 to 100000000")
	refused(t, "not mutable", modify(v.VolumeId, map[string]string{"replicas": "3"}), codes.InvalidArgument, "replicas", "bandwidthLimit")
	refused(t, "no volume", modify("other", nil), codes.NotFound, "other")
	refused(t, "no id", modify("", nil), codes.InvalidArgument, "volume id")
	if l := limits(); l != (spec.Limits{Bandwidth: 10 << 20, WriteBandwidth: 1 << 20}) {
		t.Errorf("after refusals %+v", l)
	}
}

// TestSoftImport: a volume that was made without Kubernetes is used by naming it, keeps its name and what it has, and is only deleted if that is asked for.
func TestSoftImport(t *testing.T) {
	r := newRig(t, dialect.DriverKeelson, true)
	_, err := r.cluster.At("n1").Create(t.Context(), csi.Request{Name: "legacy-db", Size: 64 << 20})
	must(t, err)
	one := mounted(pb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "ext4")
	for i := range 2 { // a PersistentVolume with Retain, and after it another one
		v := &pb.Volume{VolumeId: "legacy-db"} // nothing of a class: the PersistentVolume was written by hand
		staging, target := r.use(v, one)
		file := filepath.Join(target, "data")
		if i == 0 {
			must(t, os.WriteFile(file, []byte("kept"), 0o600))
		} else if b, err := os.ReadFile(file); err != nil || string(b) != "kept" {
			t.Errorf("%q, %v", b, err)
		}
		must(t, r.unpublish(v, target), r.unstage(v, staging))
		if got := r.volumes(); len(got) != 1 || got[0] != "legacy-db" {
			t.Fatalf("there are %v", got)
		}
	}
	if n := len(r.cluster.Requests()); n != 1 {
		t.Errorf("%d volumes were made", n)
	}
}
