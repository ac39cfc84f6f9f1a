package csi

import (
	"slices"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"keelson.io/keelson/internal/csi/dialect"
	"keelson.io/keelson/internal/spec"
)

type mode = pb.VolumeCapability_AccessMode_Mode

// modes are the access modes that a volume has; readers are those that only read. A volume is on one node at a time
// in all of them.
var (
	modes = []mode{
		pb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
		pb.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
		pb.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER,
		pb.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
		pb.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY,
	}
	readers = []mode{
		pb.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
		pb.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY,
	}
)

func readsOnly(c *pb.VolumeCapability) bool {
	return slices.Contains(readers, c.GetAccessMode().GetMode())
}

// checkCapability says what of a capability a volume hasn't.
func checkCapability(c *pb.VolumeCapability) error {
	if c == nil {
		return status.Error(codes.InvalidArgument, "the volume capability is missing in the request")
	}
	m := c.GetAccessMode().GetMode()
	switch {
	case m == pb.VolumeCapability_AccessMode_UNKNOWN:
		return status.Error(codes.InvalidArgument, "the access mode is missing in the volume capability")
	case m == pb.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER || m == pb.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER:
		return status.Errorf(codes.InvalidArgument, "access mode ReadWriteMany (%s) isn't there yet: a volume is on one node at a time. "+
			"Ask for ReadWriteOnce: all pods of one node can write to it then; or for ReadWriteOncePod, or ReadOnlyMany", m)
	case !slices.Contains(modes, m):
		return status.Errorf(codes.InvalidArgument, "access mode %s isn't there; ask for ReadWriteOnce, ReadWriteOncePod or ReadOnlyMany", m)
	case c.GetBlock() == nil && c.GetMount() == nil:
		return status.Error(codes.InvalidArgument, "the access type is missing in the volume capability: block or mount")
	case c.GetBlock() != nil && slices.Contains(readers, m):
		// The kernel can be told to refuse writes to a device, but it doesn't forget that with the device.
		return status.Errorf(codes.InvalidArgument, "access mode %s isn't there for raw block volumes: nothing would keep the device from being written; ask for a file system, or for ReadWriteOnce", m)
	}
	fs := c.GetMount().GetFsType()
	if fs != "" && !slices.Contains(dialect.FileSystems, fs) {
		return &spec.InvalidError{Field: "file system", Value: fs, Legal: "ext4, xfs or ext3"}
	}
	return nil
}

func checkCapabilities(list []*pb.VolumeCapability) error {
	if len(list) == 0 {
		return status.Error(codes.InvalidArgument, "the volume capabilities are missing in the request")
	}
	for _, c := range list {
		if err := checkCapability(c); err != nil {
			return err
		}
	}
	return nil
}
