//go:build mutant

package invariant

import "os"

var mutant = os.Getenv("KEELSON_MUTANT")

// Mutant reports whether the planted mistake of that name is switched on: by the
// environment variable KEELSON_MUTANT.
func Mutant(name string) bool { return name == mutant }

// Plant switches the planted mistake of that name on, and the one before off; "" is none. Nothing that
// could ask for it may run meanwhile.
func Plant(name string) { mutant = name }
