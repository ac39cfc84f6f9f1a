package spec

import (
	"slices"
	"time"
)

// CAPhase is how far a cluster is on its way from one CA to another.
type CAPhase string

// The phases, in order. Each begins when every node has confirmed the one before.
const (
	CATrust  CAPhase = "trust"  // nodes come to trust the next CA as well
	CAIssue  CAPhase = "issue"  // nodes get certificates of the next CA
	CARetire CAPhase = "retire" // nodes cease to trust any other
)

// CARotation is the plan by which a cluster changes from one CA to another. CAs are named by the hashes of their certificates. No key is
// ever in it.
type CARotation struct {
	Phase CAPhase `json:"phase"`
	Next  string  `json:"next"` // the CA that is to sign
	// Bundle is PEM: the certificate of Next, those of the CAs before, the one that signed first, and one by which that vouches for Next.
	Bundle string    `json:"bundle"`
	Begun  time.Time `json:"begun"`
	// KeepOld is until when at least the CAs before stay trusted.
	KeepOld time.Time `json:"keepOld,omitzero"`
	// Turn is the node whose member of the metadata starts anew now, to trust whom the node does.
	Turn string `json:"turn,omitempty"`
	// Without are nodes that aren't waited for: they are gone.
	Without []string `json:"without,omitempty"`
}

// NodeCA is what a node has of CAs, by their hashes. The node alone writes it.
type NodeCA struct {
	Trusts []string `json:"trusts,omitempty"` // all processes but its member of the metadata do
	Peers  []string `json:"peers,omitempty"`  // its member of the metadata does; none if it runs none
	Issuer string   `json:"issuer,omitempty"` // has signed its certificate
	Keys   []string `json:"keys,omitempty"`   // whose keys it has
}

// Equal reports whether two say the same.
func (c NodeCA) Equal(d NodeCA) bool {
	return slices.Equal(c.Trusts, d.Trusts) && slices.Equal(c.Peers, d.Peers) && c.Issuer == d.Issuer && slices.Equal(c.Keys, d.Keys)
}

// NeedsTurn reports whether the node's member of the metadata trusts others than the node.
func (c NodeCA) NeedsTurn() bool { return len(c.Peers) > 0 && !sameSet(c.Peers, c.Trusts) }

func sameSet(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}

// WaitsFor says what a node has yet to do before the next phase can begin; "" if nothing.
func (r CARotation) WaitsFor(n Node) string {
	only := func(have []string) bool { return len(have) == 0 || sameSet(have, []string{r.Next}) }
	switch c := n.CA; {
	case slices.Contains(r.Without, n.Name):
	case r.Phase == CATrust && !slices.Contains(c.Trusts, r.Next):
		return "it doesn't trust the new CA yet"
	case r.Phase == CATrust && len(c.Peers) > 0 && !slices.Contains(c.Peers, r.Next):
		return "its member of the metadata doesn't trust the new CA yet"
	case r.Phase == CATrust && slices.Contains(n.Roles, RoleMetadata) && !slices.Contains(c.Keys, r.Next):
		return "it doesn't have the new CA's key yet"
	case r.Phase == CAIssue && c.Issuer != r.Next:
		return "its certificate is still of the old CA"
	case r.Phase == CARetire && (len(c.Trusts) == 0 || !only(c.Trusts)):
		return "it still trusts the old CA"
	case r.Phase == CARetire && !only(c.Peers):
		return "its member of the metadata still trusts the old CA"
	case r.Phase == CARetire && !only(c.Keys):
		return "it still has the old CA's key"
	}
	return ""
}
