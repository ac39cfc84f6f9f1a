// Package archive writes a directory as a container image of one layer, in the archive that `docker save` makes: `docker load`,
// `podman load` and `ctr images import` take it. The same files make the same bytes: entries are sorted, and of one time.
//
// Goroutines: none.
package archive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// madeAt is the time of everything in an image.
var madeAt = time.Unix(1, 0).UTC()

// Image is what of an image isn't files.
type Image struct {
	Name       string // fully qualified, with tag
	Entrypoint []string
	Cmd        []string
	Env        []string // NAME=VALUE
	WorkDir    string
	// OfRoot has every file belong to root. Otherwise each belongs to whom it belongs to in the directory.
	OfRoot bool
}

// Write makes an archive of the directory as the image's only layer. A half-written archive never has its name.
func Write(ctx context.Context, i Image, dir, archive string) error {
	layer, err := os.CreateTemp(filepath.Dir(archive), ".layer-")
	if err != nil {
		return err
	}
	defer func() { layer.Close(); os.Remove(layer.Name()) }()
	digest, err := i.fill(ctx, layer, dir)
	if err != nil {
		return fmt.Errorf("image %s: %w", i.Name, err)
	}
	tmp := archive + ".new"
	out, err := os.Create(tmp)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	if err := errors.Join(i.write(out, layer, digest), out.Close()); err != nil {
		return fmt.Errorf("image %s: %w", i.Name, err)
	}
	return os.Rename(tmp, archive)
}

// fill writes the layer, and returns its SHA-256.
func (i *Image) fill(ctx context.Context, layer *os.File, dir string) (digest string, err error) {
	sum := sha256.New()
	w := bufio.NewWriterSize(io.MultiWriter(layer, sum), 1<<20)
	if err := i.writeTree(ctx, w, dir); err != nil {
		return "", err
	}
	if err := w.Flush(); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// execution is the part of an image's configuration that says how it runs.
type execution struct {
	Cmd        []string `json:",omitempty"`
	Entrypoint []string `json:",omitempty"`
	Env        []string `json:",omitempty"`
	WorkingDir string   `json:",omitempty"`
}

// write writes the archive: the configuration that names the layer, the layer, and the manifest that names both.
func (i *Image) write(to io.Writer, layer *os.File, digest string) error {
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": madeAt,
		"config":  execution{i.Cmd, i.Entrypoint, i.Env, i.WorkDir},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest}},
		"history": []map[string]any{{"created": madeAt, "created_by": "keelson"}},
	})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(config)
	configName, layerName := hex.EncodeToString(sum[:])+".json", digest+"/layer.tar"
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": []string{i.Name}, "Layers": []string{layerName}}})
	if err != nil {
		return err
	}
	size, err := layer.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}
	t := tar.NewWriter(to)
	for _, e := range []struct {
		name string
		size int64
		r    io.Reader
	}{
		{configName, int64(len(config)), bytes.NewReader(config)},
		{layerName, size, layer},
		{"manifest.json", int64(len(manifest)), bytes.NewReader(manifest)},
	} {
		if err := t.WriteHeader(&tar.Header{Name: e.name, Mode: 0o644, Size: e.size, ModTime: madeAt}); err != nil {
			return err
		}
		if _, err := io.Copy(t, e.r); err != nil {
			return err
		}
	}
	return t.Close()
}
