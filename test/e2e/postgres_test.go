package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/test/e2e/cluster"
)

// failoverLimit is how long it may take from the cut of a node's network to the first transaction that is committed on another one.
const failoverLimit = 30 * time.Second

// TestPostgresFollowsItsVolume is the exercise of testdata/002: PostgreSQL in a StatefulSet, a node that is disconnected under it, and reconnected.
func TestPostgresFollowsItsVolume(t *testing.T) {
	s := newSpace(t, "postgres", 8*time.Minute)
	s.useClass("002-storage-class.yaml", "portworx-replicated")
	s.applyFile("002-postgres.yaml")
	s.ready(90*time.Second, "postgres-0")
	s.await(2*time.Minute, "PostgreSQL", func() error {
		_, err := s.Kubectl(s.ctx, "-n", s.name, "exec", "postgres-0", "--", "psql", "-U", "postgres", "-c", "select 1")
		return err
	})
	s.exec("postgres-0", "su", "postgres", "createdb", "demo")
	began := time.Now()
	s.exec("postgres-0", "su", "postgres", "pgbench", "-q", "-i", "-s", "10", "demo")
	t.Logf("pgbench -i -s 10 took %.1f s", time.Since(began).Seconds())
	s.accounts()
	s.exec("postgres-0", "psql", "-U", "postgres", "demo", "-c", "CREATE TABLE ledger (client text, seq int, PRIMARY KEY (client, seq))")

	before, err := s.pod("postgres-0")
	if err != nil {
		t.Fatal(err)
	}
	old := s.Node(before.Spec.NodeName)
	t.Logf("postgres-0 runs on %s", old.Name)
	var led ledger
	ctx, stop := context.WithCancel(s.ctx)
	defer stop()
	go led.writeRemote(ctx, "remote", s.whereIsPostgres)
	if err := led.writeLocal(s.localClient(ctx, old, before), "local", old.Name); err != nil {
		t.Fatal(err)
	}
	s.await(20*time.Second, "the clients' first rows", func() error {
		seen := map[string]bool{}
		for _, c := range led.all() {
			seen[c.client] = true
		}
		if len(seen) < 2 {
			return fmt.Errorf("rows of %v only", seen)
		}
		return nil
	})
	time.Sleep(3 * time.Second) // of writing

	cut := time.Now()
	s.cut(old)
	s.await(2*failoverLimit, "a transaction on another node", func() error {
		if _, ok := led.firstNotOn(old.Name, cut); !ok {
			return fmt.Errorf("none was committed; the client's last error: %w", led.lastError())
		}
		return nil
	})
	first, _ := led.firstNotOn(old.Name, cut)
	took := first.at.Sub(cut)
	t.Logf("FAILOVER: the first transaction was committed on %s %.1f s after %s was cut off", first.node, took.Seconds(), old.Name)
	if took > failoverLimit {
		t.Errorf("it took %v, and may take %v", took, failoverLimit)
	}
	s.ready(time.Minute, "postgres-0")
	s.accounts()
	s.audit(&led)
	s.explained(old.Name)

	s.heal(old)
	s.afterHealing(old, before)
	stop()
	s.accounts()
	s.audit(&led)
	s.lastOf(&led, old.Name, cut)
}

// useClass applies a StorageClass of testdata, which is the cluster's default for this test.
func (s *space) useClass(file, name string) {
	s.t.Helper()
	// The chart's own default steps back, as the exercise has one default.
	out, err := s.Field(s.ctx, `{range .items[?(@.metadata.annotations.storageclass\.kubernetes\.io/is-default-class=="true")]}{.metadata.name} {end}`, "storageclasses")
	if err != nil {
		s.t.Fatal(err)
	}
	const mark = "storageclass.kubernetes.io/is-default-class="
	for _, d := range strings.Fields(out) {
		s.in("annotate", "--overwrite", "storageclass", d, mark+"false")
		s.t.Cleanup(func() {
			_, _ = s.Kubectl(context.Background(), "annotate", "--overwrite", "storageclass", d, mark+"true")
		})
	}
	// One of that name is made by the chart for the alias; parameters of a class can't be changed.
	s.in("delete", "storageclass", name, "--ignore-not-found")
	s.applyFile(file)
	s.t.Cleanup(func() { _, _ = s.Kubectl(context.Background(), "delete", "storageclass", name, "--ignore-not-found") })
}

// accounts checks what the exercise says: one million rows.
func (s *space) accounts() {
	s.t.Helper()
	if got := strings.TrimSpace(s.exec("postgres-0", "psql", "-U", "postgres", "demo", "-At", "-c", "select count(*) from pgbench_accounts")); got != "1000000" {
		s.t.Errorf("pgbench_accounts has %s rows, not 1000000", got)
	}
}

func (s *space) audit(l *ledger) {
	s.t.Helper()
	ip, node, err := s.whereIsPostgres()
	if err != nil {
		s.t.Fatal(err)
	}
	n, err := l.audit(s.ctx, ip)
	if err != nil {
		s.t.Errorf("on %s: %v", node, err)
		return
	}
	s.t.Logf("on %s: all of %d committed transactions are there", node, n)
}

func (s *space) whereIsPostgres() (ip, node string, err error) {
	p, err := s.pod("postgres-0")
	if err == nil && (p.Status.PodIP == "" || p.Metadata.DeletionTimestamp != "") {
		err = errors.New("it has no address")
	}
	return p.Status.PodIP, p.Spec.NodeName, err
}

// localClient is a client in the database's own container, started on the node itself: what goes through the API server ends with the cut.
func (s *space) localClient(ctx context.Context, n *cluster.Node, p pod) *exec.Cmd {
	id := strings.TrimPrefix(p.Status.ContainerStatuses[0].ContainerID, "containerd://")
	script := `i=0; while :; do i=$((i+1)); psql -q -U postgres demo -c "insert into ledger values ('local', $i)" >/dev/null 2>&1 && echo $i; done`
	return n.Command(ctx, "sh", "-c", n.Ctr()+" tasks exec --exec-id local "+id+" sh -c '"+strings.ReplaceAll(script, "'", `'\''`)+"'")
}

// cut disconnects the node with the exercise's two lines. They stop what the node itself sends; its pods' traffic is forwarded.
func (s *space) cut(n *cluster.Node) {
	s.t.Helper()
	_, err := n.Run(s.ctx, "iptables -I OUTPUT -p tcp --sport 22 -j ACCEPT; iptables -I OUTPUT 2 -j DROP; iptables -I FORWARD -j DROP")
	if err != nil {
		s.t.Fatal(err)
	}
	s.off.Store(n.Name, true)
	s.t.Cleanup(func() {
		_, _ = n.Run(context.Background(), "iptables -F OUTPUT; iptables -F FORWARD")
		s.off.Delete(n.Name)
	})
}

// heal undoes cut as the exercise does.
func (s *space) heal(n *cluster.Node) {
	s.t.Helper()
	if _, err := n.Run(s.ctx, "iptables -D OUTPUT 2; iptables -D FORWARD -j DROP"); err != nil {
		s.t.Fatal(err)
	}
	s.off.Delete(n.Name)
	s.t.Logf("%s is connected again", n.Name)
}

// explained checks that events say what was done, on the pod and on the node.
func (s *space) explained(node string) {
	s.t.Helper()
	out := s.in("get", "events", "-A", "-o", `jsonpath={range .items[?(@.reason=="KeelsonFailover")]}{.involvedObject.kind} {.involvedObject.name}: {.message}{"\n"}{end}`)
	for _, object := range []string{"Pod postgres-0", "Node " + node} {
		if !strings.Contains(out, object) {
			s.t.Errorf("no event at %s says what was done; there are:\n%s", object, out)
		}
	}
	s.t.Logf("events:\n%s", out)
}

// afterHealing waits until the node is as if nothing had happened: ready, without the old container and its mounts, its replica in sync.
func (s *space) afterHealing(n *cluster.Node, old pod) {
	s.t.Helper()
	healed := time.Now()
	s.await(2*time.Minute, "the node that was cut off", func() error {
		if !s.nodeReady(s.ctx, n.Name) {
			return errors.New("it isn't ready")
		}
		left, err := n.Run(s.ctx, "grep -l "+old.Metadata.UID+" /proc/[0-9]*/mountinfo 2>/dev/null | wc -l; grep -c "+old.Metadata.UID+" /proc/mounts || true")
		if err != nil {
			return err
		}
		if f := strings.Fields(left); len(f) != 2 || f[0] != "0" || f[1] != "0" {
			return fmt.Errorf("processes and mounts of the old pod: %q", left)
		}
		return nil
	})
	s.t.Logf("%s: ready and clean %.1f s after it was connected again", n.Name, time.Since(healed).Seconds())
	s.inSync(2 * time.Minute)
	s.t.Logf("all replicas in sync %.1f s after", time.Since(healed).Seconds())
}

// inSync waits until each replica of each volume of this space is in sync.
func (s *space) inSync(limit time.Duration) {
	s.t.Helper()
	s.await(limit, "replicas in sync", func() error {
		out, err := s.Field(s.ctx, "{.items[*].spec.volumeName}", "-n", s.name, "pvc")
		if err != nil {
			return err
		}
		for _, name := range strings.Fields(out) {
			v, err := s.volume(name)
			if err != nil {
				return err
			}
			if v.bad() != "" {
				return fmt.Errorf("volume %s: %s", name, v.bad())
			}
		}
		return nil
	})
}

// lastOf says until when the old node's database committed anything: after the first commit elsewhere it must not.
func (s *space) lastOf(l *ledger, node string, cut time.Time) {
	s.t.Helper()
	first, _ := l.firstNotOn(node, cut)
	for _, c := range l.all() {
		if c.node == node && c.at.After(first.at) {
			s.t.Errorf("%s committed %s %d %.1f s after the first commit on %s", node, c.client, c.seq, c.at.Sub(first.at).Seconds(), first.node)
			return
		}
	}
}
