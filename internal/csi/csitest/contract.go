package csitest

import (
	"context"
	"errors"
	"testing"
	"time"

	"keelson.io/keelson/internal/csi"
)

// Contract checks what the driver expects of Keelson: here and there are two nodes of one cluster that has room for volumes
// with two replicas of 1 GiB, and no volume whose name begins with "contract-".
func Contract(t *testing.T, here, there csi.Keelson) {
	c := &contract{t, here, there}
	t.Run("create", c.create)
	t.Run("impossible", c.impossible)
	t.Run("attach", c.attach)
	t.Run("nodes", c.nodes)
	t.Run("groups", c.groups)
}

type contract struct {
	t           *testing.T
	here, there csi.Keelson
}

func contractContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func is(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
	var p *csi.Problem
	if want != nil && (!errors.As(err, &p) || p.Text == "") {
		t.Errorf("%s: %v isn't a problem in words", what, err)
	}
}

// gone waits until a volume that was deleted is no more.
func gone(t *testing.T, ctx context.Context, k csi.Keelson, name string) {
	t.Helper()
	for {
		v, err := k.Volume(ctx, name)
		if errors.Is(err, csi.ErrNotFound) {
			return
		}
		if err != nil || !v.Deleting {
			t.Fatalf("volume that was deleted: %+v, %v", v, err)
		}
		select {
		case <-ctx.Done():
			t.Fatal("a deleted volume doesn't go")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c *contract) create(t *testing.T) {
	ctx := contractContext(t)
	const name = "contract-create"
	_, err := c.here.Volume(ctx, name)
	is(t, "a volume that isn't there", err, csi.ErrNotFound)
	is(t, "deleting it", c.here.Delete(ctx, name), csi.ErrNotFound)
	req := csi.Request{Name: name, Size: 1 << 30, Replicas: 2, Near: "n1"}
	v, err := c.here.Create(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	if v.Name != name || v.Size != 1<<30 || v.Replicas != 2 || v.Columns != 1 || v.Node != "" || v.Deleting {
		t.Errorf("created: %+v", v)
	}
	_, err = c.there.Create(ctx, req)
	is(t, "creating it again", err, csi.ErrExists)
	list, err := c.there.Volumes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, v := range list {
		if v.Name == name {
			found++
		}
	}
	if found != 1 {
		t.Errorf("it is %d times in the list", found)
	}
	if err := c.there.Delete(ctx, name); err != nil {
		t.Fatal(err)
	}
	gone(t, ctx, c.here, name)
}

func (c *contract) impossible(t *testing.T) {
	ctx := contractContext(t)
	for what, x := range map[string]struct {
		req  csi.Request
		want error
	}{
		"too many replicas":  {csi.Request{Name: "contract-x", Size: 1 << 30, Replicas: 5}, csi.ErrNoRoom},
		"too large":          {csi.Request{Name: "contract-x", Size: 60 << 40}, csi.ErrNoRoom},
		"nowhere":            {csi.Request{Name: "contract-x", Size: 1 << 30, Replicas: 1, Topology: []map[string]string{{"topology.keelson.io/zone": "moon"}}}, csi.ErrNoRoom},
		"no multiple":        {csi.Request{Name: "contract-x", Size: 1<<30 + 1}, csi.ErrInvalid},
		"name":               {csi.Request{Name: "Contract_X", Size: 1 << 30}, csi.ErrInvalid},
		"a label that can't": {csi.Request{Name: "contract-x", Size: 1 << 30, NodeSelector: map[string]string{"a b": "c"}}, csi.ErrInvalid},
	} {
		_, err := c.here.Create(ctx, x.req)
		is(t, what, err, x.want)
	}
	_, err := c.here.Volume(ctx, "contract-x")
	is(t, "what couldn't be made", err, csi.ErrNotFound)
}

func (c *contract) attach(t *testing.T) {
	ctx := contractContext(t)
	const name = "contract-attach"
	_, err := c.here.Attach(ctx, name)
	is(t, "attaching what isn't there", err, csi.ErrNotFound)
	if err := c.here.Detach(ctx, name); err != nil {
		t.Errorf("detaching what isn't there: %v", err)
	}
	if _, err := c.here.Create(ctx, csi.Request{Name: name, Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	if err := c.here.Detach(ctx, name); err != nil {
		t.Errorf("detaching what isn't attached: %v", err)
	}
	device, err := c.here.Attach(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.here.Attach(ctx, name); err != nil || again != device {
		t.Errorf("attached again: %q, %v, want %q", again, err, device)
	}
	_, err = c.there.Attach(ctx, name)
	is(t, "attaching it elsewhere", err, csi.ErrRefused)
	if err := c.there.Detach(ctx, name); err != nil {
		t.Errorf("detaching it elsewhere: %v", err)
	}
	v, err := c.there.Volume(ctx, name)
	if err != nil || v.Node == "" {
		t.Errorf("it isn't attached any more: %+v, %v", v, err)
	}
	is(t, "deleting it", c.here.Delete(ctx, name), csi.ErrRefused)
	for range 2 {
		if err := c.here.Detach(ctx, name); err != nil {
			t.Errorf("detaching: %v", err)
		}
	}
	if _, err := c.there.Attach(ctx, name); err != nil {
		t.Errorf("it doesn't move: %v", err)
	}
	if err := c.there.Detach(ctx, name); err != nil {
		t.Error(err)
	}
	if err := c.here.Delete(ctx, name); err != nil {
		t.Fatal(err)
	}
	gone(t, ctx, c.here, name)
}

func (c *contract) nodes(t *testing.T) {
	ctx := contractContext(t)
	nodes, err := c.here.Nodes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, n := range nodes {
		known[n.Name] = n.Storage && n.Alive && n.Zone != ""
	}
	pools, err := c.here.Pools(ctx)
	if err != nil || len(pools) == 0 {
		t.Fatalf("%d pools, %v", len(pools), err)
	}
	for _, p := range pools {
		if !known[p.Node] || p.Room < 1<<30 || p.Media == "" {
			t.Errorf("pool %+v", p)
		}
	}
}
