package kube

import (
	"fmt"
	"time"
)

// outage is a node without a lease. Times are monotonic ones of this process.
type outage struct {
	since time.Time
	// silent is since when the machine has answered nothing; zero if it answered when it was last asked.
	silent time.Time
	last   Reach
}

// saw notes what the machine answered to a question that was asked at a time.
func (o *outage) saw(r Reach, asked time.Time) {
	o.last = r
	switch {
	case r != Silent:
		o.silent = time.Time{}
	case o.silent.IsZero():
		o.silent = asked
	}
}

// lost reports whether the node counts as lost, and why.
//
// That the lease is gone isn't enough: it is, too, for the seconds in which Keelson is started anew on a machine that is well,
// with the devices held and the pods waiting. Only the machine's answers tell the two apart.
func (o *outage) lost(now time.Time, p Patience) (why string, lost bool) {
	gone := now.Sub(o.since)
	switch {
	case !o.silent.IsZero() && now.Sub(o.silent) >= p.Silent:
		return fmt.Sprintf("its storage lease ended %s ago and the machine doesn't answer", rounded(gone)), true
	case o.last == Refuses && gone >= p.Reachable:
		return fmt.Sprintf("its storage lease ended %s ago: the machine answers, but Keelson doesn't run there", rounded(gone)), true
	case o.last == Answers && gone >= p.Reachable:
		return fmt.Sprintf("its storage lease ended %s ago: Keelson runs there, but can't reach the metadata", rounded(gone)), true
	}
	return "", false
}

func rounded(d time.Duration) time.Duration { return d.Round(100 * time.Millisecond) }

// tooMany reports whether so many nodes lost their leases at once that rather the network around the leader is broken than
// they are: more than half of those that weren't lost before, and more than one.
func tooMany(without, all int) bool { return without > 1 && 2*without > all }
