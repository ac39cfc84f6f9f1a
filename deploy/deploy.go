// Package deploy holds what is deployed with the program: the Helm chart, which `keelson install yaml` renders too.
//
// It owns no goroutine.
package deploy

import (
	"embed"
	"io/fs"
)

//go:embed all:chart
var files embed.FS

// Chart returns the chart's files.
func Chart() fs.FS {
	sub, err := fs.Sub(files, "chart")
	if err != nil {
		panic(err) // the path is a constant
	}
	return sub
}
