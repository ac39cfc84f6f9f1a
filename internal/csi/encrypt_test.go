package csi_test

import (
	"testing"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

func TestEncryptedIsWhatTheClassAsksFor(t *testing.T) {
	for driver, key := range map[string]string{"csi.keelson.io": "encrypt", "pxd.portworx.com": "secure"} {
		r := newRig(t, driver, false)
		secret := request("pvc-secret", 100)
		secret.Parameters = map[string]string{key: "true"}
		r.make(secret)
		if all := r.cluster.Requests(); !all[len(all)-1].Encrypt {
			t.Errorf("%s: %s: the volume isn't encrypted", driver, key)
		}
		r.make(secret)
		plain := request("pvc-plain", 100)
		r.make(plain)
		plain.Parameters = secret.Parameters
		_, err := r.CreateVolume(t.Context(), plain)
		refused(t, "the same name, but encrypted", err, codes.AlreadyExists, "encrypted is false")

		clone := func(name, from string, params map[string]string) error {
			q := request(name, 100)
			q.Parameters = params
			q.VolumeContentSource = &pb.VolumeContentSource{Type: &pb.VolumeContentSource_Volume{Volume: &pb.VolumeContentSource_VolumeSource{VolumeId: from}}}
			_, err := r.CreateVolume(t.Context(), q)
			return err
		}
		must(t, clone("pvc-copy", "pvc-secret", secret.Parameters), clone("pvc-copy-2", "pvc-secret", nil), clone("pvc-copy-3", "pvc-plain", nil))
		refused(t, "a clone of what isn't encrypted", clone("pvc-copy-4", "pvc-plain", secret.Parameters), codes.InvalidArgument, "pvc-plain", "isn't encrypted")
		for _, name := range []string{"pvc-secret", "pvc-plain", "pvc-copy", "pvc-copy-2", "pvc-copy-3"} {
			must(t, r.deleteVolume(name))
		}
	}
}
