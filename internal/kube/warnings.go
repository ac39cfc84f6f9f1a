package kube

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/watch"
)

// AttributeWarnings is the attribute of a persistent volume in which the driver leaves what it couldn't do of its class.
const AttributeWarnings = "warnings"

// warnFor is how long after a volume was made its warnings are told: before Kubernetes forgets events, so that the name of
// one, which is the same each time, lets it be told once only.
const warnFor = 30 * time.Minute

// tellWarnings makes an event at the claim of each volume that was made from a class with parameters that have no effect.
func (c *Controller) tellWarnings(ctx context.Context) {
	for ctx.Err() == nil {
		var version string
		ok := c.again(ctx, "the persistent volumes can't be listed", func() (err error) {
			version, err = c.cfg.API.EachVolume(ctx, func(pv *corev1.PersistentVolume) error {
				c.warn(ctx, pv)
				return nil
			})
			return err
		})
		if !ok {
			return
		}
		c.followVolumes(ctx, version)
		sleep(ctx, c.cfg.Patience.Retry)
	}
}

// followVolumes tells of new volumes until they have to be listed again.
func (c *Controller) followVolumes(ctx context.Context, version string) {
	for ctx.Err() == nil {
		w, err := c.cfg.API.WatchVolumes(ctx, version)
		if err != nil {
			if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
				return
			}
			c.cfg.Log.Debug("the persistent volumes can't be watched", "err", err)
			if !sleep(ctx, c.cfg.Patience.RetryMax) {
				return
			}
			continue
		}
		expired := false
		for e := range w.ResultChan() {
			if e.Type == watch.Error {
				expired = true
				break
			}
			pv, ok := e.Object.(*corev1.PersistentVolume)
			if !ok {
				continue
			}
			version = pv.ResourceVersion
			if e.Type == watch.Added || e.Type == watch.Modified {
				c.warn(ctx, pv)
			}
		}
		w.Stop()
		if expired || !sleep(ctx, c.cfg.Patience.Retry) {
			return
		}
	}
}

func (c *Controller) warn(ctx context.Context, pv *corev1.PersistentVolume) {
	message, ok := warningOf(pv, c.cfg.Drivers, time.Now())
	if !ok {
		return
	}
	claim := *pv.Spec.ClaimRef
	claim.APIVersion, claim.Kind, claim.ResourceVersion = "v1", "PersistentVolumeClaim", ""
	_ = c.events.tell(ctx, claim, corev1.EventTypeWarning, reasonWarning, string(pv.UID), message)
}

// warningOf returns what is to be told at the claim of a persistent volume.
func warningOf(pv *corev1.PersistentVolume, drivers []string, now time.Time) (string, bool) {
	if pv.Spec.CSI == nil || pv.Spec.ClaimRef == nil || !slices.Contains(drivers, pv.Spec.CSI.Driver) {
		return "", false
	}
	words := pv.Spec.CSI.VolumeAttributes[AttributeWarnings]
	if words == "" || now.Sub(pv.CreationTimestamp.Time) > warnFor {
		return "", false
	}
	return fmt.Sprintf("Volume %s was made, but not all that class %s says has an effect: %s", pv.Spec.CSI.VolumeHandle, pv.Spec.StorageClassName, words), true
}
