package engine_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/engine"
	"keelson.io/keelson/internal/spec"
)

// A detached volume is attached without a frontend to be scrubbed: rot in a copy is found and repaired, the result is in the record
// and an event, and the volume is detached again.
func TestScrubOfDetachedVolume(t *testing.T) {
	c := newCluster(t, "a", "b")
	id := c.volume("vol", 32*mib, 1, "a", "b")
	d := c.nodes["a"].attach(id)
	d.write(t, 8*mib, 64*block.Size, 7)
	c.nodes["a"].detach(id)

	heads, err := filepath.Glob(filepath.Join(c.nodes["b"].pool, "*", "*", "head"))
	if err != nil || len(heads) != 1 {
		t.Fatalf("heads in the pool of b: %v, %v", heads, err)
	}
	f, err := os.OpenFile(heads[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("rot"), 8*mib+5*block.Size); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	f.Close()

	c.change(id, func(v *spec.Volume) { v.Scrub.Begin(time.Now(), false) })
	if _, err := c.nodes["a"].engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: spec.FrontendNone}); err != nil {
		t.Fatal(err)
	}
	c.until("scrubbed and detached", func() bool {
		v := c.record(id)
		return !v.Scrub.Active && v.State.Node == ""
	})
	if got := c.record(id).Scrub.Last.Findings; got.Repaired != 1 || got.Unreadable+got.Differing != 0 || got.Bytes != 64*block.Size || got.Partial {
		t.Fatalf("%+v", got)
	}
	c.until("the event is recorded", func() bool {
		list, err := c.store.Events(c.ctx)
		return err == nil && len(list.Value) == 1 && strings.Contains(list.Value[0].Message, "1 blocks repaired") && list.Value[0].Node == "a"
	})
	st, err := c.nodes["a"].engine.Status(c.ctx)
	if err != nil || st.Counters["scrub_bytes"] != 64*block.Size || st.Counters["blocks_repaired"] != 1 {
		t.Fatalf("counted %v, %v", st.Counters, err)
	}
	c.nodes["a"].stop()
	c.nodes["b"].attach(id).verify(t, 8*mib, 64*block.Size, 7)
}

// An attachment without a frontend that scrubs gives way to one with a frontend, which goes on with it.
func TestScrubGivesWay(t *testing.T) {
	c := newCluster(t, "a", "b")
	id := c.volume("vol", 32*mib, 1, "a", "b")
	d := c.nodes["a"].attach(id)
	for i := range int64(16) {
		d.write(t, i*2*mib, 256*block.Size, 7)
	}
	c.nodes["a"].detach(id)
	c.change(id, func(v *spec.Volume) { v.Scrub.Begin(time.Now(), false); v.Scrub.Bandwidth = 16 * mib })
	if _, err := c.nodes["a"].engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: spec.FrontendNone}); err != nil {
		t.Fatal(err)
	}
	d = c.nodes["b"].attach(id)
	d.verify(t, 0, 64*block.Size, 7)
	c.until("scrubbed", func() bool { return !c.record(id).Scrub.Active })
	if v := c.record(id); v.State.Node != "b" || v.Scrub.Last.Findings.Bytes < 8*mib || v.Scrub.Last.Number != 1 {
		t.Fatalf("%+v", v)
	}
	c.nodes["b"].detach(id)
}
