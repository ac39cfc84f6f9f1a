package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func TestWrite(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "bin"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "bin/a"), []byte("program"), 0o755))
	must(os.Link(filepath.Join(dir, "bin/a"), filepath.Join(dir, "bin/b")))
	must(os.Symlink("a", filepath.Join(dir, "bin/c")))
	c := Config{Name: "example.org/x:1", Entrypoint: []string{"/bin/a"}}
	first, second := filepath.Join(out, "1.tar"), filepath.Join(out, "2.tar")
	must(Write(context.Background(), c, dir, first))
	must(Write(context.Background(), c, dir, second))
	b1, err := os.ReadFile(first)
	must(err)
	b2, err := os.ReadFile(second)
	must(err)
	if !bytes.Equal(b1, b2) {
		t.Error("the same directory gives two archives")
	}
	files := untar(t, b1)
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	must(json.Unmarshal(files["manifest.json"], &manifest))
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	must(json.Unmarshal(files[manifest[0].Config], &config))
	layer := files[manifest[0].Layers[0]]
	sum := sha256.Sum256(layer)
	if want := "sha256:" + hex.EncodeToString(sum[:]); config.RootFS.DiffIDs[0] != want || manifest[0].RepoTags[0] != c.Name {
		t.Errorf("%+v, %+v; the layer is %s", manifest, config, want)
	}
	got := untar(t, layer)
	if string(got["bin/a"]) != "program" || string(got["bin/b"]) != "-> bin/a" || string(got["bin/c"]) != "-> a" {
		t.Errorf("the layer has %q", got)
	}
}

// untar returns the files of an archive, links as "-> TARGET".
func untar(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Linkname != "" {
			out[h.Name] = []byte("-> " + h.Linkname)
			continue
		}
		if out[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}
