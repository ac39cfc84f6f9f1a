package kubeview

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestHealth has a claim that a pod uses, and one thing that is wrong.
func TestHealth(t *testing.T) {
	wait := storagev1.VolumeBindingWaitForFirstConsumer
	for name, c := range map[string]struct {
		change func(c *cluster, p *corev1.PersistentVolumeClaim, d *corev1.Pod, n *corev1.Node)
		want   string
	}{
		"well": {func(*cluster, *corev1.PersistentVolumeClaim, *corev1.Pod, *corev1.Node) {}, "ok"},
		"claim lost": {func(_ *cluster, p *corev1.PersistentVolumeClaim, _ *corev1.Pod, _ *corev1.Node) {
			p.Status.Phase = corev1.ClaimLost
		}, "claim lost"},
		"no room": {func(c *cluster, p *corev1.PersistentVolumeClaim, _ *corev1.Pod, _ *corev1.Node) {
			p.Status.Phase = corev1.ClaimPending
			c.warn("PersistentVolumeClaim", "shop", "data", "ProvisioningFailed", "no\n room", time.Minute)
		}, "claim pending: ProvisioningFailed: no room"},
		"no pod yet": {func(c *cluster, p *corev1.PersistentVolumeClaim, _ *corev1.Pod, _ *corev1.Node) {
			p.Status.Phase, p.Spec.VolumeName, c.volumes, c.pods = corev1.ClaimPending, "", nil, nil
			c.classes = []storagev1.StorageClass{{ObjectMeta: meta("", "keelson"), Provisioner: driver, VolumeBindingMode: &wait}}
		}, "waits for its first pod"},
		"deleted": {func(_ *cluster, p *corev1.PersistentVolumeClaim, _ *corev1.Pod, _ *corev1.Node) {
			p.DeletionTimestamp = &metav1.Time{Time: now}
		}, "claim being deleted"},
		"lost storage": {func(_ *cluster, _ *corev1.PersistentVolumeClaim, _ *corev1.Pod, n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: taintStorageLost}}
		}, "storage lost on the node"},
		"node away": {func(_ *cluster, _ *corev1.PersistentVolumeClaim, _ *corev1.Pod, n *corev1.Node) {
			n.Status.Conditions[0].Status = corev1.ConditionUnknown
		}, "node not ready"},
		"node gone": {func(_ *cluster, _ *corev1.PersistentVolumeClaim, d *corev1.Pod, _ *corev1.Node) {
			d.Spec.NodeName = "w7"
		}, "node gone"},
		"no driver": {func(c *cluster, _ *corev1.PersistentVolumeClaim, _ *corev1.Pod, _ *corev1.Node) {
			c.csiNodes[0].Spec.Drivers = nil
		}, "no driver on the node"},
		"mount fails": {func(c *cluster, _ *corev1.PersistentVolumeClaim, d *corev1.Pod, _ *corev1.Node) {
			d.Status.Phase = corev1.PodPending
			c.warn("Pod", "shop", "db", "FailedMount", "old", 2*time.Minute)
			c.warn("Pod", "shop", "db", "FailedMount", "volume db is attached to node w2, which is alive", time.Minute)
			c.warn("Pod", "shop", "db", "BackOff", "unrelated", 0)
		}, "pod pending: FailedMount: volume db is attached"},
		"long ago": {func(c *cluster, _ *corev1.PersistentVolumeClaim, _ *corev1.Pod, _ *corev1.Node) {
			c.warn("PersistentVolumeClaim", "shop", "data", "ProvisioningFailed", "x", 2*time.Hour)
		}, "ok"},
		"abnormal": {func(c *cluster, _ *corev1.PersistentVolumeClaim, _ *corev1.Pod, _ *corev1.Node) {
			c.warn("Pod", "shop", "db", "VolumeConditionAbnormal", "1 of 2 copies", time.Minute)
		}, "VolumeConditionAbnormal: 1 of 2 copies"},
		"told by Keelson": {func(c *cluster, _ *corev1.PersistentVolumeClaim, _ *corev1.Pod, _ *corev1.Node) {
			c.warn("PersistentVolumeClaim", "shop", "data", "KeelsonFailoverWaits", "w1 is silent", time.Minute)
		}, "KeelsonFailoverWaits: w1 is silent"},
		"grows": {func(_ *cluster, p *corev1.PersistentVolumeClaim, _ *corev1.Pod, _ *corev1.Node) {
			p.Status.Conditions = []corev1.PersistentVolumeClaimCondition{{Type: corev1.PersistentVolumeClaimFileSystemResizePending, Status: corev1.ConditionTrue}}
		}, "FileSystemResizePending"},
		"terminating": {func(_ *cluster, _ *corev1.PersistentVolumeClaim, d *corev1.Pod, _ *corev1.Node) {
			d.DeletionTimestamp = &metav1.Time{Time: now}
		}, "pod terminating"},
		"not scheduled": {func(_ *cluster, _ *corev1.PersistentVolumeClaim, d *corev1.Pod, _ *corev1.Node) { d.Spec.NodeName = "" }, "pod isn't scheduled"},
	} {
		t.Run(name, func(t *testing.T) {
			x := &cluster{}
			n := x.node("w1", true, driver)
			p := x.claim("shop", "data", driver)
			p.Annotations = map[string]string{"volume.kubernetes.io/storage-provisioner": driver}
			d := x.pod("shop", "db", "w1", "data")
			c.change(x, p, d, n)
			rows := x.objects.rows(Options{Now: now})
			if len(rows) != 1 || !strings.HasPrefix(rows[0].Health, c.want) {
				t.Errorf("%+v, want %q", rows, c.want)
			}
		})
	}
}

func TestAliasesCountWhereTheyAreKeelsons(t *testing.T) {
	x := &cluster{}
	x.node("w1", true, driver, "pure-csi", "pxd.portworx.com=0f3c-uuid")
	x.claim("a", "ours", "pure-csi")
	x.claim("a", "theirs", "pxd.portworx.com")
	rows := x.objects.rows(Options{Now: now})
	if len(rows) != 1 || rows[0].Claim != "ours" || rows[0].Driver != "pure-csi" {
		t.Errorf("%+v", rows)
	}
}

func TestVolumesWithoutClaims(t *testing.T) {
	for phase, want := range map[corev1.PersistentVolumePhase]string{
		corev1.VolumeAvailable: "ok", corev1.VolumeReleased: "released", corev1.VolumeFailed: "failed", corev1.VolumeBound: "bound to a claim that is gone",
	} {
		x := &cluster{}
		x.claim("a", "b", driver)
		x.claims, x.volumes[0].Status.Phase = nil, phase
		rows := x.objects.rows(Options{Now: now})
		if len(rows) != 1 || !strings.HasPrefix(rows[0].Health, want) || rows[0].Handle != "handle-b" {
			t.Errorf("%s: %+v", phase, rows)
		}
	}
}

func TestInlineAndGenericEphemeralVolumes(t *testing.T) {
	x := &cluster{}
	x.node("w1", true, driver)
	p := x.pod("a", "job", "w1")
	p.Spec.Volumes = []corev1.Volume{
		{Name: "scratch", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: driver, VolumeAttributes: map[string]string{"size": "2Gi", "replicas": "1"}}}},
		{Name: "cache", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}},
		{Name: "secret", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "secrets-store.csi.k8s.io"}}},
	}
	c := x.claim("a", "job-cache", driver)
	c.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	rows := x.objects.rows(Options{Now: now})
	if len(rows) != 2 || rows[0].Claim != "(scratch)" || rows[0].Size != "2Gi" || rows[0].Status != "Inline" || rows[1].Claim != "job-cache" || rows[1].Pod != "job" {
		t.Errorf("%+v", rows)
	}
	p.Status.Phase = corev1.PodSucceeded
	if rows := x.objects.rows(Options{Now: now}); len(rows) != 1 || rows[0].Pod != "" {
		t.Errorf("of a pod that has ended: %+v", rows)
	}
}
