package reconcile

import (
	"fmt"
	"strings"
	"time"

	"keelson.io/keelson/internal/spec"
)

// resize ends the growth of volumes all of whose in-sync members are large enough. Their nodes make them larger by themselves
// when they see the plan in the record; one that is away holds the growth up until it is back or isn't in sync any more.
func (r *Runner) resize(now time.Time) plan {
	var p plan
	for _, vol := range r.view.Volumes {
		x := &vol.Value
		if x.Growth.To == 0 || x.Deleting {
			continue
		}
		ch := change{old: vol, new: cloneVolume(*x), what: fmt.Sprintf("volume grown from %s to %s", spec.FormatSize(x.Size), spec.FormatSize(x.Growth.To))}
		if ch.new.AdmitGrowth() {
			p.changes = append(p.changes, ch)
			continue
		}
		var away []string
		for _, m := range x.Waiting() {
			if !r.view.usable(m) {
				away = append(away, m.Node)
			}
		}
		if len(away) > 0 {
			r.tell(x.Name, "its growth waits for the replicas on nodes that are away: "+strings.Join(away, ", "))
			p.deadline(now.Add(retryMax))
		}
	}
	return p
}
