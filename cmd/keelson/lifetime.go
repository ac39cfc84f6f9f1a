package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// lifetime is a flag of a duration that also takes days: 30d.
type lifetime time.Duration

// Set implements pflag.Value.
func (l *lifetime) Set(s string) error {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return fmt.Errorf("%q is no number of days", days)
		}
		*l = lifetime(time.Duration(n) * 24 * time.Hour)
		return nil
	}
	d, err := time.ParseDuration(s)
	*l = lifetime(d)
	return err
}

// String implements pflag.Value.
func (l *lifetime) String() string {
	d := time.Duration(*l)
	if d > 0 && d%(24*time.Hour) == 0 {
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
	return d.String()
}

// Type implements pflag.Value.
func (*lifetime) Type() string { return "duration" }
