package engine

import "keelson.io/keelson/internal/spec"

// groupsChanged tells every volume that is attached here which snapshots of several volumes are being taken.
func (e *Engine) groupsChanged(list []spec.Group) {
	for _, s := range e.shards {
		s.loop.Post(func() {
			for _, v := range s.volumes {
				v.SetGroups(list)
			}
		})
	}
}

// groups returns the groups, as far as is known.
func (v *view) groups() []spec.Group {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.cluster.Groups
}
