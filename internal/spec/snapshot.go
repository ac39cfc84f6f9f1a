package spec

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Snapshot is what a volume held at one moment, on all its in-sync copies. The coordinator takes it and deletes it, following the
// volume's record; every step can be repeated.
type Snapshot struct {
	ID    string        `json:"id"`   // 16 hex digits
	Name  string        `json:"name"` // DNS label, unique among the volume's snapshots
	State SnapshotState `json:"state"`
	// Period is the last one whose writes are in it; 0 until it is ready. It is the snapshot's name on disk.
	Period uint64    `json:"period,omitempty"`
	Size   int64     `json:"size"` // of the volume, bytes
	Asked  time.Time `json:"asked"`
	Taken  time.Time `json:"taken,omitzero"`
	// Group is the id that snapshots of several volumes at one moment share.
	Group string `json:"group,omitempty"`
	// Part is what the coordinator says of it while the group isn't complete.
	Part GroupPart `json:"part,omitzero"`
	// Schedule is the schedule that asked for it, and that deletes it; "" is a person.
	Schedule string `json:"schedule,omitempty"`
	// Device is how it is shown to a node, while it is.
	Device SnapshotDevice `json:"device,omitzero"`
	// For is the volume that is to be cloned from it, after which it is deleted; "" otherwise.
	For string `json:"for,omitempty"`
}

// SnapshotState is how far a snapshot is.
type SnapshotState string

// The states of a snapshot.
const (
	SnapshotTaking   SnapshotState = "Taking"
	SnapshotCut      SnapshotState = "Cut" // all copies have it; others of its group aren't known to be there
	SnapshotReady    SnapshotState = "Ready"
	SnapshotDeleting SnapshotState = "Deleting"
)

// Source is where a volume that was made from another one comes from.
type Source struct {
	Volume   string `json:"volume"`   // id
	Snapshot string `json:"snapshot"` // id
	// Pending is set until the copies were made. Until then the volume can't be attached.
	Pending bool `json:"pending,omitempty"`
	// Desc describes the replicas, but for replica and column, while they are pending.
	Desc json.RawMessage `json:"desc,omitempty"`
}

// CloneJob is a clone that the coordinator of its origin has to make.
type CloneJob struct {
	Volume   string        `json:"volume"`   // id of the clone
	Snapshot string        `json:"snapshot"` // id
	Members  []CloneMember `json:"members"`
	// Desc describes the clone's replicas, but for replica and column.
	Desc json.RawMessage `json:"desc"`
	Done bool            `json:"done,omitempty"`
}

// Stale reports whether the origin has, of some column, none of the replicas any more beside which the clone's are to be made.
func (j *CloneJob) Stale(origin *Volume) bool {
	for c, col := range origin.State.Columns {
		if !slices.ContainsFunc(j.Members, func(m CloneMember) bool {
			return m.Column == c && slices.ContainsFunc(col.Members, func(o Member) bool { return o.Replica == m.From })
		}) {
			return true
		}
	}
	return false
}

// CloneMember is a replica of a clone, and the one beside which it is made.
type CloneMember struct {
	Column  int    `json:"column"`
	From    string `json:"from"`
	Replica string `json:"replica"`
	// Made is set when it is durable.
	Made bool `json:"made,omitempty"`
}

// Restore is a volume on its way back to a snapshot.
type Restore struct {
	Snapshot string `json:"snapshot"` // id
}

// SnapshotLimit is how many snapshots a volume has at most.
func (s *Settings) SnapshotLimit() int {
	if s.MaxSnapshots <= 0 {
		return DefaultMaxSnapshots
	}
	return s.MaxSnapshots
}

// Limits of snapshots.
const (
	DefaultMaxSnapshots = 64
	MaxMaxSnapshots     = 512
)

// Cloning reports whether the volume's copies are still being made from another one.
func (v *Volume) Cloning() bool { return v.Source != nil && v.Source.Pending }

// SnapshotByName finds a snapshot by its name or id.
func (v *Volume) SnapshotByName(name string) *Snapshot {
	for i := range v.Snapshots {
		if s := &v.Snapshots[i]; s.Name == name || s.ID == name {
			return s
		}
	}
	return nil
}

// SnapshotDevice is a snapshot that is attached, or being attached, to a node.
type SnapshotDevice struct {
	Volume string `json:"volume"` // id of the volume that is ReadOnly for it
	Node   string `json:"node"`
}

// ReadOnly is set in the record of a volume that shows a snapshot to a node: a clone that can't be written to, and that is deleted
// when it is detached. People know it as the snapshot only.
type ReadOnly struct {
	Volume   string `json:"volume"`   // id of the one that the snapshot is of
	Snapshot string `json:"snapshot"` // id
	Node     string `json:"node"`
	Frontend string `json:"frontend"`
}

// DeviceName is the name of the volume that shows a snapshot. No other volume can have one like it.
func DeviceName(volume, snapshot string) string { return volume + "@" + snapshot }

// SnapshotInUse says what needs a snapshot; "" is nothing.
func (v *Volume) SnapshotInUse(id string) string {
	for _, j := range v.Clones {
		if j.Snapshot == id && !j.Done {
			return "a clone is being made from it"
		}
	}
	if v.Restore != nil && v.Restore.Snapshot == id {
		return "the volume is being restored to it"
	}
	if s := v.SnapshotByName(id); s != nil && s.ID == id && s.Device.Node != "" {
		return fmt.Sprintf("it is attached to node %s; detach it first: keelson snapshot detach %s", s.Device.Node, DeviceName(v.Name, s.Name))
	}
	return ""
}

// SnapshotWork reports whether a coordinator has something to do for the volume's snapshots.
func (v *Volume) SnapshotWork() bool {
	if v.Restore != nil {
		return true
	}
	for _, s := range v.Snapshots {
		if s.State != SnapshotReady && s.State != SnapshotCut {
			return true
		}
	}
	return slices.ContainsFunc(v.Clones, func(j CloneJob) bool { return !j.Done })
}

// AddSnapshot asks for a snapshot. limit is how many a volume may have. The error is an *InvalidError.
func (v *Volume) AddSnapshot(s Snapshot, limit int) error {
	if err := CheckName("snapshot name", s.Name); err != nil {
		return err
	}
	if v.SnapshotByName(s.Name) != nil {
		return &InvalidError{"snapshot name", s.Name, fmt.Sprintf("one that volume %s doesn't use yet", v.Name)}
	}
	if limit <= 0 {
		limit = DefaultMaxSnapshots
	}
	if len(v.Snapshots) >= limit {
		return &InvalidError{"snapshot name", s.Name, fmt.Sprintf("the name of one of at most %d snapshots: volume %s has %d; delete one, or raise snapshots-max", limit, v.Name, len(v.Snapshots))}
	}
	s.State, s.Period, s.Size = SnapshotTaking, 0, v.Size
	v.Snapshots = append(v.Snapshots, s)
	return nil
}
