package api

import (
	"net/http"

	rpc "keelson.io/keelson/internal/api/keelsonv1/keelsonv1connect"
)

// Client calls a node's API. Safe for concurrent use.
type Client struct {
	Cluster rpc.ClusterServiceClient
	Nodes   rpc.NodeServiceClient
	Pools   rpc.PoolServiceClient
	Volumes rpc.VolumeServiceClient
	Join    rpc.JoinServiceClient
}

// NewClient returns a client of the API at base (https://host:port). TLS is h's affair.
func NewClient(h *http.Client, base string) *Client {
	return &Client{
		Cluster: rpc.NewClusterServiceClient(h, base),
		Nodes:   rpc.NewNodeServiceClient(h, base),
		Pools:   rpc.NewPoolServiceClient(h, base),
		Volumes: rpc.NewVolumeServiceClient(h, base),
		Join:    rpc.NewJoinServiceClient(h, base),
	}
}
