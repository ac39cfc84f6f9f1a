package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keelson.io/keelson/internal/invariant/alloc"
)

// FuzzConfig reads anything as a configuration. What is accepted is valid, and an error is one line for a person.
func FuzzConfig(f *testing.F) {
	f.Add([]byte("node: n1\naddress: 10.0.0.1\nroles: [storage]\nlabels: {a: b}\nengine: {shards: 2, encryption: false, spin: 1ms}\n"))
	f.Add([]byte("join: {url: https://a:9500, tokenFile: /t}\ncertificates: {valid: 24h, renewBefore: 1h}\n"))
	f.Add([]byte("metadata: {endpoints: [https://e:2379], caFile: /c, certFile: /d, keyFile: /e}\n"))
	f.Add([]byte("a: &a [x, x]\nlabels: *a\n"))
	f.Add([]byte("node: n1\n---\n"))
	f.Add([]byte{0xff, 0xfe, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		c := DefaultConfig()
		var err error
		alloc.Bounded(t, 4<<20+2000*len(b), func() { err = c.parse(b) })
		if err != nil {
			if err.Error() == "" || strings.Contains(err.Error(), "panic") {
				t.Fatalf("%q", err)
			}
			return
		}
		if c.Node == "" {
			c.Node = "n1"
		}
		if c.Address == "" {
			c.Address = "10.0.0.1"
		}
		if err := c.Complete(); err == nil && (c.Engine.Shards < 1 || len(c.Roles) == 0 || c.APIPort == c.EnginePort) {
			t.Fatalf("an impossible configuration was accepted: %+v", c)
		}
	})
}

// FuzzState reads anything as a node's state file.
func FuzzState(f *testing.F) {
	f.Add([]byte(`{"version":1,"node":"n1","nodeID":"00000000000000aa"}`))
	dir := f.TempDir()
	if err := (State{Node: "n1", NodeID: "00000000000000aa"}).write(dir); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(statePath(dir))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "state.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		alloc.Bounded(t, 100*len(b), func() { _, _ = ReadState(dir) })
	})
}
