package csi

import (
	"context"
	"sync/atomic"
	"time"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// identity says who the driver is.
type identity struct {
	pb.UnimplementedIdentityServer
	*driver
	ready *atomic.Bool
}

// GetPluginInfo implements the identity service.
func (i *identity) GetPluginInfo(context.Context, *pb.GetPluginInfoRequest) (*pb.GetPluginInfoResponse, error) {
	return &pb.GetPluginInfoResponse{Name: i.endpoint.Driver, VendorVersion: i.cfg.Version}, nil
}

// GetPluginCapabilities implements the identity service.
func (i *identity) GetPluginCapabilities(context.Context, *pb.GetPluginCapabilitiesRequest) (*pb.GetPluginCapabilitiesResponse, error) {
	var out pb.GetPluginCapabilitiesResponse
	for _, t := range []pb.PluginCapability_Service_Type{
		pb.PluginCapability_Service_CONTROLLER_SERVICE,
		pb.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS,
		pb.PluginCapability_Service_GROUP_CONTROLLER_SERVICE,
	} {
		out.Capabilities = append(out.Capabilities, &pb.PluginCapability{
			Type: &pb.PluginCapability_Service_{Service: &pb.PluginCapability_Service{Type: t}},
		})
	}
	out.Capabilities = append(out.Capabilities, &pb.PluginCapability{
		Type: &pb.PluginCapability_VolumeExpansion_{VolumeExpansion: &pb.PluginCapability_VolumeExpansion{Type: pb.PluginCapability_VolumeExpansion_ONLINE}},
	})
	return &out, nil
}

// probeWait is how long a probe waits for the metadata.
const probeWait = 2 * time.Second

// Probe answers that the driver is ready once it has seen this node in the metadata. That it answers at all says that it
// lives: a metadata store that is away for a while is no reason to start the driver anew.
func (i *identity) Probe(ctx context.Context, _ *pb.ProbeRequest) (*pb.ProbeResponse, error) {
	if !i.ready.Load() {
		ctx, cancel := context.WithTimeout(ctx, probeWait)
		defer cancel()
		if _, err := i.self(ctx); err == nil {
			i.ready.Store(true)
		}
	}
	return &pb.ProbeResponse{Ready: wrapperspb.Bool(i.ready.Load())}, nil
}

// self returns the record of this node.
func (d *driver) self(ctx context.Context) (Node, error) {
	nodes, err := d.cfg.Keelson.Nodes(ctx)
	if err != nil {
		return Node{}, err
	}
	for _, n := range nodes {
		if n.Name == d.cfg.Node {
			return n, nil
		}
	}
	return Node{}, &Problem{ErrUnavailable, "node " + d.cfg.Node + " isn't in the metadata yet"}
}
