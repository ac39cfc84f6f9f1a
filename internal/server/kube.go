package server

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"keelson.io/keelson/internal/kube"
	"keelson.io/keelson/internal/spec"
)

// KubeConfig is about what Keelson does in Kubernetes besides the CSI driver. It needs the driver: csi.socket.
type KubeConfig struct {
	Enabled bool `yaml:"enabled"`
	// Kubeconfig is a file; "" is what a pod is given.
	Kubeconfig string `yaml:"kubeconfig"`
	// Namespace is where guards are; "" is the pod's own.
	Namespace  string `yaml:"namespace"`
	Failover   bool   `yaml:"failover"`
	GuardImage string `yaml:"guardImage"` // "": no guards
	Extender   string `yaml:"extender"`   // HOST:PORT on a loopback address; "": none
	KubeletDir string `yaml:"kubeletDir"`
	// RestartPatience is how long Keelson may be away on a node whose machine answers before its pods are moved.
	RestartPatience time.Duration `yaml:"restartPatience"`
}

// Limits of KubeConfig.RestartPatience.
const (
	minRestartPatience = 10 * time.Second
	maxRestartPatience = time.Hour
)

// defaultKube are the defaults of what isn't enabled by default.
func defaultKube() KubeConfig {
	return KubeConfig{Failover: true, Extender: "127.0.0.1:9504", KubeletDir: "/var/lib/kubelet", RestartPatience: kube.DefaultPatience().Reachable}
}

func (c *Config) validateKube() error {
	k := &c.Kube
	if !k.Enabled {
		return nil
	}
	if c.CSI.Socket == "" {
		return fmt.Errorf("kube.enabled: true, but csi.socket isn't set: without the driver there are no volumes in Kubernetes")
	}
	for key, path := range map[string]string{"kube.kubeconfig": k.Kubeconfig, "kube.kubeletDir": k.KubeletDir} {
		if path != "" && !filepath.IsAbs(path) {
			return fmt.Errorf("%s: %q is not an absolute path", key, path)
		}
	}
	if k.KubeletDir == "" {
		return fmt.Errorf("kube.kubeletDir: empty; it is /var/lib/kubelet unless kubelet runs with --root-dir")
	}
	if p := k.RestartPatience; p < minRestartPatience || p > maxRestartPatience {
		return fmt.Errorf("kube.restartPatience: %s is not between %s and %s", p, minRestartPatience, maxRestartPatience)
	}
	if k.Namespace != "" {
		if err := spec.CheckName("kube.namespace", k.Namespace); err != nil {
			return err
		}
	}
	if k.Extender != "" {
		if err := kube.CheckExtenderAddress(k.Extender); err != nil {
			return fmt.Errorf("kube.extender: %w", err)
		}
	}
	return nil
}

// drivers are the names of the CSI driver and its aliases.
func (c *CSIConfig) drivers() []string {
	var out []string
	for _, e := range c.csiConfig().Endpoints {
		out = append(out, e.Driver)
	}
	return out
}

// kubeAPI returns Kubernetes, nil if it isn't enabled or can't be used: then the log says why.
func (c *control) kubeAPI() kube.API {
	if !c.cfg.Kube.Enabled {
		return nil
	}
	api, err := kube.Connect(c.cfg.Kube.Kubeconfig, "keelson/"+Version)
	if err != nil {
		c.log.Error("no failover and no scheduling in Kubernetes", "err", err)
		return nil
	}
	return api
}

// leadKube does the leader's work in Kubernetes until ctx ends.
func (c *control) leadKube(ctx context.Context) {
	api := c.kubeAPI()
	if api == nil {
		return
	}
	patience := kube.DefaultPatience()
	patience.Reachable = c.cfg.Kube.RestartPatience
	k := kube.New(kube.Config{
		API: api, Store: c.store, Log: c.log, Drivers: c.cfg.CSI.drivers(), Fence: c.api.ServeDetached,
		Failover: c.cfg.Kube.Failover, Namespace: c.kubeNamespace(), GuardImage: c.guardImage(), Patience: patience,
	})
	for ctx.Err() == nil {
		k.Run(ctx)
		select { // the metadata couldn't be watched
		case <-ctx.Done():
		case <-time.After(kubeRetry):
		}
	}
}

func (c *control) kubeNamespace() string {
	if ns := c.cfg.Kube.Namespace; ns != "" {
		return ns
	}
	return kube.InClusterNamespace()
}

// guardImage is none where there is no namespace for guards.
func (c *control) guardImage() string {
	if c.kubeNamespace() == "" {
		return ""
	}
	return c.cfg.Kube.GuardImage
}

// kubeRetry is the pause before what failed is tried again.
const kubeRetry = 5 * time.Second

// serveKube does every node's work in Kubernetes until ctx ends: it answers the scheduler, and takes dead mounts away.
func (c *control) serveKube(ctx context.Context) {
	api := c.kubeAPI()
	if api == nil {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	drivers := c.cfg.CSI.drivers()
	if address := c.cfg.Kube.Extender; address != "" {
		x := &kube.Extender{API: api, Store: c.store, Log: c.log, Drivers: drivers}
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := x.Serve(ctx, address); err != nil && ctx.Err() == nil {
					c.log.Error("kube-scheduler isn't answered here; trying again", "err", err)
				}
				select {
				case <-ctx.Done():
				case <-time.After(kubeRetry):
				}
			}
		})
	}
	if !c.cfg.HasRole(spec.RoleStorage) {
		return
	}
	again := make(chan struct{}, 1)
	wg.Go(func() {
		c.store.FollowLease(ctx, c.st.Node, func() {
			select {
			case again <- struct{}{}:
			default:
			}
		})
	})
	s := &kube.Sweeper{
		API: api, Store: c.store, Log: c.log, Drivers: drivers, Node: c.st.Node, KubeletDir: c.cfg.Kube.KubeletDir,
		Devices: filepath.Join(c.cfg.RunDir, "dev"),
	}
	wg.Go(func() { s.Run(ctx, again) })
}
