package spec

import (
	"maps"
	"slices"
	"time"
)

// Recovery says that the metadata was put back to an older state, after its quorum was lost. The zero value: never.
type Recovery struct {
	// Number counts the recoveries of the cluster.
	Number int       `json:"number,omitempty"`
	At     time.Time `json:"at,omitzero"`
	// StateOf is when the state that was restored was last changed, as far as is known.
	StateOf time.Time `json:"stateOf,omitzero"`
	// Node is where it was done; From is where the state came from.
	Node string `json:"node,omitempty"`
	From string `json:"from,omitempty"`
	// Lost are nodes that a person has declared lost for good: nobody waits for what they have.
	Lost []string `json:"lost,omitempty"`
	// Heard are the nodes that have said of every volume what they have of it.
	Heard []string `json:"heard,omitempty"`
}

// Awaits reports whether the node may have something of volumes that it hasn't said yet.
func (c *Cluster) Awaits(n Node) bool {
	r := &c.Recovery
	if r.Number == 0 || slices.Contains(r.Lost, n.Name) || slices.Contains(r.Heard, n.Name) {
		return false
	}
	at, removed := c.Removed[n.Name]
	return slices.Contains(n.Roles, RoleStorage) && !(removed && n.Joined.Before(at))
}

// AlsoRemoved adds removals that others remember. It reports whether the cluster didn't know of them all.
func (c *Cluster) AlsoRemoved(others map[string]time.Time) bool {
	changed := false
	for name, at := range others {
		if have, ok := c.Removed[name]; ok && !have.Before(at) {
			continue
		}
		if !changed {
			changed = true
			c.Removed = maps.Clone(c.Removed)
		}
		if c.Removed == nil {
			c.Removed = map[string]time.Time{}
		}
		c.Removed[name] = at
	}
	return changed
}

// Unproven is set for a volume whose record was restored with the metadata: it may be older than what nodes have done since.
// Until it is proven nobody attaches the volume anew, changes its members or removes copies of it; who serves it goes on.
type Unproven struct {
	// Rev is the revision that this record had before the recovery; 0 if nodes only have copies of the volume, and no record.
	Rev    int64   `json:"rev"`
	Claims []Claim `json:"claims,omitempty"`
}

// Claim is what a node has of a volume.
type Claim struct {
	Node string `json:"node"`
	// Term is that of its attachment, 0 if it has none; Serving, whether that serves.
	Term    uint64        `json:"term,omitempty"`
	Serving bool          `json:"serving,omitempty"`
	Copies  []ClaimedCopy `json:"copies,omitempty"`
}

// ClaimedCopy is a replica as its directory says it is.
type ClaimedCopy struct {
	Replica    string `json:"replica"`
	Pool       string `json:"pool"`
	Column     int    `json:"column"`
	Size       int64  `json:"size"`
	Fence      uint64 `json:"fence"`
	Checkpoint uint64 `json:"checkpoint"`
	Run        string `json:"run"`
	// Clone: it was made from a snapshot, and so had data before the first attachment.
	Clone bool `json:"clone,omitempty"`
}

// Claim replaces what a node has said of the volume before. It reports whether that changed anything.
func (u *Unproven) Claim(c Claim) bool {
	i := slices.IndexFunc(u.Claims, func(o Claim) bool { return o.Node == c.Node })
	if i < 0 {
		u.Claims = append(slices.Clone(u.Claims), c)
		return true
	}
	if o := u.Claims[i]; o.Term == c.Term && o.Serving == c.Serving && slices.Equal(o.Copies, c.Copies) {
		return false
	}
	u.Claims = slices.Clone(u.Claims)
	u.Claims[i] = c
	return true
}

// Described is the volume as the descriptions of its replicas have it, from which its record can be made anew: what was asked for, and its wrapped
// key; not what became of it.
func (v Volume) Described() Volume {
	v.State, v.Scrub, v.Unproven = State{}, Scrub{}, nil
	v.Snapshots, v.Clones, v.Restore, v.Source = nil, nil, nil, nil
	return v
}
