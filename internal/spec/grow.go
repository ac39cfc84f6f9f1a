package spec

import "fmt"

// Growth is the plan by which a volume gets larger, and what is known of its past sizes. Growing takes these steps, each of
// which can be repeated:
//
//	To is recorded -> every node that has a copy makes it larger, and records the member's Size
//	-> when all in-sync members are large enough, Size becomes To: from then on the volume serves that much
//
// Invariant: every in-sync member is large enough for Size.
type Growth struct {
	// To is the size in bytes that the volume is to get; 0 while it isn't growing. Invariant: 0 or above Size.
	To int64 `json:"to,omitempty"`
	// Base is the size in bytes with which the volume was made; 0 if it was never grown.
	Base int64 `json:"base,omitempty"`
}

// Planned is the size in bytes that the volume has or is on its way to. New copies are made that large, and pools are promised it.
func (v *Volume) Planned() int64 { return max(v.Size, v.Growth.To) }

// Holds reports whether a member's replica is known to be large enough for a volume of size bytes.
func (v *Volume) Holds(m Member, size int64) bool {
	have := m.Size
	if have == 0 {
		base := v.Growth.Base
		if base == 0 {
			base = v.Size
		}
		have = ColumnSize(base, v.Columns)
	}
	return have >= ColumnSize(size, v.Columns)
}

// PlanGrowth records that the volume shall get size bytes. That it has, or is on its way to, them already is no error. The error
// is an *InvalidError.
func (v *Volume) PlanGrowth(size int64) error {
	if err := CheckVolumeSize(size); err != nil {
		return err
	}
	if size < v.Planned() {
		return &InvalidError{"size", fmt.Sprint(size), fmt.Sprintf("a multiple of 4096 bytes from %s (%d), the size that volume %s has, to %s: a volume can't be made smaller",
			FormatSize(v.Planned()), v.Planned(), v.Name, FormatSize(MaxVolumeSize))}
	}
	if size == v.Planned() {
		return nil
	}
	if v.Growth.Base == 0 {
		v.Growth.Base = v.Size
	}
	v.Growth.To = size
	return nil
}

// Waiting returns the in-sync members that aren't large enough yet for the size that the volume is on its way to.
func (v *Volume) Waiting() (list []Member) {
	if v.Growth.To == 0 {
		return nil
	}
	for _, c := range v.State.Columns {
		for _, m := range c.Members {
			if m.State == InSync && !v.Holds(m, v.Growth.To) {
				list = append(list, m)
			}
		}
	}
	return list
}

// AdmitGrowth ends the growth if every in-sync member is large enough, and reports whether it did.
func (v *Volume) AdmitGrowth() bool {
	if v.Growth.To == 0 || len(v.Waiting()) > 0 {
		return false
	}
	v.Size, v.Growth.To = v.Growth.To, 0
	if v.Columns > 1 {
		v.Scrub.Position = 0 // chunks are counted column by column
	}
	return true
}
