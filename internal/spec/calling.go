package spec

// Calling is what the cluster has decided about a node's part in the metadata; "" is nothing: its role says it.
type Calling string

const (
	// Called: the node is to hold the metadata in the place of one that is gone, whatever roles it was given.
	Called Calling = "called"
	// Resting: another node holds the metadata in this one's place. It waits until it is called.
	Resting Calling = "resting"
)
