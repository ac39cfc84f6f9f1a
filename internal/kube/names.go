package kube

import (
	"context"
	"slices"
	"sync"
	"time"

	storagev1 "k8s.io/api/storage/v1"
)

// namesFor is how long a name that isn't known isn't looked up again.
const namesFor = 10 * time.Second

// nodeNames knows what nodes are called in Kubernetes and in Keelson: kubelet writes it into the CSINode objects when the driver
// registers. It reads them when it is asked for a name that it doesn't know. Safe for concurrent use.
type nodeNames struct {
	api     API
	drivers []string

	mu      sync.Mutex
	toKube  map[string]string // by the name in Keelson
	toOurs  map[string]string // by the name in Kubernetes
	learned time.Time
}

func newNodeNames(api API, drivers []string) *nodeNames {
	return &nodeNames{api: api, drivers: drivers}
}

// kube returns the name of a node in Kubernetes. One that never registered is called the same there, if it is there.
func (n *nodeNames) kube(ctx context.Context, node string) (string, error) {
	name, ok, err := n.look(ctx, node, func() map[string]string { return n.toKube })
	if !ok {
		name = node
	}
	return name, err
}

// keelson returns the name in Keelson of a node of Kubernetes, on the same terms.
func (n *nodeNames) keelson(ctx context.Context, node string) (string, error) {
	name, ok, err := n.look(ctx, node, func() map[string]string { return n.toOurs })
	if !ok {
		name = node
	}
	return name, err
}

// registered returns the names in Keelson of those nodes of Kubernetes on which the driver is registered.
func (n *nodeNames) registered(ctx context.Context, nodes []string) (map[string]string, error) {
	out := map[string]string{}
	for _, x := range nodes {
		name, ok, err := n.look(ctx, x, func() map[string]string { return n.toOurs })
		if err != nil {
			return nil, err
		}
		if ok {
			out[x] = name
		}
	}
	return out, nil
}

func (n *nodeNames) look(ctx context.Context, key string, in func() map[string]string) (string, bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if name, ok := in()[key]; ok {
		return name, true, nil
	}
	if !n.learned.IsZero() && time.Since(n.learned) < namesFor {
		return "", false, nil
	}
	toKube, toOurs := map[string]string{}, map[string]string{}
	err := n.api.EachCSINode(ctx, func(x *storagev1.CSINode) error {
		for _, d := range x.Spec.Drivers {
			if slices.Contains(n.drivers, d.Name) {
				toKube[d.NodeID], toOurs[x.Name] = x.Name, d.NodeID
			}
		}
		return nil
	})
	if err != nil {
		return "", false, err
	}
	// What was known stays: the driver is out of a CSINode while it is started anew.
	for k, v := range n.toKube {
		if _, ok := toKube[k]; !ok && toOurs[v] == "" {
			toKube[k], toOurs[v] = v, k
		}
	}
	n.toKube, n.toOurs, n.learned = toKube, toOurs, time.Now()
	name, ok := in()[key]
	return name, ok, nil
}
