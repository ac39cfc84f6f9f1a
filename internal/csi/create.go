package csi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"time"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"keelson.io/keelson/internal/csi/dialect"
	"keelson.io/keelson/internal/spec"
)

const (
	// defaultSize is the size of a volume of which none is asked for.
	defaultSize = 1 << 30
	// minXFS is the smallest volume that mkfs.xfs takes.
	minXFS = 300 << 20
)

// Keys of the volume context: what the node needs to know of the class.
const (
	contextFSType   = "fsType"
	contextCreate   = "createOptions"
	contextMount    = "mountOptions"
	contextDiscard  = "discard"
	contextWarnings = "warnings"
)

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// volumeName returns the name in Keelson of the volume that is asked for under a name: the same, if it can be that, else
// one that is like it and differs for every other.
func volumeName(asked string) string {
	if asked == "" || spec.CheckName("name", asked) == nil {
		return asked
	}
	sum := sha256.Sum256([]byte(asked))
	slug := notInNames.ReplaceAllString(strings.ToLower(asked), "-")
	slug = strings.Trim(slug[:min(len(slug), 40)], "-")
	return strings.TrimPrefix(slug+"-", "-") + hex.EncodeToString(sum[:8])
}

// controller makes, shows and deletes volumes. Every node serves it.
type controller struct {
	pb.UnimplementedControllerServer
	*driver
	dialect *dialect.Dialect
}

// CreateVolume implements the controller service.
func (c *controller) CreateVolume(ctx context.Context, r *pb.CreateVolumeRequest) (*pb.CreateVolumeResponse, error) {
	if err := wanting("name", r.GetName()); err != nil {
		return nil, err
	}
	if err := checkCapabilities(r.GetVolumeCapabilities()); err != nil {
		return nil, err
	}
	change, err := c.dialect.ParseChange(r.GetMutableParameters())
	if err != nil {
		return nil, err
	}
	class, warnings, err := c.dialect.Translate(r.GetParameters())
	if err != nil {
		return nil, err
	}
	change.Apply(&class)
	req, access, err := c.request(ctx, r, &class)
	if err != nil {
		return nil, err
	}
	var v Volume
	if from := r.GetVolumeContentSource(); from != nil {
		v, err = c.clone(ctx, req, from, r.GetCapacityRange())
	} else {
		v, err = c.create(ctx, req, r.GetCapacityRange())
	}
	if err == nil && class.Schedule != "" {
		err = c.cfg.Keelson.SetSchedule(ctx, v.Name, class.Schedule)
	}
	if err != nil {
		return nil, err
	}
	for _, w := range warnings {
		c.log.Warn("a parameter of the storage class has no effect", "volume", v.Name, "key", w.Key, "value", w.Value, "why", w.Why)
	}
	return &pb.CreateVolumeResponse{Volume: &pb.Volume{
		VolumeId: v.Name, CapacityBytes: v.Size, VolumeContext: volumeContext(class, warnings), AccessibleTopology: access,
		ContentSource: r.GetVolumeContentSource(),
	}}, nil
}

// request puts together what is asked of Keelson. It settles the file system of the class.
func (c *controller) request(ctx context.Context, r *pb.CreateVolumeRequest, class *dialect.Request) (Request, []*pb.Topology, error) {
	block := true
	for _, vc := range r.GetVolumeCapabilities() {
		block = block && vc.GetBlock() != nil
		if fs := vc.GetMount().GetFsType(); fs != "" {
			class.FSType = fs
		}
	}
	if block {
		class.FSType = ""
	}
	size, err := sizeFor(r.GetCapacityRange(), class.FSType)
	if err != nil {
		return Request{}, nil, err
	}
	var nodes []Node
	if r.GetAccessibilityRequirements() != nil {
		if nodes, err = c.cfg.Keelson.Nodes(ctx); err != nil {
			return Request{}, nil, err
		}
	}
	w, err := understand(r.GetAccessibilityRequirements(), nodes, c.endpoint.Driver)
	if err != nil {
		return Request{}, nil, err
	}
	topology, err := within(w.topology, class.Within)
	if err != nil {
		return Request{}, nil, err
	}
	return Request{
		Name: volumeName(r.GetName()), Size: size, Replicas: class.Replicas, Columns: class.Columns, ZoneSpread: class.ZoneSpread,
		Media: class.Media, NodeSelector: class.NodeSelector, Topology: topology, Near: w.near,
		Limits: class.Limits, Placement: class.Placement, TrimEvery: class.TrimEvery, Encrypt: class.Encrypt,
	}, w.access, nil
}

// goneWait is how long a new volume waits for one of its name that is being deleted.
const goneWait = 5 * time.Second

// create makes the volume, or finds the one that an earlier call made.
func (d *driver) create(ctx context.Context, req Request, capacity *pb.CapacityRange) (Volume, error) {
	for began := time.Now(); ; {
		v, err := d.tryCreate(ctx, req, capacity)
		if !errors.Is(err, ErrAgain) || time.Since(began) > goneWait {
			return v, err
		}
		select {
		case <-ctx.Done():
			return v, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (d *driver) tryCreate(ctx context.Context, req Request, capacity *pb.CapacityRange) (Volume, error) {
	v, err := d.cfg.Keelson.Volume(ctx, req.Name)
	if errors.Is(err, ErrNotFound) {
		v, err = d.cfg.Keelson.Create(ctx, req)
		if !errors.Is(err, ErrExists) {
			return v, err
		}
		v, err = d.cfg.Keelson.Volume(ctx, req.Name) // another node made it just now
	}
	switch {
	case errors.Is(err, ErrNotFound), err == nil && v.Deleting:
		return v, &Problem{ErrAgain, fmt.Sprintf("a volume named %s is being deleted; ask again when it is gone", req.Name)}
	case err != nil:
		return v, err
	}
	if why := differs(v, req, capacity); why != "" {
		return v, &Problem{ErrExists, fmt.Sprintf("there is a volume %s already, and it is another one: %s", req.Name, why)}
	}
	return v, nil
}

// differs says in what an existing volume isn't what is asked for; "" if it is.
func differs(v Volume, req Request, capacity *pb.CapacityRange) string {
	limit := capacity.GetLimitBytes()
	switch {
	case v.Size < capacity.GetRequiredBytes():
		return fmt.Sprintf("its size is %d, at least %d is asked for", v.Size, capacity.GetRequiredBytes())
	case limit > 0 && v.Size > limit:
		return fmt.Sprintf("its size is %d, at most %d is asked for", v.Size, limit)
	case req.Replicas != 0 && v.Replicas != req.Replicas:
		return fmt.Sprintf("it has %d replicas, %d are asked for", v.Replicas, req.Replicas)
	case req.Columns != 0 && v.Columns != req.Columns:
		return fmt.Sprintf("it has %d columns, %d are asked for", v.Columns, req.Columns)
	case v.ZoneSpread != req.ZoneSpread:
		return "zone spread differs"
	case v.Encrypted != req.Encrypt:
		return fmt.Sprintf("encrypted is %t, %t is asked for", v.Encrypted, req.Encrypt)
	case v.Media != req.Media:
		return fmt.Sprintf("its media is %q, %q is asked for", v.Media, req.Media)
	case !maps.Equal(v.NodeSelector, req.NodeSelector):
		return fmt.Sprintf("its node selector is %v, %v is asked for", v.NodeSelector, req.NodeSelector)
	case !sameTerms(v.Topology, req.Topology):
		return fmt.Sprintf("its copies lie where the topology is one of %v, and one of %v is asked for", v.Topology, req.Topology)
	}
	return ""
}

// sizeFor returns the size of a volume with a file system, "" for none.
func sizeFor(r *pb.CapacityRange, fs string) (int64, error) {
	required, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	if required < 0 || limit < 0 || limit > 0 && required > limit {
		return 0, status.Errorf(codes.InvalidArgument, "capacity range: %d to %d is no range", required, limit)
	}
	if required > spec.MaxVolumeSize {
		return 0, status.Errorf(codes.OutOfRange, "%s are asked for; a volume has at most %s", spec.FormatSize(required), spec.FormatSize(spec.MaxVolumeSize))
	}
	size := required
	if size == 0 {
		size = defaultSize
		if limit > 0 {
			size = min(size, limit&^4095)
		}
	}
	least := int64(spec.MinVolumeSize)
	if fs == "xfs" {
		least = minXFS
	}
	size = max((size+4095)&^4095, least)
	if limit > 0 && size > limit {
		return 0, status.Errorf(codes.OutOfRange, "at most %d bytes are asked for, but such a volume has at least %d: it is a multiple of 4096, and %s at the least",
			limit, size, spec.FormatSize(least))
	}
	return size, nil
}

func volumeContext(class dialect.Request, warnings []dialect.Warning) map[string]string {
	out := map[string]string{}
	put := func(key, value string) {
		if value != "" {
			out[key] = value
		}
	}
	put(contextFSType, class.FSType)
	put(contextCreate, strings.Join(class.CreateOptions, " "))
	put(contextMount, strings.Join(class.MountOptions, ","))
	if class.NoDiscard {
		out[contextDiscard] = "false"
	}
	words := make([]string, len(warnings))
	for i, w := range warnings {
		words[i] = w.String()
	}
	put(contextWarnings, strings.Join(words, "; "))
	return out
}
