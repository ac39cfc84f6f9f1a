package repl

import "time"

// TooSmall tells that member m can't hold the column as large as it has become. One that is on its way to be in sync is given
// up, and comes back when it has grown; one in sync is never too small. No transaction is under way that names it.
func (c *Column) TooSmall(m int, now time.Duration) {
	switch mb := &c.members[m]; {
	case !mb.Present:
	case mb.Role == Joining || mb.Role == Catching || mb.Role == Promoting:
		c.drop(m, now)
	}
}
