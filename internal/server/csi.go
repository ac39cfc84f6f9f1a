package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"k8s.io/klog/v2"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/csi"
	"keelson.io/keelson/internal/csi/dialect"
	"keelson.io/keelson/internal/spec"
)

// CSIConfig is about Kubernetes' volumes. Without a socket nothing is served.
type CSIConfig struct {
	Socket          string     `yaml:"socket"`
	Driver          string     `yaml:"driver"`          // default csi.keelson.io
	RegistrationDir string     `yaml:"registrationDir"` // kubelet's plugins_registry; "" doesn't register
	Aliases         []CSIAlias `yaml:"aliases"`
	MaxVolumes      int64      `yaml:"maxVolumes"` // of this node
}

// CSIAlias is another driver name, with the dialect that belongs to it.
type CSIAlias struct {
	Driver string `yaml:"driver"`
	Socket string `yaml:"socket"`
}

// csiConfig returns what the driver serves.
func (c *CSIConfig) csiConfig() csi.Config {
	out := csi.Config{MaxVolumes: c.MaxVolumes, Version: Version}
	if c.Socket == "" {
		return out
	}
	name := c.Driver
	if name == "" {
		name = dialect.DriverKeelson
	}
	out.Endpoints = []csi.Endpoint{{Driver: name, Socket: c.Socket, RegistrationDir: c.RegistrationDir}}
	for _, a := range c.Aliases {
		out.Endpoints = append(out.Endpoints, csi.Endpoint{Driver: a.Driver, Socket: a.Socket, RegistrationDir: c.RegistrationDir})
	}
	return out
}

func (c *CSIConfig) validate() error {
	if c.Socket == "" && len(c.Aliases) > 0 {
		return errors.New("csi.socket: not set, but aliases are; aliases are served beside the driver itself")
	}
	for _, a := range c.Aliases {
		if a.Driver != dialect.DriverPure && a.Driver != dialect.DriverPortworx {
			return fmt.Errorf("csi.aliases: driver %q is neither %s nor %s", a.Driver, dialect.DriverPure, dialect.DriverPortworx)
		}
	}
	if c.MaxVolumes < 0 {
		return fmt.Errorf("csi.maxVolumes: %d is negative", c.MaxVolumes)
	}
	cc := c.csiConfig()
	if err := cc.Validate(); err != nil {
		return fmt.Errorf("csi: %w", err)
	}
	return nil
}

// csiRetry is the pause before the driver's sockets are tried again: another process may still have them.
const csiRetry = 2 * time.Second

// serveCSI serves the CSI driver until ctx ends. That it can't is no reason to end the API.
func (c *control) serveCSI(ctx context.Context) {
	cc := c.cfg.CSI.csiConfig()
	if len(cc.Endpoints) == 0 {
		return
	}
	klog.SetSlogLogger(c.log) // what mounts is written with it
	self := c.dialer.dial(spec.Node{Name: c.st.Node, APIAddr: c.cfg.APIAddr()})
	cc.Node, cc.Log = c.st.Node, c.log
	cc.Keelson = NewCSIKeelson(c.st.Node, self)
	for {
		s := csi.New(cc)
		err := s.Open(ctx)
		if err == nil {
			<-ctx.Done()
			_ = s.Close() // it has nothing to report
			return
		}
		c.log.Error("the CSI driver can't be served; trying again", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(csiRetry):
		}
	}
}

// csiKeelson is the cluster as the CSI driver of a node sees it: the API of that node.
type csiKeelson struct {
	node string
	api  *api.Client
}

// NewCSIKeelson returns the cluster for the CSI driver of a node, by that node's API.
func NewCSIKeelson(node string, c *api.Client) csi.Keelson { return &csiKeelson{node: node, api: c} }

// csiKinds are the kinds of the API's errors in the driver.
var csiKinds = map[connect.Code]error{
	connect.CodeInvalidArgument:    csi.ErrInvalid,
	connect.CodeNotFound:           csi.ErrNotFound,
	connect.CodeAlreadyExists:      csi.ErrExists,
	connect.CodeResourceExhausted:  csi.ErrNoRoom,
	connect.CodeFailedPrecondition: csi.ErrRefused,
	connect.CodeAborted:            csi.ErrAgain,
	connect.CodeUnavailable:        csi.ErrUnavailable,
	connect.CodeDeadlineExceeded:   context.DeadlineExceeded,
	connect.CodeCanceled:           context.Canceled,
}

func csiError(err error) error {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return err
	}
	if kind := csiKinds[ce.Code()]; kind != nil {
		return &csi.Problem{Kind: kind, Text: ce.Message()}
	}
	return err
}

// Create implements csi.Keelson.
func (k *csiKeelson) Create(ctx context.Context, r csi.Request) (csi.Volume, error) {
	req := &pb.CreateVolumeRequest{
		Name: r.Name, Size: r.Size, Replicas: int32(r.Replicas), Columns: int32(r.Columns), ZoneSpread: r.ZoneSpread,
		NodeSelector: r.NodeSelector, Media: r.Media, Near: r.Near, Topology: terms(r.Topology),
	}
	if e := r.Ephemeral; e != nil {
		req.Ephemeral = &pb.Ephemeral{Node: e.Node, Path: e.Path}
	}
	askPolicy(req, r)
	req.Encrypt = r.Encrypt
	v, err := k.api.Volumes.CreateVolume(ctx, req)
	return csiVolume(v), csiError(err)
}

// Delete implements csi.Keelson.
func (k *csiKeelson) Delete(ctx context.Context, name string) error {
	_, err := k.api.Volumes.DeleteVolume(ctx, &pb.DeleteVolumeRequest{Name: name})
	return csiError(err)
}

// Volume implements csi.Keelson.
func (k *csiKeelson) Volume(ctx context.Context, name string) (csi.Volume, error) {
	v, err := k.api.Volumes.GetVolume(ctx, &pb.GetVolumeRequest{Name: name})
	return csiVolume(v), csiError(err)
}

// Volumes implements csi.Keelson.
func (k *csiKeelson) Volumes(ctx context.Context) ([]csi.Volume, error) {
	got, err := k.api.Volumes.ListVolumes(ctx, &pb.ListVolumesRequest{})
	if err != nil {
		return nil, csiError(err)
	}
	out := make([]csi.Volume, 0, len(got.Volumes))
	for _, v := range got.Volumes {
		out = append(out, csiVolume(v))
	}
	return out, nil
}

func csiVolume(v *pb.Volume) csi.Volume {
	if v == nil {
		return csi.Volume{}
	}
	out := csi.Volume{
		Name: v.Name, Size: v.Size, Replicas: int(v.Replicas), Columns: int(v.ColumnCount), ZoneSpread: v.ZoneSpread, Media: v.Media,
		NodeSelector: v.NodeSelector, Deleting: v.Deleting, Healthy: v.Health == api.Healthy, Condition: v.Condition,
	}
	if v.Frontend != spec.FrontendNone {
		out.Node = v.Node
	}
	for _, t := range v.Topology {
		out.Topology = append(out.Topology, t.GetSegments())
	}
	showPolicy(&out, v)
	out.Encrypted = v.Encryption != nil
	if e := v.Ephemeral; e != nil {
		out.Ephemeral = &spec.Ephemeral{Node: e.Node, Path: e.Path}
	}
	return out
}

// Nodes implements csi.Keelson.
func (k *csiKeelson) Nodes(ctx context.Context) ([]csi.Node, error) {
	got, err := k.api.Nodes.ListNodes(ctx, &pb.ListNodesRequest{})
	if err != nil {
		return nil, csiError(err)
	}
	out := make([]csi.Node, 0, len(got.Nodes))
	for _, n := range got.Nodes {
		x := csi.Node{Name: n.Name, Zone: n.Zone, Labels: n.Labels, Alive: n.Alive, Cordoned: n.Cordoned || n.Unschedulable}
		for _, r := range n.Roles {
			x.Storage = x.Storage || r == string(spec.RoleStorage)
		}
		out = append(out, x)
	}
	return out, nil
}

// Pools implements csi.Keelson.
func (k *csiKeelson) Pools(ctx context.Context) ([]csi.Pool, error) {
	settings, err := k.api.Cluster.GetSettings(ctx, &pb.GetSettingsRequest{})
	if err != nil {
		return nil, csiError(err)
	}
	got, err := k.api.Pools.ListPools(ctx, &pb.ListPoolsRequest{})
	if err != nil {
		return nil, csiError(err)
	}
	out := make([]csi.Pool, 0, len(got.Pools))
	for _, p := range got.Pools {
		// As placement counts: promises up to the limit, in a pool that isn't full.
		room := int64(settings.Overcommit*float64(p.Capacity-p.Reserve)) - p.Provisioned
		if p.Live && p.Used >= p.Capacity-p.Reserve {
			room = 0
		}
		out = append(out, csi.Pool{Node: p.Node, Media: p.Media, Room: max(room, 0)})
	}
	return out, nil
}

// Attach implements csi.Keelson.
func (k *csiKeelson) Attach(ctx context.Context, name string) (string, error) {
	got, err := k.api.Volumes.AttachVolume(ctx, &pb.AttachVolumeRequest{Name: name, Frontend: spec.FrontendFUSE})
	if err != nil {
		return "", csiError(err)
	}
	return got.Device, nil
}

// Detach implements csi.Keelson. It is from this node alone: the volume may be on its way to another one, to which the call
// must not follow it.
func (k *csiKeelson) Detach(ctx context.Context, name string) error {
	_, err := k.api.Volumes.DetachVolume(ctx, &pb.DetachVolumeRequest{Name: name, From: k.node})
	if connect.CodeOf(err) == connect.CodeNotFound {
		return nil
	}
	if err != nil {
		// It may have ended, or moved, between the question and the call.
		if again, gerr := k.api.Volumes.GetVolume(ctx, &pb.GetVolumeRequest{Name: name}); gerr == nil && again.Node != k.node {
			return nil
		}
	}
	return csiError(err)
}
