// Package image makes container images of directories, in the form that `ctr images import` reads (a docker archive with one
// layer), and the images that the test cluster needs, from Debian's packages and programs built here.
//
// Goroutines: none.
package image

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Config is what of an image isn't files.
type Config struct {
	Name       string // fully qualified, with tag
	Entrypoint []string
	Cmd        []string
	Env        []string
	WorkDir    string
}

// Write makes an archive of the directory as the image's only layer. The same directory gives the same bytes.
func Write(ctx context.Context, c Config, dir, archive string) (err error) {
	layer, err := os.CreateTemp(filepath.Dir(archive), ".layer-")
	if err != nil {
		return err
	}
	defer func() { layer.Close(); os.Remove(layer.Name()) }()
	sum := sha256.New()
	w := bufio.NewWriterSize(io.MultiWriter(layer, sum), 1<<20)
	if err := writeLayer(ctx, dir, w); err != nil {
		return fmt.Errorf("image %s: %w", c.Name, err)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	tmp := archive + ".new"
	out, err := os.Create(tmp)
	if err != nil {
		return err
	}
	defer func() { out.Close(); os.Remove(tmp) }()
	if err := writeArchive(out, c, layer, hex.EncodeToString(sum.Sum(nil))); err != nil {
		return fmt.Errorf("image %s: %w", c.Name, err)
	}
	return errors.Join(out.Close(), os.Rename(tmp, archive))
}

// epoch is the time of everything in an image.
var epoch = time.Unix(0, 0).UTC()

func writeLayer(ctx context.Context, dir string, to io.Writer) error {
	w := tar.NewWriter(to)
	links := map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return addFile(w, dir, path, d, links)
	})
	if err != nil {
		return err
	}
	return w.Close()
}

func addFile(w *tar.Writer, dir, path string, d fs.DirEntry, links map[uint64]string) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	name, err := filepath.Rel(dir, path)
	if err != nil {
		return err
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name, h.ModTime, h.AccessTime, h.ChangeTime, h.Uname, h.Gname, h.Format = name, epoch, time.Time{}, time.Time{}, "", "", tar.FormatPAX
	if d.IsDir() {
		h.Name += "/"
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() && st.Nlink > 1 {
		if first := links[st.Ino]; first != "" {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return w.WriteHeader(h)
		}
		links[st.Ino] = name
	}
	if err := w.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// writeArchive writes the archive: the layer, the configuration that names it, and the manifest that names both.
func writeArchive(to io.Writer, c Config, layer *os.File, sum string) error {
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "created": epoch,
		"config":  map[string]any{"Env": append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, c.Env...), "Entrypoint": c.Entrypoint, "Cmd": c.Cmd, "WorkingDir": c.WorkDir},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + sum}},
		"history": []map[string]any{{"created": epoch}},
	})
	if err != nil {
		return err
	}
	configSum := sha256.Sum256(config)
	configName := hex.EncodeToString(configSum[:]) + ".json"
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": []string{c.Name}, "Layers": []string{"layer.tar"}}})
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
	w := tar.NewWriter(to)
	add := func(name string, b []byte) error {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b)), ModTime: epoch}); err != nil {
			return err
		}
		_, err := w.Write(b)
		return err
	}
	if err := errors.Join(add("manifest.json", manifest), add(configName, config)); err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: "layer.tar", Mode: 0o644, Size: size, ModTime: epoch}); err != nil {
		return err
	}
	if _, err := io.Copy(w, layer); err != nil {
		return err
	}
	return w.Close()
}
