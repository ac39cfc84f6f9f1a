package server

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"keelson.io/keelson/internal/doctor"
	"keelson.io/keelson/internal/seal"
	"keelson.io/keelson/internal/seal/keyfile"
	"keelson.io/keelson/internal/spec"
)

// keysWithin bounds how long the doctor looks at wrapping keys: the metadata, or a KMS, may not answer.
const keysWithin = 10 * time.Second

// lookAtKeys says what there is of the wrapping keys on this node, and whether they open what its volumes need.
func (c *Config) lookAtKeys(ctx context.Context) doctor.Keys {
	ctx, cancel := context.WithTimeout(ctx, keysWithin)
	defer cancel()
	k := doctor.Keys{Provider: c.Encryption.Provider}
	ring, err := c.Encryption.open(slog.New(slog.DiscardHandler))
	if err != nil {
		k.Lacks = err
		return k
	}
	defer ring.close()
	if c.Encryption.KeyDir != "" {
		for _, err := range (keyfile.Dir{Path: c.Encryption.KeyDir}).Check() {
			k.Problems = append(k.Problems, err.Error())
		}
	}
	if k.Provider != "" {
		k.Wraps, k.Lacks = ring.Current(ctx)
	}
	volumes, err := c.ownEncrypted(ctx)
	if err != nil {
		k.Unknown = err
		return k
	}
	k.Volumes, k.Unopened = len(volumes), unopened(ctx, ring, volumes)
	return k
}

// ownEncrypted reads from the metadata which encrypted volumes have a copy on this node, or are attached here.
func (c *Config) ownEncrypted(ctx context.Context) (list []spec.Volume, err error) {
	st, err := ReadState(c.DataDir)
	if err == nil && st.ClusterID == "" {
		err = ErrNoState
	}
	if err != nil {
		return nil, err
	}
	store, err := openStore(*c, st, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer store.Close()
	all, err := store.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range all {
		here := v.Value.State.Node == st.Node || slices.ContainsFunc(v.Value.State.Columns, func(col spec.Column) bool {
			return slices.ContainsFunc(col.Members, func(m spec.Member) bool { return m.Node == st.Node })
		})
		if v.Value.Encryption != nil && here {
			list = append(list, v.Value)
		}
	}
	return list, nil
}

// unopened tries the keys of all volumes; but a service that has answered for one wrapping key isn't asked again about it.
func unopened(ctx context.Context, ring *keyring, volumes []spec.Volume) (list []string) {
	asked := map[string]error{}
	for _, v := range volumes {
		name := v.Encryption.Key.Name()
		err, known := asked[name]
		if !known || v.Encryption.Key.Provider != spec.ProviderKMS {
			var key *seal.Key
			if key, err = ring.Open(ctx, v.Encryption, v.ID); err == nil {
				key.Close()
			}
			asked[name] = err
		}
		if err != nil {
			list = append(list, fmt.Sprintf("%s: %v", v.Name, err))
		}
	}
	return list
}
