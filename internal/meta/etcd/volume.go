package etcd

import (
	"cmp"
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// CreateVolume implements meta.Store.
func (s *Store) CreateVolume(ctx context.Context, v spec.Volume) (meta.Rev, error) {
	data, err := meta.Encode(v)
	if err != nil {
		return 0, err
	}
	key, name := volumePrefix+v.ID, namePrefix+v.Name
	resp, err := s.txn(ctx,
		[]clientv3.Cmp{unchanged(key, 0), unchanged(name, 0)},
		[]clientv3.Op{clientv3.OpPut(key, string(data)), clientv3.OpPut(name, v.ID)},
		[]clientv3.Op{clientv3.OpGet(name, clientv3.WithCountOnly())})
	if err != nil {
		return 0, writeFailed(ctx, what(key), err)
	}
	if resp.Succeeded {
		return meta.Rev(resp.Header.Revision), nil
	}
	if resp.Responses[0].GetResponseRange().Count > 0 {
		return 0, fmt.Errorf("volume %q: %w", v.Name, meta.ErrExists)
	}
	return 0, fmt.Errorf("%s: %w", what(key), meta.ErrExists)
}

// Volume implements meta.Store.
func (s *Store) Volume(ctx context.Context, id string) (meta.Versioned[spec.Volume], error) {
	return get[spec.Volume](ctx, s, volumePrefix+id)
}

// VolumeByName implements meta.Store.
func (s *Store) VolumeByName(ctx context.Context, name string) (meta.Versioned[spec.Volume], error) {
	resp, err := s.get(ctx, namePrefix+name)
	if err != nil {
		return meta.Versioned[spec.Volume]{}, failed(ctx, fmt.Sprintf("volume %q", name), err)
	}
	if len(resp.Kvs) == 0 {
		return meta.Versioned[spec.Volume]{}, fmt.Errorf("volume %q: %w", name, meta.ErrNotFound)
	}
	return s.Volume(ctx, string(resp.Kvs[0].Value))
}

// Volumes implements meta.Store.
func (s *Store) Volumes(ctx context.Context) ([]meta.Versioned[spec.Volume], error) {
	return list(ctx, s, volumePrefix, func(a, b spec.Volume) int { return cmp.Compare(a.Name, b.Name) })
}

// PutVolume implements meta.Store.
func (s *Store) PutVolume(ctx context.Context, v spec.Volume, rev meta.Rev, cond meta.Cond) (meta.Rev, error) {
	data, err := meta.Encode(v)
	if err != nil {
		return 0, err
	}
	key, name := volumePrefix+v.ID, namePrefix+v.Name
	if rev == 0 {
		return 0, fmt.Errorf("%s: %w: a change needs the revision that it was decided on", what(key), meta.ErrConflict)
	}
	conds := []clientv3.Cmp{unchanged(key, rev), clientv3.Compare(clientv3.Value(name), "=", v.ID)}
	otherwise := []clientv3.Op{clientv3.OpGet(key, clientv3.WithKeysOnly()), clientv3.OpGet(name)}
	if cond.NodeGone != "" {
		conds = append(conds, clientv3.Compare(clientv3.CreateRevision(leasePrefix+cond.NodeGone), "=", 0))
	}
	resp, err := s.txn(ctx, conds, []clientv3.Op{clientv3.OpPut(key, string(data))}, otherwise)
	if err != nil {
		return 0, writeFailed(ctx, what(key), err)
	}
	if resp.Succeeded {
		return meta.Rev(resp.Header.Revision), nil
	}
	record, owner := resp.Responses[0].GetResponseRange().Kvs, resp.Responses[1].GetResponseRange().Kvs
	switch {
	case len(record) == 0:
		return 0, fmt.Errorf("%s: %w", what(key), meta.ErrNotFound)
	case len(owner) == 0 || string(owner[0].Value) != v.ID:
		return 0, fmt.Errorf("%s: %w: its name can't become %q", what(key), meta.ErrConflict, v.Name)
	case record[0].ModRevision != int64(rev):
		return 0, fmt.Errorf("volume %q: %w", v.Name, meta.ErrConflict)
	}
	return 0, fmt.Errorf("volume %q: %w: node %s holds its lease", v.Name, meta.ErrConflict, cond.NodeGone)
}

// DeleteVolume implements meta.Store.
func (s *Store) DeleteVolume(ctx context.Context, id string, rev meta.Rev) error {
	v, err := s.Volume(ctx, id) // for its name, which never changes
	if err != nil {
		return err
	}
	return s.remove(ctx, volumePrefix+id, rev, namePrefix+v.Value.Name)
}
