package mem

import (
	"cmp"
	"context"
	"fmt"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// CreateVolume implements meta.Store.
func (s *Store) CreateVolume(ctx context.Context, v spec.Volume) (meta.Rev, error) {
	data, err := meta.Encode(v)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usableLocked(ctx); err != nil {
		return 0, err
	}
	if _, taken := s.names[v.Name]; taken {
		return 0, fmt.Errorf("volume %q: %w", v.Name, meta.ErrExists)
	}
	if err := s.compareLocked(kindVolume, v.ID, 0); err != nil {
		return 0, err
	}
	s.names[v.Name] = v.ID
	return s.setLocked(kindVolume, v.ID, data, &meta.Event{Kind: meta.VolumePut}), nil
}

// Volume implements meta.Store.
func (s *Store) Volume(ctx context.Context, id string) (meta.Versioned[spec.Volume], error) {
	return get[spec.Volume](ctx, s, kindVolume, id)
}

// VolumeByName implements meta.Store.
func (s *Store) VolumeByName(ctx context.Context, name string) (meta.Versioned[spec.Volume], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usableLocked(ctx); err != nil {
		return meta.Versioned[spec.Volume]{}, err
	}
	id, ok := s.names[name]
	if !ok {
		return meta.Versioned[spec.Volume]{}, fmt.Errorf("volume %q: %w", name, meta.ErrNotFound)
	}
	return decode[spec.Volume](kindVolume, id, s.nouns[kindVolume][id])
}

// Volumes implements meta.Store.
func (s *Store) Volumes(ctx context.Context) ([]meta.Versioned[spec.Volume], error) {
	return list(ctx, s, kindVolume, func(a, b spec.Volume) int { return cmp.Compare(a.Name, b.Name) })
}

// PutVolume implements meta.Store.
func (s *Store) PutVolume(ctx context.Context, v spec.Volume, rev meta.Rev, cond meta.Cond) (meta.Rev, error) {
	data, err := meta.Encode(v)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usableLocked(ctx); err != nil {
		return 0, err
	}
	e, ok := s.nouns[kindVolume][v.ID]
	switch {
	case !ok:
		return 0, fmt.Errorf("volume %s: %w", v.ID, meta.ErrNotFound)
	case s.names[v.Name] != v.ID:
		return 0, fmt.Errorf("volume %s: %w: its name can't become %q", v.ID, meta.ErrConflict, v.Name)
	case e.rev != rev:
		return 0, fmt.Errorf("volume %q: %w", v.Name, meta.ErrConflict)
	case cond.NodeGone != "" && s.leases[cond.NodeGone] > 0:
		return 0, fmt.Errorf("volume %q: %w: node %s holds its lease", v.Name, meta.ErrConflict, cond.NodeGone)
	}
	return s.setLocked(kindVolume, v.ID, data, &meta.Event{Kind: meta.VolumePut}), nil
}

// DeleteVolume implements meta.Store.
func (s *Store) DeleteVolume(ctx context.Context, id string, rev meta.Rev) error {
	return s.remove(ctx, kindVolume, id, rev, &meta.Event{Kind: meta.VolumeDeleted, Volume: spec.Volume{ID: id}})
}
