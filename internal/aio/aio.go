// Package aio is the engine's seam to the world: everything that a shard does, it
// does through a Loop. Files, connections between engines, timers, messages from
// other threads and buffers are all here, and all of them complete by callbacks on
// the loop.
//
// There are two implementations. aio/ring is the real one: one locked OS thread
// and one io_uring a loop. aio/sim is seeded, single-threaded and in virtual time,
// with disks that keep only what was synced and a network that delays, drops and
// partitions. The engine can't tell which of the two it runs on.
//
// Rules, the same for both implementations:
//
//   - Every callback runs on the loop, never inside the call that started the
//     operation: so a caller may finish changing its own state after the call.
//   - An Op, and the memory that was given with it, belong to the loop from the call
//     until the callback. Then the Op may be used again, also from the callback.
//   - Methods are called on the loop only, but for Post.
//   - Nothing here allocates for an I/O; Ops and buffers are the caller's.
package aio

import (
	"errors"
	"time"
)

// ErrUnsupported is returned for what an implementation can't do, such as Adopt in
// a simulation.
var ErrUnsupported = errors.New("aio: not supported by this loop")

// ErrConnLost is why a connection was closed when the other side, or the network,
// went away.
var ErrConnLost = errors.New("aio: connection lost")

// Op is one operation in flight. The caller makes it once, sets Done, and uses it
// again and again.
type Op struct {
	// Done receives how many bytes were moved, and nil or an error: for files and
	// descriptors a syscall.Errno. Short reads and writes of a file never show: a
	// read past its end gives the bytes that are there.
	Done func(n int, err error)

	// Slot belongs to the implementation while the operation is in flight.
	Slot int32
	// Busy is true while the operation is in flight. Kept by the implementation,
	// which panics when a busy Op is submitted.
	Busy bool
}

// Timer calls its function once on the loop, d after Reset.
type Timer interface {
	// Reset arms the timer, or arms it anew. Any d ≤ 0 fires in the next turn.
	Reset(d time.Duration)
	// Stop disarms it: the function isn't called any more.
	Stop()
}

// Loop is one shard's event loop.
type Loop interface {
	// Now is the monotonic time since some fixed moment, read once a turn.
	Now() time.Duration
	// NewTimer makes a timer, disarmed.
	NewTimer(fn func()) Timer
	// Post has fn called on the loop. It is safe on any goroutine and never blocks.
	Post(fn func())
	// Work has fn called on a worker thread (bounded; further ones queue), then
	// done on the loop. It is for what blocks: FS calls, fallocate, rename.
	Work(fn func(), done func())
	// Buffers is the loop's I/O memory.
	Buffers() Buffers
	// FS is the node's file system.
	FS() FS
	// Dial opens a connection to the engine of another node (or of this one), to
	// its loop number shard. The handler's Opened or Closed is called later.
	Dial(node, addr string, shard int, h ConnHandler)
	// OnAccept sets who handles connections that other engines make to this loop.
	// A nil handler refuses the connection.
	OnAccept(fn func(c Conn) ConnHandler)
	// Adopt wraps an open descriptor (a socket or a device) for use on the loop;
	// the loop owns it then. Simulations return ErrUnsupported.
	Adopt(fd int) (FD, error)
}

// Buffers hands out page-aligned memory outside the Go heap.
type Buffers interface {
	// Get returns n bytes (1 ≤ n ≤ 1 MiB), page-aligned, with arbitrary content, or
	// nil when the loop's memory is used up: then the caller queues until a
	// buffer of its own comes back.
	Get(n int) []byte
	// Put gives a buffer back. b must be what Get returned, or a prefix of it.
	Put(b []byte)
}

// FS is a node's file system. Its methods block: they are called inside Work (or
// before the loop runs), never on the loop itself. Paths are absolute.
type FS interface {
	// OpenFile opens a file for reading and writing in whole blocks (O_DIRECT when
	// the file system has it). flag takes os.O_CREATE, os.O_EXCL, os.O_TRUNC.
	OpenFile(name string, flag int) (File, error)
	// MkdirAll, RemoveAll, Rename and ReadDir are as in package os.
	MkdirAll(name string) error
	RemoveAll(name string) error
	Rename(from, to string) error
	ReadDir(name string) ([]string, error)
	// Exists reports whether something has that name.
	Exists(name string) bool
	// SyncDir makes the directory's entries durable.
	SyncDir(name string) error
	// Space returns the size and the free bytes of the file system that holds name.
	Space(name string) (size, free int64, err error)
}

// File is an open file. The asynchronous methods take offsets and lengths that are
// multiples of 4096 and page-aligned memory of at most 1 MiB.
type File interface {
	// ReadAt fills p from offset off. n says how much was read; the part of p that lies
	// past the end of the file keeps its content or becomes zero.
	ReadAt(op *Op, p []byte, off int64)
	// WriteAt writes p at off. It isn't durable before a Sync that was started
	// after its callback.
	WriteAt(op *Op, p []byte, off int64)
	// WriteSync writes p at off and answers when it is durable (RWF_DSYNC).
	WriteSync(op *Op, p []byte, off int64)
	// Sync makes all writes, punches and zeroes durable that were called back before.
	Sync(op *Op)
	// Punch gives the range's space back; it reads as zeros. Any n.
	Punch(op *Op, off, n int64)
	// Zero makes the range read as zeros and keeps it allocated. Any n.
	Zero(op *Op, off, n int64)

	// Clone makes [off, off+n) what src, another file of the same file system, has there, and shares the space with it as
	// long as neither changes; holes become holes. It isn't durable before a Sync of this file that was started after
	// its callback; then it is, whether src is synced or not. The range ends at, or before, the end of src, and nothing
	// changes src there meanwhile.
	Clone(op *Op, src File, off, n int64)
	// Settle lets the file system forget that the file ever shared space, if it shares none any more: until then every write costs
	// more, on XFS twice to three times as much. It changes no content, and nothing is promised: the error may be ignored. It holds up what is
	// done with the file for some 10 µs for each of its extents.
	Settle(op *Op)

	// Truncate sets the size. Blocks: call it inside Work.
	Truncate(size int64) error
	// Size returns the size. Blocks: call it inside Work.
	Size() (int64, error)
	// Allocated returns how many bytes of disk space the file occupies. Blocks.
	Allocated() (int64, error)
	// Drain returns when no write that any process, also one that is dead, started on
	// the file is still on its way to the disk. Blocks.
	Drain() error
	// Close closes the file. No operation may be in flight. Blocks.
	Close() error
}

// Conn is an authenticated, encrypted, ordered byte stream to another engine.
type Conn interface {
	// Peer is the node on the other side, by its certificate.
	Peer() string
	// Write queues a copy of p. All that a turn of the loop queued goes out before
	// the loop sleeps. Nothing happens on a closed connection.
	Write(p []byte)
	// Queued is the number of bytes not yet handed to the network.
	Queued() int
	// Fill, inside Data, has the bytes that follow those which this Data consumes put into p (not empty) instead of
	// being shown. Data is called again when p is full, with what has come behind it, perhaps nothing. p belongs to
	// the loop until then, or until Closed.
	Fill(p []byte)
	// Close ends the connection; Closed is called, later, with a nil error.
	Close()
}

// ConnHandler is told what happens on a connection.
type ConnHandler interface {
	// Opened is called once when a dialled connection is ready. (An accepted one is
	// ready when it is handed to OnAccept's function.)
	Opened(c Conn)
	// Data shows the bytes that have come and were not consumed yet, and returns how
	// many it consumes. p is valid during the call only. What is left is shown
	// again, with more behind it, when more has come. At least 2 MiB fit.
	Data(c Conn, p []byte) int
	// Closed is called exactly once, last, also when dialling failed (c is nil then).
	Closed(c Conn, err error)
}

// FD is an adopted descriptor: a stream socket, or a device such as /dev/fuse.
// Reads and writes may be short. One operation of each Op at a time.
type FD interface {
	// Readv reads once into a and then b (b may be empty).
	Readv(op *Op, a, b []byte)
	// Writev writes a and then b (b may be empty) with one call.
	Writev(op *Op, a, b []byte)
	// Poll completes when the descriptor can be read, or has failed; n is 0. For devices:
	// the owner then reads, without waiting, through Fd.
	Poll(op *Op)
	// Fd is the descriptor's number.
	Fd() int
	// Close closes the descriptor and cancels what is in flight on it: those
	// operations are called back with ECANCELED.
	Close()
}
