package api

import (
	"fmt"
	"strings"
)

// unprovenProblems says which nodes are waited for since the metadata was recovered, while there are volumes whose records aren't proven.
func (v *view) unprovenProblems() []string {
	unproven := 0
	for _, x := range v.volumes {
		if x.Unproven != nil {
			unproven++
		}
	}
	var nodes []string
	for _, n := range v.nodes {
		if v.cluster.Awaits(n) {
			nodes = append(nodes, n.Name)
		}
	}
	if unproven == 0 || len(nodes) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("the metadata was recovered, and %d volumes can't be attached anew before %s has said what it has; start it, or, if it is gone for good: keelson recover lost %s",
		unproven, strings.Join(nodes, ", and "), strings.Join(nodes, " "))}
}
