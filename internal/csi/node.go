package csi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"keelson.io/keelson/internal/csi/dialect"
)

// node makes volumes usable on this node.
type node struct {
	pb.UnimplementedNodeServer
	*driver
	host *host
}

func newNode(d *driver) *node { return &node{driver: d, host: newHost(d.log)} }

// NodeGetCapabilities implements the node service.
func (n *node) NodeGetCapabilities(context.Context, *pb.NodeGetCapabilitiesRequest) (*pb.NodeGetCapabilitiesResponse, error) {
	var out pb.NodeGetCapabilitiesResponse
	for _, t := range []pb.NodeServiceCapability_RPC_Type{
		pb.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		pb.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		pb.NodeServiceCapability_RPC_EXPAND_VOLUME,
		pb.NodeServiceCapability_RPC_VOLUME_CONDITION,
		pb.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		out.Capabilities = append(out.Capabilities, &pb.NodeServiceCapability{
			Type: &pb.NodeServiceCapability_Rpc{Rpc: &pb.NodeServiceCapability_RPC{Type: t}},
		})
	}
	return &out, nil
}

// NodeGetInfo implements the node service.
func (n *node) NodeGetInfo(ctx context.Context, _ *pb.NodeGetInfoRequest) (*pb.NodeGetInfoResponse, error) {
	self, err := n.self(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.NodeGetInfoResponse{
		NodeId: self.Name, MaxVolumesPerNode: n.cfg.MaxVolumes,
		AccessibleTopology: &pb.Topology{Segments: segments(self, n.endpoint.Driver)},
	}, nil
}

// NodeStageVolume implements the node service: attaches the volume to this node, and mounts its file system, which it
// is given first if the device is empty.
func (n *node) NodeStageVolume(ctx context.Context, r *pb.NodeStageVolumeRequest) (*pb.NodeStageVolumeResponse, error) {
	if err := wanting("volume id", r.GetVolumeId(), "staging target path", r.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	if err := checkCapability(r.GetVolumeCapability()); err != nil {
		return nil, err
	}
	device, err := n.attach(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	done := &pb.NodeStageVolumeResponse{}
	if r.GetVolumeCapability().GetBlock() != nil {
		return done, nil
	}
	f, err := fileSystemOf(r.GetVolumeCapability(), r.GetVolumeContext(), n.endpoint.Driver)
	if err != nil {
		return nil, err
	}
	return done, n.host.stage(r.GetVolumeId(), device, r.GetStagingTargetPath(), f)
}

// fileSystem is what a device shall have and how it is mounted.
type fileSystem struct {
	fstype string
	// named says that the type was asked for: then another one isn't mounted.
	named    bool
	create   []string
	options  []string
	readOnly bool
}

func fileSystemOf(c *pb.VolumeCapability, context map[string]string, driver string) (fileSystem, error) {
	asked := cmp.Or(c.GetMount().GetFsType(), context[contextFSType])
	f := fileSystem{
		fstype: cmp.Or(asked, dialect.ForDriver(driver).DefaultFS), named: asked != "",
		create: strings.Fields(context[contextCreate]), readOnly: readsOnly(c),
	}
	if !slices.Contains(dialect.FileSystems, f.fstype) || !dialect.CheckCreateOptions(f.create) {
		return f, status.Errorf(codes.InvalidArgument, "volume context: file system %q with options %q isn't possible", f.fstype, context[contextCreate])
	}
	add := func(option string) {
		if option != "" && !slices.Contains(f.options, option) {
			f.options = append(f.options, option)
		}
	}
	for _, o := range strings.Split(context[contextMount], ",") {
		add(strings.TrimSpace(o))
	}
	for _, flags := range c.GetMount().GetMountFlags() {
		for _, o := range strings.Split(flags, ",") {
			add(strings.TrimSpace(o))
		}
	}
	if !slices.Contains(f.options, "nodiscard") && context[contextDiscard] != "false" {
		add("discard")
	}
	if f.readOnly {
		add("ro")
	}
	return f, nil
}

// attachPause is how long is waited before a volume is tried again.
const attachPause = 250 * time.Millisecond

// attach returns the path of the volume's device on this node. It waits for the end of the lease of a node that can't be reached,
// and for metadata that is away, as it is for a moment when its leader dies; a living node keeps the volume.
func (n *node) attach(ctx context.Context, id string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.AttachWait)
	defer cancel()
	for {
		device, err := n.attachOnce(ctx, id)
		if !errors.Is(err, ErrAgain) && !errors.Is(err, ErrUnavailable) {
			return device, err
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(attachPause):
		}
	}
}

func (n *node) attachOnce(ctx context.Context, id string) (string, error) {
	if _, err := n.volume(ctx, id); err != nil {
		return "", err
	}
	device, err := n.cfg.Keelson.Attach(ctx, id)
	switch {
	case err == nil:
		return devicePath(device)
	case errors.Is(err, ErrNotFound):
		return "", noVolume(id)
	case errors.Is(err, ErrRefused):
		return "", n.heldBy(ctx, id, err)
	}
	return "", err
}

// heldBy words a refusal for somebody who has pods, not volumes.
func (n *node) heldBy(ctx context.Context, id string, refused error) error {
	v, err := n.cfg.Keelson.Volume(ctx, id)
	if err != nil || v.Node == "" || v.Node == n.cfg.Node {
		return refused
	}
	return &Problem{ErrRefused, fmt.Sprintf("volume %s is attached to node %s, which is alive: it comes to node %s once the last pod that uses it there has ended",
		id, v.Node, n.cfg.Node)}
}

// NodeUnstageVolume implements the node service: unmounts the volume and detaches it from this node.
func (n *node) NodeUnstageVolume(ctx context.Context, r *pb.NodeUnstageVolumeRequest) (*pb.NodeUnstageVolumeResponse, error) {
	if err := wanting("volume id", r.GetVolumeId(), "staging target path", r.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	if err := n.host.unstage(r.GetVolumeId(), r.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	if err := n.cfg.Keelson.Detach(ctx, r.GetVolumeId()); err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	return &pb.NodeUnstageVolumeResponse{}, nil
}

// NodePublishVolume implements the node service: shows the staged volume at a path of a pod.
func (n *node) NodePublishVolume(ctx context.Context, r *pb.NodePublishVolumeRequest) (*pb.NodePublishVolumeResponse, error) {
	if r.GetVolumeContext()[contextInline] == "true" {
		if err := wanting("volume id", r.GetVolumeId(), "target path", r.GetTargetPath()); err != nil {
			return nil, err
		}
		return &pb.NodePublishVolumeResponse{}, n.publishInline(ctx, r)
	}
	if err := wanting("volume id", r.GetVolumeId(), "target path", r.GetTargetPath(), "staging target path", r.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	c := r.GetVolumeCapability()
	if err := checkCapability(c); err != nil {
		return nil, err
	}
	p := publication{
		volume: r.GetVolumeId(), target: r.GetTargetPath(), staging: r.GetStagingTargetPath(), readOnly: r.GetReadonly() || readsOnly(c),
		alone: c.GetAccessMode().GetMode() == pb.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
	}
	done := &pb.NodePublishVolumeResponse{}
	if c.GetBlock() == nil {
		if err := n.renew(ctx, r); err != nil {
			return nil, err
		}
		return done, n.host.publish(p)
	}
	v, err := n.volume(ctx, p.volume)
	if err != nil {
		return nil, err
	}
	if v.Node != n.cfg.Node {
		return nil, &Problem{ErrRefused, fmt.Sprintf("volume %s isn't staged on node %s", v.Name, n.cfg.Node)}
	}
	// It is attached here already: this only asks where.
	if p.device, err = n.attach(ctx, p.volume); err != nil {
		return nil, err
	}
	return done, n.host.publishDevice(p)
}

// renewWait is how long the cluster is asked whether what is staged is still attached.
const renewWait = 5 * time.Second

// renew stages a volume again that the node lost since it was staged: kubelet doesn't know, and the old mount is dead. While the
// cluster can't be asked, what is staged counts.
func (n *node) renew(ctx context.Context, r *pb.NodePublishVolumeRequest) error {
	staged, err := mountsAt(r.GetStagingTargetPath())
	if err != nil || len(staged) == 0 {
		return err
	}
	short, cancel := context.WithTimeout(ctx, renewWait)
	defer cancel()
	device, err := n.attachOnce(short, r.GetVolumeId())
	switch code := status.Code(toStatus(err)); {
	case err == nil:
	case code == codes.NotFound || code == codes.FailedPrecondition:
		return err
	default:
		n.log.Warn("a volume is published as it is staged: whether it is still attached can't be found out", "volume", r.GetVolumeId(), "err", err)
		return nil
	}
	f, err := fileSystemOf(r.GetVolumeCapability(), r.GetVolumeContext(), n.endpoint.Driver)
	if err != nil {
		return err
	}
	return n.host.stage(r.GetVolumeId(), device, r.GetStagingTargetPath(), f)
}

// NodeUnpublishVolume implements the node service.
func (n *node) NodeUnpublishVolume(ctx context.Context, r *pb.NodeUnpublishVolumeRequest) (*pb.NodeUnpublishVolumeResponse, error) {
	if err := wanting("volume id", r.GetVolumeId(), "target path", r.GetTargetPath()); err != nil {
		return nil, err
	}
	if name, inline := keelsonName(r.GetVolumeId()); inline {
		return &pb.NodeUnpublishVolumeResponse{}, n.unpublishInline(ctx, name, r.GetTargetPath())
	}
	return &pb.NodeUnpublishVolumeResponse{}, n.host.unpublish(r.GetTargetPath())
}

// statsWait is how long the statistics of a file system may take: of one whose device hangs they never come.
const statsWait = 10 * time.Second

// NodeGetVolumeStats implements the node service.
func (n *node) NodeGetVolumeStats(ctx context.Context, r *pb.NodeGetVolumeStatsRequest) (*pb.NodeGetVolumeStatsResponse, error) {
	id, path := r.GetVolumeId(), r.GetVolumePath()
	if err := wanting("volume id", id, "volume path", path); err != nil {
		return nil, err
	}
	id, inline := keelsonName(id)
	v, err := n.volume(ctx, id)
	if status.Code(err) == codes.NotFound {
		if memory, merr := n.host.memoryAt(path); merr != nil || !inline || !memory {
			return nil, err
		}
	}
	known := err == nil
	ctx, cancel := context.WithTimeout(ctx, statsWait)
	defer cancel()
	u, err := n.host.usage(ctx, id, path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, status.Errorf(codes.NotFound, "volume %s isn't at %s", id, path)
	}
	if err != nil {
		return nil, err
	}
	out := &pb.NodeGetVolumeStatsResponse{Usage: u.proto()}
	switch {
	case u.turnedReadOnly:
		out.VolumeCondition = &pb.VolumeCondition{Abnormal: true, Message: "the kernel made the file system read-only after an error; its log says why"}
	case known:
		out.VolumeCondition = condition(v)
	}
	return out, nil
}
