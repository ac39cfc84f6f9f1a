package csi_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"keelson.io/keelson/internal/csi"
	"keelson.io/keelson/internal/csi/csitest"
)

func TestRegistration(t *testing.T) {
	r := newRig(t, "pure-csi", false)
	c := registration.NewRegistrationClient(dial(t, r.path("reg-n1/pure-csi-reg.sock")))
	got, err := c.GetInfo(t.Context(), &registration.InfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got.Type != "CSIPlugin" || got.Name != "pure-csi" || got.Endpoint != r.socket || len(got.SupportedVersions) != 1 || got.SupportedVersions[0] != "1.0.0" {
		t.Errorf("%v", got)
	}
	for _, st := range []*registration.RegistrationStatus{{PluginRegistered: true}, {Error: "no"}} {
		if _, err := c.NotifyRegistrationStatus(t.Context(), st); err != nil {
			t.Error(err)
		}
	}
	info, err := r.GetPluginInfo(t.Context(), &pb.GetPluginInfoRequest{})
	if err != nil || info.Name != got.Name {
		t.Errorf("%v, %v", info, err)
	}
}

func TestSockets(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "a", "csi.sock")
	cfg := csi.Config{Node: "n1", Keelson: csitest.NewMemory(nil).At("n1"), Endpoints: []csi.Endpoint{{Driver: "csi.keelson.io", Socket: path}}}
	// What a process that died left is replaced.
	must(t, os.Mkdir(filepath.Dir(path), 0o700))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	must(t, l.Close())
	s := csi.New(cfg)
	must(t, s.Open(t.Context()))
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	// What another one serves isn't.
	if err := csi.New(cfg).Open(t.Context()); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("%v", err)
	}
	must(t, s.Close(), s.Close())
	s = csi.New(cfg)
	must(t, s.Open(t.Context()), s.Close())
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for what, e := range map[string][]csi.Endpoint{
		"driver":   {{Socket: "/a"}},
		"absolute": {{Driver: "x", Socket: "a.sock"}},
		"long":     {{Driver: "x", Socket: "/" + strings.Repeat("a", 107)}},
		"another":  {{Driver: "x", Socket: "/a"}, {Driver: "y", Socket: "/a"}},
	} {
		c := csi.Config{Endpoints: e}
		if err := c.Validate(); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
}
