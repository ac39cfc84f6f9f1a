package csi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"keelson.io/keelson/internal/csi/dialect"
	"keelson.io/keelson/internal/spec"
)

// Inline volumes are written into a pod: kubelet makes up their handles, publishes them without staging, and takes them away with
// the pod. Their volume context is what the pod says.
const (
	// contextInline says that a volume is one; kubelet sets it if the CSIDriver object has podInfoOnMount.
	contextInline = "csi.storage.k8s.io/ephemeral"
	contextSize   = "size"
	contextMedium = "medium"
	mediumMemory  = "memory"
	// inlinePrefix begins the names in Keelson of inline volumes.
	inlinePrefix  = "ephemeral-"
	prefixPodInfo = "csi.storage.k8s.io/"
)

// keelsonName returns the name of a volume by its handle. That of an inline volume isn't one of Keelson's names, being longer, and
// has one that follows from it, so that whoever has the handle finds what an earlier call made.
func keelsonName(handle string) (name string, inline bool) {
	if handle == "" || spec.CheckName("volume", handle) == nil {
		return handle, false
	}
	sum := sha256.Sum256([]byte(handle))
	return inlinePrefix + hex.EncodeToString(sum[:16]), true
}

// inlineVolume is what a pod asks for.
type inlineVolume struct {
	name, target string
	size         int64 // 0: not said
	memory       bool
	params       map[string]string // the rest: as in a storage class
}

// inlineRequest reads a request to publish an inline volume.
func inlineRequest(r *pb.NodePublishVolumeRequest) (inlineVolume, error) {
	v := inlineVolume{target: filepath.Clean(r.GetTargetPath()), params: map[string]string{}}
	var inline bool
	if v.name, inline = keelsonName(r.GetVolumeId()); !inline {
		return v, status.Errorf(codes.InvalidArgument, "volume %q is a name of a volume, and can't be the handle of one that is made for a pod", r.GetVolumeId())
	}
	c := r.GetVolumeCapability()
	if err := checkCapability(c); err != nil {
		return v, err
	}
	if c.GetBlock() != nil {
		return v, status.Error(codes.InvalidArgument, "a volume that is written into a pod has a file system, and can't be a raw block device")
	}
	if r.GetReadonly() || readsOnly(c) {
		return v, &spec.InvalidError{Field: "readOnly", Value: "true", Legal: "left out: a volume that is made for a pod is empty, and read-only it would stay so"}
	}
	for k, val := range r.GetVolumeContext() {
		switch {
		case k == contextSize:
			n, err := spec.ParseSize(val)
			if err != nil || n <= 0 || n > spec.MaxVolumeSize {
				return v, &spec.InvalidError{Field: "volume attribute size", Value: val, Legal: "a number of bytes, or a number with Ki, Mi, Gi or K, M, G, of at most " + spec.FormatSize(spec.MaxVolumeSize)}
			}
			v.size = n
		case k == contextMedium:
			if v.memory = strings.EqualFold(val, mediumMemory); !v.memory && val != "" {
				return v, &spec.InvalidError{Field: "volume attribute medium", Value: val, Legal: "memory, or left out for the disks of the cluster"}
			}
		case !strings.HasPrefix(k, prefixPodInfo):
			v.params[k] = val
		}
	}
	return v, v.checkMemory()
}

// checkMemory refuses what has no meaning in memory.
func (v inlineVolume) checkMemory() error {
	if !v.memory {
		return nil
	}
	if v.size == 0 {
		return &spec.InvalidError{Field: "volume attribute size", Value: "", Legal: "a size, as the medium is memory: what is written counts as the pod's memory"}
	}
	for _, k := range slices.Sorted(maps.Keys(v.params)) {
		return &spec.InvalidError{Field: "volume attribute " + k, Value: v.params[k], Legal: "left out, as the medium is memory: there are only size and medium"}
	}
	return nil
}

// publishInline makes a volume for a pod and mounts it at the target. Each step finds what an earlier call did: the volume by its
// name, the device attached, the file system on it, the mount.
func (n *node) publishInline(ctx context.Context, r *pb.NodePublishVolumeRequest) error {
	v, err := inlineRequest(r)
	if err != nil {
		return err
	}
	// Kubelet has made it. It is what says to the collector that somebody knows of the volume, so it is there first.
	if err := os.MkdirAll(filepath.Dir(v.target), 0o750); err != nil {
		return err
	}
	if v.memory {
		return n.host.publishMemory(v.name, v.target, v.size)
	}
	class, warnings, err := dialect.ForDriver(n.endpoint.Driver).Translate(v.params)
	if err != nil {
		return err
	}
	if fs := r.GetVolumeCapability().GetMount().GetFsType(); fs != "" {
		class.FSType = fs
	}
	for _, w := range warnings {
		n.log.Warn("an attribute of an inline volume has no effect", "volume", v.name, "key", w.Key, "value", w.Value, "why", w.Why)
	}
	if err := n.makeInline(ctx, v, class); err != nil {
		return err
	}
	device, err := n.attach(ctx, v.name)
	if err != nil {
		return err
	}
	f, err := fileSystemOf(r.GetVolumeCapability(), volumeContext(class, nil), n.endpoint.Driver)
	if err != nil {
		return err
	}
	if err := n.host.stage(v.name, device, v.target, f); err != nil {
		return err
	}
	return openToAll(v.target)
}

// makeInline makes the volume, or finds it. It has one copy, if nothing else is said, here if there is room: it ends with the pod,
// and the pod with the node.
func (n *node) makeInline(ctx context.Context, v inlineVolume, class dialect.Request) error {
	capacity := &pb.CapacityRange{RequiredBytes: v.size}
	size, err := sizeFor(capacity, class.FSType)
	if err != nil {
		return err
	}
	topology, err := within(nil, class.Within)
	if err != nil {
		return err
	}
	made, err := n.create(ctx, Request{
		Name: v.name, Size: size, Replicas: max(class.Replicas, 1), Columns: class.Columns, ZoneSpread: class.ZoneSpread, Media: class.Media,
		NodeSelector: class.NodeSelector, Topology: topology, Near: n.cfg.Node, Limits: class.Limits, Placement: class.Placement, TrimEvery: class.TrimEvery,
		Encrypt: class.Encrypt, Ephemeral: &spec.Ephemeral{Node: n.cfg.Node, Path: v.target},
	}, capacity)
	if err != nil {
		return err
	}
	if e := made.Ephemeral; e == nil || e.Node != n.cfg.Node {
		return &Problem{ErrExists, fmt.Sprintf("there is a volume %s already, and it wasn't made for this pod", v.name)}
	}
	return nil
}

// openToAll lets everybody write to a file system that is new, as everybody may to an emptyDir: nobody but the pod sees it. One that
// has been used, or that kubelet has given to a group, is left as it is.
func openToAll(dir string) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	used := slices.ContainsFunc(list, func(e os.DirEntry) bool { return e.Name() != "lost+found" })
	if used || st.Mode().Perm() != 0o755 || st.Mode()&os.ModeSetgid != 0 {
		return nil
	}
	return os.Chmod(dir, 0o777)
}

// unpublishInline takes an inline volume from its pod, and deletes it. The target goes last: as long as it is there, kubelet asks again.
func (n *node) unpublishInline(ctx context.Context, name, target string) error {
	memory, err := n.host.memoryAt(target)
	if err != nil {
		return err
	}
	if err := n.host.unmountAll(target); err != nil {
		return err
	}
	if !memory {
		if err := n.deleteInline(ctx, name); err != nil {
			return err
		}
	}
	return n.host.unpublish(target)
}

// deleteInline detaches and deletes a volume that was made for a pod of this node. That there is none is no error: it may be in
// memory, or deleted already.
func (n *node) deleteInline(ctx context.Context, name string) error {
	v, err := n.cfg.Keelson.Volume(ctx, name)
	if errors.Is(err, ErrNotFound) || err == nil && (v.Deleting || v.Ephemeral == nil) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := n.cfg.Keelson.Detach(ctx, name); err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if err := n.cfg.Keelson.Delete(ctx, name); err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	return nil
}
