package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/imagecopy"
	"keelson.io/keelson/internal/spec"
)

// VolumeImportOptions are the flags of volume import.
type VolumeImportOptions struct {
	From, Format, Size string
	Replicas           int32
	Overwrite, Verify  bool
	Encrypt            bool
	policy             *pb.SetVolumeRequest
}

const formatAuto = "auto"

// recordEvery is how often the position of an import is written down.
const recordEvery = 5 * time.Second

func newVolumeImportCommand(g *globalOptions) *cobra.Command {
	var o VolumeImportOptions
	set := settings{}
	cmd := &cobra.Command{
		Use: "import NAME --from FILE|URL", Short: "Copy an image into a volume: a raw or qcow2 file, a block device, or what an NBD server has",
		Long: "Copy an image into a volume, which is made if it isn't there. The command runs as root on a node of the cluster. What was interrupted is\n" +
			"gone on with by giving the same command again; until it is complete, the volume can't be attached otherwise.",
		Example: "  keelson volume import pg --from disk.qcow2\n  keelson volume import pg --from nbd://backup.example/pg --size 20Gi --replicas 3",
		Args:    args(cobra.ExactArgs(1)), ValidArgsFunction: completeVolumes(g),
		RunE: func(cmd *cobra.Command, a []string) (err error) {
			if o.policy, _, err = set.request(cmd, a[0]); err != nil {
				return err
			}
			return runVolumeImport(cmd.Context(), g, o, cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.From, "from", "", "file, block device, nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH")
	f.StringVar(&o.Format, "format", formatAuto, "format of a file: raw, qcow2, another one that qemu-nbd knows, or auto (raw or qcow2)")
	f.StringVar(&o.Size, "size", "", "size of a new volume, such as 4Gi (default: that of the image)")
	f.Int32Var(&o.Replicas, "replicas", spec.DefaultReplicas, "number of copies of a new volume")
	f.BoolVar(&o.Encrypt, "encrypt", false, "encrypt the data of a new volume on all copies")
	f.BoolVar(&o.Overwrite, "overwrite", false, "throw away what an existing volume has")
	f.BoolVar(&o.Verify, "verify", false, "read both in the end, and compare them")
	set.register(cmd, true)
	completeFlag(cmd, "format", words(formatAuto, imagecopy.FormatRaw, imagecopy.FormatQCOW2))
	return cmd
}

func runVolumeImport(ctx context.Context, g *globalOptions, o VolumeImportOptions, w io.Writer) (err error) {
	name := o.policy.Name
	if o.From == "" {
		return usageError{fmt.Errorf("where the image for volume %s is has to be said: add --from FILE or --from URL", name)}
	}
	image, state, err := openSource(ctx, o.From, o.Format)
	if err != nil {
		return fmt.Errorf("%s can't be read: %w", o.From, err)
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	c, err := g.client()
	if err != nil {
		return err
	}
	v, err := prepareImport(ctx, c, o, state)
	if err != nil {
		return err
	}
	t, err := openVolume(ctx, c, v, true)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, t.close(ctx, c))
		if err != nil {
			fmt.Fprintf(w, "keelson: the import isn't complete; the same command goes on with it\n")
		}
	}()
	return fillVolume(ctx, c, o, v, t, image, w)
}

// openSource opens what --from names, and returns how an import of it is recorded.
func openSource(ctx context.Context, from, format string) (imagecopy.Image, *pb.Import, error) {
	if strings.Contains(from, "://") {
		if format != formatAuto && format != imagecopy.FormatRaw {
			return nil, nil, usageError{errors.New("what an NBD server has is raw: leave --format out")}
		}
		image, err := imagecopy.DialNBD(ctx, from)
		if err != nil {
			return nil, nil, err
		}
		return image, &pb.Import{Source: from, Size: image.Size()}, nil
	}
	path, err := filepath.Abs(from)
	if err != nil {
		return nil, nil, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if format == formatAuto {
		if format, err = imagecopy.Detect(path); err != nil {
			return nil, nil, err
		}
	}
	var image imagecopy.Image
	if format == imagecopy.FormatRaw {
		image, err = imagecopy.OpenRaw(path)
	} else {
		image, err = imagecopy.OpenQEMU(ctx, path, format, false)
	}
	if err != nil {
		return nil, nil, err
	}
	version := fmt.Sprintf("%s %d %d", format, st.Size(), st.ModTime().UnixNano())
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		version += fmt.Sprintf(" %d", sys.Ino)
	}
	return image, &pb.Import{Source: path, Size: image.Size(), Version: version}, nil
}

// prepareImport makes the volume, or has an existing one taken for the import. What it returns has the import recorded.
func prepareImport(ctx context.Context, c *api.Client, o VolumeImportOptions, state *pb.Import) (*pb.Volume, error) {
	name := o.policy.Name
	v, err := c.Volumes.GetVolume(ctx, &pb.GetVolumeRequest{Name: name})
	if connect.CodeOf(err) == connect.CodeNotFound {
		size := max(spec.MinVolumeSize, (state.Size+4095)&^4095)
		if o.Size != "" {
			if size, err = spec.ParseSize(o.Size); err != nil {
				return nil, err
			}
		}
		return c.Volumes.CreateVolume(ctx, &pb.CreateVolumeRequest{Name: name, Size: size, Replicas: o.Replicas, Import: state,
			Limits: o.policy.Limits, Placement: o.policy.Placement, TrimEvery: o.policy.TrimEvery, Encrypt: o.Encrypt})
	}
	if err != nil {
		return nil, err
	}
	if v.Import == nil && v.Node != "" && v.Frontend != spec.FrontendNone {
		return nil, fmt.Errorf("volume %s is attached to node %s: detach it before an image is copied into it", name, v.Node)
	}
	switch i := v.Import; {
	case i == nil || o.Overwrite:
		state.Clearing = v.Term > 0
	case i.Source == state.Source && i.Size == state.Size && i.Version == state.Version: // otherwise it is refused
		state.Position, state.Clearing = i.Position, i.Clearing
	}
	return c.Volumes.RecordImport(ctx, &pb.RecordImportRequest{Name: name, Import: state, Restart: o.Overwrite})
}

// fillVolume copies the image into a volume of which the import is recorded, and records its end.
func fillVolume(ctx context.Context, c *api.Client, o VolumeImportOptions, v *pb.Volume, t *openedVolume, image imagecopy.Image, w io.Writer) error {
	state := v.Import
	record := func() error {
		_, err := c.Volumes.RecordImport(ctx, &pb.RecordImportRequest{Name: v.Name, Import: state})
		return err
	}
	if state.Clearing {
		if err := imagecopy.Clear(ctx, t.Image); err != nil {
			return err
		}
		state.Clearing = false
		if err := record(); err != nil {
			return err
		}
	}
	bar := newProgress(w, "importing", state.Size)
	if state.Position > 0 {
		bar.say(fmt.Sprintf("%s are copied already", spec.FormatSize(state.Position)))
	}
	recorded := time.Now()
	result, err := imagecopy.Copy(ctx, t.Image, image, imagecopy.Options{
		From: state.Position, Empty: true, Progress: bar.set,
		Step: func(pos int64) error {
			state.Position = pos
			if time.Since(recorded) < recordEvery {
				return nil
			}
			recorded = time.Now()
			return record()
		},
	})
	bar.end()
	if err != nil {
		if state.Position > 0 && ctx.Err() != nil {
			ctx = context.WithoutCancel(ctx)
			err = errors.Join(err, record()) // so that little is done again
		}
		return fmt.Errorf("volume %s: %w", v.Name, err)
	}
	if err := verifyCopy(ctx, o.Verify, t.Image, image, w); err != nil {
		return fmt.Errorf("volume %s: %w", v.Name, err)
	}
	if _, err := c.Volumes.RecordImport(ctx, &pb.RecordImportRequest{Name: v.Name}); err != nil {
		return err
	}
	fmt.Fprintf(w, "volume %s has %s, %s of it data that was written now\n", v.Name, spec.FormatSize(state.Size), spec.FormatSize(result.Data))
	return nil
}

// verifyCopy compares a copy with its original, if asked to.
func verifyCopy(ctx context.Context, asked bool, target, source imagecopy.Image, w io.Writer) error {
	if !asked {
		return nil
	}
	bar := newProgress(w, "comparing", source.Size())
	defer bar.end()
	return imagecopy.Compare(ctx, target, source, func(pos int64) { bar.set(pos, 0) })
}

// openedVolume is a volume that is attached, over NBD, for this command.
type openedVolume struct {
	imagecopy.Image
	name string
	term uint64
	keep bool // it was attached before
}

// openVolume attaches a volume to the node that is asked, and opens it.
func openVolume(ctx context.Context, c *api.Client, v *pb.Volume, importing bool) (*openedVolume, error) {
	t := &openedVolume{name: v.Name, keep: !importing && v.Node != "" && v.Frontend == spec.FrontendNBD}
	r, err := attachPatiently(ctx, c, VolumeAttachOptions{Wait: defaultWait}, &pb.AttachVolumeRequest{Name: v.Name, Frontend: spec.FrontendNBD, Importing: importing})
	if err != nil {
		return nil, err
	}
	t.term = r.Term
	if t.Image, err = imagecopy.DialNBD(ctx, r.Device); err != nil {
		err = fmt.Errorf("volume %s is attached to node %s, but can't be reached from here: run this command as root on that node: %w", v.Name, r.Node, err)
		return nil, errors.Join(err, t.close(ctx, c))
	}
	return t, nil
}

// attached reports whether the volume may still be attached by this command.
func (t *openedVolume) attached(ctx context.Context, c *api.Client) bool {
	v, err := c.Volumes.GetVolume(ctx, &pb.GetVolumeRequest{Name: t.name})
	return err != nil || v.Node != "" && v.Term == t.term
}

// close detaches the volume again, also when ctx has ended.
func (t *openedVolume) close(ctx context.Context, c *api.Client) error {
	var err error
	if t.Image != nil {
		err = t.Image.Close()
	}
	if t.keep {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), defaultWait)
	defer cancel()
	// The server may not have seen yet that the connection has ended.
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		_, derr := c.Volumes.DetachVolume(ctx, &pb.DetachVolumeRequest{Name: t.name})
		if derr != nil && !t.attached(ctx, c) {
			derr = nil // it was detached, and only the answer was lost
		}
		if derr == nil || time.Since(began) > 5*time.Second {
			return errors.Join(err, derr)
		}
	}
}
