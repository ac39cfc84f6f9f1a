package server

import (
	"encoding/json"
	"os"
	"path/filepath"

	"keelson.io/keelson/internal/spec"
)

// removedFile is where a node keeps which nodes were removed, for the time before it can ask the metadata.
const removedFile = "removed.json"

// readRemoved returns a cluster of which only what was removed is known.
func readRemoved(dataDir string) (c spec.Cluster, err error) {
	b, err := os.ReadFile(filepath.Join(dataDir, removedFile))
	if err == nil {
		err = json.Unmarshal(b, &c.Removed)
	}
	return c, err
}

// keepRemoved writes down which nodes were removed, if that has changed.
func keepRemoved(dataDir string, c spec.Cluster) error {
	b, err := json.Marshal(c.Removed)
	if err != nil {
		return err
	}
	path := filepath.Join(dataDir, removedFile)
	if have, err := os.ReadFile(path); len(c.Removed) == 0 && err != nil || err == nil && string(have) == string(b) {
		return nil
	}
	return replaceFile(path, b, 0o600)
}
