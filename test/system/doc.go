// Package system tests the real program on a lab: real daemons, pools and devices, processes that are
// killed and nodes that are cut off. One lab of three nodes serves most tests; it is made by the
// first that asks and removed at the end. The tests need root, and KEELSON_BIN or a Go tool to
// build the program with. They run one after the other.
//
// KEELSON_LONG=1 makes the tests that count things count further.
package system
