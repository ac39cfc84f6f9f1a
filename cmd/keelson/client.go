package main

import (
	"errors"
	"fmt"
	"io/fs"

	"keelson.io/keelson/internal/api"
	"keelson.io/keelson/internal/server"
)

// globalOptions are the flags of every command.
type globalOptions struct {
	config, dataDir, server string
}

// dir returns the node's data directory: flag, environment, configuration, default.
func (g *globalOptions) dir() (string, error) {
	if g.dataDir != "" {
		return g.dataDir, nil
	}
	c, err := server.LoadConfig(g.config)
	return c.DataDir, err
}

// client returns a client that shows this node's certificate.
func (g *globalOptions) client() (*api.Client, error) {
	dir, err := g.dir()
	if err != nil {
		return nil, usageError{err}
	}
	c, err := server.LocalClient(dir, g.server)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w; the node's certificate is root's: run this as root", err)
	}
	return c, err
}
