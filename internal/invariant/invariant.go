// Package invariant holds assertions: what must be true whatever the input, the
// disks, the network and the other nodes do. A violated one is a mistake in Keelson
// itself, so it stops the process before more harm is done; the supervisor starts a
// new engine, which recovers from what is durable.
//
// Assertions are always on, so they stay cheap: a comparison of values at hand.
// The package also has the switch by which tests plant a mistake on purpose, to see
// that the simulation finds it. It does no I/O and owns no goroutine.
package invariant

import "fmt"

// Violation is what Check panics with.
type Violation struct {
	// Msg says which invariant was violated, and by what.
	Msg string
}

// Error returns the message.
func (v *Violation) Error() string { return "invariant violated: " + v.Msg }

// Check panics with a *Violation unless cond is true. The message is made from format
// and args as by fmt.Sprintf, and should name the volume, the term and the values that
// disagree. Where the arguments cost an allocation on the data path, test the condition
// first and call Fail.
func Check(cond bool, format string, args ...any) {
	if !cond {
		Fail(format, args...)
	}
}

// Fail panics with a *Violation.
func Fail(format string, args ...any) {
	panic(&Violation{Msg: fmt.Sprintf(format, args...)})
}
