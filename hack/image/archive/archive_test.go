package archive

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// files makes a small image's files, at some time. For root, one of them is another's.
func files(t *testing.T, at time.Time) string {
	t.Helper()
	root := t.TempDir()
	program := filepath.Join(root, "usr/bin/keelson")
	err := errors.Join(
		os.MkdirAll(filepath.Join(root, "usr/bin"), 0o755),
		os.WriteFile(program, []byte("program"), 0o755),
		os.Link(program, filepath.Join(root, "usr/bin/second")),
		os.Symlink("usr/bin", filepath.Join(root, "bin")),
		os.Chtimes(program, at, at),
	)
	if os.Geteuid() == 0 {
		err = errors.Join(err, os.Chown(program, 5, 6))
	}
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func write(t *testing.T, i Image, root string) []byte {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "image.tar")
	if err := Write(t.Context(), i, root, path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("beside the archive there is something: %v, %v", left, err)
	}
	return b
}

// read returns what is in an archive, and its entries by name.
func read(t *testing.T, b []byte) (map[string]string, map[string]*tar.Header) {
	t.Helper()
	contents, headers := map[string]string{}, map[string]*tar.Header{}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return contents, headers
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		contents[h.Name], headers[h.Name] = string(text), h
	}
}

func TestTheSameFilesMakeTheSameImage(t *testing.T) {
	i := Image{Name: "keelson.io/keelson:v1"}
	if a, b := write(t, i, files(t, time.Unix(100, 0))), write(t, i, files(t, time.Unix(200, 0))); !bytes.Equal(a, b) {
		t.Fatal("two images of the same files differ")
	}
}

func TestAnImageIsWhatDockerSaves(t *testing.T) {
	i := Image{Name: "keelson.io/keelson:v1", Entrypoint: []string{"/usr/bin/keelson"}, Cmd: []string{"version"}, Env: []string{"A=b"}, WorkDir: "/data"}
	contents, _ := read(t, write(t, i, files(t, time.Unix(100, 0))))
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal([]byte(contents["manifest.json"]), &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest) != 1 || manifest[0].RepoTags[0] != i.Name || len(manifest[0].Layers) != 1 {
		t.Fatalf("%+v", manifest)
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
		Config struct {
			Entrypoint, Cmd, Env []string
			WorkingDir           string
		}
	}
	if err := json.Unmarshal([]byte(contents[manifest[0].Config]), &config); err != nil {
		t.Fatal(err)
	}
	layer := contents[manifest[0].Layers[0]]
	sum := sha256.Sum256([]byte(layer))
	if want := "sha256:" + hex.EncodeToString(sum[:]); len(config.RootFS.DiffIDs) != 1 || config.RootFS.DiffIDs[0] != want {
		t.Errorf("%+v; the layer is %s", config, want)
	}
	if c := config.Config; c.Entrypoint[0] != "/usr/bin/keelson" || c.Cmd[0] != "version" || c.Env[0] != "A=b" || c.WorkingDir != "/data" {
		t.Errorf("%+v", c)
	}
}

func TestLayer(t *testing.T) {
	for _, ofRoot := range []bool{true, false} {
		root := files(t, time.Unix(100, 0))
		contents, _ := read(t, write(t, Image{OfRoot: ofRoot}, root))
		var layer map[string]string
		var headers map[string]*tar.Header
		for name, text := range contents {
			if strings.HasSuffix(name, "/layer.tar") {
				layer, headers = read(t, []byte(text))
			}
		}
		if len(headers) != 5 || layer["usr/bin/keelson"] != "program" || headers["usr/"].Typeflag != tar.TypeDir {
			t.Fatalf("%v", layer)
		}
		if h := headers["bin"]; h.Typeflag != tar.TypeSymlink || h.Linkname != "usr/bin" {
			t.Errorf("%+v", h)
		}
		if h := headers["usr/bin/second"]; h.Typeflag != tar.TypeLink || h.Linkname != "usr/bin/keelson" {
			t.Errorf("%+v", h)
		}
		for name, h := range headers {
			var st syscall.Stat_t
			if err := syscall.Lstat(filepath.Join(root, name), &st); err != nil {
				t.Fatal(err)
			}
			if ofRoot {
				st.Uid, st.Gid = 0, 0
			}
			if h.Uid != int(st.Uid) || h.Gid != int(st.Gid) || !h.ModTime.Equal(madeAt) {
				t.Errorf("of root: %t: %s: %d:%d, %s", ofRoot, name, h.Uid, h.Gid, h.ModTime)
			}
		}
	}
}

func TestWhatAnImageCannotHave(t *testing.T) {
	root, out := files(t, time.Unix(100, 0)), t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(root, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(t.Context(), Image{}, root, filepath.Join(out, "image.tar")); err == nil || !strings.Contains(err.Error(), "pipe is neither") {
		t.Errorf("a pipe: %v", err)
	}
	if left, err := os.ReadDir(out); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
