package csi

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// collectEvery is how often the driver looks for volumes that were made for pods which are no more, collectFirst when it does so
// first. Ordinarily there are none: kubelet takes them away with the pod.
const (
	collectEvery = 10 * time.Minute
	collectFirst = 10 * time.Second
)

// collect looks until ctx ends.
func (s *Server) collect(ctx context.Context, n *node) {
	for wait := min(collectFirst, s.cfg.CollectEvery); ; wait = s.cfg.CollectEvery {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if err := s.collectOnce(ctx, n); err != nil && ctx.Err() == nil {
			n.log.Warn("volumes whose pods are gone can't be collected; trying again later", "err", err)
		}
	}
}

// collectOnce deletes the volumes that were made for pods of this node that kubelet knows no more, and those of nodes that
// were removed from the cluster. A node that is merely away keeps its own: it may come back with its pods.
func (s *Server) collectOnce(ctx context.Context, n *node) error {
	list, err := s.cfg.Keelson.Volumes(ctx)
	if err != nil {
		return err
	}
	var nodes map[string]bool // read when it is needed
	var failed []error
	for _, v := range list {
		if v.Ephemeral == nil || v.Deleting {
			continue
		}
		if nodes == nil {
			if nodes, err = s.nodeNames(ctx); err != nil {
				return err
			}
		}
		if err := s.collectVolume(ctx, n, v, nodes[v.Ephemeral.Node]); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

func (s *Server) nodeNames(ctx context.Context) (map[string]bool, error) {
	list, err := s.cfg.Keelson.Nodes(ctx)
	out := map[string]bool{}
	for _, n := range list {
		out[n.Name] = true
	}
	return out, err
}

// collectVolume deletes a volume if it is an orphan. known says that its node is one of the cluster.
func (s *Server) collectVolume(ctx context.Context, n *node, v Volume, known bool) error {
	own := v.Ephemeral.Node == s.cfg.Node
	if known && !own {
		return nil
	}
	if _, ok := s.locks.take(v.Name, "collecting"); !ok {
		return nil
	}
	defer s.locks.release(v.Name)
	if own {
		gone, err := podGone(v.Ephemeral.Path)
		if err != nil || !gone {
			return err
		}
	}
	n.log.Info("a volume is deleted whose pod is gone", "volume", v.Name, "path", v.Ephemeral.Path, "owner", v.Ephemeral.Node)
	if !own && v.Node != "" {
		if err := n.freeFromDead(ctx, v); err != nil {
			return err
		}
	}
	return n.deleteInline(ctx, v.Name)
}

// podGone reports whether kubelet knows a target path no more: it keeps the directory above from before it publishes a volume until
// after it has taken it away. If its directory of all pods isn't there either, nothing is known.
func podGone(target string) (bool, error) {
	list, err := mountsAt(target)
	if err != nil || len(list) > 0 {
		return false, err
	}
	for dir := filepath.Dir(target); dir != "/"; dir = filepath.Dir(dir) {
		if filepath.Base(dir) != "pods" {
			continue
		}
		if _, err := os.Stat(dir); err != nil {
			return false, nil
		}
		break
	}
	_, err = os.Stat(filepath.Dir(target))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}
