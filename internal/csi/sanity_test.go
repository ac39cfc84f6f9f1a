package csi_test

import (
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
)

// TestSanity is the community's suite, against a cluster in memory with real devices and mounts. test/system has it against
// the real one.
func TestSanity(t *testing.T) {
	r := newRig(t, "csi.keelson.io", true)
	c := sanity.NewTestConfig()
	c.Address = "unix:" + r.socket
	c.TargetPath, c.StagingPath = r.path("target"), r.path("staging")
	c.TestVolumeSize = 1 << 30
	sanity.Test(t, c)
}
