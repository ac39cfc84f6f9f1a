// Package enginestat asks the engines of a lab for their counters. It starts no goroutine.
package enginestat

import (
	"context"
	"fmt"
	"path/filepath"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/lab"
	"keelson.io/keelson/internal/server"
)

// Counters returns what the node's engine counted since it started.
func Counters(ctx context.Context, l *lab.Lab, node string) (map[string]int64, error) {
	client, err := server.LocalClient(filepath.Join(l.NodeDir(node), "data"), "")
	if err != nil {
		return nil, err
	}
	st, err := client.Nodes.NodeStatus(ctx, &pb.NodeStatusRequest{})
	if err != nil {
		return nil, err
	}
	if st.Problem != "" {
		return nil, fmt.Errorf("status of %s: %s", node, st.Problem)
	}
	return st.Counters, nil
}
