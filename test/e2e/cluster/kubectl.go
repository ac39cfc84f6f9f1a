package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Kubectl runs kubectl as the administrator, and returns what it prints.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.KubectlInput(ctx, "", args...)
}

// KubectlInput is Kubectl with an input.
func (c *Cluster) KubectlInput(ctx context.Context, input string, args ...string) (string, error) {
	return c.tool(ctx, "kubectl", input, args...)
}

// Helm runs helm as the administrator.
func (c *Cluster) Helm(ctx context.Context, args ...string) (string, error) {
	return c.tool(ctx, "helm", "", args...)
}

func (c *Cluster) tool(ctx context.Context, program, input string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.cfg.Programs[program], args...)
	cmd.Env = c.Env()
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// Env is what kubectl and helm need in their environment.
func (c *Cluster) Env() []string {
	return append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "HOME="+c.path("home"), "HELM_CACHE_HOME="+c.path("home", "helm"))
}

// Apply applies a manifest.
func (c *Cluster) Apply(ctx context.Context, manifest string) error {
	_, err := c.KubectlInput(ctx, manifest, "apply", "-f", "-")
	return err
}

// Get reads objects into what v points to: `kubectl get ARGS -o json`.
func (c *Cluster) Get(ctx context.Context, v any, args ...string) error {
	out, err := c.Kubectl(ctx, append(append([]string{"get"}, args...), "-o", "json")...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(out), v)
}

// Field reads one field of an object by its JSON path: `kubectl get ARGS -o jsonpath=PATH`.
func (c *Cluster) Field(ctx context.Context, path string, args ...string) (string, error) {
	return c.Kubectl(ctx, append(append([]string{"get"}, args...), "-o", "jsonpath="+path)...)
}

// Wait waits with `kubectl wait`.
func (c *Cluster) Wait(ctx context.Context, limit time.Duration, condition string, args ...string) error {
	_, err := c.Kubectl(ctx, append([]string{"wait", "--for=" + condition, "--timeout=" + limit.String()}, args...)...)
	return err
}

// Await calls check until it succeeds, for at most limit.
func (c *Cluster) Await(ctx context.Context, limit time.Duration, what string, check func() error) error {
	return c.await(ctx, limit, what, check)
}

// awaitNodes waits until all nodes are ready.
func (c *Cluster) awaitNodes(ctx context.Context) error {
	return c.await(ctx, 2*time.Minute, "the nodes", func() error {
		out, err := c.Field(ctx, `{range .items[*]}{.status.conditions[?(@.type=="Ready")].status} {end}`, "nodes")
		if err != nil {
			return err
		}
		if n := strings.Count(out, "True"); n < len(c.Nodes) {
			return errors.New(fmt.Sprint(n, " of ", len(c.Nodes), " are ready"))
		}
		return nil
	})
}

// Program is the path of one of the programs that the cluster was made of.
func (c *Cluster) Program(name string) string { return c.cfg.Programs[name] }
