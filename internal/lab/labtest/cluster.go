package labtest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/lab"
)

// lastLines is how much of a log is shown.
const lastLines = 40

// Cluster is a lab as a test sees it.
type Cluster struct {
	*lab.Lab
	T *testing.T
}

// On is the lab as that test, which may be a part of another, sees it.
func On(t *testing.T, l *lab.Lab) *Cluster { return &Cluster{Lab: l, T: t} }

// Ctx returns a context that ends after the limit, and with the test.
func (c *Cluster) Ctx(limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	c.T.Cleanup(cancel)
	return ctx
}

// ShowLogs prints the end of every node's log if the test has failed.
func (c *Cluster) ShowLogs() {
	if !c.T.Failed() {
		return
	}
	for _, n := range c.Nodes() {
		b, err := os.ReadFile(filepath.Join(c.NodeDir(n), "server.log"))
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		c.T.Logf("log of %s:\n%s", n, strings.Join(lines[max(0, len(lines)-lastLines):], "\n"))
	}
}

// Eventually waits until ask finds nothing wrong. The test ends if that takes longer than the limit.
func (c *Cluster) Eventually(limit time.Duration, what string, ask func() error) {
	c.T.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.T.Fatalf("not within %v: %s: %v", limit, what, err)
		}
	}
}
