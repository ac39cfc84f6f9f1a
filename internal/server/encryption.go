package server

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/seal"
	"keelson.io/keelson/internal/seal/keyfile"
	"keelson.io/keelson/internal/seal/kms"
	"keelson.io/keelson/internal/spec"
)

// EncryptionConfig says where the keys are by which volumes' data keys are wrapped. It should be the same on all nodes. Both
// providers may be configured: one wraps, and what the other one wrapped can be opened still.
type EncryptionConfig struct {
	Provider string    `yaml:"provider"` // that wraps: file, kms, or "" for no encryption
	KeyDir   string    `yaml:"keyDir"`   // of provider file
	KMS      KMSConfig `yaml:"kms"`
}

// KMSConfig is how a KMS plugin is reached.
type KMSConfig struct {
	Endpoint string        `yaml:"endpoint"` // unix:///PATH
	Timeout  time.Duration `yaml:"timeout"`  // of a call; default kms.DefaultTimeout
}

// Bounds of encryption.kms.timeout.
const (
	minKMSTimeout = 100 * time.Millisecond
	maxKMSTimeout = time.Minute
)

func (c *EncryptionConfig) validate() error {
	switch p := c.Provider; {
	case p == "" && *c != EncryptionConfig{}:
		return fmt.Errorf("encryption.provider: not set, but other keys of encryption are; set it to %s or %s", spec.ProviderFile, spec.ProviderKMS)
	case p != "" && p != spec.ProviderFile && p != spec.ProviderKMS:
		return fmt.Errorf("encryption.provider: %q is neither %s nor %s", p, spec.ProviderFile, spec.ProviderKMS)
	case p == spec.ProviderFile && c.KeyDir == "":
		return errors.New("encryption.keyDir: not set; set it to the directory of the key files")
	case p == spec.ProviderKMS && c.KMS.Endpoint == "":
		return errors.New("encryption.kms.endpoint: not set; set it to the socket of the KMS plugin, unix:///PATH")
	}
	if c.KeyDir != "" && !filepath.IsAbs(c.KeyDir) {
		return fmt.Errorf("encryption.keyDir: %q is not an absolute path", c.KeyDir)
	}
	if c.KMS.Endpoint != "" {
		if err := kms.CheckEndpoint(c.KMS.Endpoint); err != nil {
			return fmt.Errorf("encryption.kms.endpoint: %w", err)
		}
	}
	if t := c.KMS.Timeout; t != 0 && (t < minKMSTimeout || t > maxKMSTimeout) {
		return fmt.Errorf("encryption.kms.timeout: %s is not between %s and %s", t, minKMSTimeout, maxKMSTimeout)
	}
	return nil
}

// keyring are a node's wrapping keys. Without a provider Ring is nil.
type keyring struct {
	*seal.Ring
	service *kms.Service
}

// open returns the wrapping keys. A process that has any leaves no core dump: there would be keys in it.
func (c *EncryptionConfig) open(log *slog.Logger) (*keyring, error) {
	if c.Provider == "" {
		return &keyring{}, nil
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		log.Warn("a core dump of this process may have keys in it", "err", err)
	}
	r := &keyring{}
	providers := map[string]seal.Wrapper{}
	if c.KeyDir != "" {
		providers[spec.ProviderFile] = keyfile.Dir{Path: c.KeyDir}
	}
	if c.KMS.Endpoint != "" {
		var err error
		if r.service, err = kms.New(c.KMS.Endpoint, c.KMS.Timeout); err != nil {
			return nil, fmt.Errorf("encryption.kms: %w", err)
		}
		providers[spec.ProviderKMS] = r.service
	}
	r.Ring = seal.NewRing(c.Provider, providers)
	return r, nil
}

func (r *keyring) close() {
	if r.service != nil {
		_ = r.service.Close() // nothing is in flight that anybody waits for
	}
}
