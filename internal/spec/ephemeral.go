package spec

import (
	"fmt"
	"path"
)

// Ephemeral says for what a volume was made that is deleted with it: a pod of a node. Nobody else keeps the volume, and
// nobody else finds it again.
type Ephemeral struct {
	Node string `json:"node"` // where the pod runs
	Path string `json:"path"` // where the pod has it on that node
}

// maxPath is the longest path that the kernel takes, in bytes.
const maxPath = 4095

// Validate checks both fields. The error is an *InvalidError.
func (e *Ephemeral) Validate() error {
	if e == nil {
		return nil
	}
	if err := CheckName("ephemeral.node", e.Node); err != nil {
		return err
	}
	if !path.IsAbs(e.Path) || path.Clean(e.Path) != e.Path || len(e.Path) > maxPath {
		return &InvalidError{"ephemeral.path", e.Path, fmt.Sprintf("an absolute path of at most %d bytes, without . and ..", maxPath)}
	}
	return nil
}
