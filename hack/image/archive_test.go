package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tree makes a small image's files, at some time.
func tree(t *testing.T, at time.Time) string {
	t.Helper()
	root := t.TempDir()
	err := errors.Join(
		os.MkdirAll(filepath.Join(root, "usr/bin"), 0o755),
		os.WriteFile(filepath.Join(root, "usr/bin/keelson"), []byte("program"), 0o755),
		os.Symlink("usr/bin", filepath.Join(root, "bin")),
		os.Chtimes(filepath.Join(root, "usr/bin/keelson"), at, at),
	)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func image(t *testing.T, root string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := writeImage(&b, root, "keelson.io/keelson:v1"); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// read returns the files of an archive.
func read(t *testing.T, b []byte) (map[string]string, []*tar.Header) {
	t.Helper()
	files := map[string]string{}
	var headers []*tar.Header
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, headers
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(text)
		headers = append(headers, h)
	}
}

func TestTheSameFilesMakeTheSameImage(t *testing.T) {
	if a, b := image(t, tree(t, time.Unix(100, 0))), image(t, tree(t, time.Unix(200, 0))); !bytes.Equal(a, b) {
		t.Fatal("two images of the same files differ")
	}
}

func TestAnImageIsWhatDockerSaves(t *testing.T) {
	files, _ := read(t, image(t, tree(t, time.Unix(100, 0))))
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal([]byte(files["manifest.json"]), &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest) != 1 || manifest[0].RepoTags[0] != "keelson.io/keelson:v1" || len(manifest[0].Layers) != 1 {
		t.Fatalf("%+v", manifest)
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
		Config struct{ Entrypoint []string }
	}
	if err := json.Unmarshal([]byte(files[manifest[0].Config]), &config); err != nil {
		t.Fatal(err)
	}
	digest, _, _ := strings.Cut(manifest[0].Layers[0], "/")
	if len(config.RootFS.DiffIDs) != 1 || config.RootFS.DiffIDs[0] != "sha256:"+digest || config.Config.Entrypoint[0] != "/usr/bin/keelson" {
		t.Fatalf("%+v", config)
	}
	layer, headers := read(t, []byte(files[manifest[0].Layers[0]]))
	if layer["usr/bin/keelson"] != "program" {
		t.Fatalf("%v", layer)
	}
	for _, h := range headers {
		if h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(madeAt) {
			t.Errorf("%s: %d:%d, %s", h.Name, h.Uid, h.Gid, h.ModTime)
		}
		if h.Name == "bin" && h.Linkname != "usr/bin" {
			t.Errorf("%+v", h)
		}
	}
}

func TestDependenciesAreRead(t *testing.T) {
	text := "Package: xfsprogs\nVersion: 1:6.1.0-1\nDepends: libblkid1 (>= 2.17.2), libc6 (>= 2.34)\n"
	if got := field(text, "Depends"); got != "libblkid1 (>= 2.17.2), libc6 (>= 2.34)" {
		t.Errorf("%q", got)
	}
	if got := field(text, "Pre-Depends"); got != "" {
		t.Errorf("%q", got)
	}
}
