package member

import (
	"context"
	"net/http"
	"net/url"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Drivers are the names under which Keelson's volumes appear.
var Drivers = []string{"csi.keelson.io", "pure-csi", "pxd.portworx.com"}

// annotationProvisioner names the driver that made a volume, also where its source is that of a plugin in tree.
const annotationProvisioner = "pv.kubernetes.io/provisioned-by"

// pageSize bounds an answer with a list.
const pageSize = "500"

// Users returns the pods, as namespace/name, that haven't ended and that use volumes of Keelson, each with the names of its claims, or of
// the volumes that are written into it.
func (k *Kube) Users(ctx context.Context) (map[string][]string, error) {
	claims := map[string]bool{}
	err := each(ctx, k, "/api/v1/persistentvolumes", func(l *corev1.PersistentVolumeList) string {
		for _, v := range l.Items {
			if v.Spec.ClaimRef != nil && ours(&v) {
				claims[v.Spec.ClaimRef.Namespace+"/"+v.Spec.ClaimRef.Name] = true
			}
		}
		return l.Continue
	})
	if err != nil {
		return nil, err
	}
	users := map[string][]string{}
	err = each(ctx, k, "/api/v1/pods", func(l *corev1.PodList) string {
		for _, p := range l.Items {
			if names := uses(&p, claims); len(names) > 0 {
				users[p.Namespace+"/"+p.Name] = names
			}
		}
		return l.Continue
	})
	return users, err
}

func ours(v *corev1.PersistentVolume) bool {
	switch {
	case v.Spec.CSI != nil:
		return slices.Contains(Drivers, v.Spec.CSI.Driver)
	case v.Spec.PortworxVolume != nil:
		return true
	}
	return slices.Contains(Drivers, v.Annotations[annotationProvisioner])
}

// uses returns the names of a pod's volumes that are Keelson's.
func uses(p *corev1.Pod, claims map[string]bool) []string {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil
	}
	var out []string
	for _, v := range p.Spec.Volumes {
		switch {
		case v.PersistentVolumeClaim != nil && claims[p.Namespace+"/"+v.PersistentVolumeClaim.ClaimName]:
			out = append(out, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil && claims[p.Namespace+"/"+p.Name+"-"+v.Name]:
			out = append(out, p.Name+"-"+v.Name)
		case v.CSI != nil && slices.Contains(Drivers, v.CSI.Driver):
			out = append(out, v.Name)
		}
	}
	return out
}

// each lists a resource in pages; page returns where the next one begins.
func each[L any](ctx context.Context, k *Kube, path string, page func(*L) string) error {
	q := url.Values{"limit": {pageSize}}
	for {
		l := new(L)
		if err := k.call(ctx, http.MethodGet, path+"?"+q.Encode(), nil, l); err != nil {
			return err
		}
		next := page(l)
		if next == "" {
			return nil
		}
		q.Set("continue", next)
	}
}
