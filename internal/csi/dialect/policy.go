package dialect

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"keelson.io/keelson/internal/spec"
)

// Change is what a VolumeAttributesClass changes of a volume that is there. What is nil is left as it is.
type Change struct {
	// Limits are in the order of spec.LimitKinds.
	Limits         []*int64
	Tier, Locality *string
	TrimEvery      *time.Duration
}

const (
	legalIOPS    = "0 for no limit, or 100 to 100000000 requests a second"
	legalBytes   = "0 for no limit, or 1M to 512G (K, M, G: powers of 1024), or bytes a second from 1048576 to 549755813888, a multiple of 512"
	legalThrough = "MB a second, a whole number"
	legalGroup   = "a name of letters, digits, '-', '_' and '.', or nothing"
	outOfRange   = "is outside of what can be limited: the nearest limit is taken (100 to 100000000 requests, 1 MB to 512 GB a second)"
)

// limitTo returns the place of a limit in a request, by its name.
func limitTo(name string) func(r *Request) *int64 {
	i := slices.IndexFunc(spec.LimitKinds, func(k spec.LimitKind) bool { return k.Name == name })
	return func(r *Request) *int64 { return spec.LimitKinds[i].Of(&r.Limits) }
}

// iops takes a limit of requests a second; 0 is none, if it may be.
func iops(name string, least int64) setter {
	to := limitTo(name)
	return func(r *Request, v string) (bool, bool) {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n != 0 && n < spec.MinIOPSLimit || n < least || n > spec.MaxIOPSLimit {
			return false, false
		}
		*to(r) = n
		return n == 0, true
	}
}

// nearest takes any whole number of units a second, and the limit that is nearest to it. It is idle when that is the number itself.
func nearest(name string, unit, lo, hi int64) setter {
	to := limitTo(name)
	return func(r *Request, v string) (bool, bool) {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return false, false
		}
		if n == 0 {
			*to(r) = 0
			return true, true
		}
		u := uint64(unit)
		got := min(max(n, uint64(lo)/u), uint64(hi)/u)
		*to(r) = int64(got * u)
		return got == n, true
	}
}

// tier takes high, medium, low, or their numbers.
func tier(r *Request, v string) (bool, bool) {
	names := map[string]spec.Tier{"high": spec.TierHigh, "medium": spec.TierMedium, "low": spec.TierLow, "3": spec.TierHigh, "2": spec.TierMedium, "1": spec.TierLow}
	t, ok := names[v]
	r.Placement.Tier = t
	return false, ok
}

// group takes the name of a group.
func group(r *Request, v string) (bool, bool) {
	p := spec.Placement{Group: v}
	r.Placement.Group = v
	return v == "", p.Validate() == nil
}

// groupRule takes a rule of groups.
func groupRule(r *Request, v string) (bool, bool) {
	p := spec.Placement{Group: "g", GroupRule: spec.GroupRule(v)}
	r.Placement.GroupRule = p.GroupRule
	return v == "", p.Validate() == nil
}

// locality takes off, prefer or require.
func locality(r *Request, v string) (bool, bool) {
	p := spec.Placement{Locality: spec.Locality(v)}
	r.Placement.Locality = p.Locality
	return false, v != "" && p.Validate() == nil
}

const legalTrim = "true (every 24h), false, or an interval from 1h to 8784h"

// autoTrim takes true, false or an interval.
func autoTrim(r *Request, v string) (bool, bool) {
	if on, err := strconv.ParseBool(v); err == nil {
		r.TrimEvery = 0
		if on {
			r.TrimEvery = spec.DefaultTrimEvery
		}
		return !on, true
	}
	d, err := time.ParseDuration(v)
	r.TrimEvery = d
	return false, err == nil && d > 0 && spec.CheckTrimEvery(d) == nil
}

// ParseChange returns what the parameters of a VolumeAttributesClass change. Only what can be changed while a volume is there is taken. The error is an
// *spec.InvalidError.
func (d *Dialect) ParseChange(params map[string]string) (Change, error) {
	const unset = -1
	r := Request{TrimEvery: unset, Placement: spec.Placement{Tier: "?", Locality: "?"}}
	for _, k := range spec.LimitKinds {
		*k.Of(&r.Limits) = unset
	}
	legal := fmt.Sprint(d.mutable())
	for _, k := range sorted(params) {
		v := params[k]
		row, ok := d.row(k)
		if !ok || !row.mutable {
			return Change{}, &spec.InvalidError{Field: "mutable parameter " + k, Value: v, Legal: "left out: of a volume that is there, these can be changed: " + legal}
		}
		if _, ok := row.set(&r, v); !ok {
			return Change{}, &spec.InvalidError{Field: "mutable parameter " + k, Value: v, Legal: row.legal}
		}
	}
	c := Change{Limits: make([]*int64, len(spec.LimitKinds))}
	for i, k := range spec.LimitKinds {
		if n := *k.Of(&r.Limits); n != unset {
			c.Limits[i] = &n
		}
	}
	if t := string(r.Placement.Tier); t != "?" {
		c.Tier = &t
	}
	if l := string(r.Placement.Locality); l != "?" {
		c.Locality = &l
	}
	if r.TrimEvery != unset {
		c.TrimEvery = &r.TrimEvery
	}
	return c, nil
}

// Apply makes the change in a request.
func (c Change) Apply(r *Request) {
	for i, n := range c.Limits {
		if n != nil {
			*spec.LimitKinds[i].Of(&r.Limits) = *n
		}
	}
	if c.Tier != nil {
		r.Placement.Tier = spec.Tier(*c.Tier)
	}
	if c.Locality != nil {
		r.Placement.Locality = spec.Locality(*c.Locality)
	}
	if c.TrimEvery != nil {
		r.TrimEvery = *c.TrimEvery
	}
}

// mutable are the keys that can be changed.
func (d *Dialect) mutable() []string {
	var keys []string
	for _, p := range d.rows {
		if p.mutable {
			keys = append(keys, p.keys[0])
		}
	}
	slices.Sort(keys)
	return keys
}

func sorted(params map[string]string) []string {
	keys := make([]string, 0, len(params))
	for k := range params {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
