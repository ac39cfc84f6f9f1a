//go:build !mutant

package invariant

// Mutant reports whether the planted mistake of that name is switched on. Without the
// build tag mutant it never is, and the compiler removes the branch.
func Mutant(string) bool { return false }
