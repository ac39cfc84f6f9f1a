package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"keelson.io/keelson/test/copies"
)

// volume is what `keelson volume show -o json` says.
type volume struct {
	Node      string `json:"node"`
	Term      uint64 `json:"term"`
	Health    string `json:"health"`
	Condition string `json:"condition"`
	Columns   []struct {
		Members []struct {
			Replica string `json:"replica"`
			Node    string `json:"node"`
			Pool    string `json:"pool"`
			State   string `json:"state"`
		} `json:"members"`
	} `json:"columns"`
}

func (v volume) nodes() (out []string) {
	for _, c := range v.Columns {
		for _, m := range c.Members {
			if !slices.Contains(out, m.Node) {
				out = append(out, m.Node)
			}
		}
	}
	return out
}

func (v volume) String() string {
	s := fmt.Sprintf("%s %q on %q term %d:", v.Health, v.Condition, v.Node, v.Term)
	for i, c := range v.Columns {
		for _, m := range c.Members {
			s += fmt.Sprintf(" %d/%s=%s", i, m.Node, m.State)
		}
	}
	return s
}

func (r *run) volume(ctx context.Context, asked, name string) (volume, error) {
	var v volume
	err := r.lab.JSON(ctx, asked, &v, "volume", "show", name)
	return v, err
}

// await asks until nothing is wrong. What is still wrong after the limit is a violation: after everything
// was healed, everything has to go on by itself.
func (r *run) await(ctx context.Context, limit time.Duration, what string, ask func() error) {
	for deadline := time.Now().Add(limit); ctx.Err() == nil; time.Sleep(settle) {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.violation("not within %v: %s: %v", limit, what, err)
			return
		}
	}
}

func (r *run) awaitAlive(ctx context.Context) {
	r.await(ctx, 90*time.Second, "all nodes are alive", func() error {
		var list []struct {
			Name  string `json:"name"`
			Alive bool   `json:"alive"`
		}
		if err := r.lab.JSON(ctx, "n1", &list, "node", "list"); err != nil {
			return err
		}
		for _, n := range list {
			if !n.Alive {
				return fmt.Errorf("%s is not", n.Name)
			}
		}
		return nil
	})
}

// awaitRunning waits until every guest uses its volume, and gets answers.
func (r *run) awaitRunning(ctx context.Context, when string) {
	for _, g := range r.guests {
		r.await(ctx, 120*time.Second, g.name+" is used "+when, func() error {
			g.mu.Lock()
			defer g.mu.Unlock()
			if !g.running {
				return fmt.Errorf("on %s: %w", g.node, errors.Join(g.lastFail, errors.New("it isn't attached, or its load not begun")))
			}
			return nil
		})
		if g.ledger == nil {
			continue
		}
		before := g.ledger.h.acks.Load()
		r.await(ctx, 60*time.Second, "I/O of "+g.name+" goes on "+when, func() error {
			if n := g.ledger.h.acks.Load(); n == before {
				return fmt.Errorf("no write was acknowledged since then; %d before", n)
			}
			return nil
		})
	}
}

func (r *run) awaitHealthy(ctx context.Context) {
	for _, g := range r.guests {
		r.await(ctx, 120*time.Second, g.name+" is in sync", func() error {
			v, err := r.volume(ctx, "n1", g.name)
			if err == nil && v.Health != "Healthy" {
				err = errors.New(v.String())
			}
			return err
		})
	}
}

// checkAll looks at every guest's volume, which nobody uses, and at all its copies.
func (r *run) checkAll(ctx context.Context) error {
	began := time.Now()
	for _, g := range r.guests {
		if err := r.check(ctx, g); err != nil {
			r.violation("%s: %v", g.name, err)
		}
		if g.ledger != nil {
			if n := g.ledger.h.late.Load(); n > 0 {
				r.violation("%s: the old device answered %d requests although another node had the volume: split brain", g.name, n)
			}
		}
	}
	r.say("checked in %.1f s", time.Since(began).Seconds())
	return ctx.Err()
}

func (r *run) check(ctx context.Context, g *guest) error {
	node, device, _ := g.where()
	if device == "" {
		var err error
		if device, err = g.attach(ctx, node); err != nil {
			return err
		}
	}
	var errs []error
	switch g.kind {
	case kindRaw:
		d, err := openDevice(device)
		if err != nil {
			return err
		}
		errs = append(errs, verifyDisk(g.name, g.ledger, d), d.Close())
	case kindNBD:
		_, socket, _ := strings.Cut(device, "?socket=")
		d, err := dialNBD(socket, g.name)
		if err != nil {
			return err
		}
		errs = append(errs, verifyDisk(g.name, g.ledger, d), d.Close())
	case kindExt4, kindXFS:
		errs = append(errs, r.checkFS(ctx, g, node, device))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := r.detachAfter(ctx, g); err != nil {
		return err
	}
	return r.checkCopies(ctx, g)
}

// checkFS unmounts, and has the file system's own tool look at it.
func (r *run) checkFS(ctx context.Context, g *guest, node, device string) error {
	tool := "e2fsck -fn "
	if g.kind == kindXFS {
		tool = "xfs_repair -n "
	}
	return r.shell(ctx, node, 2*time.Minute, fmt.Sprintf("if mountpoint -q %[1]s; then umount %[1]s || exit 1; fi; %[2]s%[3]s >/dev/null", g.mnt(node), tool, device))
}

// detachAfter detaches; a device that somebody scans at the moment is busy for a while.
func (r *run) detachAfter(ctx context.Context, g *guest) error {
	var err error
	for range 20 {
		if err = g.detach(ctx); err == nil {
			return nil
		}
		time.Sleep(settle)
	}
	return fmt.Errorf("it can't be detached: %w", err)
}

// checkCopies compares the copies of a detached volume on their disks.
func (r *run) checkCopies(ctx context.Context, g *guest) error {
	v, err := r.volume(ctx, "n1", g.name)
	if err != nil {
		return err
	}
	for i, c := range v.Columns {
		first := ""
		for _, m := range c.Members {
			if m.State != "InSync" {
				return fmt.Errorf("after it was detached: %v", v)
			}
			dir := filepath.Join(r.root(m.Node), r.lab.NodeDir(m.Node), "data/pools", m.Pool, "replicas", m.Replica)
			rep, err := copies.Check(dir)
			if err != nil {
				return err
			}
			if len(rep.Wrong) > 0 {
				return fmt.Errorf("SUMS: column %d on %s: %s", i, m.Node, strings.Join(rep.Wrong, "; "))
			}
			r.mu.Lock()
			r.blocks += rep.Blocks
			r.mu.Unlock()
			if first == "" {
				first = dir
				continue
			}
			differ, err := copies.Same(first, dir)
			if err != nil {
				return err
			}
			if len(differ) > 0 {
				return fmt.Errorf("COPIES DIFFER: column %d: %s", i, strings.Join(differ, "; "))
			}
		}
	}
	return nil
}
