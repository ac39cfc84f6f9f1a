package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// namespace is where Keelson is installed.
const namespace = "keelson-system"

// repository is the root of the sources, seen from here: where the chart is.
const repository = "../.."

// values are what a user would set in this cluster: pools in files, and the names that other systems' manifests use.
var values = []string{
	"image.repository=" + keelsonRepository, "image.tag=" + keelsonTag, "engine.shards=1", "disks.fileSize=12Gi",
	"csi.aliases.pureCSI=true", "csi.aliases.portworx=true",
}

// install installs the chart, and returns when every node has a pool and claims can be made.
func (s *setup) install(ctx context.Context, root string, more ...string) error {
	began := time.Now()
	for i, n := range s.Nodes {
		if _, err := s.Kubectl(ctx, "label", "--overwrite", "node", n.Name, fmt.Sprintf("rack=rack-%d", i)); err != nil {
			return err
		}
	}
	args := []string{"upgrade", "--install", "keelson", filepath.Join(root, "deploy/chart"), "--namespace", namespace, "--create-namespace"}
	for _, v := range append(append([]string(nil), values...), more...) {
		args = append(args, "--set", v)
	}
	if _, err := s.Helm(ctx, args...); err != nil {
		return err
	}
	if err := s.installed(ctx); err != nil {
		return err
	}
	s.say("Keelson is installed and ready after %.1f s", time.Since(began).Seconds())
	return nil
}

// installed waits until Keelson serves everywhere.
func (s *setup) installed(ctx context.Context) error {
	if _, err := s.Kubectl(ctx, "rollout", "status", "daemonset/keelson-server", "-n", namespace, "--timeout=180s"); err != nil {
		return err
	}
	if _, err := s.Kubectl(ctx, "rollout", "status", "deployment/keelson-controller", "-n", namespace, "--timeout=120s"); err != nil {
		return err
	}
	err := s.Await(ctx, 60*time.Second, "a pool on each node", func() error {
		var pools []struct {
			Node string `json:"node"`
		}
		if err := s.keelson(ctx, &pools, "pool", "list"); err != nil {
			return err
		}
		if len(pools) < len(s.Nodes) {
			return fmt.Errorf("%d of %d are there", len(pools), len(s.Nodes))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.Await(ctx, 60*time.Second, "the driver on each node", func() error {
		out, err := s.Field(ctx, "{.items[*].spec.drivers[*].name}", "csinodes")
		if err != nil {
			return err
		}
		if n := strings.Count(out, "csi.keelson.io"); n < len(s.Nodes) {
			return fmt.Errorf("registered on %d of %d", n, len(s.Nodes))
		}
		return nil
	})
}

// serverPod is the name of a ready pod of keelson server; on that node, if one is named.
func (s *setup) serverPod(ctx context.Context, node string) (string, error) {
	var list podList
	args := []string{"pods", "-n", namespace, "-l", "app.kubernetes.io/component=server"}
	if node != "" {
		args = append(args, "--field-selector", "spec.nodeName="+node)
	}
	if err := s.Get(ctx, &list, args...); err != nil {
		return "", err
	}
	for _, p := range list.Items {
		if _, off := s.off.Load(p.Spec.NodeName); !off && p.ready() && p.Metadata.DeletionTimestamp == "" && s.nodeReady(ctx, p.Spec.NodeName) {
			return p.Metadata.Name, nil
		}
	}
	return "", errors.New("no pod of keelson server is ready")
}

func (s *setup) nodeReady(ctx context.Context, node string) bool {
	out, err := s.Field(ctx, `{.status.conditions[?(@.type=="Ready")].status}`, "node", node)
	return err == nil && out == "True"
}

// keelson runs a command of keelson in one of the pods, as an administrator does, and reads its JSON into v unless that is nil.
func (s *setup) keelson(ctx context.Context, v any, args ...string) error {
	pod, err := s.serverPod(ctx, "")
	if err != nil {
		return err
	}
	if v != nil {
		args = append(args, "-o", "json")
	}
	out, err := s.Kubectl(ctx, append([]string{"exec", "-n", namespace, pod, "-c", "server", "--", "keelson"}, args...)...)
	if err != nil || v == nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		return fmt.Errorf("keelson %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// podList and pod are what is read of Kubernetes' pods.
type podList struct {
	Items []pod `json:"items"`
}

type pod struct {
	Metadata struct {
		Name              string `json:"name"`
		UID               string `json:"uid"`
		DeletionTimestamp string `json:"deletionTimestamp"`
	} `json:"metadata"`
	Spec struct {
		NodeName string `json:"nodeName"`
	} `json:"spec"`
	Status struct {
		Phase      string `json:"phase"`
		PodIP      string `json:"podIP"`
		Conditions []struct {
			Type   string `json:"type"`
			Status string `json:"status"`
		} `json:"conditions"`
		ContainerStatuses []struct {
			ContainerID  string `json:"containerID"`
			RestartCount int    `json:"restartCount"`
		} `json:"containerStatuses"`
	} `json:"status"`
}

func (p *pod) ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}
