package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// madeAt is the time of everything in the image: the same files make the same image.
var madeAt = time.Unix(1, 0).UTC()

// writeImage writes an image of one layer, the tree, as the archive that `docker save` makes.
func writeImage(w io.Writer, root, ref string) error {
	layer, err := os.CreateTemp("", "keelson-layer-")
	if err != nil {
		return err
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	sum := sha256.New()
	if err := writeTree(io.MultiWriter(layer, sum), root); err != nil {
		return err
	}
	size, err := layer.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}
	digest := hex.EncodeToString(sum.Sum(nil))
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": madeAt,
		"config": map[string]any{
			"Env":        []string{"PATH=/usr/sbin:/usr/bin"},
			"Entrypoint": []string{"/usr/bin/keelson"},
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest}},
		"history": []map[string]any{{"created": madeAt, "created_by": "keelson"}},
	})
	if err != nil {
		return err
	}
	configSum := sha256.Sum256(config)
	configName := hex.EncodeToString(configSum[:]) + ".json"
	layerName := digest + "/layer.tar"
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": []string{ref}, "Layers": []string{layerName}}})
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
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

// writeTree writes a directory as a layer: sorted, owned by root, all of one time.
func writeTree(w io.Writer, root string) error {
	t := tar.NewWriter(w)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil || rel == "." {
			return err
		}
		return writeEntry(t, path, rel, d)
	})
	return errors.Join(err, t.Close())
}

func writeEntry(t *tar.Writer, path, rel string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	target := ""
	if d.Type() == fs.ModeSymlink {
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	} else if !d.IsDir() && !d.Type().IsRegular() {
		return fmt.Errorf("%s is neither a file, nor a directory, nor a link", rel)
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name, h.ModTime = rel, madeAt
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
	if d.IsDir() {
		h.Name += "/"
	}
	if err := t.WriteHeader(h); err != nil || !d.Type().IsRegular() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(t, f)
	return err
}
