// Package spec holds Keelson's nouns as plain data, and their validation: cluster,
// node, pool, volume, replica and join token, as they are kept in the metadata and
// shown by the API. It imports nothing of Keelson's but package block, does no I/O, and owns no
// goroutine. Sizes are bytes, times are UTC.
package spec

import "time"

// Cluster describes the cluster as a whole.
type Cluster struct {
	ID      string    `json:"id"` // 16 hex digits
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	// Settings can be changed while the cluster runs.
	Settings Settings `json:"settings"`
	// Removed has the nodes that were removed, and when: certificates that they got before that are refused.
	Removed map[string]time.Time `json:"removed,omitempty"`
	// Recovery is the last one of the metadata.
	Recovery Recovery `json:"recovery,omitzero"`
	// Groups are the snapshots of several volumes that are being taken or deleted, in the order in which they were asked for.
	Groups []Group `json:"groups,omitempty"`
	// CA is the plan by which the cluster changes to another CA; nil if it doesn't.
	CA *CARotation `json:"ca,omitempty"`
}

// Settings are the cluster-wide knobs. DefaultSettings has the defaults.
type Settings struct {
	// RebuildAfter is how long a replica's node may stay away before the replica is
	// rebuilt elsewhere.
	RebuildAfter time.Duration `json:"rebuildAfter"`
	// RebuildBandwidth limits resync and rebuild of each volume, in bytes a second.
	RebuildBandwidth int64 `json:"rebuildBandwidth"`
	// AnswerLimit is how long a replica may leave a request unanswered before it is taken out of the in-sync set; 0 is
	// DefaultAnswerLimit.
	AnswerLimit time.Duration `json:"answerLimit,omitempty"`
	// Overcommit limits the sum of the volumes' sizes in a pool to this multiple of
	// the pool's capacity.
	Overcommit float64 `json:"overcommit"`
	// ScrubInterval is how long after the end of a volume's last scrub the next one begins; 0: never by itself.
	ScrubInterval time.Duration `json:"scrubInterval,omitempty"`
	// MaxSnapshots is how many snapshots a volume has at most; 0 is DefaultMaxSnapshots.
	MaxSnapshots int `json:"maxSnapshots,omitempty"`
	// ScrubBandwidth limits the scrubs of all volumes that a node coordinates together, in bytes of the
	// volumes a second; 0 is DefaultScrubBandwidth.
	ScrubBandwidth int64 `json:"scrubBandwidth,omitempty"`
	// Rebalance is by how many percent of their capacity two pools may differ in what they promise to volumes before copies are moved; 0:
	// none are.
	Rebalance int `json:"rebalance,omitempty"`
	// RebalanceMoves is how many copies rebalancing moves at once; 0 is DefaultRebalanceMoves.
	RebalanceMoves int `json:"rebalanceMoves,omitempty"`
}

// Role is what a node does.
type Role string

// The roles of a node; a node has one or both.
const (
	RoleMetadata Role = "metadata"
	RoleStorage  Role = "storage"
)

// Node is a machine of the cluster. Whether it is alive isn't kept here: it holds a
// lease while it is.
type Node struct {
	Name   string            `json:"name"` // DNS label, unique
	ID     string            `json:"id"`   // 16 hex digits, made once by the node
	Roles  []Role            `json:"roles"`
	Zone   string            `json:"zone,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// APIAddr and EngineAddr are host:port where other nodes reach it.
	APIAddr    string `json:"apiAddr"`
	EngineAddr string `json:"engineAddr"`
	Shards     int    `json:"shards"` // event loops of its engine
	// Cordoned: a person wants no further replicas here. Unschedulable: the node is cordoned in Kubernetes, with the same effect; what passes it
	// on takes it back. Neither touches the other.
	Cordoned      bool `json:"cordoned,omitempty"`
	Unschedulable bool `json:"unschedulable,omitempty"`
	// Upkeep is what is being done to the node; "" is nothing.
	Upkeep  Upkeep    `json:"upkeep,omitempty"`
	Member  Calling   `json:"member,omitempty"`
	CA      NodeCA    `json:"ca,omitzero"`
	Joined  time.Time `json:"joined"`
	Version string    `json:"version"`
}

// Media is what a pool's device is made of.
type Media string

// The kinds of media.
const (
	MediaNVMe Media = "nvme"
	MediaSSD  Media = "ssd"
	MediaHDD  Media = "hdd"
)

// Pool is an XFS file system on one device or file of a node that holds replicas.
type Pool struct {
	ID     string            `json:"id"` // 16 hex digits; also in a file at the pool's root
	Node   string            `json:"node"`
	Device string            `json:"device,omitempty"` // block device, or
	File   string            `json:"file,omitempty"`   // the file behind a loop device
	Media  Media             `json:"media"`
	Labels map[string]string `json:"labels,omitempty"`
	// Capacity is the size of the file system; Reserve of it is never given to
	// volumes. How much is used is asked of the node.
	Capacity int64     `json:"capacity"`
	Reserve  int64     `json:"reserve"`
	Created  time.Time `json:"created"`
	// Draining: its replicas are to move elsewhere, and it gets no new ones.
	Draining bool `json:"draining,omitempty"`
	// Leftovers are replicas, 16 hex digits each, that may still have a directory in the pool although their volume was
	// deleted: their node was away then. The node removes them. A directory of an unknown volume that isn't named here
	// is never removed: the metadata may have been restored from before that volume was made.
	Leftovers []string `json:"leftovers,omitempty"`
}

// MaxLeftovers bounds the leftovers of a pool. What is too many stays as an orphan.
const MaxLeftovers = 4096

// Volume is a virtual disk: what was asked for, and the state that the replication
// protocol keeps in the metadata. Every change of it is one transaction that compares
// the revision it was decided on.
type Volume struct {
	ID   string `json:"id"`   // 16 hex digits
	Name string `json:"name"` // DNS label, unique
	Size int64  `json:"size"`
	// Replicas is how many copies there shall be of each column.
	Replicas int `json:"replicas"`
	// Columns is the number of stripes, ≥ 1. Every column is a replica set.
	Columns      int               `json:"columns"`
	ZoneSpread   bool              `json:"zoneSpread,omitempty"` // copies must be in different zones
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`
	// Topology, if not empty, are terms of which a node must meet one, in all its keys, to get a copy. A key is a label, or
	// TopologyNode or TopologyZone.
	Topology []map[string]string `json:"topology,omitempty"`
	Media    Media               `json:"media,omitempty"` // "" is any
	Created  time.Time           `json:"created"`
	// Deleting is set when the volume is on its way out: its replicas are being removed.
	Deleting bool `json:"deleting,omitempty"`
	// Ephemeral is set for a volume that lives as long as a pod.
	Ephemeral *Ephemeral `json:"ephemeral,omitempty"`

	State State `json:"state"`
	// Unproven is nil, unless the metadata was recovered and it isn't known yet whether the record is the newest.
	Unproven *Unproven `json:"unproven,omitempty"`
	Scrub    Scrub     `json:"scrub,omitzero"`
	// Snapshots in the order in which they were asked for.
	Snapshots []Snapshot `json:"snapshots,omitempty"`
	Clones    []CloneJob `json:"clones,omitempty"`
	Restore   *Restore   `json:"restore,omitempty"`
	Source    *Source    `json:"source,omitempty"`
	ReadOnly  *ReadOnly  `json:"readOnly,omitempty"`
	Schedules []Schedule `json:"schedules,omitempty"`
	Growth    Growth     `json:"growth,omitzero"`
	// Resettle is set while copies are to move to where the volume's own rules let them be: those of a clone that was asked for at another
	// place than its origin's. The leader moves them, and takes it back when all lie right.
	Resettle bool `json:"resettle,omitempty"`

	Limits    Limits      `json:"limits,omitzero"`
	Placement Placement   `json:"placement,omitzero"`
	Trim      TrimState   `json:"trim,omitzero"`
	Import    ImportState `json:"import,omitzero"`

	// Encryption is nil for a volume whose copies hold what was written as it is. It never comes or goes.
	Encryption *Encryption `json:"encryption,omitempty"`
}

// State is a volume's attachment and its members.
type State struct {
	// Term is the number of the current, or last, attachment. Strictly increasing.
	Term uint64 `json:"term"`
	// Node is where the volume is attached; "" when it is detached, which is only
	// set once everything was made durable on all in-sync members.
	Node string `json:"node,omitempty"`
	// Frontend is how the node shows it: "fuse" or "nbd"; "none" for an attachment that
	// only serves a rebuild or a scrub, and that gives way to any other.
	Frontend string `json:"frontend,omitempty"`
	// Fenced is the highest term that every in-sync member has made durable. Invariant: Fenced ≤ Term.
	Fenced uint64 `json:"fenced"`
	// Columns has one replica set for each column.
	Columns []Column `json:"columns"`
}

// Column is one replica set.
type Column struct {
	Members []Member `json:"members"`
}

// MemberState is how far a replica can be relied on.
type MemberState string

// The states of a member.
const (
	// InSync: the replica holds every acknowledged write. Only such a one serves.
	InSync MemberState = "InSync"
	// Syncing: it receives writes, and is being brought up to date.
	Syncing MemberState = "Syncing"
	// Stale: it may miss writes.
	Stale MemberState = "Stale"
)

// Member is a replica as its column knows it.
type Member struct {
	Replica string      `json:"replica"` // 16 hex digits, unique for all time
	Node    string      `json:"node"`
	Pool    string      `json:"pool"`
	State   MemberState `json:"state"`
	// Run is the boot of the member's machine in which it holds every acknowledged
	// write, also those that no flush followed. "" means that all was flushed: any run will do.
	Run string `json:"run,omitempty"`
	// Since is when State last changed.
	Since time.Time `json:"since"`
	// Reason says why placement put the replica here.
	Reason string `json:"reason"`
	// Removing marks a member that is to be dropped once the others are in sync.
	Removing bool `json:"removing,omitempty"`
	// Evict says why a member is to be removed although nothing is wrong with it; "" otherwise. Invariant: Removing if set.
	Evict Evict `json:"evict,omitempty"`
	// Size is how large the replica is known to be, in bytes of its column; 0 is what the volume had when it was made.
	Size int64 `json:"size,omitempty"`
}

// Token lets a machine join the cluster. The secret itself is never stored.
type Token struct {
	ID         string    `json:"id"`
	SecretHash string    `json:"secretHash"` // SHA-256, hex
	Roles      []Role    `json:"roles"`
	Created    time.Time `json:"created"`
	Expires    time.Time `json:"expires"`
}

// Limits of AnswerLimit. Below the least, a disk that is only busy would be taken for one that hangs; above the greatest,
// file systems report tasks that hang.
const (
	DefaultAnswerLimit = 10 * time.Second
	MinAnswerLimit     = 2 * time.Second
	MaxAnswerLimit     = 100 * time.Second
)

// DefaultSettings are the settings of a new cluster.
func DefaultSettings() Settings {
	return Settings{
		RebuildAfter:     10 * time.Minute,
		RebuildBandwidth: 200 << 20,
		Overcommit:       10,
		ScrubInterval:    DefaultScrubInterval,
		ScrubBandwidth:   DefaultScrubBandwidth,
	}
}

// Defaults and limits of the nouns.
const (
	DefaultReplicas = 2
	MaxReplicas     = 5
	MaxColumns      = 16
	MinVolumeSize   = 4 << 20
	MaxVolumeSize   = 64 << 40
	// StripeUnit is how many bytes of a volume with several columns go to one column
	// before the next one's turn.
	StripeUnit = 1 << 20
)

// Keys of a topology term that are no labels: a node's name and its zone.
const (
	TopologyNode = "topology.keelson.io/node"
	TopologyZone = "topology.keelson.io/zone"
)

// MaxTopologyTerms is how many terms a volume's topology has at most.
const MaxTopologyTerms = 256

// Meets reports whether the node meets a topology term.
func (n *Node) Meets(term map[string]string) bool {
	for k, want := range term {
		have := n.Labels[k]
		switch k {
		case TopologyNode:
			have = n.Name
		case TopologyZone:
			have = n.Zone
		}
		if have != want {
			return false
		}
	}
	return true
}

// Frontends of an attachment.
const (
	FrontendFUSE = "fuse"
	FrontendNBD  = "nbd"
	FrontendNone = "none"
)
