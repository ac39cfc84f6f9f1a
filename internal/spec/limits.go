package spec

import "fmt"

// Limits is what a volume does at the most: in all, and for reads and writes apart. 0 is no limit. IOPS are requests a second as they
// reach the coordinator, bandwidths are bytes a second.
type Limits struct {
	IOPS           int64 `json:"iops,omitempty"`
	Bandwidth      int64 `json:"bandwidth,omitempty"`
	ReadIOPS       int64 `json:"readIops,omitempty"`
	WriteIOPS      int64 `json:"writeIops,omitempty"`
	ReadBandwidth  int64 `json:"readBandwidth,omitempty"`
	WriteBandwidth int64 `json:"writeBandwidth,omitempty"`
}

// The legal ranges of limits. Below the least, a single request of the greatest size would be held for seconds.
const (
	MinIOPSLimit      = 100
	MaxIOPSLimit      = 100_000_000
	MinBandwidthLimit = 1 << 20
	MaxBandwidthLimit = 512 << 30
)

// LimitKind is one of the limits, by the name of its flag.
type LimitKind struct {
	Name      string
	Bandwidth bool // bytes a second; else requests a second
	Of        func(*Limits) *int64
}

// LimitKinds are all limits, in the order in which they are shown.
var LimitKinds = []LimitKind{
	{"iops-limit", false, func(l *Limits) *int64 { return &l.IOPS }},
	{"bandwidth-limit", true, func(l *Limits) *int64 { return &l.Bandwidth }},
	{"read-iops-limit", false, func(l *Limits) *int64 { return &l.ReadIOPS }},
	{"write-iops-limit", false, func(l *Limits) *int64 { return &l.WriteIOPS }},
	{"read-bandwidth-limit", true, func(l *Limits) *int64 { return &l.ReadBandwidth }},
	{"write-bandwidth-limit", true, func(l *Limits) *int64 { return &l.WriteBandwidth }},
}

// Check checks one limit's value. The error is an *InvalidError.
func (k LimitKind) Check(n int64) error {
	lo, hi := int64(MinIOPSLimit), int64(MaxIOPSLimit)
	legal := fmt.Sprintf("%d to %d requests a second, or 0 for no limit", lo, hi)
	if k.Bandwidth {
		lo, hi = MinBandwidthLimit, MaxBandwidthLimit
		legal = fmt.Sprintf("%s to %s (%d to %d bytes) a second, or 0 for no limit", FormatSize(lo), FormatSize(hi), lo, hi)
	}
	if n != 0 && (n < lo || n > hi) {
		return &InvalidError{k.Name, fmt.Sprint(n), legal}
	}
	return nil
}

// Validate checks all limits. The error is an *InvalidError.
func (l *Limits) Validate() error {
	for _, k := range LimitKinds {
		if err := k.Check(*k.Of(l)); err != nil {
			return err
		}
	}
	return nil
}

// validateData checks limits, placement and trim of a volume. The error is an *InvalidError.
func (v *Volume) validateData() error {
	if err := v.Limits.Validate(); err != nil {
		return err
	}
	if err := v.Placement.Validate(); err != nil {
		return err
	}
	return CheckTrimEvery(v.Trim.Every)
}
