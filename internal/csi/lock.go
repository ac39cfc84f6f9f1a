package csi

import (
	"context"
	"log/slog"
	"path"
	"runtime/debug"
	"sync"
	"time"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// locks let one call at a time work on a volume, over all driver names. It doesn't wait: the caller repeats its call anyway.
type locks struct {
	mu sync.Mutex
	// held has the method that works on each volume.
	held map[string]string
}

func newLocks() *locks { return &locks{held: map[string]string{}} }

// volumeOf returns the volume that a request works on, "" for one that only looks.
func volumeOf(req any) string {
	switch r := req.(type) {
	case *pb.CreateVolumeRequest:
		return volumeName(r.GetName())
	case *pb.DeleteVolumeRequest:
		return r.GetVolumeId()
	case *pb.ControllerExpandVolumeRequest:
		return r.GetVolumeId()
	case *pb.NodeExpandVolumeRequest:
		return r.GetVolumeId()
	case *pb.NodeStageVolumeRequest:
		return r.GetVolumeId()
	case *pb.NodeUnstageVolumeRequest:
		return r.GetVolumeId()
	case *pb.NodePublishVolumeRequest:
		name, _ := keelsonName(r.GetVolumeId())
		return name
	case *pb.NodeUnpublishVolumeRequest:
		name, _ := keelsonName(r.GetVolumeId())
		return name
	}
	return ""
}

func (l *locks) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	volume := volumeOf(req)
	if volume == "" {
		return handler(ctx, req)
	}
	method := path.Base(info.FullMethod)
	if other, ok := l.take(volume, method); !ok {
		return nil, status.Errorf(codes.Aborted, "volume %s: %s is under way; ask again", volume, other)
	}
	defer l.release(volume)
	return handler(ctx, req)
}

func (l *locks) take(volume, method string) (other string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if other, busy := l.held[volume]; busy {
		return other, false
	}
	l.held[volume] = method
	return "", true
}

func (l *locks) release(volume string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, volume)
}

// answered gives errors their codes and logs calls. Of a request only the volume is logged: others of its fields may be secret.
func answered(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
		begun := time.Now()
		method, volume := path.Base(info.FullMethod), volumeOf(req)
		defer func() {
			if p := recover(); p != nil {
				log.Error("a CSI call crashed", "call", method, "volume", volume, "panic", p, "stack", string(debug.Stack()))
				resp, err = nil, status.Errorf(codes.Internal, "%s: a fault of the driver; its log has the details", method)
			}
			err = toStatus(err)
			switch {
			case err != nil:
				log.Warn("CSI call", "call", method, "volume", volume, "took", time.Since(begun), "code", status.Code(err), "err", err)
			case volume != "":
				log.Info("CSI call", "call", method, "volume", volume, "took", time.Since(begun))
			}
		}()
		return handler(ctx, req)
	}
}
