package api

import (
	"net/http"

	"connectrpc.com/connect"

	rpc "keelson.io/keelson/internal/api/keelsonv1/keelsonv1connect"
)

// Client calls a node's API. Safe for concurrent use.
type Client struct {
	Cluster rpc.ClusterServiceClient
	Nodes   rpc.NodeServiceClient
	Pools   rpc.PoolServiceClient
	Volumes rpc.VolumeServiceClient
	Upkeep  rpc.UpkeepServiceClient
	Keys    rpc.KeyServiceClient
	Snaps   rpc.SnapshotServiceClient
	Access  rpc.AccessServiceClient
	CA      rpc.CAServiceClient
	Join    rpc.JoinServiceClient

	pages pages
}

// NewClient returns a client of the API at base (https://host:port). TLS is h's affair.
func NewClient(h *http.Client, base string) *Client {
	opt := connect.WithInterceptors(passOn())
	return &Client{
		pages:   pages{h, base},
		Cluster: rpc.NewClusterServiceClient(h, base, opt),
		Nodes:   rpc.NewNodeServiceClient(h, base, opt),
		Pools:   rpc.NewPoolServiceClient(h, base, opt),
		Volumes: rpc.NewVolumeServiceClient(h, base, opt),
		Snaps:   rpc.NewSnapshotServiceClient(h, base, opt),
		Upkeep:  rpc.NewUpkeepServiceClient(h, base, opt),
		Keys:    rpc.NewKeyServiceClient(h, base, opt),
		Access:  rpc.NewAccessServiceClient(h, base, opt),
		CA:      rpc.NewCAServiceClient(h, base, opt),
		Join:    rpc.NewJoinServiceClient(h, base, opt),
	}
}
