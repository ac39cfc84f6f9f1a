// Package repl is the replication and fencing protocol of one column as a state
// machine: primary-copy replication by the volume's coordinator, with the in-sync
// set kept by consensus in the metadata. docs/design/protocol.md gives the rules and why
// each is needed.
//
// The package is pure: no I/O, no goroutine, no clock of its own. Events are method
// calls that carry the time; what is to be done comes out through the Effects
// interface. A shell (package volume) runs the effects and reports how they ended, always
// later, never inside the call that asked for them.
//
// Words: a member is a replica as its column knows it. Its role is what this coordinator
// does with it; its state in the metadata changes only when a Change was committed.
// An operation (Op) is anything that is sent to members: a write, a trim, a flush, a
// confirmation.
package repl

import (
	"errors"
	"time"

	"keelson.io/keelson/internal/spec"
)

// MaxMembers bounds the members of a column, those on their way in and out included.
const MaxMembers = 8

// Times of the protocol. TRead and Drift are part of its safety: all engines of a
// cluster must use the same.
const (
	// TRead is how long a member's confirmation of the term lets the coordinator answer reads,
	// counted from when it sent what was confirmed.
	TRead = 3 * time.Second
	// Drift is what is added to TRead by a newcomer: two clocks may differ by 10 % in rate and
	// the newcomer still waits long enough.
	Drift = 300 * time.Millisecond
	// MemberTimeout is how long a member's connection may be down before the
	// member is taken out of the in-sync set.
	MemberTimeout = 1500 * time.Millisecond
	// FenceTimeout is how long an attach waits for a member whose node seems alive.
	FenceTimeout = 4 * time.Second
	// RejoinBackoff is the pause after a failed attempt to bring a member back.
	RejoinBackoff = 3 * time.Second
	// AnswerLimit is how long a member may leave a request unanswered on a living connection before it is taken out of
	// the in-sync set, if the settings don't say otherwise.
	AnswerLimit = spec.DefaultAnswerLimit
	// SlowFactor multiplies that for operations that take long on a healthy disk.
	SlowFactor = 12
)

// Errors that end a coordinator.
var (
	// ErrLost: another term has begun. Nothing may be answered any more.
	ErrLost = errors.New("the volume was attached elsewhere: this node has lost it")
	// ErrRunLost: the last in-sync replica's machine was restarted under an attached volume; writes
	// that were acknowledged but not flushed may be gone, so the volume can't go on as if nothing had happened.
	ErrRunLost = errors.New("the last in-sync replica lost its memory (its machine was restarted, or its disk was replaced): writes may be lost; detach the volume and attach it again")
)

// Role is what the coordinator does with a member.
type Role uint8

// The roles, and how a member moves between them:
//
//	Fencing --answers, chosen--> In --fails, or isn't needed any more--> Leaving --committed Stale--> Out
//	                              ^------it is back, and nobody else answers------/
//	   |  \--not chosen, committed Stale--> Out
//	Out --link up--> Joining --fenced, committed Syncing--> Catching
//	Catching --caught up--> Promoting --flushed, committed InSync--> In
//	Joining, Catching --fails--> Out;  Promoting --fails--> Leaving
const (
	Out       Role = iota // Stale in the metadata; gets nothing
	Fencing               // in sync in the metadata; asked to fence during attach
	In                    // in sync; every operation needs its answer
	Leaving               // in sync in the metadata, but failed; operations wait for it until it is Stale
	Joining               // stale; asked to fence, in order to come back
	Catching              // syncing; gets every operation, and is brought up to date
	Promoting             // syncing; flushed, and its transaction to InSync is under way
)

var roleNames = [...]string{"out", "fencing", "in", "leaving", "joining", "catching", "promoting"}

// String returns the role's name as used in traces.
func (r Role) String() string { return roleNames[r] }

// FenceAnswer is what a member says when it has fenced.
type FenceAnswer struct {
	Run          string
	PrevFence    uint64
	Checkpoint   uint64
	SinceConfirm time.Duration // < 0: never confirmed anything
	Exact        bool
	AllChunks    bool
	Journal      []Touched
}

// Touched is a chunk and the last period in which it was, or may have been, written.
type Touched struct {
	Chunk  int64
	Period uint64
}

// Result is how a member answered an operation.
type Result uint8

// The answers that the protocol tells apart.
const (
	OK      Result = iota
	Lost           // the connection went: whether it was executed isn't known
	Fenced         // the member's fence is above this term
	OldSess        // the session isn't the last one opened there
	NoSpace        // the pool is full: ask again later
	Failed         // the member can't do it
)

// Op is one operation on its way to the members. The shell embeds it in its own record.
// All fields belong to the Column from Begin until Complete.
type Op struct {
	need uint32 // members whose OK is missing
	out  uint32 // members that have been sent it and haven't come back with any answer
	// gone are those of out whose answer isn't waited for any more, as they have been silent for too long: the
	// operation may be complete while they still have it.
	gone    uint32
	sentAt  [MaxMembers]time.Duration
	asked   [MaxMembers]time.Duration // when it was first sent, in whichever session; 0 if it wasn't
	session [MaxMembers]uint32
	// Slow operations may take long on a healthy disk, so the limit of silence is SlowFactor times longer. Set
	// before Begin.
	Slow bool
	// internal operations belong to a membership change: they don't wait for members on their way out.
	internal bool
	purpose  Purpose
	seq      uint64
	prev     *Op
	next     *Op
	active   bool
	// Failed says, at Complete, that no member could execute the operation.
	Failed bool
	// Ctx is the shell's record of the operation. Set once; the Column leaves it alone.
	Ctx any
}

// Abandoned returns, at Complete, the members that still have the operation, and its memory: their answers are to
// be waited for before either is used again, and go nowhere.
func (op *Op) Abandoned() uint32 { return op.out }

// Purpose says what an internal flush is for.
type Purpose uint8

// The internal flushes.
const (
	PurposeNone    Purpose = iota
	PurposeLoss            // before members are made Stale
	PurposePromote         // before a member is made InSync
)

// MemberChange is one member's part of a transaction.
type MemberChange struct {
	Replica string
	State   spec.MemberState
	Run     string // of an InSync member
}

// Change is a transaction on the members of the column. It must compare the coordinator's term.
type Change struct {
	// Attach is set for the one change that ends fencing: it also records that all
	// in-sync members have made the term durable.
	Attach  bool
	Members []MemberChange
}

// Effects is what the column asks of its shell. No method may call back into the column.
type Effects interface {
	// Fence asks member m to fence at the term and to open the session; the answer goes to FenceDone. known is
	// the term that m must have made durable; a member that doesn't know it was rolled back, and stays so.
	Fence(m int, session uint32, known uint64)
	// Send submits op to m in its session; the answer goes to Done.
	Send(m int, op *Op, session uint32)
	// Complete: every member that matters has answered; op is the shell's again.
	Complete(op *Op)
	// Flush asks the shell to Begin an internal flush to the members in mask.
	Flush(p Purpose, mask uint32)
	// Commit asks for a transaction; its outcome goes to Committed. One at a time.
	Commit(c Change)
	// Serve: fencing is over and every older coordinator has stopped answering reads.
	// Reconcile what the journals name before it is read or written.
	Serve()
	// CatchUp: member m is sent everything from now on, and what was in flight before has ended.
	// Compare and copy, then call CaughtUp or CatchUpFailed.
	CatchUp(m int)
	// Dropped: member m gets nothing any more; whatever the shell does with it must end.
	Dropped(m int)
	// Stop: the coordinator must answer nothing any more.
	Stop(err error)
}

// Member is one member of the column. The shell may read it; only the Column writes it.
type Member struct {
	Replica string
	Node    string
	Pool    string
	Run     string // recorded in the metadata
	Role    Role
	Up      bool // its connection is up
	Open    bool // its session is open
	Present bool // the slot is in use
	Full    bool // its last answer was NoSpace
	// Silent: it has left a request unanswered for longer than the limit.
	Silent bool
	// Removing: it is to be dropped from the record once enough others are in sync.
	Removing bool

	Answer FenceAnswer // of the last fence

	fencing     bool // a fence is in flight
	answered    bool // during attach
	session     uint32
	downSince   time.Duration
	nextRejoin  time.Duration
	fenceSent   time.Duration
	confirmed   time.Duration // when what it confirmed last was sent
	lowerEnd    time.Duration // reads that it confirmed to lower terms have ended by this moment of our clock
	barrier     uint64        // Catching: operations up to here weren't sent to it
	atBarrier   bool          // Catching: some of those are still in flight
	wantSyncing bool          // Joining: fenced, its transaction to Syncing is due
	caughtUp    bool          // Catching: all is copied, its promotion is due
	failing     bool          // it couldn't execute an operation
	oldest      time.Duration // Silent: when it was asked what it hasn't answered
	back        bool          // Leaving: it has answered, or its connection has come back, since
	runLost     bool          // it came back in another run than the recorded one
}
