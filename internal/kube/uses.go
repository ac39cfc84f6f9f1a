package kube

import (
	"context"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// use is one volume of Keelson's in a pod.
type use struct {
	Claim *corev1.PersistentVolumeClaim // nil if it is written into the pod
	// Volume is its name in Keelson; "" if it isn't bound yet, or lives and dies with the pod.
	Volume string
	// Class is the storage class of a claim that isn't bound yet.
	Class string
}

// finder finds out which volumes of Keelson's pods use. It remembers what it read: it is for one pass.
type finder struct {
	api     API
	drivers []string

	mu      sync.Mutex
	volumes map[string]found // by the name of the persistent volume
}

// found is what a persistent volume is.
type found struct {
	keelson bool
	volume  string
}

func newFinder(api API, drivers []string) *finder {
	return &finder{api: api, drivers: drivers, volumes: map[string]found{}}
}

// uses returns the volumes of Keelson's that a pod uses. A claim or volume that isn't there is none.
func (f *finder) uses(ctx context.Context, pod *corev1.Pod) ([]use, error) {
	var out []use
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		switch {
		case v.CSI != nil && slices.Contains(f.drivers, v.CSI.Driver):
			out = append(out, use{})
		case v.PortworxVolume != nil && f.portworx():
			out = append(out, use{Volume: v.PortworxVolume.VolumeID})
		}
		name := claimName(pod, v)
		if name == "" {
			continue
		}
		claim, err := f.api.Claim(ctx, pod.Namespace, name)
		if apierrors.IsNotFound(err) || err == nil && v.Ephemeral != nil && !metav1.IsControlledBy(claim, pod) {
			continue
		}
		if err != nil {
			return nil, err
		}
		u, ok, err := f.claim(ctx, claim)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, u)
		}
	}
	return out, nil
}

func (f *finder) portworx() bool { return slices.Contains(f.drivers, driverPortworx) }

// driverPortworx is the driver to which volumes of the type portworxVolume belong.
const driverPortworx = "pxd.portworx.com"

// provisionerPortworx is what classes call it that were written for that type.
const provisionerPortworx = "kubernetes.io/portworx-volume"

func claimName(pod *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return pod.Name + "-" + v.Name
	}
	return ""
}

// claim returns the use that a claim makes of Keelson, if any.
func (f *finder) claim(ctx context.Context, claim *corev1.PersistentVolumeClaim) (use, bool, error) {
	u := use{Claim: claim}
	if claim.Spec.VolumeName == "" {
		if claim.Spec.StorageClassName == nil || *claim.Spec.StorageClassName == "" {
			return u, false, nil
		}
		u.Class = *claim.Spec.StorageClassName
		class, err := f.api.Class(ctx, u.Class)
		if apierrors.IsNotFound(err) {
			return u, false, nil
		}
		if err != nil {
			return u, false, err
		}
		ours := slices.Contains(f.drivers, class.Provisioner) || class.Provisioner == provisionerPortworx && f.portworx()
		return u, ours, nil
	}
	v, err := f.volume(ctx, claim.Spec.VolumeName)
	u.Volume = v.volume
	return u, v.keelson, err
}

func (f *finder) volume(ctx context.Context, name string) (found, error) {
	f.mu.Lock()
	v, ok := f.volumes[name]
	f.mu.Unlock()
	if ok {
		return v, nil
	}
	pv, err := f.api.Volume(ctx, name)
	if err != nil && !apierrors.IsNotFound(err) {
		return found{}, err
	}
	if err == nil {
		v.volume, v.keelson = keelsonVolume(pv, f.drivers)
	}
	f.mu.Lock()
	f.volumes[name] = v
	f.mu.Unlock()
	return v, nil
}

// keelsonVolume returns the name of the volume that a persistent volume is in Keelson.
func keelsonVolume(pv *corev1.PersistentVolume, drivers []string) (string, bool) {
	switch {
	case pv.Spec.CSI != nil && slices.Contains(drivers, pv.Spec.CSI.Driver):
		return pv.Spec.CSI.VolumeHandle, true
	case pv.Spec.PortworxVolume != nil && slices.Contains(drivers, driverPortworx):
		return pv.Spec.PortworxVolume.VolumeID, true
	}
	return "", false
}
