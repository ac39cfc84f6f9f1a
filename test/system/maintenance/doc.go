// Package maintenance tests growth, moves, pools and the upkeep of nodes on a lab of real daemons: while a volume is written to and
// verified, and while processes are killed in the middle of it. It needs root.
package maintenance
