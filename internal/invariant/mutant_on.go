//go:build mutant

package invariant

import "os"

var mutant = os.Getenv("KEELSON_MUTANT")

// Mutant reports whether the planted mistake of that name is switched on: by the
// environment variable KEELSON_MUTANT.
func Mutant(name string) bool { return name == mutant }
