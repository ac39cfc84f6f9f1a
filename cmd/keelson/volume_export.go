package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/imagecopy"
	"keelson.io/keelson/internal/spec"
)

// VolumeExportOptions are the flags of volume export.
type VolumeExportOptions struct {
	To, Format        string
	Overwrite, Verify bool
}

func newVolumeExportCommand(g *globalOptions) *cobra.Command {
	var o VolumeExportOptions
	cmd := &cobra.Command{
		Use: "export NAME --to FILE|URL", Short: "Copy a volume into an image: a raw or qcow2 file, a block device, or an export of an NBD server",
		Long: "Copy a volume, which must not be in use, into an image. The command runs as root on a node of the cluster. A raw file that was interrupted is gone on with\n" +
			"by giving the same command again, if nobody attached the volume meanwhile.",
		Example: "  keelson volume export pg --to pg.raw\n  keelson volume export pg --to pg.qcow2 --format qcow2 --verify",
		Args:    args(cobra.ExactArgs(1)), ValidArgsFunction: completeVolumes(g),
		RunE: func(cmd *cobra.Command, a []string) error {
			return runVolumeExport(cmd.Context(), g, o, a[0], cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.To, "to", "", "file, block device, nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH")
	f.StringVar(&o.Format, "format", imagecopy.FormatRaw, "format of a file: raw, qcow2, or another one that qemu-img makes")
	f.BoolVar(&o.Overwrite, "overwrite", false, "replace a file that is there, or write over a block device or an NBD export")
	f.BoolVar(&o.Verify, "verify", false, "read both in the end, and compare them")
	completeFlag(cmd, "format", words(imagecopy.FormatRaw, imagecopy.FormatQCOW2))
	return cmd
}

func runVolumeExport(ctx context.Context, g *globalOptions, o VolumeExportOptions, name string, w io.Writer) (err error) {
	if o.To == "" {
		return usageError{fmt.Errorf("where volume %s is to be copied has to be said: add --to FILE or --to URL", name)}
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	v, err := c.Volumes.GetVolume(ctx, &pb.GetVolumeRequest{Name: name})
	if err != nil {
		return err
	}
	x := &export{o: o, id: v.Id}
	if err := x.check(); err != nil {
		return err
	}
	source, err := openVolume(ctx, c, v, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.close(ctx, c)) }()
	if err := x.open(ctx, source.Size(), source.term); err != nil {
		return fmt.Errorf("%s can't be written: %w", o.To, err)
	}
	defer func() { err = errors.Join(err, x.target.Close()) }()
	if x.state.Position > 0 {
		fmt.Fprintf(w, "%s are copied already\n", spec.FormatSize(x.state.Position))
	}
	bar := newProgress(w, "exporting", source.Size())
	result, err := imagecopy.Copy(ctx, x.target, source, imagecopy.Options{From: x.state.Position, Empty: x.empty, Progress: bar.set, Step: x.step})
	bar.end()
	if err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	if err := verifyCopy(ctx, o.Verify, x.target, source, w); err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	fmt.Fprintf(w, "%s has the %s of volume %s, %s of it data that was written now\n", o.To, spec.FormatSize(source.Size()), name, spec.FormatSize(result.Data))
	return x.done()
}

// export is where a volume is copied to.
type export struct {
	o      VolumeExportOptions
	id     string // of the volume
	target imagecopy.Image
	empty  bool
	// file is the file that is made; "" if it is none, or a block device.
	file   string
	exists bool
	resume bool // its position is kept beside it
	state  exportState
}

// exportState is kept in a file beside an export that isn't complete.
type exportState struct {
	Volume   string `json:"volume"`
	Term     uint64 `json:"term"` // of the attachment in which it was copied
	Position int64  `json:"position"`
}

func (x *export) beside() string { return x.file + ".keelson-export" }

// check looks at what is there already.
func (x *export) check() error {
	needed := fmt.Errorf("%s is there already; to replace what it has, add --overwrite", x.o.To)
	if strings.Contains(x.o.To, "://") {
		if x.o.Format != imagecopy.FormatRaw {
			return usageError{errors.New("what an NBD server has is raw: leave --format out")}
		}
		if !x.o.Overwrite {
			return needed
		}
		return nil
	}
	path, err := filepath.Abs(x.o.To)
	if err != nil {
		return err
	}
	x.file = path
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		x.resume, x.empty = x.o.Format == imagecopy.FormatRaw, true
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode()&os.ModeDevice != 0 {
		if !x.o.Overwrite {
			return needed
		}
		x.file = ""
		return nil
	}
	x.exists, x.empty, x.resume = true, true, x.o.Format == imagecopy.FormatRaw
	text, err := os.ReadFile(x.beside())
	if x.resume && err == nil && json.Unmarshal(text, &x.state) == nil && x.state.Volume == x.id {
		return nil
	}
	x.state = exportState{}
	if !x.o.Overwrite {
		return needed
	}
	return nil
}

// open opens the target for a volume of that size, attached in that term.
func (x *export) open(ctx context.Context, size int64, term uint64) (err error) {
	if strings.Contains(x.o.To, "://") {
		x.target, err = imagecopy.DialNBD(ctx, x.o.To)
		return err
	}
	if x.file == "" {
		x.target, err = imagecopy.CreateRaw(x.o.To, size)
		return err
	}
	if x.state.Volume == "" || x.o.Overwrite || term > x.state.Term+1 { // somebody else may have written to the volume
		x.state = exportState{}
		if x.exists {
			if err := os.Remove(x.file); err != nil {
				return err
			}
		}
	}
	x.state.Volume, x.state.Term = x.id, term
	if !x.resume {
		x.target, err = imagecopy.CreateQEMU(ctx, x.file, x.o.Format, size)
		return err
	}
	if err := x.save(); err != nil {
		return err
	}
	x.target, err = imagecopy.CreateRaw(x.file, size)
	return err
}

// step keeps the position.
func (x *export) step(pos int64) error {
	x.state.Position = pos
	return x.save()
}

func (x *export) save() error {
	if !x.resume {
		return nil
	}
	text, err := json.Marshal(x.state)
	if err != nil {
		return err
	}
	next := x.beside() + ".new"
	if err := os.WriteFile(next, text, 0o600); err != nil {
		return err
	}
	return os.Rename(next, x.beside())
}

// done removes what is only needed to go on.
func (x *export) done() error {
	if !x.resume {
		return nil
	}
	return os.Remove(x.beside())
}
