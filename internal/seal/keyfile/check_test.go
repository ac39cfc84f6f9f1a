package keyfile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	for name, x := range map[string]struct {
		change func(d Dir) error
		want   []string // of each thing that is wrong
	}{
		"all is well":               {func(Dir) error { return nil }, nil},
		"a key for all to read":     {func(d Dir) error { return os.Chmod(filepath.Join(d.Path, "k1"), 0o444) }, []string{"k1 can be read by others"}},
		"another one's":             {func(d Dir) error { return os.Chown(filepath.Join(d.Path, "k1"), 1000, -1) }, []string{"k1 belongs to user 1000"}},
		"a directory for all":       {func(d Dir) error { return os.Chmod(d.Path, 0o777) }, []string{"can be changed by others"}},
		"one that all may look at":  {func(d Dir) error { return os.Chmod(d.Path, 0o755) }, nil}, // as a Secret is mounted
		"no directory":              {func(d Dir) error { return os.Rename(d.Path, d.Path+"-") }, nil},
		"no keys, but all is tidy":  {func(d Dir) error { return os.Remove(filepath.Join(d.Path, "k1")) }, nil}, // Current says so
		"two things, and the other": {func(d Dir) error { return os.WriteFile(filepath.Join(d.Path, "k0"), []byte("x"), 0o444) }, []string{"k0 can be read by others"}},
	} {
		t.Run(name, func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("files that belong to root are looked at: needs root")
			}
			d := dir(t, map[string][]byte{"k1": key(1)})
			if err := x.change(d); err != nil {
				t.Fatal(err)
			}
			got := d.Check()
			if len(got) != len(x.want) {
				t.Fatalf("%v, want %v", got, x.want)
			}
			for i, want := range x.want {
				if !strings.Contains(got[i].Error(), want) {
					t.Errorf("%v, want %q", got[i], want)
				}
			}
		})
	}
}
