package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// nodes is what is wrong with the nodes at the moment. Faults overlap: a node is up again when the last fault that
// keeps it down has ended, and a rule is gone when the fault that made it has.
type nodes struct {
	mu    sync.Mutex // guards what follows, and changes of the lab
	next  int
	rules map[string]map[int][][]string
	down  map[string]int
}

// pids returns the daemons of a node.
func (r *run) pids(node string) map[string]int {
	r.nodes.mu.Lock()
	defer r.nodes.mu.Unlock()
	for _, s := range r.lab.Status() {
		if s.Name == node {
			return s.PIDs
		}
	}
	return nil
}

// root returns a path to the root directory of the node as its processes see it, "" if it is down.
func (r *run) root(node string) string {
	for _, pid := range r.pids(node) {
		return fmt.Sprintf("/proc/%d/root", pid)
	}
	return ""
}

func (r *run) isDown(node string) bool {
	r.nodes.mu.Lock()
	defer r.nodes.mu.Unlock()
	return r.nodes.down[node] > 0
}

// allow says to the guests on a node what they may see. kind limits it to some of them.
func (r *run) allow(node, why, kind string) {
	for _, g := range r.guests {
		if at, _, _ := g.where(); at == node && (kind == "" || g.kind == kind) {
			g.allow(why)
		}
	}
}

// addRules makes packet filter rules on a node, and returns what takes them away.
func (r *run) addRules(node string, rules [][]string) (func(), error) {
	r.nodes.mu.Lock()
	defer r.nodes.mu.Unlock()
	r.nodes.next++
	id := r.nodes.next
	if r.nodes.rules[node] == nil {
		r.nodes.rules[node] = map[int][][]string{}
	}
	r.nodes.rules[node][id] = rules
	undo := func() {
		r.nodes.mu.Lock()
		defer r.nodes.mu.Unlock()
		delete(r.nodes.rules[node], id)
		if err := r.applyRules(node); err != nil {
			r.say("rules of %s: %v", node, err)
		}
	}
	return undo, r.applyRules(node)
}

// applyRules replaces all rules of a node in one step.
func (r *run) applyRules(node string) error {
	var b strings.Builder
	b.WriteString("*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n")
	for _, rules := range r.nodes.rules[node] {
		for _, rule := range rules {
			fmt.Fprintf(&b, "-A %s\n", strings.Join(rule, " "))
		}
	}
	b.WriteString("COMMIT\n")
	cmd := exec.Command("nsenter", "--net="+filepath.Join("/run/netns", "keelson-"+r.cfg.name+"-"+node), "--", "iptables-restore", "-w")
	cmd.Stdin = strings.NewReader(b.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("iptables-restore: %w: %s", err, out)
	}
	return nil
}

// crash kills a node whole.
func (r *run) crash(node string) error {
	r.nodes.mu.Lock()
	defer r.nodes.mu.Unlock()
	if r.nodes.down[node]++; r.nodes.down[node] > 1 {
		return nil
	}
	return r.lab.Kill(node)
}

// boot starts a node when no other fault keeps it down.
func (r *run) boot(node string) {
	r.nodes.mu.Lock()
	defer r.nodes.mu.Unlock()
	if r.nodes.down[node]--; r.nodes.down[node] > 0 {
		return
	}
	if err := r.lab.Start(node); err != nil {
		r.say("start of %s: %v", node, err)
	}
}

// healAll undoes whatever may be left of the faults.
func (r *run) healAll() {
	for _, n := range r.lab.Nodes() {
		for _, pid := range r.pids(n) {
			_ = unix.Kill(pid, unix.SIGCONT)
		}
		r.nodes.mu.Lock()
		r.nodes.down[n] = 0
		r.nodes.rules[n] = nil
		if err := r.applyRules(n); err != nil {
			r.say("rules of %s: %v", n, err)
		}
		if err := r.lab.Start(n); err != nil {
			r.say("start of %s: %v", n, err)
		}
		r.nodes.mu.Unlock()
	}
}

// shell runs a line of shell on a node.
func (r *run) shell(ctx context.Context, node string, limit time.Duration, line string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd, err := r.lab.Command(ctx, node, "sh", "-c", line)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("on %s: %s: %w: %s", node, line, err, strings.TrimSpace(out.String()))
	}
	return nil
}

// send gives a move to a guest, unless everything is healed before it takes it.
func (r *run) send(g *guest, m move) {
	select {
	case g.moves <- m:
	case <-r.healed():
		close(m.done)
	}
}
