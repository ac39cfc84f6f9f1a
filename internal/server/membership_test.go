package server

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.io/keelson/internal/install/member"
	"keelson.io/keelson/internal/spec"
)

// notices is member.API in memory.
type notices struct {
	mu      sync.Mutex
	record  map[string]string
	version int
	secrets map[string]map[string]string
}

func (n *notices) Record(context.Context) (map[string]string, string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.version == 0 {
		return map[string]string{}, "", nil
	}
	return maps.Clone(n.record), strconv.Itoa(n.version), nil
}

func (n *notices) PutRecord(_ context.Context, data map[string]string, version string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if version != "" && version != strconv.Itoa(n.version) || version == "" && n.version > 0 {
		return apierrors.NewConflict(schema.GroupResource{Resource: "configmaps"}, "keelson", errors.New("changed"))
	}
	n.record = maps.Clone(data)
	n.version++
	return nil
}

func (n *notices) Secret(_ context.Context, name string) (map[string]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.secrets[name]), nil
}

func (n *notices) PutSecret(_ context.Context, name string, data map[string]string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.secrets == nil {
		n.secrets = map[string]map[string]string{}
	}
	n.secrets[name] = maps.Clone(data)
	return nil
}

func (n *notices) Desired(context.Context) (int, error) { return 1, nil }

func joinAs(t *testing.T, cfg Config, n *notices) (Config, error) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	b := &member.Board{API: n, Members: 3, Log: log, Pause: time.Millisecond}
	reach := func(_ context.Context, url string) bool { return !strings.Contains(url, "10.255.255.1") }
	return JoinAs(t.Context(), cfg, b, reach, log)
}

// inviting is a board that names a cluster, and how to join it.
func inviting(t *testing.T, c *cluster) *notices {
	t.Helper()
	n := &notices{}
	data := map[string]string{"cluster": c.st.ClusterID, "metadata": "n1", "node.n1": "in " + c.st.ClusterID + " " + c.st.NodeID}
	err := errors.Join(n.PutRecord(t.Context(), data, ""), n.PutSecret(t.Context(), member.SecretJoin, map[string]string{
		"cluster": c.st.ClusterID, "token": c.token(t, spec.RoleMetadata, spec.RoleStorage), "urls": "https://10.255.255.1:9500 " + c.url,
	}))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTheFirstNodeOfKubernetesMakesTheCluster(t *testing.T) {
	n := &notices{}
	cfg := testConfig(t, "n1")
	var first State
	for i := range 3 {
		got, err := joinAs(t, cfg, n)
		if err != nil || got.Join.URL != "" || !slices.Equal(got.Roles, cfg.Roles) {
			t.Fatalf("%+v, %v", got, err)
		}
		st, err := got.ownState()
		if err != nil || !st.Founder || n.record["cluster"] != st.ClusterID {
			t.Fatalf("%+v, %v, record %v", st, err, n.record)
		}
		if i == 0 {
			first = st
		} else if st.ClusterID != first.ClusterID || st.NodeID != first.NodeID {
			t.Fatalf("%+v, and before %+v", st, first)
		}
	}
}

func TestANodeOfKubernetesJoinsThroughWhoAnswers(t *testing.T) {
	c := newCluster(t)
	n := inviting(t, c)
	cfg := testConfig(t, "n2")
	for range 2 { // and again, as a member
		got, err := joinAs(t, cfg, n)
		if err != nil || got.Join.URL != c.url || got.Join.Token == "" {
			t.Fatalf("%+v, %v", got.Join, err)
		}
		st, err := got.ownState()
		if err != nil || st.ClusterID != c.st.ClusterID || st.Founder || !slices.Contains(st.Roles, spec.RoleMetadata) {
			t.Fatalf("%+v, %v", st, err)
		}
	}
	if n.record["metadata"] != "n1 n2" || !strings.HasPrefix(n.record["node.n2"], "in "+c.st.ClusterID) {
		t.Fatalf("record %v", n.record)
	}
	// The fourth holds no metadata.
	for _, name := range []string{"n3", "n4"} {
		cfg, err := joinAs(t, testConfig(t, name), n)
		if err != nil || slices.Contains(cfg.Roles, spec.RoleMetadata) != (name == "n3") {
			t.Fatalf("%s: %v, %v", name, cfg.Roles, err)
		}
	}
}

func TestANodeThatLostItsDataWaitsUntilItIsForgotten(t *testing.T) {
	c := newCluster(t)
	n := inviting(t, c)
	old := spec.Node{Name: "n2", ID: spec.NewID(), Roles: []spec.Role{spec.RoleStorage}, APIAddr: "127.0.0.1:1", EngineAddr: "127.0.0.1:2", Shards: 1}
	rev, err := c.store.PutNode(t.Context(), old, 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	cfg := testConfig(t, "n2")
	go func() {
		_, err := joinAs(t, cfg, n)
		done <- err
	}()
	eventually(t, "it asks", func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		if !strings.HasPrefix(n.record["node.n2"], "new ") {
			return errors.New("it doesn't")
		}
		return nil
	})
	select {
	case err := <-done:
		t.Fatalf("it joined over what it was: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := c.store.DeleteNode(t.Context(), "n2", rev); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if st, err := cfg.ownState(); err == nil && st.NodeID == old.ID {
		t.Fatalf("%+v is what it was", st)
	}
}

func TestAnothersDataDirectoryIsRefused(t *testing.T) {
	cfg := testConfig(t, "n1")
	if _, err := joinAs(t, cfg, &notices{}); err != nil {
		t.Fatal(err)
	}
	cfg.Node = "n2"
	if _, err := joinAs(t, cfg, &notices{}); !errors.Is(err, ErrPermanent) || !strings.Contains(err.Error(), "that of node n1") {
		t.Fatal(err)
	}
}

func TestMembershipThatMakesNoSense(t *testing.T) {
	for text, want := range map[string]string{
		"{name: keelson}": "membership.namespace",
		"{name: Keelson, namespace: ns, metadataMembers: 3}":          "membership.name",
		"{name: keelson, namespace: ns, metadataMembers: 2}":          "membership.metadataMembers: 2 is none of 1, 3 and 5",
		"{name: keelson, namespace: ns, metadataMembers: 3, more: 1}": "unknown key more",
	} {
		cfg := DefaultConfig()
		err := cfg.parse([]byte("node: n1\naddress: 10.0.0.1\nmembership: " + text))
		if err == nil {
			err = cfg.Complete()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
