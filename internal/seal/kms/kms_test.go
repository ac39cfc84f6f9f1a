package kms

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	kmsapi "k8s.io/kms/apis/v2"
	"k8s.io/kms/pkg/service"

	"keelson.io/keelson/internal/seal"
	"keelson.io/keelson/internal/spec"
)

const volumeID = "00112233445566aa"

// plugin is a key server behind Kubernetes' own server for KMS plugins.
type plugin struct {
	mu      sync.Mutex
	id      string
	healthz string
	slow    time.Duration
	change  func(*service.EncryptResponse)
	seen    [][]byte // what was given to be encrypted
}

func (p *plugin) Status(ctx context.Context) (*service.StatusResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &service.StatusResponse{Version: "v2", Healthz: p.healthz, KeyID: p.id}, p.wait(ctx)
}

func (p *plugin) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(p.slow):
		return nil
	}
}

func (p *plugin) Encrypt(_ context.Context, _ string, data []byte) (*service.EncryptResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = append(p.seen, bytes.Clone(data))
	r := &service.EncryptResponse{KeyID: p.id, Ciphertext: mask(p.id, data), Annotations: map[string][]byte{"version.example.com": []byte("7")}}
	if p.change != nil {
		p.change(r)
	}
	return r, nil
}

func (p *plugin) Decrypt(ctx context.Context, _ string, r *service.DecryptRequest) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if string(r.Annotations["version.example.com"]) != "7" {
		return nil, errors.New("annotations are missing")
	}
	return mask(r.KeyID, r.Ciphertext), p.wait(ctx)
}

// mask stands for a cipher.
func mask(id string, b []byte) []byte {
	out := bytes.Clone(b)
	for i := range out {
		out[i] ^= id[i%len(id)]
	}
	return out
}

func serve(t *testing.T, path string, p *plugin) (stop func()) {
	t.Helper()
	s := service.NewGRPCService(path, 5*time.Second, p)
	done := make(chan error, 1)
	go func() { done <- s.ListenAndServe() }()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	return func() {
		s.Shutdown()
		<-done
	}
}

func client(t *testing.T, path string, timeout time.Duration) *Service {
	t.Helper()
	s, err := New("unix://"+path, timeout)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestKMS(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kms.sock")
	p := &plugin{id: "key-1", healthz: "ok"}
	stop := serve(t, path, p)
	s := client(t, path, 0)
	ctx := t.Context()
	if id, err := s.Current(ctx); id != "key-1" || err != nil {
		t.Fatalf("%s, %v", id, err)
	}
	k, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	w, err := s.Wrap(ctx, k, volumeID)
	if err != nil || w.Provider != spec.ProviderKMS || w.ID != "key-1" || len(w.Annotations) != 1 {
		t.Fatalf("%+v, %v", w, err)
	}
	if len(p.seen) != 1 || len(p.seen[0]) != seal.WrapKeySize {
		t.Errorf("the service was given %d bytes: a data key?", len(p.seen[0]))
	}
	p.mu.Lock()
	p.id = "key-2"
	p.mu.Unlock()
	got, err := s.Unwrap(ctx, w, volumeID)
	if err != nil {
		t.Fatal(err)
	}
	got.Close()
	for what, change := range map[string]func(w *spec.WrappedKey) string{
		"another volume": func(*spec.WrappedKey) string { return "00112233445566ab" },
		"no envelope":    func(w *spec.WrappedKey) string { w.Envelope = nil; return volumeID },
		"short envelope": func(w *spec.WrappedKey) string { w.Envelope = w.Envelope[:31]; return volumeID },
		"other envelope": func(w *spec.WrappedKey) string { w.Envelope = make([]byte, 32); return volumeID },
		"truncated":      func(w *spec.WrappedKey) string { w.Sealed = w.Sealed[:50]; return volumeID },
		"another id":     func(w *spec.WrappedKey) string { w.ID = "key-9"; return volumeID },
	} {
		bad := w
		id := change(&bad)
		if _, err := s.Unwrap(ctx, bad, id); !errors.Is(err, seal.ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	bad := w
	bad.Annotations = nil
	if _, err := s.Unwrap(ctx, bad, volumeID); !errors.Is(err, seal.ErrAway) || !strings.Contains(err.Error(), "annotations are missing") {
		t.Errorf("what the service says isn't passed on: %v", err)
	}

	stop()
	if _, err := s.Unwrap(ctx, w, volumeID); !errors.Is(err, seal.ErrAway) || !strings.Contains(err.Error(), path) {
		t.Errorf("without the service: %v", err)
	}
	defer serve(t, path, p)()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if got, err := s.Unwrap(ctx, w, volumeID); err == nil {
			got.Close()
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("the service is back: %v", err)
		}
	}
}

func TestWrongAnswers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kms.sock")
	p := &plugin{id: "key-1", healthz: "ok"}
	defer serve(t, path, p)()
	s := client(t, path, 300*time.Millisecond)
	k, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	for what, change := range map[string]func(*service.EncryptResponse){
		"no key id":         func(r *service.EncryptResponse) { r.KeyID = "" },
		"a long key id":     func(r *service.EncryptResponse) { r.KeyID = strings.Repeat("k", 1024) },
		"no ciphertext":     func(r *service.EncryptResponse) { r.Ciphertext = nil },
		"a long ciphertext": func(r *service.EncryptResponse) { r.Ciphertext = make([]byte, 1024) },
		"a long annotation": func(r *service.EncryptResponse) { r.Annotations["x.example.com"] = make([]byte, 32<<10) },
		"a lot of them":     func(r *service.EncryptResponse) { fill(r.Annotations) },
	} {
		p.mu.Lock()
		p.change = change
		p.mu.Unlock()
		if _, err := s.Wrap(t.Context(), k, volumeID); !errors.Is(err, seal.ErrAway) || !strings.Contains(err.Error(), "wrongly") {
			t.Errorf("%s: %v", what, err)
		}
	}
	p.mu.Lock()
	p.healthz = "the token has ended"
	p.mu.Unlock()
	if _, err := s.Current(t.Context()); !errors.Is(err, seal.ErrAway) || !strings.Contains(err.Error(), "the token has ended") {
		t.Errorf("a service that isn't healthy: %v", err)
	}
	p.mu.Lock()
	p.slow = time.Minute
	p.mu.Unlock()
	if _, err := s.Current(t.Context()); !errors.Is(err, seal.ErrAway) || !strings.Contains(err.Error(), "300ms") {
		t.Errorf("a service that hangs: %v", err)
	}
}

func fill(m map[string][]byte) {
	for i := range 100 {
		m[fmt.Sprintf("a%d.example.com", i)] = make([]byte, 330)
	}
}

// A server that speaks another version, or no KMS at all.
func TestOtherServers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kms.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	kmsapi.RegisterKeyManagementServiceServer(g, old{})
	go g.Serve(l)
	defer g.Stop()
	if _, err := client(t, path, 0).Current(t.Context()); !errors.Is(err, seal.ErrAway) || !strings.Contains(err.Error(), "v1") {
		t.Errorf("version 1: %v", err)
	}
}

type old struct {
	kmsapi.UnimplementedKeyManagementServiceServer
}

func (old) Status(context.Context, *kmsapi.StatusRequest) (*kmsapi.StatusResponse, error) {
	return &kmsapi.StatusResponse{Version: "v1", Healthz: "ok", KeyId: "x"}, nil
}

func TestBadEndpoints(t *testing.T) {
	for _, e := range []string{"", "/run/kms.sock", "unix:kms.sock", "unix://kms.sock", "http://127.0.0.1:80", "unix:///a?b=c", "unix://host/a", "tcp://1.2.3.4:5"} {
		if s, err := New(e, 0); err == nil {
			s.Close()
			t.Errorf("%q is taken", e)
		} else if !strings.Contains(err.Error(), "unix:///") {
			t.Errorf("%q: %v", e, err)
		}
	}
}
