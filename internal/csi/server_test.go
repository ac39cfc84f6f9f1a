package csi_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
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

// TestRefusedDriverIsAnnouncedAgain answers as kubelet does without its API server: it refuses, and looks again only at a new socket.
func TestRefusedDriverIsAnnouncedAgain(t *testing.T) {
	dir := shortDir(t)
	e := csi.Endpoint{Driver: "csi.keelson.io", Socket: filepath.Join(dir, "csi.sock"), RegistrationDir: dir}
	s := csi.New(csi.Config{Node: "n1", Keelson: csitest.NewMemory(nil).At("n1"), Endpoints: []csi.Endpoint{e}, AnnounceAgain: time.Millisecond})
	must(t, s.Open(t.Context()))
	socket := filepath.Join(dir, "csi.keelson.io-reg.sock")
	var before os.FileInfo
	for _, refused := range []bool{true, true, false} {
		var st os.FileInfo
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			var err error
			if st, err = os.Stat(socket); err == nil && (before == nil || !st.ModTime().Equal(before.ModTime())) {
				break
			}
			if time.Now().After(end) {
				t.Fatal("the socket doesn't appear again")
			}
		}
		before = st
		c := registration.NewRegistrationClient(dial(t, socket))
		if got, err := c.GetInfo(t.Context(), &registration.InfoRequest{}, grpc.WaitForReady(true)); err != nil || got.Name != e.Driver {
			t.Fatalf("%v, %v", got, err)
		}
		answer := &registration.RegistrationStatus{PluginRegistered: !refused, Error: map[bool]string{true: "timed out waiting for the condition"}[refused]}
		if _, err := c.NotifyRegistrationStatus(t.Context(), answer); err != nil {
			t.Fatal(err)
		}
	}
	must(t, s.Close())
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
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
