package spec

import (
	"hash/fnv"
	"slices"
	"time"
)

// Scrub is the verification of a volume: the one that is asked for, how far it is, and what the last one found. The
// position is kept coarsely, so that a coordinator that begins anew goes on near where the one before stopped.
type Scrub struct {
	// Number counts the scrubs that were begun. 0: there was none.
	Number uint64 `json:"number,omitempty"`
	// Active is set from the moment a scrub is asked for until it has ended.
	Active bool `json:"active,omitempty"`
	// Paused: it waits until a person resumes it.
	Paused bool `json:"paused,omitempty"`
	// Scheduled: nobody asked for it, its time had come.
	Scheduled bool `json:"scheduled,omitempty"`
	// Bandwidth limits it further than the settings do, in bytes a second; 0 doesn't.
	Bandwidth int64 `json:"bandwidth,omitempty"`
	// Prefer is a node whose copy is to replace the others where intact copies differ: a person's decision. "" leaves
	// such blocks alone.
	Prefer string `json:"prefer,omitempty"`
	// Position is how many chunks have been verified, column by column.
	Position int64 `json:"position,omitempty"`
	// Begun is when it was asked for.
	Begun time.Time `json:"begun,omitzero"`
	// Findings are those of the scrub that is active, up to Position.
	Findings ScrubFindings `json:"findings,omitzero"`
	// Last is the one that ended last.
	Last ScrubResult `json:"last,omitzero"`
	// Cancelled is when a person ended one early: the schedule counts from there.
	Cancelled time.Time `json:"cancelled,omitzero"`
}

// ScrubFindings is what a scrub found.
type ScrubFindings struct {
	// Bytes of the volume that were verified: what is allocated, each byte once, however many copies there are.
	Bytes int64 `json:"bytes,omitempty"`
	// Repaired counts blocks of copies that were written anew from an intact one.
	Repaired int64 `json:"repaired,omitempty"`
	// Unreadable counts blocks of which no copy is intact. Reads of them fail until they are written.
	Unreadable int64 `json:"unreadable,omitempty"`
	// Differing counts blocks whose copies are intact, each by its own checksum, and not the same. Nothing was changed.
	Differing int64 `json:"differing,omitempty"`
	// Chosen counts blocks whose copies differed and that were made what the preferred copy has.
	Chosen int64 `json:"chosen,omitempty"`
	// Partial: some of it was verified while a copy was away.
	Partial bool `json:"partial,omitempty"`
	// Bad names the first MaxScrubBad of the runs of blocks that are unreadable or differ.
	Bad []ScrubBad `json:"bad,omitempty"`
}

// ScrubBad is a run of blocks that a scrub could not mend.
type ScrubBad struct {
	// Off is bytes from the start of the volume, and Len how many.
	Off int64 `json:"off"`
	Len int64 `json:"len"`
	// Differ: the copies are intact and differ. Otherwise none is intact.
	Differ bool     `json:"differ,omitempty"`
	Pools  []string `json:"pools,omitempty"` // that hold the copies
	// Snapshot is the name of the one that it is in; "" is the volume as it is now.
	Snapshot string `json:"snapshot,omitempty"`
}

// ScrubResult is a scrub that ended.
type ScrubResult struct {
	Number    uint64        `json:"number"`
	Scheduled bool          `json:"scheduled,omitempty"`
	Begun     time.Time     `json:"begun"`
	Ended     time.Time     `json:"ended"`
	Findings  ScrubFindings `json:"findings"`
}

// Limits of scrubs.
const (
	MaxScrubBad           = 16
	DefaultScrubInterval  = 30 * 24 * time.Hour
	DefaultScrubBandwidth = 50 << 20
	MinScrubBandwidth     = 1 << 20
	MinScrubInterval      = time.Minute
	MaxScrubInterval      = 10 * 365 * 24 * time.Hour
	scrubSpread           = 1 << 16
	scrubFirst            = time.Hour // the earliest first one of a new volume
)

// Running reports whether a coordinator has a scrub to go on with.
func (s *Scrub) Running() bool { return s.Active && !s.Paused }

// Begin asks for the next scrub, from the beginning. There must be none that is active.
func (s *Scrub) Begin(now time.Time, scheduled bool) {
	*s = Scrub{Number: s.Number + 1, Active: true, Scheduled: scheduled, Begun: now.UTC(), Last: s.Last, Cancelled: s.Cancelled}
}

// End makes the active scrub the last one.
func (s *Scrub) End(now time.Time) {
	last := ScrubResult{Number: s.Number, Scheduled: s.Scheduled, Begun: s.Begun, Ended: now.UTC(), Findings: s.Findings}
	*s = Scrub{Number: s.Number, Last: last, Cancelled: s.Cancelled}
}

// Cancel ends the active scrub without a result.
func (s *Scrub) Cancel(now time.Time) {
	*s = Scrub{Number: s.Number, Last: s.Last, Cancelled: now.UTC()}
}

// ScrubDue is when the schedule wants the volume scrubbed next. The first scrubs of volumes are spread over the interval, so
// that those that were made together aren't all scrubbed together.
func (v *Volume) ScrubDue(interval time.Duration) time.Time {
	last := v.Scrub.Last.Ended
	if v.Scrub.Cancelled.After(last) {
		last = v.Scrub.Cancelled
	}
	if !last.IsZero() {
		return last.Add(interval)
	}
	h := fnv.New32a()
	h.Write([]byte(v.ID))
	part := time.Duration(h.Sum32() % scrubSpread)
	return v.Created.Add(min(scrubFirst, interval) + (interval-min(scrubFirst, interval))/scrubSpread*part)
}

// Merge adds what a later part of the same scrub found.
func (f ScrubFindings) Merge(o ScrubFindings) ScrubFindings {
	f.Bytes += o.Bytes
	f.Repaired += o.Repaired
	f.Unreadable += o.Unreadable
	f.Differing += o.Differing
	f.Chosen += o.Chosen
	f.Partial = f.Partial || o.Partial
	bad := slices.Clone(f.Bad)
	for _, b := range o.Bad {
		if n := len(bad) - 1; n >= 0 && bad[n].Off+bad[n].Len == b.Off && bad[n].Differ == b.Differ && bad[n].Snapshot == b.Snapshot && slices.Equal(bad[n].Pools, b.Pools) {
			bad[n].Len += b.Len
		} else if len(bad) < MaxScrubBad {
			bad = append(bad, b)
		}
	}
	f.Bad = bad
	return f
}
