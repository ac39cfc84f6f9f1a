package archive

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// tree is a layer that is being written.
type tree struct {
	tar    *tar.Writer
	ofRoot bool
	// files are those that have several names, by inode, under the first of these.
	files map[uint64]string
}

// writeTree writes a directory as a layer.
func (i *Image) writeTree(ctx context.Context, w io.Writer, dir string) error {
	t := &tree{tar: tar.NewWriter(w), ofRoot: i.OfRoot, files: map[uint64]string{}}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return t.add(path, name, d)
	})
	if err != nil {
		return err
	}
	return t.tar.Close()
}

func (t *tree) add(path, name string, d fs.DirEntry) error {
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
		return fmt.Errorf("%s is neither a file, nor a directory, nor a link", name)
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name, h.ModTime = name, madeAt
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	h.Uname, h.Gname = "", ""
	if t.ofRoot {
		h.Uid, h.Gid = 0, 0
	}
	if d.IsDir() {
		h.Name += "/"
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && d.Type().IsRegular() && st.Nlink > 1 {
		if first := t.files[st.Ino]; first != "" {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return t.tar.WriteHeader(h)
		}
		t.files[st.Ino] = name
	}
	if err := t.tar.WriteHeader(h); err != nil || !d.Type().IsRegular() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(t.tar, f)
	return err
}
