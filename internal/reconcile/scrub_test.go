package reconcile

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"keelson.io/keelson/internal/spec"
)

// scrubEvery turns the schedule on.
func (c *cluster) scrubEvery(d time.Duration) {
	c.t.Helper()
	cl, err := c.Cluster(c.ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	cl.Value.Settings.ScrubInterval = d
	c.put(c.PutCluster(c.ctx, cl.Value, cl.Rev))
	c.pass(time.Second)
}

// active names the volumes with an active scrub.
func (c *cluster) active() (names []string) {
	c.t.Helper()
	list, err := c.Volumes(c.ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, v := range list {
		if v.Value.Scrub.Active {
			names = append(names, v.Value.Name)
		}
	}
	return names
}

func (c *cluster) endScrub(name string) {
	c.t.Helper()
	c.update(name, func(v *spec.Volume) { v.Scrub.End(time.Now()) })
	c.pass(time.Second)
}

func TestScrubSchedule(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.create("db", "n1", "n1", "n2")
		c.scrubEvery(24 * time.Hour)
		c.pass(59 * time.Minute)
		if a := c.active(); a != nil {
			t.Fatalf("a new volume is scrubbed at once: %v", a)
		}
		c.pass(24 * time.Hour)
		if a := c.active(); !slices.Equal(a, []string{"db"}) {
			t.Fatalf("after the interval: %v", a)
		}
		c.pass(72 * time.Hour)
		c.endScrub("db")
		c.pass(24*time.Hour - time.Minute)
		if a := c.active(); a != nil {
			t.Fatalf("less than an interval after the last one: %v", a)
		}
		c.pass(2 * time.Minute)
		if a := c.active(); a == nil {
			t.Fatal("the next one doesn't begin")
		}
		c.update("db", func(v *spec.Volume) { v.Scrub.Cancel(time.Now()) })
		c.pass(23 * time.Hour)
		if a := c.active(); a != nil {
			t.Fatal("it begins again right after it was cancelled")
		}
		c.set("db", "n2", spec.Stale)
		c.pass(48 * time.Hour)
		if a := c.active(); a != nil {
			t.Fatal("it begins while a copy is out of sync")
		}
		c.set("db", "n2", spec.InSync)
		c.pass(time.Second)
		if a := c.active(); a == nil {
			t.Fatal("it doesn't begin when the copy is back")
		}
		if s := c.services(); s != nil {
			t.Fatalf("an attached volume was served: %v", s)
		}
	})
}

// Many volumes whose time has come are scrubbed a few at a time, and those that are detached are served for it, fewer yet; a
// rebuild doesn't wait for them.
func TestScrubsAreFew(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.serveFor = time.Hour
		for i := range 2 * MaxScrubs {
			c.create(fmt.Sprintf("v%02d", i), "", "n1", "n2")
		}
		c.scrubEvery(time.Minute)
		c.pass(3 * time.Minute)
		if a := c.active(); len(a) != MaxScrubs {
			t.Fatalf("%d scrubs at once: %v", len(a), a)
		}
		if s := c.services(); len(s) != MaxScrubbed {
			t.Fatalf("served: %v", s)
		}
		c.create("behind", "", "n1", "n2")
		c.set("behind", "n2", spec.Stale)
		c.pass(10 * time.Second)
		if s := c.services(); !slices.Equal(s, []string{"behind@n1"}) {
			t.Fatalf("a rebuild waits for scrubs: %v", s)
		}
		first := c.active()[0]
		c.update(first, func(v *spec.Volume) { v.Scrub.Paused = true })
		c.pass(time.Second)
		if a := c.active(); len(a) != MaxScrubs+1 {
			t.Fatalf("one that is paused keeps another from beginning: %v", a)
		}
	})
}

func TestScrubOfDetached(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.create("db", "", "n1", "n2")
		begin := func(v *spec.Volume) { v.Scrub.Begin(time.Now(), false) }
		c.update("db", begin)
		c.pass(time.Second)
		if s := c.services(); !slices.Equal(s, []string{"db@n1"}) {
			t.Fatalf("served: %v", s)
		}
		c.update("db", func(v *spec.Volume) { v.State.Node, v.State.Frontend = "n1", spec.FrontendNone })
		c.pass(time.Minute)
		if s := c.services(); s != nil {
			t.Fatalf("served, though it is: %v", s)
		}
		c.Cut("n1")
		c.set("db", "n1", spec.InSync)
		c.pass(time.Minute)
		if s := c.services(); s != nil {
			t.Fatalf("served while a copy is away: %v", s)
		}
		c.Heal("n1")
		c.update("db", func(v *spec.Volume) { v.State.Node, v.State.Frontend, v.Scrub.Paused = "", "", true })
		c.pass(time.Minute)
		if s := c.services(); s != nil {
			t.Fatalf("served though it is paused: %v", s)
		}
	})
}
