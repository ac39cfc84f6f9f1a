//go:build !amd64

package xts

// narrow returns nil: there is none for this processor.
func narrow(*native) *native { return nil }
