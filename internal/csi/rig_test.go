package csi_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/mount-utils"

	"keelson.io/keelson/internal/csi"
	"keelson.io/keelson/internal/csi/csitest"
)

// rig is a driver on a node of a cluster in memory, called over its socket.
type rig struct {
	pb.ControllerClient
	pb.NodeClient
	pb.IdentityClient
	pb.GroupControllerClient
	t       *testing.T
	cluster *csitest.Memory
	socket  string
	dir     string
}

// needRoot skips a test of real devices without root.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes loop devices and mounts them")
	}
}

// newRig serves a driver of that name on n1. With real devices the test needs root.
func newRig(t *testing.T, driver string, devices bool) *rig {
	t.Helper()
	dir := shortDir(t)
	var d csitest.Devices
	if devices {
		needRoot(t)
		d = csitest.Loops{Dir: filepath.Join(dir, "loops")}
	}
	return serveRig(t, csitest.NewMemory(d), "n1", driver, dir)
}

func serveRig(t *testing.T, m *csitest.Memory, node, driver, dir string, change ...func(*csi.Config)) *rig {
	t.Helper()
	r := &rig{t: t, cluster: m, dir: dir, socket: filepath.Join(dir, node+driver+".sock")}
	cfg := csi.Config{
		Node: node, Version: "test", Keelson: m.At(node), AttachWait: 2 * time.Second, Log: slog.New(slog.DiscardHandler),
		Endpoints: []csi.Endpoint{{Driver: driver, Socket: r.socket, RegistrationDir: filepath.Join(dir, "reg-"+node)}},
	}
	for _, c := range change {
		c(&cfg)
	}
	s := csi.New(cfg)
	if err := s.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	conn := dial(t, r.socket)
	r.ControllerClient, r.NodeClient = pb.NewControllerClient(conn), pb.NewNodeClient(conn)
	r.IdentityClient, r.GroupControllerClient = pb.NewIdentityClient(conn), pb.NewGroupControllerClient(conn)
	t.Cleanup(r.sweep)
	return r
}

// shortDir is a directory whose path leaves room for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "csi")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// sweep unmounts and detaches what a failed test left.
func (r *rig) sweep() {
	all, err := mount.ParseMountInfo("/proc/self/mountinfo")
	if err != nil {
		r.t.Error(err)
	}
	for i := len(all) - 1; i >= 0; i-- {
		if len(all[i].MountPoint) > len(r.dir) && all[i].MountPoint[:len(r.dir)] == r.dir {
			if err := mount.New("").Unmount(all[i].MountPoint); err != nil {
				r.t.Error(err)
			}
		}
	}
	for _, n := range []string{"n1", "n2"} {
		k := r.cluster.At(n)
		list, err := k.Volumes(context.Background())
		if err != nil {
			r.t.Error(err)
		}
		for _, v := range list {
			if err := k.Detach(context.Background(), v.Name); err != nil {
				r.t.Error(err)
			}
		}
	}
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

// refused checks the code of an error and that its words are there.
func refused(t *testing.T, what string, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("%s: %v, want %s", what, err, code)
	}
	for _, w := range words {
		if err != nil && !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %v doesn't say %q", what, err, w)
		}
	}
}

const (
	rwo  = pb.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	rwop = pb.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	rox  = pb.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	rwx  = pb.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
)

func mounted(mode pb.VolumeCapability_AccessMode_Mode, fs string, flags ...string) *pb.VolumeCapability {
	return &pb.VolumeCapability{
		AccessMode: &pb.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &pb.VolumeCapability_Mount{Mount: &pb.VolumeCapability_MountVolume{FsType: fs, MountFlags: flags}},
	}
}

func raw(mode pb.VolumeCapability_AccessMode_Mode) *pb.VolumeCapability {
	return &pb.VolumeCapability{
		AccessMode: &pb.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &pb.VolumeCapability_Block{Block: &pb.VolumeCapability_BlockVolume{}},
	}
}

// request asks for a volume of that many MiB.
func request(name string, mib int64, caps ...*pb.VolumeCapability) *pb.CreateVolumeRequest {
	if len(caps) == 0 {
		caps = []*pb.VolumeCapability{mounted(rwo, "")}
	}
	return &pb.CreateVolumeRequest{Name: name, CapacityRange: &pb.CapacityRange{RequiredBytes: mib << 20}, VolumeCapabilities: caps}
}

// make creates a volume that must be created.
func (r *rig) make(req *pb.CreateVolumeRequest) *pb.Volume {
	r.t.Helper()
	got, err := r.CreateVolume(r.t.Context(), req)
	if err != nil {
		r.t.Fatal(err)
	}
	return got.Volume
}

// use stages and publishes; all must succeed.
func (r *rig) use(v *pb.Volume, c *pb.VolumeCapability) (staging, target string) {
	r.t.Helper()
	staging, target = r.path(v.VolumeId+"-staging"), r.path(v.VolumeId+"-pod/mount")
	if err := r.stage(v, c, staging); err != nil {
		r.t.Fatal(err)
	}
	if err := r.publish(v, c, staging, target, false); err != nil {
		r.t.Fatal(err)
	}
	return staging, target
}

func (r *rig) stage(v *pb.Volume, c *pb.VolumeCapability, staging string) error {
	_, err := r.NodeStageVolume(r.t.Context(), &pb.NodeStageVolumeRequest{
		VolumeId: v.VolumeId, StagingTargetPath: staging, VolumeCapability: c, VolumeContext: v.VolumeContext})
	return err
}

func (r *rig) publish(v *pb.Volume, c *pb.VolumeCapability, staging, target string, ro bool) error {
	_, err := r.NodePublishVolume(r.t.Context(), &pb.NodePublishVolumeRequest{
		VolumeId: v.VolumeId, StagingTargetPath: staging, TargetPath: target, VolumeCapability: c, VolumeContext: v.VolumeContext, Readonly: ro})
	return err
}

func (r *rig) unpublish(v *pb.Volume, target string) error {
	_, err := r.NodeUnpublishVolume(r.t.Context(), &pb.NodeUnpublishVolumeRequest{VolumeId: v.VolumeId, TargetPath: target})
	return err
}

func (r *rig) unstage(v *pb.Volume, staging string) error {
	_, err := r.NodeUnstageVolume(r.t.Context(), &pb.NodeUnstageVolumeRequest{VolumeId: v.VolumeId, StagingTargetPath: staging})
	return err
}

func (r *rig) deleteVolume(id string) error {
	_, err := r.DeleteVolume(r.t.Context(), &pb.DeleteVolumeRequest{VolumeId: id})
	return err
}

// must fails the test on the first error.
func must(t *testing.T, errs ...error) {
	t.Helper()
	for i, err := range errs {
		if err != nil {
			t.Fatal(fmt.Errorf("step %d: %w", i+1, err))
		}
	}
}
