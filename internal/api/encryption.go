package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/seal"
	"keelson.io/keelson/internal/spec"
)

// Keys are the wrapping keys of this node, as *seal.Ring has them.
type Keys interface {
	// Current returns the name of the key that wraps now.
	Current(ctx context.Context) (string, error)
	// Make makes a data key for a volume.
	Make(ctx context.Context, volumeID string) (*spec.Encryption, error)
	// Rewrap wraps the data key of one volume by the key that wraps now, for another volume or the same.
	Rewrap(ctx context.Context, e *spec.Encryption, from, to string) (*spec.Encryption, error)
}

var _ Keys = (*seal.Ring)(nil)

// encryption makes the data key of a new volume.
func (s *Server) encryption(ctx context.Context, vol *spec.Volume) (err error) {
	if s.cfg.Keys == nil {
		return fmt.Errorf("volume %s can't be encrypted: %w", vol.Name, seal.ErrNone)
	}
	if vol.Encryption, err = s.cfg.Keys.Make(ctx, vol.ID); err != nil {
		return fmt.Errorf("volume %s can't be encrypted: %w", vol.Name, err)
	}
	return nil
}

// shareKey gives a clone, whose blocks are its origin's, the origin's data key.
func (s *Server) shareKey(ctx context.Context, origin, clone *spec.Volume) (err error) {
	if origin.Encryption == nil {
		return nil
	}
	if clone.Encryption, err = s.rewrap(ctx, origin, clone.ID); err != nil {
		return fmt.Errorf("volume %s is encrypted, and can't be cloned: %w", origin.Name, err)
	}
	return nil
}

func (s *Server) rewrap(ctx context.Context, vol *spec.Volume, to string) (*spec.Encryption, error) {
	if s.cfg.Keys == nil {
		return nil, fmt.Errorf("its key is wrapped by %s: %w", vol.Encryption.Key.Name(), seal.ErrNone)
	}
	return s.cfg.Keys.Rewrap(ctx, vol.Encryption, vol.ID, to)
}

func encryptionProto(v *spec.Volume) *pb.Encryption {
	if v.Encryption == nil {
		return nil
	}
	return &pb.Encryption{Cipher: v.Encryption.Cipher, Key: v.Encryption.Key.Name()}
}

type keyService struct{ s *Server }

// ListKeys implements the call.
func (x keyService) ListKeys(ctx context.Context, _ *pb.ListKeysRequest) (*pb.ListKeysResponse, error) {
	vols, err := x.s.cfg.Store.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	r := &pb.ListKeysResponse{}
	used := map[string]*pb.Key{}
	for _, v := range vols {
		if v.Value.Encryption == nil {
			r.PlainVolumes++
			continue
		}
		name := v.Value.Encryption.Key.Name()
		if used[name] == nil {
			used[name] = &pb.Key{Name: name}
		}
		used[name].Volumes++
	}
	current, err := x.current(ctx)
	if err != nil {
		r.Problem = err.Error()
	} else {
		if used[current] == nil {
			used[current] = &pb.Key{Name: current}
		}
		used[current].Current = true
	}
	for _, k := range used {
		r.Keys = append(r.Keys, k)
	}
	slices.SortFunc(r.Keys, func(a, b *pb.Key) int { return strings.Compare(a.Name, b.Name) })
	return r, nil
}

func (x keyService) current(ctx context.Context) (string, error) {
	if x.s.cfg.Keys == nil {
		return "", seal.ErrNone
	}
	return x.s.cfg.Keys.Current(ctx)
}

// rotateMost is how many data keys one call wraps anew: a KMS may be slow.
const rotateMost = 50

// RotateKeys implements the call. There is no plan to keep: which volumes are left is in their records.
func (x keyService) RotateKeys(ctx context.Context, _ *pb.RotateKeysRequest) (*pb.RotateKeysResponse, error) {
	current, err := x.current(ctx)
	if err != nil {
		return nil, err
	}
	vols, err := x.s.cfg.Store.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	r := &pb.RotateKeysResponse{Key: current}
	for _, v := range vols {
		if v.Value.Encryption == nil {
			continue
		}
		r.Volumes++
		if v.Value.Encryption.Key.Name() == current {
			continue
		}
		if r.Rewrapped >= rotateMost || len(r.Problems) >= rotateMost {
			r.Left++
			continue
		}
		if err := x.rotate(ctx, v.Value.ID); errors.Is(err, meta.ErrUnavailable) || ctx.Err() != nil {
			return nil, err
		} else if err != nil {
			r.Left++
			r.Problems = append(r.Problems, &pb.KeyProblem{Volume: v.Value.Name, Problem: err.Error()})
		} else {
			r.Rewrapped++
		}
	}
	return r, nil
}

// rotate wraps the data key of a volume anew.
func (x keyService) rotate(ctx context.Context, id string) error {
	return retry(ctx, func() error {
		v, err := x.s.cfg.Store.Volume(ctx, id)
		if errors.Is(err, meta.ErrNotFound) {
			return nil // deleted meanwhile
		}
		if err != nil {
			return err
		}
		if v.Value.Encryption, err = x.s.rewrap(ctx, &v.Value, id); err != nil {
			return err
		}
		_, err = x.s.cfg.Store.PutVolume(ctx, v.Value, v.Rev, meta.Cond{})
		if errors.Is(err, meta.ErrNotFound) {
			return nil
		}
		return err
	})
}
