// Package wire is the protocol between engines: what a coordinator asks of a member
// (Request), and the frames that carry it to another node. The replica and the
// coordinator both speak in Requests, whether they sit in one engine or not; the
// frame codec is used only between nodes. Frames are described byte by byte in
// docs/format/wire.md.
//
// The package is pure: it encodes and decodes memory, does no I/O and owns no
// goroutine.
package wire

import (
	"fmt"
	"time"
)

// Kind says what a Request asks.
type Kind uint8

// What a coordinator can ask of a member. All but KindFence are refused with
// StatusFenced when Term is below the member's fence, and with StatusOldSession when
// Session isn't the one that was opened last in that term.
const (
	// KindFence raises the member's fence to Term (refused with StatusFenced if the
	// fence is higher already), and opens Session in it. The member refuses
	// everything older from the moment it sees this, makes the fence durable, waits
	// until all older I/O has left it, and answers with Fence.
	//
	// Period is the term that the member is known to have made durable. One whose fence is below it was
	// rolled back to an older image: it answers (PrevFence tells), but keeps its fence and opens no
	// session, so that this is seen again by whoever asks next.
	KindFence Kind = iota + 1
	// KindWrite writes Data at Off. The member first makes (chunk, Period) durable
	// in its journal if it isn't there, then writes in place. Sums has one sum a
	// block, verified by the member before it writes. The answer doesn't mean that
	// the data is durable, unless FUA is set.
	KindWrite
	// KindRead fills Data from Off and verifies every block against its sum. Sums is filled
	// with the sums. StatusBadSum if a block doesn't match: Bad has a bit for each
	// such block, and the others are good.
	KindRead
	// KindTrim makes [Off, Off+Len) read as zeros and gives its space back; journaled as
	// a write. Len ≤ one chunk and inside one chunk.
	KindTrim
	// KindZero is KindTrim that keeps the space.
	KindZero
	// KindFlush makes everything durable that the member answered before.
	KindFlush
	// KindConfirm does nothing but confirm the term.
	KindConfirm
	// KindSums fills Sums with the PerChunk sums of the chunk at Off, recomputing
	// them from the data if a crash made them unreliable. Bad has a bit for every block
	// whose sum was recomputed and differs from the one that was stored: it may be newer than
	// the stored sum, torn or rotten.
	KindSums
	// KindGens fills Sums with the gens of chunks Off/ChunkSize … +Len/ChunkSize.
	KindGens
	// KindCheckpoint makes the sums and gens of all periods ≤ Period durable, then the
	// checkpoint Period, then drops journal entries of those periods. The
	// coordinator has made sure that no write of those periods is in flight and that
	// every member has flushed.
	KindCheckpoint
	// KindTouch journals (chunk at Off, Period), sets the chunk's gen to Period and
	// marks its sums as reliable: the chunk was reconciled.
	KindTouch
	// KindVerify reads [Off, Off+Len) from the disk, whatever the sums say, and compares every block with its sum. Sums is
	// filled with the sums. StatusBadSum if a block doesn't match or can't be read: Bad has a bit for each such
	// block. Len ≤ block.MaxIO and inside one chunk.
	KindVerify
	// KindSnaps says which snapshots the replica has from now on: Sums has two words for each, its period, ascending, and its
	// size in bytes. Missing ones are made, empty; that is refused with StatusBadRequest for a period that the replica's checkpoint covers, because then
	// something is lost. What isn't named is deleted; its space is free when this is answered. All of it is durable then.
	KindSnaps
	// KindSnapRead is KindRead of the snapshot Period.
	KindSnapRead
	// KindSnapWrite writes Data to the chunk that KindSnapOpen began.
	KindSnapWrite
	// KindSnapSums is KindSums of the snapshot Period.
	KindSnapSums
	// KindSnapLevels fills Sums with the periods of the snapshots that hold the chunk at Off themselves, ascending.
	KindSnapLevels
	// KindSnapOpen begins to replace the chunk at Off that the snapshot Period holds itself: it becomes a copy of what the
	// next newer snapshot, or the head, has there, and isn't held until KindSnapSeal. Sums is filled with the copy's.
	KindSnapOpen
	// KindSnapSeal ends that: the chunk has the sums Sums, and is durable when this is answered. By itself it mends sums that were damaged: if the
	// snapshot holds the chunk they must be those that it had, as far as that is known.
	KindSnapSeal
	// KindSnapDrop has the snapshot Period no longer hold the chunk at Off itself.
	KindSnapDrop
	// KindRestore makes the chunk at Off what the snapshot with the period Sums[0] has there; journaled as a write.
	KindRestore
	// KindClone makes a new replica in the same pool from the snapshot Period. Text describes it, as in its meta. That
	// it exists already is no error.
	KindClone
	// KindSnapUsage fills Sums with two words for each snapshot, ascending: its period, and the bytes on disk that are its own.
	KindSnapUsage
	// KindSnapVerify is KindVerify of what the snapshot Period, or the newer one that holds the chunk for it, has of the chunk itself; or of the head, if none does. In front of
	// the snapshot's end. StatusIOError: its sums can't be read.
	KindSnapVerify
	// KindSnapMend writes Data in place where the snapshot Period has the data itself, durably. Sums must be the sums that it has
	// there: so whatever interrupts it, the snapshot has what it had, or what it should have.
	KindSnapMend
	// KindSnapCheck is KindSnapSums, asked of a replica that may have lost what it was sent: StatusIOError if the snapshot's own data of the chunk, or by the sums
	// there what it finds in newer snapshots or the head, isn't what its sums say.
	KindSnapCheck
)

// MaxSnaps is how many snapshots a replica has at most.
const MaxSnaps = 1024

// Sends reports whether requests of the kind carry Data.
func (k Kind) Sends() bool { return k == KindWrite || k == KindSnapWrite || k == KindSnapMend }

// Fills reports whether answers of the kind carry Data.
func (k Kind) Fills() bool { return k == KindRead || k == KindSnapRead }

// Verifies reports whether requests of the kind have a member read Len bytes for itself.
func (k Kind) Verifies() bool { return k == KindVerify || k == KindSnapVerify }

var kindNames = [...]string{
	KindFence: "fence", KindWrite: "write", KindRead: "read", KindTrim: "trim", KindZero: "zero",
	KindFlush: "flush", KindConfirm: "confirm", KindSums: "sums", KindGens: "gens",
	KindCheckpoint: "checkpoint", KindTouch: "touch", KindVerify: "verify", KindSnaps: "snapshots",
	KindSnapRead: "snapshot read", KindSnapWrite: "snapshot write", KindSnapSums: "snapshot sums", KindSnapLevels: "snapshot levels",
	KindSnapOpen: "snapshot open", KindSnapSeal: "snapshot seal", KindSnapDrop: "snapshot drop", KindRestore: "restore",
	KindClone: "clone", KindSnapUsage: "snapshot usage",
	KindSnapVerify: "snapshot verify", KindSnapMend: "snapshot mend", KindSnapCheck: "snapshot check",
}

// Valid reports whether k is a kind that this version knows.
func (k Kind) Valid() bool { return k >= KindFence && k <= KindSnapCheck }

// String returns the kind's name, as used in logs and metrics.
func (k Kind) String() string {
	if k.Valid() {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Status is a member's answer.
type Status uint8

// What a member can answer.
const (
	StatusOK         Status = iota
	StatusFenced            // the member's fence is above the request's term: the asker has lost the volume
	StatusOldSession        // the session isn't the last one opened
	StatusNoSpace           // the pool is full; nothing changed that matters, ask again later
	StatusIOError           // the disk failed
	StatusBadSum            // read: blocks don't match their sums (Bad). write: data doesn't match Sums
	StatusBadRequest        // the request makes no sense to this member (range, size)
	StatusNotFound          // there is no such replica on this node
	StatusLost              // the connection went; whether it was executed isn't known. Never sent on the wire
)

var statusNames = [...]string{
	"ok", "fenced", "old session", "no space", "I/O error", "bad checksum", "bad request", "no such replica", "connection lost",
}

// String returns the status in words.
func (s Status) String() string {
	if int(s) < len(statusNames) {
		return statusNames[s]
	}
	return fmt.Sprintf("status(%d)", uint8(s))
}

// ReplicaID names a replica, unique in the cluster for all time; random.
type ReplicaID uint64

// String returns the 16 hex digits that name a replica everywhere.
func (id ReplicaID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// Request is one question to a member and its answer. The asker owns it, and the
// memory it points to, except between Submit and Done. All fields but the answer's
// are set by the asker and left alone by the member.
type Request struct {
	Kind    Kind
	FUA     bool // write, trim, zero: durable when answered
	Replica ReplicaID
	Term    uint64
	Session uint32
	Period  uint64
	Off     int64 // bytes from the start of the column; a multiple of block.Size
	Len     int64 // trim, zero, gens, verify: bytes. Reads and writes: len(Data)
	// Data is page-aligned, len(Data) ≤ block.MaxIO and a multiple of block.Size. Reads
	// and writes may cross a chunk's end.
	Data []byte
	// Sums has the capacity that the kind needs: len(Data)/block.Size, or Len/block.Size (verify), or
	// PerChunk, or the number of gens, or what can be answered about MaxSnaps snapshots.
	Sums []uint64
	Text []byte // clone: the description of the new replica, at most MaxText bytes

	// The answer.
	Status Status
	Bad    [16]uint64 // a bit a block: read ≤ 256 bits, sums 1024 bits
	Fence  *FenceReply

	// Done is called exactly once, on the shard, never inside Submit. Set once by the asker.
	Done func(*Request)

	// Next and Tag are free for the asker (Next also for the member while it has it).
	Next *Request
	Tag  uint64
}

// ResetAnswer clears the answer's fields before a request is submitted again.
func (r *Request) ResetAnswer() {
	r.Status = StatusOK
	r.Bad = [16]uint64{}
	r.Fence = nil
}

// FenceReply is a member's answer to KindFence, as of the moment when all older I/O had
// left it.
type FenceReply struct {
	// Run is the boot of the member's machine. What was not flushed may be lost
	// between two runs, and only then.
	Run string
	// PrevFence is the fence that the member had before this request.
	PrevFence uint64
	// Checkpoint is the last period up to which sums and gens are exact on disk.
	// 0: the replica is new.
	Checkpoint uint64
	// Size is the replica's size in bytes.
	Size int64
	// SinceConfirm is how long ago the member last answered StatusOK to a lower term than
	// this one; zero ("just now") if it can't know because it was restarted since.
	// Negative if no lower term was ever confirmed (a new replica).
	SinceConfirm time.Duration
	// Exact is true if no chunk's sums are unreliable: the member's engine hasn't
	// died since it wrote the chunks in Journal.
	Exact bool
	// AllChunks is true if the journal overflowed or was damaged: every chunk
	// is to be treated as being in it.
	AllChunks bool
	// Journal lists the chunks written since Checkpoint, with the last period of each.
	Journal []JournalEntry
}

// JournalEntry says that a chunk was, or may have been, written in a period.
type JournalEntry struct {
	Chunk  int64
	Period uint64
}

// Member is what a coordinator asks: a replica in the same engine, or the link to
// one in another.
type Member interface {
	// Submit starts the request; r.Done is called later, on the same shard.
	Submit(r *Request)
}
