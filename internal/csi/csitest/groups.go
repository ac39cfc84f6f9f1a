package csitest

import (
	"testing"

	"keelson.io/keelson/internal/csi"
)

// groups: either all snapshots of a group are there or none, they know it, and go with it only.
func (c *contract) groups(t *testing.T) {
	ctx := contractContext(t)
	names := []string{"contract-ga", "contract-gb"}
	for _, name := range names {
		if _, err := c.here.Create(ctx, csi.Request{Name: name, Size: 64 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := c.here.CreateGroup(ctx, "contract-group", append(names[:1:1], "contract-none"))
	is(t, "a group of a volume that isn't there", err, csi.ErrNotFound)
	for _, k := range []csi.Keelson{c.here, c.there} {
		list, err := k.CreateGroup(ctx, "contract-group", names)
		if err != nil || len(list) != 2 {
			t.Fatalf("a group: %+v, %v", list, err)
		}
		for _, s := range list {
			if s.Group != "contract-group" || !s.Ready || s.Taken.IsZero() || s.Size != 64<<20 {
				t.Errorf("a snapshot of a group: %+v", s)
			}
		}
	}
	_, err = c.there.CreateGroup(ctx, "contract-group", names[:1])
	is(t, "a group of that name of other volumes", err, csi.ErrExists)
	is(t, "deleting one of a group", c.here.DeleteSnapshot(ctx, names[0], "contract-group"), csi.ErrInvalid)
	if err := c.there.DeleteGroup(ctx, "contract-group"); err != nil {
		t.Error(err)
	}
	is(t, "deleting it again", c.here.DeleteGroup(ctx, "contract-group"), csi.ErrNotFound)
	for _, name := range names {
		if list, err := c.here.Snapshots(ctx, name); err != nil || len(list) != 0 {
			t.Errorf("snapshots that are left: %+v, %v", list, err)
		}
		if err := c.here.Delete(ctx, name); err != nil {
			t.Error(err)
		}
		gone(t, ctx, c.here, name)
	}
}
