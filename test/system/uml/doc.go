// Package uml tests the NBD frontend against the NBD client of a Linux kernel. Test
// machines often have a kernel without it, so the test boots one that has: user-mode
// Linux, a process that needs no virtualization. It has nothing but tests.
package uml
