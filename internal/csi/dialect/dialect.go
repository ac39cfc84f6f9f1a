// Package dialect translates the parameters of storage classes into what is asked of Keelson. There are three: our own,
// that of Pure Service Orchestrator (driver pure-csi), and that of Portworx (driver pxd.portworx.com). Each is a table of
// keys; nothing else in the driver knows their names.
//
// It is pure: the same parameters give the same request. A bad value is an *spec.InvalidError that names the key, the value
// and what is legal. A key that isn't known, and one whose effect Keelson doesn't have, is a Warning and no error.
package dialect

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"keelson.io/keelson/internal/spec"
)

// Names of the drivers.
const (
	DriverKeelson  = "csi.keelson.io"
	DriverPure     = "pure-csi"
	DriverPortworx = "pxd.portworx.com"
)

// Keys of nodes in a Constraint that are no labels.
const (
	KeyNode = spec.TopologyNode
	KeyZone = spec.TopologyZone
)

// Request is what a storage class asks for. A zero value leaves the matter to the default.
type Request struct {
	Replicas     int
	Columns      int
	ZoneSpread   bool
	Media        string
	NodeSelector map[string]string
	// Within are constraints that a node must meet, all of them, to get a copy.
	Within []Constraint
	// FSType is never "" after Translate: ext4, xfs or ext3.
	FSType string
	// CreateOptions are words for mkfs.
	CreateOptions []string
	MountOptions  []string
	NoDiscard     bool
	Encrypt       bool
	Limits        spec.Limits
	Placement     spec.Placement
	// TrimEvery is how often the mounted file system is trimmed; 0 is never.
	TrimEvery time.Duration
	// Schedule says when snapshots are taken by themselves, as spec.ParseSchedules reads it; "" is never.
	Schedule string
}

// Constraint is met by a node of which the value of Key, a label or one of KeyNode and KeyZone, is one of Values.
type Constraint struct {
	Key    string
	Values []string
}

// Warning is a parameter that has no effect, or not the whole one.
type Warning struct {
	Key, Value string
	Why        string
}

// String words it for an event.
func (w Warning) String() string {
	return fmt.Sprintf("parameter %s %q %s", w.Key, w.Value, w.Why)
}

// parameter is a row of a dialect.
type parameter struct {
	keys  []string // the name, and other spellings
	legal string
	// set takes the value into the request. ok is false for a bad value; idle says that the value asks for nothing
	// that isn't there anyway.
	set func(r *Request, v string) (idle, ok bool)
	// lacking says what of a value that isn't idle has no effect; "" if all has.
	lacking string
	// mutable: it can be changed of a volume that is there.
	mutable bool
}

// Dialect is the language of a driver's storage classes.
type Dialect struct {
	Driver string
	// DefaultFS is the file system of a class that names none.
	DefaultFS string
	// DefaultReplicas are those of a class that doesn't say; 0 is Keelson's own default.
	DefaultReplicas int
	rows            []parameter
}

// ForDriver returns the dialect of the driver of that name: our own for a name that isn't an alias.
func ForDriver(name string) *Dialect {
	switch name {
	case DriverPure:
		return &Dialect{Driver: name, DefaultFS: "xfs", rows: pure}
	case DriverPortworx:
		return &Dialect{Driver: name, DefaultFS: "ext4", DefaultReplicas: 1, rows: portworx}
	}
	return &Dialect{Driver: name, DefaultFS: "ext4", rows: own}
}

// reserved are keys for the sidecars; what isn't in shared they keep for themselves, or tell us only to know.
const reserved = "csi.storage.k8s.io/"

// shared are the keys that every dialect has.
var shared = []parameter{
	{keys: []string{reserved + "fstype", "fsType", "fstype"}, legal: legalFS, set: setFS},
}

// Translate returns what a class with these parameters asks for. Warnings are in the order of the keys. The error is an
// *spec.InvalidError.
func (d *Dialect) Translate(params map[string]string) (Request, []Warning, error) {
	r := Request{FSType: d.DefaultFS, Replicas: d.DefaultReplicas}
	var warnings []Warning
	seen := map[string]string{}
	for _, k := range sorted(params) {
		v := params[k]
		row, ok := d.row(k)
		if !ok {
			if !strings.HasPrefix(k, reserved) {
				warnings = append(warnings, Warning{k, v, "isn't known to driver " + d.Driver + " and has no effect; is it misspelt?"})
			}
			continue
		}
		if other, twice := seen[row.keys[0]]; twice && params[other] != v {
			return Request{}, nil, &spec.InvalidError{Field: "parameter " + k, Value: v, Legal: fmt.Sprintf("the same as %s %q: both name one thing", other, params[other])}
		}
		seen[row.keys[0]] = k
		idle, ok := row.set(&r, v)
		if !ok {
			return Request{}, nil, &spec.InvalidError{Field: "parameter " + k, Value: v, Legal: row.legal}
		}
		if row.lacking != "" && !idle {
			warnings = append(warnings, Warning{k, v, row.lacking})
		}
	}
	if r.Placement.Group == "" && d.Driver == DriverPortworx {
		r.Placement.GroupRule = "" // fg without a group asks for nothing
	}
	return r, warnings, nil
}

func (d *Dialect) row(key string) (parameter, bool) {
	for _, rows := range [][]parameter{d.rows, shared} {
		for _, p := range rows {
			if slices.Contains(p.keys, key) {
				return p, true
			}
		}
	}
	return parameter{}, false
}
