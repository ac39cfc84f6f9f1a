// Package power tests what a real kernel leaves of a replica when the power goes. In user-mode Linux, a replica
// on XFS is written over dm-log-writes, which records every write and every flush that reaches the disk, in
// order. Then, on the host, the disk is built as it could have been after a loss of power at each flush, and in
// between with any of the writes that no flush had made durable: XFS replays its log, the replica is opened, and
// everything that was acknowledged as durable must be there. It has nothing but tests.
package power
