package system

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"keelson.io/keelson/internal/csi"
	"keelson.io/keelson/internal/csi/csitest"
	"keelson.io/keelson/internal/server"
)

// TestCSISanity is the community's suite against the driver of a node: real volumes, devices and mounts.
func TestCSISanity(t *testing.T) {
	c := shared(t)
	cfg := sanity.NewTestConfig()
	cfg.Address = "unix:" + filepath.Join(c.NodeDir("n1"), "run/csi.sock")
	// Both are on the disk that all nodes see; what is mounted there only n1 sees.
	cfg.TargetPath, cfg.StagingPath = filepath.Join(c.NodeDir("n1"), "csi-target"), filepath.Join(c.NodeDir("n1"), "csi-staging")
	cfg.TestVolumeSize = 1 << 30
	cfg.TestVolumeParameters = map[string]string{"replicas": "2", "createOptions": "-q"}
	c.csi("n1") // it serves
	sanity.Test(t, cfg)
	if left := c.shell("n1", "grep csi- /proc/mounts || true"); left != "" {
		t.Errorf("still mounted:\n%s", left)
	}
}

// TestCSIContract: the real cluster is what the driver takes it for.
func TestCSIContract(t *testing.T) {
	c := shared(t)
	at := func(node string) csi.Keelson {
		client, err := server.LocalClient(filepath.Join(c.NodeDir(node), "data"), "")
		if err != nil {
			t.Fatal(err)
		}
		return server.NewCSIKeelson(node, client)
	}
	csitest.Contract(t, at("n1"), at("n2"))
}

// csiNode is the driver of a node.
type csiNode struct {
	pb.ControllerClient
	pb.NodeClient
	c       *cluster
	name    string
	staging string
	target  string
}

// csi returns the driver of a node once it is ready.
func (c *cluster) csi(node string) *csiNode {
	c.T.Helper()
	conn, err := grpc.NewClient("unix:"+filepath.Join(c.NodeDir(node), "run/csi.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		c.T.Fatal(err)
	}
	c.T.Cleanup(func() { conn.Close() })
	c.Eventually(30*time.Second, "the CSI driver of "+node+" is ready", func() error {
		p, err := pb.NewIdentityClient(conn).Probe(c.ctx(), &pb.ProbeRequest{})
		if err == nil && !p.GetReady().GetValue() {
			err = status.Error(codes.Unavailable, "not ready")
		}
		return err
	})
	return &csiNode{pb.NewControllerClient(conn), pb.NewNodeClient(conn), c, node,
		filepath.Join(c.NodeDir(node), "kubelet/staging"), filepath.Join(c.NodeDir(node), "kubelet/pod/mount")}
}

var csiWriter = &pb.VolumeCapability{
	AccessMode: &pb.VolumeCapability_AccessMode{Mode: pb.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
	AccessType: &pb.VolumeCapability_Mount{Mount: &pb.VolumeCapability_MountVolume{}},
}

func (n *csiNode) create(name string, params map[string]string) *pb.Volume {
	n.c.T.Helper()
	got, err := n.CreateVolume(n.c.ctx(), &pb.CreateVolumeRequest{
		Name: name, Parameters: params, CapacityRange: &pb.CapacityRange{RequiredBytes: 1 << 30}, VolumeCapabilities: []*pb.VolumeCapability{csiWriter},
	})
	if err != nil {
		n.c.T.Fatal(err)
	}
	return got.Volume
}

func (n *csiNode) stage(v *pb.Volume) error {
	_, err := n.NodeStageVolume(n.c.ctx(), &pb.NodeStageVolumeRequest{VolumeId: v.VolumeId, VolumeContext: v.VolumeContext, VolumeCapability: csiWriter, StagingTargetPath: n.staging})
	return err
}

func (n *csiNode) publish(v *pb.Volume) error {
	_, err := n.NodePublishVolume(n.c.ctx(), &pb.NodePublishVolumeRequest{
		VolumeId: v.VolumeId, VolumeContext: v.VolumeContext, VolumeCapability: csiWriter, StagingTargetPath: n.staging, TargetPath: n.target})
	return err
}

func (n *csiNode) use(v *pb.Volume) {
	n.c.T.Helper()
	if err := n.stage(v); err != nil {
		n.c.T.Fatalf("stage on %s: %v", n.name, err)
	}
	if err := n.publish(v); err != nil {
		n.c.T.Fatalf("publish on %s: %v", n.name, err)
	}
}

func (n *csiNode) leave(v *pb.Volume) {
	n.c.T.Helper()
	if _, err := n.NodeUnpublishVolume(n.c.ctx(), &pb.NodeUnpublishVolumeRequest{VolumeId: v.VolumeId, TargetPath: n.target}); err != nil {
		n.c.T.Errorf("unpublish on %s: %v", n.name, err)
	}
	if _, err := n.NodeUnstageVolume(n.c.ctx(), &pb.NodeUnstageVolumeRequest{VolumeId: v.VolumeId, StagingTargetPath: n.staging}); err != nil {
		n.c.T.Errorf("unstage on %s: %v", n.name, err)
	}
}

func (n *csiNode) remove(v *pb.Volume) {
	n.c.T.Helper()
	if _, err := n.DeleteVolume(n.c.ctx(), &pb.DeleteVolumeRequest{VolumeId: v.VolumeId}); err != nil {
		n.c.T.Errorf("delete: %v", err)
	}
}

// TestCSIFollowsThePod: a living node keeps the volume; from one that is cut off it comes with all that was synced, and what the
// old node still has of it goes without a trace when it is back.
func TestCSIFollowsThePod(t *testing.T) {
	c := shared(t)
	n1, n2 := c.csi("n1"), c.csi("n2")
	v := n1.create("csi-follows", nil)
	n1.use(v)
	c.shell("n1", "echo one > "+n1.target+"/file && sync -f "+n1.target)
	if err := n2.stage(v); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "n1") {
		t.Fatalf("staged on n2 while n1 has it: %v", err)
	}
	if err := c.Cut("n1"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	n2.use(v)
	t.Logf("staged and published on n2 %v after n1 was cut off", time.Since(began).Round(100*time.Millisecond))
	if got := c.shell("n2", "cat "+n2.target+"/file"); got != "one" {
		t.Errorf("the file has %q", got)
	}
	c.shell("n2", "echo two > "+n2.target+"/file && sync -f "+n2.target)
	if err := c.Heal("n1"); err != nil {
		t.Fatal(err)
	}
	c.mend()
	n1.leave(v)
	if got := c.shell("n1", "grep -c kubelet/ /proc/mounts || true"); got != "0" {
		t.Errorf("%s mounts are left on n1", got)
	}
	if got := c.shell("n2", "cat "+n2.target+"/file"); got != "two" {
		t.Errorf("the file has %q", got)
	}
	n2.leave(v)
	n1.use(v)
	if got := c.shell("n1", "cat "+n1.target+"/file"); got != "two" {
		t.Errorf("back on n1 the file has %q", got)
	}
	n1.leave(v)
	n1.remove(v)
}

// TestCSIRawBlock: a raw block volume isn't taken away while a pod has its device, also not by an engine that came later.
func TestCSIRawBlock(t *testing.T) {
	c := shared(t)
	n1 := c.csi("n1")
	block := &pb.VolumeCapability{AccessMode: csiWriter.AccessMode, AccessType: &pb.VolumeCapability_Block{Block: &pb.VolumeCapability_BlockVolume{}}}
	v := n1.create("csi-raw", nil)
	if _, err := n1.NodeStageVolume(c.ctx(), &pb.NodeStageVolumeRequest{VolumeId: v.VolumeId, VolumeCapability: block, StagingTargetPath: n1.staging}); err != nil {
		t.Fatal(err)
	}
	if _, err := n1.NodePublishVolume(c.ctx(), &pb.NodePublishVolumeRequest{VolumeId: v.VolumeId, VolumeCapability: block, StagingTargetPath: n1.staging, TargetPath: n1.target}); err != nil {
		t.Fatal(err)
	}
	c.shell("n1", "dd if=/dev/urandom of="+n1.target+" bs=1M count=4 oflag=direct status=none")
	before := c.shell("n1", "head -c 4M "+n1.target+" | cksum")
	if err := c.KillProcess("n1", "engine"); err != nil {
		t.Fatal(err)
	}
	if after := c.shell("n1", "echo 3 >/proc/sys/vm/drop_caches; head -c 4M "+n1.target+" | cksum"); after != before {
		t.Errorf("%s, then %s", before, after)
	}
	unstage := &pb.NodeUnstageVolumeRequest{VolumeId: v.VolumeId, StagingTargetPath: n1.staging}
	if _, err := n1.NodeUnstageVolume(c.ctx(), unstage); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("unstaged while a pod has the device: %v", err)
	}
	n1.leave(v)
	n1.remove(v)
}

// TestCSIControlDies: killed in the middle of a call, the driver finds what is there and goes on.
func TestCSIControlDies(t *testing.T) {
	c := shared(t)
	n1 := c.csi("n1")
	v := n1.create("csi-control", map[string]string{"fsType": "xfs"})
	for i := range 6 {
		done := make(chan error, 1)
		go func() { done <- n1.stage(v) }()
		time.Sleep(time.Duration(i) * 120 * time.Millisecond) // somewhere between attaching, mkfs and mount
		if err := c.KillProcess("n1", "control"); err != nil {
			t.Fatal(err)
		}
		<-done
		c.csi("n1")
	}
	c.Eventually(30*time.Second, "the volume is staged", func() error { return n1.stage(v) })
	if err := n1.publish(v); err != nil {
		t.Fatal(err)
	}
	c.shell("n1", "echo there > "+n1.target+"/file")
	n1.leave(v)
	n1.remove(v)
}

// TestCSIDeleteFromDeadNode: a volume isn't kept for ever because its node died with it.
func TestCSIDeleteFromDeadNode(t *testing.T) {
	c := shared(t)
	n2, n3 := c.csi("n2"), c.csi("n3")
	v := n3.create("csi-orphan", map[string]string{"replicas": "3"})
	n3.use(v)
	if err := c.Kill("n3"); err != nil {
		t.Fatal(err)
	}
	c.Eventually(30*time.Second, "the volume of the dead node can be deleted", func() error {
		_, err := n2.DeleteVolume(c.ctx(), &pb.DeleteVolumeRequest{VolumeId: v.VolumeId})
		return err
	})
	if err := c.Start("n3"); err != nil {
		t.Fatal(err)
	}
	c.mend()
	n3 = c.csi("n3")
	n3.leave(v)
}

// TestCSITopology: copies lie where the class says.
func TestCSITopology(t *testing.T) {
	c := shared(t)
	n1 := c.csi("n1")
	zone := func(z string) *pb.Topology {
		return &pb.Topology{Segments: map[string]string{"topology.keelson.io/zone": z}}
	}
	got, err := n1.CreateVolume(c.ctx(), &pb.CreateVolumeRequest{
		Name: "csi-zones", CapacityRange: &pb.CapacityRange{RequiredBytes: 1 << 30}, VolumeCapabilities: []*pb.VolumeCapability{csiWriter},
		AccessibilityRequirements: &pb.TopologyRequirement{Requisite: []*pb.Topology{zone("z2"), zone("z3")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	near, err := n1.CreateVolume(c.ctx(), &pb.CreateVolumeRequest{
		Name: "csi-near", CapacityRange: &pb.CapacityRange{RequiredBytes: 1 << 30}, VolumeCapabilities: []*pb.VolumeCapability{csiWriter},
		Parameters:                map[string]string{"replicas": "1"},
		AccessibilityRequirements: &pb.TopologyRequirement{Preferred: []*pb.Topology{{Segments: map[string]string{"topology.keelson.io/node": "n3"}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{"csi-zones": {"n2", "n3"}, "csi-near": {"n3"}} {
		var nodes []string
		for _, m := range c.volume("n1", name).Columns[0].Members {
			nodes = append(nodes, m.Node)
		}
		if slices.Sort(nodes); !slices.Equal(nodes, want) {
			t.Errorf("%s: copies are on %v, want %v", name, nodes, want)
		}
	}
	n1.remove(got.Volume)
	n1.remove(near.Volume)
}
