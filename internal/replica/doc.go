// Package replica is one copy of a column on disk: a directory in a pool that answers
// wire.Requests. Its files are described byte by byte in docs/format/replica.md.
//
// What a replica promises:
//
//   - Before data is written, (chunk, period) is durable in the journal. So after a crash
//     the sums and gens of every chunk that isn't in the journal are exact.
//   - A chunk whose sums can't be trusted is suspect. Its sums are recomputed from its data before the
//     first access of any kind.
//   - From the moment a fence is seen, older terms and sessions are refused; the fence is answered when it
//     is durable and all requests that were accepted before have been answered.
//   - A checkpoint becomes durable only after the sums and gens that it stands for, and journal entries of
//     chunks that are suspect or not reconciled outlive it.
//   - A steady-state overwrite, whose chunk is in the journal for its period and whose sums are in
//     memory, costs one write and no allocation.
//
// A Replica lives on one aio.Loop: all methods are called on it, and it needs no lock. The
// package owns no goroutine.
package replica
