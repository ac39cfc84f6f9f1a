// Package kms has wrapping keys in an external key management service, by the gRPC interface that Kubernetes has for the same
// purpose: KMS plugins, version 2, on a unix socket. There are plugins for the services of clouds and for key servers; any of
// them does.
//
// The service never sees a data key: it wraps an envelope, a random key of its own for each volume, and the envelope seals the data
// key, bound to the volume.
//
// The package owns no goroutine but those of its gRPC connection, which Close ends.
package kms

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"keelson.io/keelson/internal/seal"
	"keelson.io/keelson/internal/spec"
)

// DefaultTimeout bounds a call.
const DefaultTimeout = 5 * time.Second

// Bounds of answers, as the interface sets them.
const (
	maxID          = 1 << 10
	maxCiphertext  = 1 << 10
	maxAnnotations = 32 << 10
)

// Service is a KMS plugin. It is a seal.Wrapper.
type Service struct {
	endpoint string
	timeout  time.Duration
	conn     *grpc.ClientConn
	api      kmsapi.KeyManagementServiceClient
}

var _ seal.Wrapper = (*Service)(nil)

// CheckEndpoint checks what a plugin may be reached by.
func CheckEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "unix" || u.Host != "" || !filepath.IsAbs(u.Path) || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%q is not the unix socket of a KMS plugin, unix:///ABSOLUTE/PATH", endpoint)
	}
	return nil
}

// New returns a service that is connected to when it's first asked. timeout 0 is DefaultTimeout.
func New(endpoint string, timeout time.Duration) (*Service, error) {
	if err := CheckEndpoint(endpoint); err != nil {
		return nil, err
	}
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	// A plugin that was away is to be found soon after it is back.
	pauses := backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: pauses, MinConnectTimeout: time.Second}), grpc.WithAuthority("localhost"))
	if err != nil {
		return nil, err
	}
	return &Service{endpoint: endpoint, timeout: timeout, conn: conn, api: kmsapi.NewKeyManagementServiceClient(conn)}, nil
}

// Close ends the connection.
func (s *Service) Close() error { return s.conn.Close() }

// away words what a call failed with.
func (s *Service) away(call string, err error) error {
	switch status.Code(err) {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return fmt.Errorf("%w: KMS plugin %s didn't answer %s within %s", seal.ErrAway, s.endpoint, call, s.timeout)
	}
	return fmt.Errorf("%w: KMS plugin %s, %s: %s", seal.ErrAway, s.endpoint, call, status.Convert(err).Message())
}

// wrong words an answer that makes no sense.
func (s *Service) wrong(call, format string, args ...any) error {
	return fmt.Errorf("%w: KMS plugin %s answers %s wrongly: %s", seal.ErrAway, s.endpoint, call, fmt.Sprintf(format, args...))
}

// Current implements seal.Wrapper.
func (s *Service) Current(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	r, err := s.api.Status(ctx, &kmsapi.StatusRequest{})
	switch {
	case err != nil:
		return "", s.away("Status", err)
	case r.Version != "v2" && r.Version != "v2beta1":
		return "", s.wrong("Status", "version %q, not v2", r.Version)
	case r.Healthz != "ok":
		return "", fmt.Errorf("%w: KMS plugin %s isn't healthy: %.200s", seal.ErrAway, s.endpoint, r.Healthz)
	case r.KeyId == "" || len(r.KeyId) >= maxID:
		return "", s.wrong("Status", "a key id of %d bytes", len(r.KeyId))
	}
	return r.KeyId, nil
}

// Wrap implements seal.Wrapper.
func (s *Service) Wrap(ctx context.Context, k *seal.Key, volumeID string) (w spec.WrappedKey, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	envelope := make([]byte, seal.WrapKeySize)
	defer clear(envelope)
	_, _ = rand.Read(envelope) // never fails
	r, err := s.api.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: envelope, Uid: spec.NewID()})
	if err != nil {
		return w, s.away("Encrypt", err)
	}
	size := 0
	for k, v := range r.Annotations {
		size += len(k) + len(v)
	}
	switch {
	case r.KeyId == "" || len(r.KeyId) >= maxID:
		return w, s.wrong("Encrypt", "a key id of %d bytes", len(r.KeyId))
	case len(r.Ciphertext) == 0 || len(r.Ciphertext) >= maxCiphertext:
		return w, s.wrong("Encrypt", "a ciphertext of %d bytes", len(r.Ciphertext))
	case size >= maxAnnotations:
		return w, s.wrong("Encrypt", "annotations of %d bytes", size)
	}
	w = spec.WrappedKey{Provider: spec.ProviderKMS, ID: r.KeyId, Envelope: r.Ciphertext, Annotations: r.Annotations}
	w.Sealed, err = seal.Seal(envelope, k, volumeID)
	return w, err
}

// Unwrap implements seal.Wrapper.
func (s *Service) Unwrap(ctx context.Context, w spec.WrappedKey, volumeID string) (*seal.Key, error) {
	if len(w.Envelope) == 0 {
		return nil, fmt.Errorf("%w: it has no envelope", seal.ErrDamaged)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	r, err := s.api.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: w.Envelope, Uid: spec.NewID(), KeyId: w.ID, Annotations: w.Annotations})
	if err != nil {
		return nil, s.away("Decrypt", err)
	}
	defer clear(r.Plaintext)
	if len(r.Plaintext) != seal.WrapKeySize {
		return nil, errors.Join(seal.ErrDamaged, s.wrong("Decrypt", "%d bytes, not %d", len(r.Plaintext), seal.WrapKeySize))
	}
	return seal.Open(r.Plaintext, w.Sealed, volumeID)
}
