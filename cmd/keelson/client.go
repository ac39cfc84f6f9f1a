package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"keelson.io/keelson/internal/api"
	"keelson.io/keelson/internal/server"
)

// globalOptions are the flags of every command.
type globalOptions struct {
	config, dataDir, server string
	token, tokenFile        string
}

// apiToken returns the API token: a flag wins over the environment, and the token over the file.
func (g *globalOptions) apiToken() (string, error) {
	if g.token != "" || g.tokenFile == "" {
		return strings.TrimSpace(g.token), nil
	}
	b, err := os.ReadFile(g.tokenFile)
	if err != nil {
		return "", usageError{fmt.Errorf("the API token: %w", err)}
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return "", usageError{fmt.Errorf("%s has no API token", g.tokenFile)}
	}
	return string(bytes.TrimSpace(b)), nil
}

// dir returns the node's data directory: flag, environment, configuration, default.
func (g *globalOptions) dir() (string, error) {
	if g.dataDir != "" {
		return g.dataDir, nil
	}
	c, err := server.LoadConfig(g.config)
	return c.DataDir, err
}

// client returns a client that shows the API token that was given, or else this node's certificate.
func (g *globalOptions) client() (*api.Client, error) {
	token, err := g.apiToken()
	if err != nil {
		return nil, err
	}
	if token != "" {
		if g.server == "" {
			return nil, usageError{errors.New("an API token is set, but not which server it is for: give --server HOST:PORT or set KEELSON_SERVER")}
		}
		return server.TokenClient(token, g.server)
	}
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
