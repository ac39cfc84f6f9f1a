package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// Up makes a lab and returns when its cluster is healthy. On an error what was made stays, to be
// looked at and removed with Down.
func Up(ctx context.Context, cfg Config) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	if exists(filepath.Join(cfg.Dir, stateFile)) {
		return nil, fmt.Errorf("%s: %w", cfg.Dir, ErrExists)
	}
	l, err := lay(cfg)
	if err != nil {
		return nil, err
	}
	u := &up{Lab: l, cfg: cfg}
	return l, u.run(ctx)
}

// lay records the lab and makes its directories and network.
func lay(cfg Config) (*Lab, error) {
	l := &Lab{state: state{
		Version: stateVersion, Name: cfg.Name, Dir: cfg.Dir, Binary: filepath.Join(cfg.Dir, "bin", "keelson"),
		PoolSize: cfg.PoolSize, Plain: cfg.Plain, Created: time.Now().UTC(),
	}}
	for i := range cfg.Nodes {
		name := fmt.Sprintf("n%d", i+1)
		roles := []string{"storage"}
		if i < 3 {
			roles = []string{"metadata", "storage"}
		}
		l.state.Nodes = append(l.state.Nodes, &node{
			Name: name, Zone: fmt.Sprintf("z%d", i%cfg.Zones+1), Roles: roles,
			Netns: netnsName(cfg.Name, name), Veth: tag(cfg.Name) + name,
		})
	}
	if err := os.MkdirAll(cfg.Dir, 0o711); err != nil {
		return nil, err
	}
	if err := l.save(); err != nil {
		return nil, err
	}
	if err := copyProgram(cfg.Binary, l.state.Binary); err != nil {
		return nil, err
	}
	if err := l.makeBridge(); err != nil {
		return nil, err
	}
	for _, n := range l.state.Nodes {
		for _, d := range []string{l.dataDir(n.Name), l.runDir(n.Name)} {
			if err := os.MkdirAll(d, 0o711); err != nil {
				return nil, err
			}
		}
		if err := l.connect(n); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// copyProgram gives the lab a program of its own: one that is built anew must not become part of a
// cluster that runs.
func copyProgram(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("the program for the nodes: %w", err)
	}
	defer src.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

type up struct {
	*Lab
	cfg Config
}

func (u *up) run(ctx context.Context) error {
	first := u.state.Nodes[0]
	began := time.Now()
	if err := u.boot(first); err != nil {
		return err
	}
	if err := u.await(ctx, first.Name, 60*time.Second, u.alive(ctx, first.Name)); err != nil {
		return err
	}
	u.cfg.Report(first.Name+" made the cluster", time.Since(began))
	if len(u.state.Nodes) > 1 {
		if err := u.token(ctx, first.Name); err != nil {
			return err
		}
	}
	// One after the other: the metadata takes one new member at a time.
	for _, n := range u.state.Nodes[1:] {
		began := time.Now()
		if err := u.boot(n); err != nil {
			return err
		}
		if err := u.await(ctx, n.Name, 90*time.Second, u.alive(ctx, n.Name)); err != nil {
			return err
		}
		u.cfg.Report(n.Name+" joined", time.Since(began))
	}
	if u.cfg.PoolSize != "" {
		began := time.Now()
		if err := u.pools(ctx); err != nil {
			return err
		}
		u.cfg.Report("pools added", time.Since(began))
	}
	began = time.Now()
	if err := u.await(ctx, first.Name, 60*time.Second, u.healthy(ctx)); err != nil {
		return err
	}
	u.cfg.Report("healthy", time.Since(began))
	return nil
}

// boot writes the node's configuration and starts it.
func (u *up) boot(n *node) error {
	if err := u.writeConfig(n); err != nil {
		return err
	}
	return u.startKeeper(n)
}

func (u *up) writeConfig(n *node) error {
	conf := map[string]any{
		"node": n.Name, "dataDir": u.dataDir(n.Name), "runDir": u.runDir(n.Name),
		"address": n.Address, "roles": n.Roles, "zone": n.Zone,
		"clusterName": u.state.Name,
		"engine":      map[string]any{"encryption": !u.state.Plain, "cgroup": "own"},
		"csi": map[string]any{
			"socket": filepath.Join(u.runDir(n.Name), "csi.sock"), "registrationDir": filepath.Join(u.runDir(n.Name), "plugins"),
			"aliases": []map[string]any{
				{"driver": "pure-csi", "socket": filepath.Join(u.runDir(n.Name), "pure.sock")},
				{"driver": "pxd.portworx.com", "socket": filepath.Join(u.runDir(n.Name), "pxd.sock")},
			},
		},
	}
	if first := u.state.Nodes[0]; n != first {
		conf["join"] = map[string]any{"url": "https://" + first.Address + ":9500", "tokenFile": u.tokenFile()}
	}
	maps.Copy(conf, u.cfg.Settings)
	b, err := yaml.Marshal(conf)
	if err != nil {
		return err
	}
	return os.WriteFile(u.configFile(n.Name), b, 0o600)
}

func (u *up) token(ctx context.Context, name string) error {
	var answer struct {
		Token string `json:"token"`
	}
	if err := u.JSON(ctx, name, &answer, "token", "create"); err != nil {
		return err
	}
	if answer.Token == "" {
		return errors.New("`keelson token create` printed no token")
	}
	return os.WriteFile(u.tokenFile(), []byte(answer.Token+"\n"), 0o600)
}

func (u *up) pools(ctx context.Context) error {
	for _, n := range u.state.Nodes {
		file := filepath.Join(u.NodeDir(n.Name), "pool.img")
		if _, err := u.Keelson(ctx, n.Name, "pool", "add", "--file", file, "--size", u.cfg.PoolSize); err != nil {
			return err
		}
	}
	return nil
}

// alive is true when the node answers and holds its lease.
func (u *up) alive(ctx context.Context, name string) func() error {
	return func() error {
		var list []struct {
			Name  string `json:"name"`
			Alive bool   `json:"alive"`
		}
		if err := u.JSON(ctx, name, &list, "node", "list"); err != nil {
			return err
		}
		for _, n := range list {
			if n.Name == name && n.Alive {
				return nil
			}
		}
		return fmt.Errorf("%s holds no lease yet", name)
	}
}

func (u *up) healthy(ctx context.Context) func() error {
	return func() error {
		var s struct {
			Health   string   `json:"health"`
			Problems []string `json:"problems"`
		}
		if err := u.JSON(ctx, u.state.Nodes[0].Name, &s, "status"); err != nil {
			return err
		}
		if s.Health != "Healthy" {
			return fmt.Errorf("the cluster is %s: %s", s.Health, strings.Join(s.Problems, "; "))
		}
		return nil
	}
}

// await asks until there is no error, or time is up.
func (u *up) await(ctx context.Context, node string, limit time.Duration, ask func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := ask()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %v for %s: %w; its log is %s/server.log", limit, node, err, u.NodeDir(node))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Keelson runs a command of the CLI on the node and returns what it printed. Its error holds what
// the command said on standard error; errors.As finds the *exec.ExitError.
func (l *Lab) Keelson(ctx context.Context, node string, args ...string) (string, error) {
	cmd, err := l.Command(ctx, node, append([]string{l.state.Binary}, args...)...)
	if err != nil {
		return "", err
	}
	var out, msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &msg
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: keelson %s: %w: %s", node, strings.Join(args, " "), err, strings.TrimSpace(msg.String()))
	}
	return out.String(), nil
}

// JSON runs a command of the CLI with -o json and decodes what it printed.
func (l *Lab) JSON(ctx context.Context, node string, into any, args ...string) error {
	out, err := l.Keelson(ctx, node, append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("%s: keelson %s printed no JSON: %w", node, strings.Join(args, " "), err)
	}
	return nil
}
