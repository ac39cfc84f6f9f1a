package main

import "testing"

func TestDependenciesAreRead(t *testing.T) {
	text := "Package: xfsprogs\nVersion: 1:6.1.0-1\nDepends: libblkid1 (>= 2.17.2), libc6 (>= 2.34)\n"
	if got := field(text, "Depends"); got != "libblkid1 (>= 2.17.2), libc6 (>= 2.34)" {
		t.Errorf("%q", got)
	}
	if got := field(text, "Pre-Depends"); got != "" {
		t.Errorf("%q", got)
	}
}
