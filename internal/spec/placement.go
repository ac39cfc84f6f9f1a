package spec

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Tier is how fast the media are on which a volume's copies should lie.
type Tier string

// The tiers. Each prefers its media, and takes the next best that there is.
const (
	TierHigh   Tier = "high"
	TierMedium Tier = "medium"
	TierLow    Tier = "low"
)

// tierMedia are the media of each tier, the preferred one first.
var tierMedia = map[Tier][]Media{
	TierHigh:   {MediaNVMe, MediaSSD, MediaHDD},
	TierMedium: {MediaSSD, MediaNVMe, MediaHDD},
	TierLow:    {MediaHDD, MediaSSD, MediaNVMe},
}

// Rank is how far a kind of media is from what the tier prefers: 0 is what it prefers. Without a tier all are alike.
func (t Tier) Rank(m Media) int { return max(0, slices.Index(tierMedia[t], m)) }

// GroupRule says how a volume's copies lie to those of the other volumes of its group.
type GroupRule string

// The rules of groups. The ones that prefer give way where they can't be followed; the others are as hard as a node selector.
const (
	GroupPreferApart    GroupRule = "prefer-apart"
	GroupApart          GroupRule = "apart"
	GroupPreferTogether GroupRule = "prefer-together"
	GroupTogether       GroupRule = "together"
)

// Locality says whether a copy follows a volume to the node where it is attached.
type Locality string

// The localities.
const (
	// LocalityOff leaves copies where they are.
	LocalityOff Locality = "off"
	// LocalityPrefer moves a copy to the node when the volume has been attached there for a while, if there is room.
	LocalityPrefer Locality = "prefer"
	// LocalityRequire moves one at once; where none could be placed, the volume isn't attached.
	LocalityRequire Locality = "require"
)

// Placement is where a volume's copies should lie, beyond what is in the volume itself. The zero value asks for nothing.
type Placement struct {
	Tier      Tier      `json:"tier,omitempty"`
	Group     string    `json:"group,omitempty"`
	GroupRule GroupRule `json:"groupRule,omitempty"` // "" is prefer-apart
	Locality  Locality  `json:"locality,omitempty"`  // "" is off
}

// Validate checks a placement. The error is an *InvalidError.
func (p *Placement) Validate() error {
	if _, ok := tierMedia[p.Tier]; p.Tier != "" && !ok {
		return &InvalidError{"io-priority", string(p.Tier), "high, medium or low"}
	}
	if p.Group != "" && !labelValue.MatchString(p.Group) {
		return &InvalidError{"group", p.Group, "1 to 63 of letters, digits, '-', '_' and '.', beginning and ending with a letter or digit"}
	}
	rules := []GroupRule{"", GroupPreferApart, GroupApart, GroupPreferTogether, GroupTogether}
	if !slices.Contains(rules, p.GroupRule) {
		return &InvalidError{"group-rule", string(p.GroupRule), "prefer-apart, apart, prefer-together or together"}
	}
	if p.GroupRule != "" && p.Group == "" {
		return &InvalidError{"group-rule", string(p.GroupRule), "given together with a group"}
	}
	if !slices.Contains([]Locality{"", LocalityOff, LocalityPrefer, LocalityRequire}, p.Locality) {
		return &InvalidError{"locality", string(p.Locality), "off, prefer or require"}
	}
	return nil
}

// Follows reports whether copies follow the volume.
func (p *Placement) Follows() bool {
	return p.Locality == LocalityPrefer || p.Locality == LocalityRequire
}

// TrimState is what is known of a volume's trims by schedule.
type TrimState struct {
	// Every is how often the file system of the volume, while it is mounted through the CSI driver, gives back what it doesn't
	// use; 0: never.
	Every time.Duration `json:"every,omitempty"`
	// Last is when that was done last, on Node; Bytes is what the file system gave back, and Problem why it failed.
	Last    time.Time `json:"last,omitzero"`
	Node    string    `json:"node,omitempty"`
	Bytes   int64     `json:"bytes,omitempty"`
	Problem string    `json:"problem,omitempty"`
}

// How often volumes may be trimmed.
const (
	DefaultTrimEvery = 24 * time.Hour
	MinTrimEvery     = time.Hour
	MaxTrimEvery     = 366 * 24 * time.Hour
)

// CheckTrimEvery checks the interval of trims. The error is an *InvalidError.
func CheckTrimEvery(d time.Duration) error {
	if d != 0 && (d < MinTrimEvery || d > MaxTrimEvery) {
		return &InvalidError{"auto-fstrim", d.String(), fmt.Sprintf("%s to %s, or 0 for never", MinTrimEvery, MaxTrimEvery)}
	}
	return nil
}

// TopologyOf returns terms of a topology that are met by the nodes of one of the names, in one of the zones; an empty
// list is any. The error is an *InvalidError.
func TopologyOf(nodes, zones []string) ([]map[string]string, error) {
	for _, n := range nodes {
		if err := CheckName("node", n); err != nil {
			return nil, err
		}
	}
	for _, z := range zones {
		if err := CheckName("zone", z); err != nil {
			return nil, err
		}
	}
	if len(nodes) == 0 && len(zones) == 0 {
		return nil, nil
	}
	var terms []map[string]string
	for i := range max(1, len(nodes)) {
		for j := range max(1, len(zones)) {
			term := map[string]string{}
			if len(nodes) > 0 {
				term[TopologyNode] = nodes[i]
			}
			if len(zones) > 0 {
				term[TopologyZone] = zones[j]
			}
			terms = append(terms, term)
		}
	}
	if len(terms) > MaxTopologyTerms {
		return nil, &InvalidError{"node and zone", strings.Join(append(slices.Clone(nodes), zones...), ","), fmt.Sprintf("at most %d combinations", MaxTopologyTerms)}
	}
	return terms, nil
}
