package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// controlPlane starts etcd, the API server, the controllers and the scheduler. What isn't about where things are keeps its default: the
// times after which Kubernetes gives up a node above all.
func (c *Cluster) controlPlane(ctx context.Context) error {
	if err := c.pki(); err != nil {
		return err
	}
	etcdURL, peerURL := fmt.Sprintf("http://127.0.0.1:%d", etcdPort), fmt.Sprintf("http://127.0.0.1:%d", etcdPeer)
	pki := func(name string) string { return c.path("pki", name) }
	err := c.start("etcd", "--data-dir", c.path("etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls", etcdURL, "--advertise-client-urls", etcdURL,
		"--listen-peer-urls", peerURL, "--initial-advertise-peer-urls", peerURL, "--initial-cluster", "default="+peerURL)
	if err != nil {
		return err
	}
	if err := c.startAPIServer(); err != nil {
		return err
	}
	if err := c.await(ctx, time.Minute, "the API server", c.apiReady); err != nil {
		return err
	}
	err = c.start("kube-controller-manager", "--kubeconfig="+c.Kubeconfig(), "--leader-elect=false", "--use-service-account-credentials=true",
		"--service-account-private-key-file="+pki("sa.key"), "--root-ca-file="+pki("ca.crt"), "--allocate-node-cidrs=false", "--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", controllersPort))
	if err != nil {
		return err
	}
	return c.start("kube-scheduler", "--kubeconfig="+c.Kubeconfig(), "--leader-elect=false", "--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", schedulerPort))
}

const apiServer = "kube-apiserver"

func (c *Cluster) startAPIServer() error {
	pki := func(name string) string { return c.path("pki", name) }
	return c.start(apiServer, fmt.Sprintf("--etcd-servers=http://127.0.0.1:%d", etcdPort),
		"--bind-address="+hostIP, "--advertise-address="+hostIP, fmt.Sprintf("--secure-port=%d", apiPort),
		"--tls-cert-file="+pki("api.crt"), "--tls-private-key-file="+pki("api.key"), "--client-ca-file="+pki("ca.crt"),
		"--token-auth-file="+pki("tokens.csv"), "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+pki("sa.key"),
		"--service-account-signing-key-file="+pki("sa.key"), "--service-cluster-ip-range=10.96.0.0/16",
		"--allow-privileged=true", "--kubelet-preferred-address-types=InternalIP", "--endpoint-reconciler-type=master-count")
}

// StopAPIServer kills the API server: its address refuses connections until StartAPIServer.
func (c *Cluster) StopAPIServer() error {
	p, ok := c.running[apiServer]
	if !ok {
		return errors.New("the API server doesn't run")
	}
	delete(c.running, apiServer)
	if err := unix.Kill(p.PID, unix.SIGKILL); err != nil {
		return err
	}
	for deadline := time.Now().Add(endLimit); p.alive(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			return errors.New("the API server doesn't end")
		}
	}
	return nil
}

// StartAPIServer starts it again after StopAPIServer, and returns when it serves.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	if _, ok := c.running[apiServer]; ok {
		return nil
	}
	if err := c.startAPIServer(); err != nil {
		return err
	}
	return c.await(ctx, time.Minute, "the API server", c.apiReady)
}

// start starts one of the control plane's programs; its output goes to a file.
func (c *Cluster) start(program string, args ...string) error {
	path, ok := c.cfg.Programs[program]
	if !ok {
		return fmt.Errorf("there is no program %s", program)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = c.cfg.Dir
	return c.launch(cmd, program)
}

// launch starts a process that goes on until the end, and records it.
func (c *Cluster) launch(cmd *exec.Cmd, name string) error {
	if err := os.MkdirAll(filepath.Dir(c.Log(name)), 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(c.Log(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	p, err := c.rec.add(cmd.Process.Pid)
	if err != nil {
		_ = cmd.Process.Kill()
		return fmt.Errorf("start %s: %w; %s says more", name, err, c.Log(name))
	}
	c.running[name] = p
	go func() { _ = cmd.Wait() }()
	return nil
}

// apiReady asks the API server whether it serves.
func (c *Cluster) apiReady() error {
	h := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer h.CloseIdleConnections()
	req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("https://%s:%d/readyz", hostIP, apiPort), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+adminToken)
	r, err := h.Do(req)
	if err != nil {
		return err
	}
	r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return errors.New(r.Status)
	}
	return nil
}

// await calls check until it succeeds.
func (c *Cluster) await(ctx context.Context, limit time.Duration, what string, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not there after %v: %w", what, limit, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
