package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

func TestReplacement(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.create("db", "n1", "n1", "n2")
		c.pass(time.Hour)
		c.expect("db", "n1 InSync", "n2 InSync")
		c.Cut("n2")
		c.set("db", "n2", spec.Stale)
		c.pass(10*time.Minute - time.Second)
		c.expect("db", "n1 InSync", "n2 Stale")
		c.pass(2 * time.Second)
		c.expect("db", "n1 InSync", "n2 Stale Removing", "n3 Stale")
		v, _ := c.VolumeByName(t.Context(), "db")
		m := v.Value.State.Columns[0].Members[2]
		if !strings.Contains(m.Reason, "replaces the copy on node n2") || m.Pool != "pool-n3" || spec.ValidateID("", m.Replica) != nil {
			t.Fatalf("%+v", m)
		}
		c.pass(time.Hour)
		c.expect("db", "n1 InSync", "n2 Stale Removing", "n3 Stale") // still being filled
		c.set("db", "n3", spec.Syncing)
		c.set("db", "n3", spec.InSync)
		c.pass(time.Second)
		c.expect("db", "n1 InSync", "n3 InSync")
		c.Heal("n2")
		c.pass(time.Hour)
		c.expect("db", "n1 InSync", "n3 InSync")
		if s := c.services(); s != nil {
			t.Fatalf("an attached volume was served: %v", s)
		}
	})
}

func TestShortAbsence(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.create("db", "n1", "n1", "n2")
		for range 5 {
			c.Cut("n2")
			c.pass(9 * time.Minute)
			c.Heal("n2")
			c.pass(time.Minute)
			c.expect("db", "n1 InSync", "n2 InSync")
		}
		c.pass(time.Hour)
		c.expect("db", "n1 InSync", "n2 InSync")
	})
}

func TestOldOneFirst(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.create("db", "n1", "n1", "n2")
		c.Cut("n2")
		c.set("db", "n2", spec.Stale)
		c.pass(11 * time.Minute)
		c.Heal("n2")
		c.pass(time.Minute)
		c.expect("db", "n1 InSync", "n2 Stale Removing", "n3 Stale")
		c.set("db", "n2", spec.InSync)
		c.pass(time.Second)
		c.expect("db", "n1 InSync", "n2 InSync")
	})
}

// TestReplacementDiesToo: when the node of the replacement goes as well, the column doesn't grow.
func TestReplacementDiesToo(t *testing.T) {
	inCluster(t, 4, func(t *testing.T, c *cluster) {
		c.create("db", "n1", "n1", "n2")
		c.Cut("n2")
		c.set("db", "n2", spec.Stale)
		c.pass(11 * time.Minute)
		c.expect("db", "n1 InSync", "n2 Stale Removing", "n3 Stale")
		c.Cut("n3")
		c.pass(11 * time.Minute)
		c.expect("db", "n1 InSync", "n3 Stale Removing", "n4 Stale")
	})
}

func TestLostPool(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.create("db", "n1", "n1", "n2")
		p, err := c.Pool(t.Context(), "pool-n2")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.DeletePool(t.Context(), p.Value.ID, p.Rev); err != nil {
			t.Fatal(err)
		}
		c.pass(time.Second)
		c.expect("db", "n1 InSync", "n2 InSync Removing", "n3 Stale")
	})
}

func TestMissingMember(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.create("db", "n1", "n1")
		c.update("db", func(v *spec.Volume) { v.Replicas = 2 })
		c.pass(time.Second)
		v, _ := c.VolumeByName(t.Context(), "db")
		if m := v.Value.State.Columns[0].Members; len(m) != 2 || m[1].State != spec.Stale || m[1].Node == "n1" {
			t.Fatalf("%+v", m)
		}
	})
}

// TestNoPlace: an impossible replacement changes nothing, and is done when it becomes possible.
func TestNoPlace(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.create("db", "n1", "n1", "n2")
		c.Cut("n2")
		c.pass(time.Hour)
		c.expect("db", "n1 InSync", "n2 InSync")
		var wg sync.WaitGroup
		c.addNode(&wg, 3)
		c.pass(time.Second)
		c.expect("db", "n1 InSync", "n2 InSync Removing", "n3 Stale")
	})
}

// TestNoSource: with all copies away there is nothing to rebuild from; they are waited for.
func TestNoSource(t *testing.T) {
	inCluster(t, 4, func(t *testing.T, c *cluster) {
		c.create("db", "", "n1", "n2")
		c.Cut("n1")
		c.Cut("n2")
		c.pass(time.Hour)
		c.expect("db", "n1 InSync", "n2 InSync")
		if s := c.services(); s != nil {
			t.Fatalf("served: %v", s)
		}
	})
}

func TestRebuildsAtOnce(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		const volumes = 11
		for i := range volumes {
			c.create(fmt.Sprintf("v%02d", i), "n1", "n1", "n2")
		}
		c.Cut("n2")
		done := 0
		for round := 0; done < volumes; round++ {
			c.pass(11 * time.Minute)
			list, err := c.Volumes(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			active := 0
			for _, v := range list {
				if len(v.Value.State.Columns[0].Members) > 2 {
					active++
					c.set(v.Value.Name, "n2", spec.Stale) // by the coordinator: it can't be reached
					c.set(v.Value.Name, "n3", spec.InSync)
					done++
				}
			}
			if want := min(MaxRebuilds, volumes-done+active); active != want {
				t.Fatalf("round %d: %d rebuilds, want %d", round, active, want)
			}
		}
	})
}

func TestServe(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.create("db", "", "n1", "n2", "n3")
		c.pass(time.Hour)
		if s := c.services(); s != nil {
			t.Fatalf("a healthy volume was served: %v", s)
		}
		c.set("db", "n1", spec.Stale)
		c.pass(time.Second)
		if s := c.services(); !slices.Equal(s, []string{"db@n2"}) {
			t.Fatalf("served: %v", s)
		}
		c.update("db", func(v *spec.Volume) { v.State.Node, v.State.Frontend = "n2", spec.FrontendNone })
		c.pass(time.Hour)
		if s := c.services(); s != nil {
			t.Fatalf("served again: %v", s)
		}
		c.Cut("n2") // the one that serves
		c.pass(time.Minute)
		if s := c.services(); len(s) == 0 || s[0] != "db@n3" {
			t.Fatalf("served: %v", s)
		}
	})
}

// TestServeNeedsAll: a striped volume can only be served if each of its columns has a copy in sync.
func TestServeNeedsAll(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.create("db", "", "n1", "n2")
		c.update("db", func(v *spec.Volume) {
			m := spec.Member{Replica: spec.NewID(), Node: "n3", Pool: "pool-n3", State: spec.InSync}
			v.State.Columns = append(v.State.Columns, spec.Column{Members: []spec.Member{m}})
		})
		c.Cut("n3")
		c.pass(time.Second)
		c.set("db", "n1", spec.Stale)
		c.pass(time.Minute)
		if s := c.services(); s != nil {
			t.Fatalf("served: %v", s)
		}
		c.Heal("n3")
		c.pass(10 * time.Second)
		if s := c.services(); len(s) == 0 {
			t.Fatal("not served")
		}
	})
}

// TestServeFails: asked again, less and less often.
func TestServeFails(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.serve = errors.New("no")
		c.create("db", "", "n1", "n2")
		c.set("db", "n1", spec.Stale)
		c.pass(10 * time.Minute)
		if n := len(c.services()); n < 8 || n > 16 {
			t.Fatalf("asked %d times in ten minutes", n)
		}
	})
}

// TestServerGone: what a node was serving when it went doesn't keep others from being served.
func TestServerGone(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		for i := range MaxServed {
			name := fmt.Sprintf("v%d", i)
			c.create(name, "n3", "n1", "n2")
			c.update(name, func(v *spec.Volume) { v.State.Frontend = spec.FrontendNone })
		}
		c.create("db", "", "n1", "n2")
		c.set("db", "n2", spec.Stale)
		c.pass(time.Minute)
		if s := c.services(); s != nil {
			t.Fatalf("served: %v", s)
		}
		c.Cut("n3")
		c.pass(time.Minute)
		if s := c.services(); len(s) == 0 || s[0] != "db@n1" {
			t.Fatalf("served: %v", s)
		}
	})
}

func TestServedAtOnce(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.serveFor = time.Minute
		for i := range 20 {
			name := fmt.Sprintf("v%02d", i)
			c.create(name, "", "n1", "n2")
			c.set(name, "n1", spec.Stale)
		}
		c.pass(10 * time.Minute)
		if c.most != MaxServed {
			t.Fatalf("%d were served at once, want %d", c.most, MaxServed)
		}
	})
}

// TestHolderAway: a volume that was attached to a node that went is served elsewhere, but only when the node
// stays away.
func TestHolderAway(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.create("db", "n1", "n1", "n2", "n3")
		c.set("db", "n3", spec.Stale)
		c.Cut("n1")
		c.pass(9 * time.Minute)
		c.expect("db", "n1 InSync", "n2 InSync", "n3 Stale")
		if s := c.services(); s != nil {
			t.Fatalf("served: %v", s)
		}
		c.pass(2 * time.Minute)
		c.expect("db", "n1 InSync", "n2 InSync", "n3 Stale") // there is no fourth node
		if s := c.services(); len(s) == 0 || s[0] != "db@n2" {
			t.Fatalf("served: %v", s)
		}
	})
}

func TestDeletion(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.create("db", "", "n1", "n2")
		c.update("db", func(v *spec.Volume) { v.Deleting = true })
		c.pass(time.Hour)
		c.expect("db", "n1 InSync", "n2 InSync") // the engines' turn
		c.update("db", func(v *spec.Volume) { v.State.Columns[0].Members = v.State.Columns[0].Members[:1] })
		c.Cut("n1")
		c.pass(9 * time.Minute)
		c.expect("db", "n1 InSync")
		v, err := c.VolumeByName(t.Context(), "db")
		if err != nil {
			t.Fatal(err)
		}
		c.pass(2 * time.Minute)
		c.expect("db")
		p, err := c.Pool(t.Context(), "pool-n1")
		if err != nil || !slices.Equal(p.Value.Leftovers, []string{v.Value.State.Columns[0].Members[0].Replica}) {
			t.Fatalf("left behind on n1: %v, %v", p.Value.Leftovers, err)
		}
		c.create("db", "", "n2", "n3") // the name is free again
		c.update("db", func(v *spec.Volume) {
			v.Deleting = true
			v.State.Columns[0].Members[0].Pool = "was-removed"
		})
		c.pass(time.Second)
		c.expect("db", "n3 InSync")
		c.update("db", func(v *spec.Volume) { v.State.Columns[0].Members = nil })
		c.pass(time.Second)
		c.expect("db")
	})
}

// TestUnavailable: while the metadata can't be written nothing is lost, and it's tried again.
func TestUnavailable(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.create("db", "n1", "n1", "n2")
		c.Cut("n2")
		c.pass(time.Minute)
		c.SetUnavailable(true)
		c.pass(20 * time.Minute)
		c.SetUnavailable(false)
		c.pass(10 * time.Second)
		c.expect("db", "n1 InSync", "n2 InSync Removing", "n3 Stale")
	})
}

// half is a store whose watch sends half of the state, and then nothing for long.
type half struct{ *cluster }

func (h half) Watch(ctx context.Context, fn func(meta.Event) error) error {
	vol, err := h.VolumeByName(ctx, "db")
	if err != nil {
		return err
	}
	for _, ev := range []meta.Event{
		{Kind: meta.NodePut, Node: spec.Node{Name: "n1"}}, {Kind: meta.Synced}, {Kind: meta.Resync},
		{Kind: meta.VolumePut, Volume: vol.Value, Rev: vol.Rev},
	} {
		if err := fn(ev); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

// TestPartialView: nothing is decided while the state is being sent; nodes that weren't sent yet aren't gone.
func TestPartialView(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.create("db", "", "n1", "n2")
		c.update("db", func(v *spec.Volume) { v.Deleting = true })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			New(Config{Store: half{c}, Log: slog.New(slog.DiscardHandler), Serve: c.serveOne}).Run(ctx)
		}()
		c.pass(3 * time.Hour)
		c.expect("db", "n1 InSync", "n2 InSync")
		cancel()
		<-done
	})
}

// TestBusyCluster: a stream of changes doesn't keep the loops from running.
func TestBusyCluster(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		cl, err := c.Cluster(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		cl.Value.Settings.RebuildAfter = 10 * time.Second
		c.put(c.PutCluster(t.Context(), cl.Value, cl.Rev))
		c.create("db", "n1", "n1", "n2")
		c.Cut("n2")
		for range 400 {
			c.pass(settle / 2)
			c.update("db", func(v *spec.Volume) { v.State.Term++ })
		}
		c.expect("db", "n1 InSync", "n2 InSync Removing", "n3 Stale")
	})
}

func TestDropSurplus(t *testing.T) {
	v := newView()
	now := time.Now()
	for _, n := range []string{"n1", "n2", "n3", "dead"} {
		v.Nodes[n] = spec.Node{Name: n}
		v.Pools[n] = spec.Pool{ID: n, Node: n}
	}
	v.GoneSince["dead"] = now
	member := func(node string, s spec.MemberState, removing bool) spec.Member {
		return spec.Member{Replica: node, Node: node, Pool: node, State: s, Removing: removing}
	}
	for name, tc := range map[string]struct {
		holder  string
		members []spec.Member
		want    string // the nodes that stay, those that are to leave with a -
	}{
		"not too many": {"", []spec.Member{member("n1", spec.InSync, false), member("n2", spec.Stale, false)}, "n1 n2"},
		"not yet":      {"", []spec.Member{member("n1", spec.InSync, false), member("dead", spec.InSync, true), member("n3", spec.Syncing, false)}, "n1 dead- n3"},
		"done":         {"", []spec.Member{member("n1", spec.InSync, false), member("dead", spec.Stale, true), member("n3", spec.InSync, false)}, "n1 n3"},
		"old first":    {"n1", []spec.Member{member("n1", spec.InSync, false), member("n2", spec.InSync, true), member("n3", spec.Syncing, false)}, "n1 n2"},
		// What wasn't flushed is on the one that is too many as well: the coordinator has to take it out first.
		"both":           {"n1", []spec.Member{member("n1", spec.InSync, false), member("n2", spec.InSync, true), member("n3", spec.InSync, false)}, "n1 n2- n3"},
		"none is marked": {"n1", []spec.Member{member("n1", spec.InSync, false), member("n2", spec.InSync, false), member("n3", spec.InSync, false)}, "n1 n2 n3-"},
		"both, detached": {"", []spec.Member{member("n1", spec.InSync, false), member("n2", spec.InSync, true), member("n3", spec.InSync, false)}, "n1 n3"},
		"taken out":      {"n1", []spec.Member{member("n1", spec.InSync, false), member("n2", spec.Stale, true), member("n3", spec.InSync, false)}, "n1 n3"},
		// Only the one that is marked may still have what wasn't flushed.
		"both, crashed": {"dead", []spec.Member{member("n1", spec.InSync, false), member("n2", spec.InSync, true), member("n3", spec.InSync, false)}, "n1 n2- n3"},
		"stale, crashed": {"dead", []spec.Member{member("n1", spec.InSync, false), member("n2", spec.Stale, true),
			member("n3", spec.InSync, false)}, "n1 n3"},
	} {
		vol := spec.Volume{Replicas: 2, State: spec.State{Node: tc.holder, Columns: []spec.Column{{Members: tc.members}}}}
		what := v.dropSurplus(&vol, 0)
		var got []string
		for _, m := range vol.State.Columns[0].Members {
			if m.Removing {
				m.Node += "-"
			}
			got = append(got, m.Node)
		}
		if s := strings.Join(got, " "); s != tc.want || (what == "") != slices.Equal(vol.State.Columns[0].Members, tc.members) {
			t.Errorf("%s: %s stay, want %s (%q)", name, s, tc.want, what)
		}
	}
}

// TestColumns: each column of a striped volume is replaced for itself, and the volume counts as one rebuild.
func TestColumns(t *testing.T) {
	inCluster(t, 4, func(t *testing.T, c *cluster) {
		c.create("db", "n1", "n1", "n2")
		c.update("db", func(v *spec.Volume) {
			v.Columns = 3
			first := v.State.Columns[0].Members
			for range 2 {
				col := spec.Column{Members: slices.Clone(first)}
				for i := range col.Members {
					col.Members[i].Replica = spec.NewID()
				}
				v.State.Columns = append(v.State.Columns, col)
			}
		})
		c.Cut("n2")
		c.pass(11 * time.Minute)
		v, _ := c.VolumeByName(t.Context(), "db")
		used := map[string]int{}
		for i, col := range v.Value.State.Columns {
			if len(col.Members) != 3 || !col.Members[1].Removing || col.Members[2].State != spec.Stale {
				t.Fatalf("column %d: %+v", i, col.Members)
			}
			used[col.Members[2].Node]++
		}
		if used["n3"] == 0 || used["n4"] == 0 {
			t.Fatalf("the columns weren't spread: %v", used)
		}
	})
}
