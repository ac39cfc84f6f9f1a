// Package tidy holds the repository's rules as tests: which level a package stands on and what
// it may import, what every package must say of itself, names and words that are not used, and
// how long a file may get. It has no code of its own, imports nothing of Keelson, and owns no
// goroutine.
package tidy
