package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/pki/pkitest"
	"keelson.io/keelson/internal/seal"
	"keelson.io/keelson/internal/spec"
)

// vault is a wrapper whose key is the one of its id.
type vault struct {
	id  string
	err error
}

func (v *vault) Current(context.Context) (string, error) { return v.id, v.err }

func wrapKey(id string) []byte { return []byte(fmt.Sprintf("%-32s", id)) }

func (v *vault) Wrap(_ context.Context, k *seal.Key, volume string) (w spec.WrappedKey, err error) {
	if v.err != nil {
		return w, v.err
	}
	w.ID = v.id
	w.Sealed, err = seal.Seal(wrapKey(v.id), k, volume)
	return w, err
}

func (v *vault) Unwrap(_ context.Context, w spec.WrappedKey, volume string) (*seal.Key, error) {
	if v.err != nil {
		return nil, v.err
	}
	if w.ID == "lost" {
		return nil, seal.ErrMissing
	}
	return seal.Open(wrapKey(w.ID), w.Sealed, volume)
}

// withKeys gives a node wrapping keys.
func (c *testCluster) withKeys(t *testing.T, node string, v *vault) *Client {
	t.Helper()
	s := New(Config{
		Node: node, Version: "test", Store: c.store, Engine: c.engines[node], CA: pkitest.Fixed(c.ca), Log: slog.New(slog.DiscardHandler),
		Keys: seal.NewRing(spec.ProviderFile, map[string]seal.Wrapper{spec.ProviderFile: v}),
		Dial: func(n spec.Node) *Client { return c.clients[n.Name] },
	})
	hs := httptest.NewServer(asNode(node, s.services()))
	t.Cleanup(hs.Close)
	return NewClient(hs.Client(), hs.URL)
}

// setKey changes what is recorded of a volume's wrapped key.
func (c *testCluster) setKey(t *testing.T, name string, change func(w *spec.WrappedKey)) {
	t.Helper()
	v, err := c.store.VolumeByName(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	e := *v.Value.Encryption
	change(&e.Key)
	v.Value.Encryption = &e
	if _, err := c.store.PutVolume(t.Context(), v.Value, v.Rev, meta.Cond{}); err != nil {
		t.Fatal(err)
	}
}

// dataKeys tells the data keys of all encrypted volumes apart.
func (c *testCluster) dataKeys(t *testing.T, v *vault) map[string]string {
	t.Helper()
	vols, err := c.store.Volumes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, x := range vols {
		if x.Value.Encryption != nil {
			out[x.Value.Name] = dataKey(t, v, x.Value)
		}
	}
	return out
}

// dataKey is what a volume's data key makes of a block.
func dataKey(t *testing.T, v *vault, vol spec.Volume) string {
	t.Helper()
	k, err := v.Unwrap(t.Context(), vol.Encryption.Key, vol.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	cipher, err := k.Cipher()
	if err != nil {
		t.Fatal(err)
	}
	defer cipher.Close()
	b := make([]byte, block.Size)
	cipher.Encrypt(b, b, 0)
	return string(b[:64])
}

func TestEncryptedVolumes(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2")
	_, err := c.clients["n1"].Volumes.CreateVolume(ctx, &pb.CreateVolumeRequest{Name: "a", Size: 1 << 30, Encrypt: true})
	code(t, "without wrapping keys", err, connect.CodeFailedPrecondition, "volume a", "encryption.provider")
	_, err = c.clients["n1"].Keys.RotateKeys(ctx, &pb.RotateKeysRequest{})
	code(t, "rotate without wrapping keys", err, connect.CodeFailedPrecondition, "encryption.provider")

	v := &vault{id: "k1"}
	n1 := c.withKeys(t, "n1", v)
	create := func(name string, encrypt bool) {
		t.Helper()
		got, err := n1.Volumes.CreateVolume(ctx, &pb.CreateVolumeRequest{Name: name, Size: 1 << 30, Encrypt: encrypt})
		if err != nil || (got.Encryption != nil) != encrypt || encrypt && (got.Encryption.Key != "file/"+v.id || got.Encryption.Cipher != spec.CipherXTS) {
			t.Fatalf("%v, %v", got, err)
		}
	}
	create("a", true)
	create("b", true)
	create("plain", false)
	v.err = fmt.Errorf("%w: asleep", seal.ErrAway)
	_, err = n1.Volumes.CreateVolume(ctx, &pb.CreateVolumeRequest{Name: "c", Size: 1 << 30, Encrypt: true})
	code(t, "with a key server that is away", err, connect.CodeUnavailable, "volume c", "asleep")
	if !Retryable(err) {
		t.Error("the caller isn't told to ask again")
	}
	if _, err := c.store.VolumeByName(ctx, "c"); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a volume that can't be encrypted was made: %v", err)
	}
	keys, err := n1.Keys.ListKeys(ctx, &pb.ListKeysRequest{})
	if err != nil || len(keys.Keys) != 1 || keys.Keys[0].Volumes != 2 || keys.PlainVolumes != 1 || !strings.Contains(keys.Problem, "asleep") {
		t.Errorf("%v, %v", keys, err)
	}
	v.err = nil
	create("c", true)
	secrets := c.dataKeys(t, v)

	// One of them can't be opened; the others are rotated.
	c.setKey(t, "b", func(w *spec.WrappedKey) { w.ID = "lost" })
	v.id = "k2"
	r, err := n1.Keys.RotateKeys(ctx, &pb.RotateKeysRequest{})
	if err != nil || r.Key != "file/k2" || r.Volumes != 3 || r.Rewrapped != 2 || r.Left != 1 || len(r.Problems) != 1 || r.Problems[0].Volume != "b" || !strings.Contains(r.Problems[0].Problem, "file/lost") {
		t.Errorf("%v, %v", r, err)
	}
	c.setKey(t, "b", func(w *spec.WrappedKey) { w.ID = "k1" })
	for i, want := range []int32{1, 0} {
		if r, err = n1.Keys.RotateKeys(ctx, &pb.RotateKeysRequest{}); err != nil || r.Rewrapped != want || r.Left != 0 || len(r.Problems) > 0 {
			t.Errorf("rotation %d: %v, %v", i, r, err)
		}
	}
	keys, err = n1.Keys.ListKeys(ctx, &pb.ListKeysRequest{})
	if err != nil || len(keys.Keys) != 1 || keys.Keys[0].Name != "file/k2" || keys.Keys[0].Volumes != 3 || !keys.Keys[0].Current {
		t.Errorf("%v, %v", keys, err)
	}
	for name, secret := range c.dataKeys(t, v) {
		if secret != secrets[name] {
			t.Errorf("the data key of %s is another one now", name)
		}
	}
}

// Rotation goes on where it was ended: more volumes than one call does.
func TestRotationGoesOn(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2")
	v := &vault{id: "k1"}
	n1 := c.withKeys(t, "n1", v)
	for i := range rotateMost + 20 {
		if _, err := n1.Volumes.CreateVolume(ctx, &pb.CreateVolumeRequest{Name: fmt.Sprintf("v%d", i), Size: 4 << 20, Encrypt: true}); err != nil {
			t.Fatal(err)
		}
	}
	v.id = "k2"
	for i, want := range [][2]int32{{rotateMost, 20}, {20, 0}, {0, 0}} {
		r, err := n1.Keys.RotateKeys(ctx, &pb.RotateKeysRequest{})
		if err != nil || r.Rewrapped != want[0] || r.Left != want[1] {
			t.Errorf("call %d: %v, %v", i, r, err)
		}
	}
}

func TestCloneSharesTheDataKey(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2")
	v := &vault{id: "k1"}
	s := &Server{cfg: Config{Keys: seal.NewRing(spec.ProviderFile, map[string]seal.Wrapper{spec.ProviderFile: v}), Store: c.store}}
	origin, clone := spec.Volume{ID: spec.NewID(), Name: "origin"}, spec.Volume{ID: spec.NewID(), Name: "clone"}
	if err := s.shareKey(ctx, &origin, &clone); err != nil || clone.Encryption != nil {
		t.Fatalf("%v, %v", clone.Encryption, err)
	}
	if err := s.encryption(ctx, &origin); err != nil {
		t.Fatal(err)
	}
	if err := s.shareKey(ctx, &origin, &clone); err != nil {
		t.Fatal(err)
	}
	if a, b := dataKey(t, v, origin), dataKey(t, v, clone); a != b {
		t.Error("the clone can't read its origin's blocks")
	}
	clone.ID = origin.ID
	if _, err := v.Unwrap(ctx, clone.Encryption.Key, clone.ID); !errors.Is(err, seal.ErrDamaged) {
		t.Errorf("the clone's wrapped key opens for its origin: %v", err)
	}
	s.cfg.Keys = nil
	if err := s.shareKey(ctx, &origin, &clone); !errors.Is(err, seal.ErrNone) || !strings.Contains(err.Error(), "origin") {
		t.Errorf("without wrapping keys: %v", err)
	}
}
