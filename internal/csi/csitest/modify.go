package csitest

import (
	"context"
	"time"

	"keelson.io/keelson/internal/csi"
	"keelson.io/keelson/internal/csi/dialect"
)

// Modify implements csi.Keelson.
func (w *view) Modify(_ context.Context, name string, c dialect.Change) error {
	leave, err := w.enter()
	defer leave()
	v := w.m.volumes[name]
	switch {
	case err != nil:
		return err
	case v == nil:
		return problem(csi.ErrNotFound, "there is no volume %q", name)
	}
	r := dialect.Request{Limits: v.Limits, Placement: v.Placement, TrimEvery: v.Trim.Every}
	c.Apply(&r)
	v.Limits, v.Placement, v.Trim.Every = r.Limits, r.Placement, r.TrimEvery
	return nil
}

// Trimmed implements csi.Keelson.
func (w *view) Trimmed(_ context.Context, name string, bytes int64, failed error) error {
	leave, err := w.enter()
	defer leave()
	v := w.m.volumes[name]
	switch {
	case err != nil:
		return err
	case v == nil:
		return problem(csi.ErrNotFound, "there is no volume %q", name)
	}
	v.Trim.Last, v.Trim.Node, v.Trim.Bytes, v.Trim.Problem = time.Now(), w.node, bytes, ""
	if failed != nil {
		v.Trim.Problem = failed.Error()
	}
	return nil
}
