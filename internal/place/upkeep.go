package place

import (
	"fmt"
	"slices"
	"strings"

	"keelson.io/keelson/internal/spec"
)

// upkeepRule says why a pool takes no replica for the sake of what is being done to it, or of what is asked for.
func (s *state) upkeepRule(p Pool) string {
	switch {
	case p.Draining:
		return "is being drained"
	case len(s.req.Pools) > 0 && !slices.Contains(s.req.Pools, p.ID):
		return "isn't what is asked for"
	}
	for _, col := range s.req.Volume.State.Columns {
		for _, m := range col.Members {
			if m.Replica == s.req.Replacing && s.req.Replacing != "" && m.Pool == p.ID {
				return "has the copy that is to leave"
			}
		}
	}
	return ""
}

// NoRoomError is returned when a volume can't grow.
type NoRoomError struct {
	Volume  string
	Size    int64
	Largest int64 // that it could get, in bytes; it has at least that
	Full    []Rejection
}

// Error names the pools that have no room, and what would be possible.
func (e *NoRoomError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "volume %s can't get %s; %s are possible as its pools are", e.Volume, spec.FormatSize(e.Size), spec.FormatSize(e.Largest))
	for i, r := range e.Full {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		fmt.Fprintf(&b, "%snode %s pool %s: %s", sep, r.Node, r.Pool, r.Rule)
	}
	return b.String()
}

// Grow decides whether the pools that have a volume's copies may promise it size bytes. The error is a *NoRoomError, or nil.
func Grow(c Cluster, v spec.Volume, size int64) error {
	have, want := spec.ColumnSize(v.Planned(), v.Columns), spec.ColumnSize(size, v.Columns)
	copies := map[string]int64{}
	for _, col := range v.State.Columns {
		for _, m := range col.Members {
			copies[m.Pool]++
		}
	}
	e := &NoRoomError{Volume: v.Name, Size: size, Largest: spec.MaxVolumeSize}
	for _, p := range c.Pools {
		n := copies[p.ID]
		if n == 0 {
			continue
		}
		limit := int64(c.Overcommit * float64(p.Capacity-p.Reserve))
		room := max(0, limit-p.Provisioned)
		e.Largest = min(e.Largest, max(v.Planned(), (have+room/n)*int64(v.Columns)&^4095))
		if (want-have)*n > room {
			e.Full = append(e.Full, Rejection{Node: p.Node, Pool: p.ID, Rule: fmt.Sprintf("%s are promised to volumes already, and %s more would pass the overcommit limit of %s",
				spec.FormatSize(p.Provisioned), spec.FormatSize((want-have)*n), spec.FormatSize(limit))})
		}
	}
	if len(e.Full) == 0 {
		return nil
	}
	slices.SortFunc(e.Full, func(a, b Rejection) int { return strings.Compare(a.Node+a.Pool, b.Node+b.Pool) })
	return e
}
