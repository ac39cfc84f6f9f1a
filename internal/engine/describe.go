package engine

import (
	"encoding/json"
	"reflect"

	"keelson.io/keelson/internal/spec"
)

// describeReplicas gives this node's open replicas of a volume a new description where theirs has another wrapped key, or says nothing of
// the volume: the metadata may have to be made anew of them, when the wrapping key of before is gone.
func (s *shard) describeReplicas(v *spec.Volume) {
	if v.Encryption == nil || v.Deleting || v.ReadOnly != nil {
		return
	}
	for col := range v.State.Columns {
		for _, m := range v.State.Columns[col].Members {
			id, err := parseReplica(m.Replica)
			if err != nil || m.Node != s.e.cfg.Node {
				continue
			}
			r := s.replicas[id]
			if r == nil || r.state != open || r.growing || r.doomed || hasKey(r.rep.Desc().Policy, v.Encryption) {
				continue
			}
			d := s.desc(v, sourceOf(r.rep.Desc().Policy), col, id)
			d.Size = r.rep.Desc().Size
			r.growing = true
			r.rep.Grow(d, func(err error) {
				r.growing = false
				if err != nil {
					s.log.Error("the description of a replica can't be renewed, so it has the key as it was wrapped before; it is tried again", "volume", v.ID, "replica", m.Replica, "pool", m.Pool, "err", err)
					s.reviewLater()
					return
				}
				s.reviewRecord(v.ID) // it may have grown meanwhile
			})
		}
	}
}

// hasKey reports whether a description has the wrapped key.
func hasKey(policy json.RawMessage, e *spec.Encryption) bool {
	var d spec.Volume
	return len(policy) > 0 && json.Unmarshal(policy, &d) == nil && reflect.DeepEqual(d.Encryption, e)
}

// sourceOf is what a replica was made from as a clone, by its description; nil if it was made empty.
func sourceOf(policy json.RawMessage) *spec.Source {
	var d spec.Volume
	if len(policy) == 0 || json.Unmarshal(policy, &d) != nil {
		return nil
	}
	return d.Source
}
