//go:build mutant

package sim_test

// mutant is a mistake that invariant.Mutant plants.
type mutant struct {
	name   string
	rule   string // number in docs/design/mutants.md
	breaks string // what it does wrong
	quick  bool   // found within a few seeds: part of make test
	// directed is the sort of seeds that are played; all if "". The case is too rare in the others.
	directed string
	// from is the first seed that is tried, if not the usual one: where random seeds do find it, after a thousand.
	from uint64
	// stalls says that a volume which doesn't come back is what the mistake leads to; for others that doesn't count.
	stalls bool
	test   string // the test that finds it, if seeds don't
	dir    string // of that test, if it isn't here
	// explained says why it need not be found.
	explained string
}

var mutants = []mutant{
	// Attach.
	{name: "fence-not-durable", stalls: true, rule: "1", breaks: "a member answers before its fence is durable"},
	{name: "old-term-writes", quick: true, rule: "1", breaks: "a member executes writes of a term below its fence"},
	{name: "old-term-reads", directed: "old reads", rule: "1", breaks: "a member answers reads of a term below its fence"},
	{name: "meta-not-durable", rule: "1", breaks: "fence and checkpoint are written, and not synced"},
	{name: "fence-without-drain", quick: true, rule: "2", breaks: "a fence is answered while older writes are under way"},
	{name: "no-drain", rule: "2", breaks: "a new engine doesn't wait for its dead one's disk I/O"},
	{name: "other-run-chosen", rule: "3", breaks: "a member in another run stays in sync although one in its recorded run answered"},
	{name: "any-run-suffices", directed: "last copy", rule: "3", breaks: "no member is in its recorded run, and not all are waited for"},
	{name: "silent-stay-in-sync", rule: "4", breaks: "members that didn't answer stay in sync in the metadata"},
	{name: "serve-before-record", rule: "4", breaks: "the volume serves before the attach transaction is committed"},
	{name: "no-reconcile", rule: "5", breaks: "journaled chunks aren't made identical"},
	{name: "reconcile-too-late", directed: "reconciling", rule: "5", breaks: "chunks are read and written before they are made identical"},
	{name: "reconcile-without-leaving", directed: "strangers", rule: "5", breaks: "chunks are made identical while a member that may stay in sync is left out"},
	{name: "restart-not-noticed", directed: "restart in attach", rule: "3", breaks: "a member that changed its run during the attach transaction stays in sync"},
	{name: "rollback-not-noticed", directed: "rolled back", rule: "29", breaks: "a member that forgot a term that it had promised is used"},

	// Write.
	{name: "journal-keyed-by-chunk", quick: true, rule: "6", breaks: "a chunk journaled in an older period isn't journaled again"},
	{name: "no-journal", quick: true, rule: "7", breaks: "nothing is journaled"},
	{name: "journal-not-durable", rule: "7", breaks: "a write goes on before the journal is durable"},
	{name: "journal-first-chunk-only", rule: "7", breaks: "of a write to two chunks one is journaled"},
	{name: "old-session-counts", rule: "8", breaks: "the answer of an older session counts",
		explained: "a member has an operation once at a time, and a broken connection answers it as lost before a new session is opened"},
	{name: "no-range-lock", quick: true, rule: "9", breaks: "nothing is locked"},
	{name: "syncing-not-waited", rule: "10", breaks: "the range is unlocked while a syncing member hasn't answered"},
	{name: "pieces-unlock", directed: "takeovers", rule: "11", breaks: "the pieces of a request unlock one by one"},
	{name: "reads-before-resent", test: "TestReadsWaitForResentChanges", dir: "../../internal/volume", rule: "27", breaks: "reads don't wait for the changes that are executed again"},
	{name: "unlock-before-answer", directed: "takeovers", rule: "11", breaks: "the range is unlocked before the answer is handed over"},
	{name: "sync-without-lock", rule: "9", breaks: "resync and reconcile take no lock"},
	{name: "repair-without-lock", directed: "rot", rule: "9", breaks: "read-repair takes no lock"},
	{name: "write-skips-member", quick: true, breaks: "a write isn't sent to one of the members"},

	// Member loss.
	{name: "no-loss-flush", directed: "last copy", rule: "12", breaks: "a member is made stale without a flush of the others"},
	{name: "run-not-compared", rule: "12", breaks: "a member that comes back in another run goes on"},
	{name: "answered-before-loss-recorded", quick: true, rule: "30", breaks: "writes are answered without a lost member before it is recorded as stale"},
	{name: "no-hold-at-loss", directed: "last copy", rule: "30", breaks: "what a leaving member had answered already doesn't wait until it is out"},
	{name: "no-resend", stalls: true, breaks: "what a broken connection left unanswered isn't sent again"},

	// Flush.
	{name: "flush-without-sync", quick: true, breaks: "flush is answered without a sync"},
	{name: "flush-joins-running-sync", breaks: "a flush is answered by a sync that began before it"},
	{name: "flush-skips-member", breaks: "a flush isn't sent to one of the members"},
	{name: "fua-ignored", quick: true, breaks: "FUA is ignored"},
	{name: "sync-error-ignored", directed: "failing disks", breaks: "a failed sync is answered as done"},

	// Checkpoint.
	{name: "checkpoint-early", directed: "slow writes", rule: "13", breaks: "writes of the old period aren't waited for"},
	{name: "checkpoint-before-all-flushed", rule: "14", breaks: "members checkpoint before all have flushed",
		explained: "a member syncs its own head before its checkpoint; what another has not flushed is in that one's own journal, which is compared"},
	{name: "checkpoint-without-flush", rule: "14", breaks: "a checkpoint covers data that isn't durable"},
	{name: "checkpoint-before-sums", directed: "outages", rule: "14", breaks: "the checkpoint is durable before sums and gens"},
	{name: "sums-not-synced", rule: "14", breaks: "sums aren't synced before the checkpoint"},
	{name: "gens-not-synced", directed: "away and dark", rule: "14", breaks: "gens aren't synced before the checkpoint"},
	{name: "gens-write-lost", quick: true, rule: "14", breaks: "a block of gens isn't written"},
	{name: "late-sums-forgotten", from: 5001, directed: "last disk fails", rule: "14", breaks: "sums recomputed during a checkpoint leave the journal with it"},
	{name: "checkpoint-unreconciled", test: "TestCheckpointWaitsForReconciliation", dir: "../../internal/volume", rule: "15", breaks: "a checkpoint drops chunks that aren't reconciled"},
	{name: "touch-keeps-gen", test: "TestJournaledChunksGetAGen", dir: "../../internal/volume", rule: "16", breaks: "after a crash journaled chunks keep their old gen"},
	{name: "syncing-checkpoints", directed: "broken rejoins", rule: "17", breaks: "a syncing member checkpoints"},

	// Rejoin.
	{name: "no-barrier", rule: "19", breaks: "the comparison doesn't wait for writes in flight"},
	{name: "resync-ignores-journal", directed: "own writes", rule: "20", breaks: "the member's own journal isn't compared"},
	{name: "resync-ignores-gens", rule: "20", breaks: "chunks with a newer gen aren't compared"},
	{name: "resync-since-volume-checkpoint", rule: "20", breaks: "gens are compared with the volume's checkpoint, not the member's own"},
	{name: "no-promote-flush", rule: "21", breaks: "a member is made in sync without a flush"},
	{name: "promoting-not-required", rule: "22", breaks: "answers of a member being promoted aren't required"},
	{name: "resync-wrong-way", quick: true, breaks: "resync copies from the stale member"},
	{name: "keep-catching", directed: "broken rejoins", breaks: "a member that catches up keeps what the last copy failed to write"},
	{name: "sync-from-left-member", directed: "left while copied", breaks: "a chunk is copied from a member that left meanwhile",
		explained: "copies that waited for such a member are refused in every seed of that script; that it lacks a write of that very chunk too, which must have been granted before and not have reached it, hasn't been met"},
	{name: "recomputed-over-lost", test: "TestDamageOfTheOnlyCopy", breaks: "a version with a recomputed checksum takes the place of a lost block"},
	{name: "unread-block-keeps-sum", test: "TestRecomputeOutlivesLongFailure", dir: "../../internal/replica", breaks: "a block that couldn't be read when its chunk's sums were recomputed keeps the old one"},
	{name: "unread-block-told", test: "TestUnreadBlockIsNoProofOfBeingEqual", dir: "../../internal/volume", rule: "20", breaks: "a block that couldn't be read counts as equal to another copy's by the sum of what was there before"},
	{name: "left-out-counts-as-synced", rule: "20", breaks: "a member becomes in sync without the blocks that no disk could read"},
	{name: "lost-block-stops-sync", test: "TestDamageOfTheOnlyCopy", breaks: "a block of which no intact copy is left keeps members from becoming in sync"},

	// Snapshots.
	{name: "nothing-preserved", test: "TestSnapshots", rule: "32", breaks: "chunks are changed without being preserved"},
	{name: "chunk-preserved-once", test: "TestSnapshotsAgainstModel", dir: "../../internal/replica", rule: "32", breaks: "of a chunk that a snapshot holds no further piece is preserved"},
	{name: "sums-of-later-content", test: "TestSnapshotsAgainstModel", dir: "../../internal/replica", rule: "32", breaks: "a chunk that a newer snapshot holds is held by an older one with the head's checksums"},
	{name: "sums-prove-snapshot", test: "TestSnapshotOfALostHead", dir: "../../internal/replica", rule: "37", breaks: "a snapshot's checksums alone prove to a member that catches up that it is right"},
	{name: "forgotten-not-handed-down", test: "TestForgottenChunkIsHandedDown", dir: "../../internal/replica", rule: "37", breaks: "what an older snapshot finds in a chunk that is made equal isn't handed to it before"},
	{name: "preserve-in-own-period", test: "TestSnapshotsAgainstModel", dir: "../../internal/replica", rule: "32", breaks: "a change of a period that the snapshot has preserves the chunk in it"},
	{name: "given-up-snapshot-forgotten", test: "TestSnapshotsAgainstModel", dir: "../../internal/replica", rule: "32", breaks: "a chunk that a snapshot which was given up holds is preserved in an older one again"},
	{name: "preserve-not-synced", test: "TestSnapshotsAgainstModel", dir: "../../internal/replica", rule: "32", breaks: "a chunk is changed before its preserved copy is durable"},
	{name: "delete-without-handover", test: "TestSnapshotsAgainstModel", dir: "../../internal/replica", rule: "36", breaks: "a deleted snapshot takes with it what an older one needs"},
	{name: "lost-snapshot-made-anew", test: "TestLostSnapshotIsRefused", dir: "../../internal/replica", rule: "35", breaks: "a snapshot that is missing is made anew, empty"},
	{name: "snapshot-without-drain", test: "TestSnapshots", rule: "33", breaks: "the cut doesn't wait for changes under way"},
	{name: "group-cut-after-freeze", test: "TestGroups", rule: "38", breaks: "a volume is cut for a group although changes go on since its freeze ended"},
	{name: "period-of-two-sizes", test: "TestGivenUpSnapshotHasOneSize", dir: "../../internal/volume", rule: "39", breaks: "a period that was given up is made a snapshot after the volume has grown"},
	{name: "grow-within-snapshot", test: "TestGrowthWaitsForTheCut", dir: "../../internal/volume", rule: "39", breaks: "a volume grows between the making of an empty snapshot and its cut"},
	{name: "restore-not-durable", test: "TestSnapshots", rule: "34", breaks: "a volume is recorded as restored before that is durable"},
	{name: "snapshot-without-checkpoint", test: "TestSnapshots", rule: "34", breaks: "a snapshot is recorded before what it has is durable"},
	{name: "snapshot-unreconciled", test: "TestSnapshots", rule: "33", breaks: "a snapshot is taken while chunks aren't reconciled",
		explained: "the checkpoint that records it doesn't begin before they are"},
	{name: "resync-ignores-snapshots", test: "TestSnapshots", rule: "37", breaks: "what the snapshots have of a chunk isn't made equal"},
	{name: "levels-by-record", test: "TestSnapshotIsDeletedWhileCatchingUp", dir: "../../internal/volume", rule: "37", breaks: "a member drops its chunk of a snapshot that is to be deleted, before the source has handed its own to an older one"},
	{name: "failed-map-forgotten", test: "TestFailedMapIsWrittenAgain", dir: "../../internal/replica", rule: "37", breaks: "a snapshot's map that couldn't be written isn't written again before the member is in sync"},
	{name: "levels-after-resync", test: "TestStoppedResyncSealsNothing", dir: "../../internal/volume", rule: "37", breaks: "a resync that was stopped goes on with a snapshot's chunk in the member's next session",
		explained: "what it seals too early doesn't match its checksums, and the next resync has the member prove that before it is in sync"},
	{name: "resync-lists-too-early", test: "TestSnapshots", rule: "37", breaks: "gens are asked for before the changes that the member was sent have ended",
		explained: "a change that is at the member and not yet at the source, for as long as the list takes, is too rare"},

	{name: "scrub-of-head-only", rule: "40", breaks: "a scrub doesn't verify what only snapshots hold"},

	// Reads.
	{name: "no-read-wait", directed: "old reads", rule: "23", breaks: "a newcomer doesn't wait until older reads have ended"},
	{name: "no-drift-margin", directed: "old reads", rule: "23", breaks: "the wait has no margin for drift"},
	{name: "restart-forgets-confirmation", directed: "old reads", rule: "23", breaks: "a restarted member says that it never confirmed anything"},
	{name: "any-own-dead-engine", directed: "old reads", rule: "24", breaks: "an own dead engine that hadn't waited itself isn't waited for"},
	{name: "no-read-confirm", directed: "old reads", rule: "31", breaks: "reads are answered without a confirmation"},
	{name: "confirmed-at-answer", directed: "old reads", rule: "31", breaks: "a confirmation counts from its answer"},
	{name: "read-from-syncing", breaks: "reads go to members that aren't in sync"},
	{name: "sum-not-verified", directed: "rot", breaks: "what is read isn't compared with its checksum"},

	// Sessions and takeover.
	{name: "session-without-drain", directed: "slow disks", rule: "18, 25", breaks: "a session is opened while requests of an older one are under way"},
	{name: "old-session-accepted", directed: "late packets", rule: "25", breaks: "a member executes requests of an older session"},
	{name: "resend-after-others", directed: "takeovers", rule: "27", breaks: "requests that are resent come after new ones"},
	{name: "resend-in-any-term", directed: "away and back", rule: "28", breaks: "requests are resent although another node had the volume"},
	{name: "lease-taken-as-gone", breaks: "a volume is taken from a node that has its lease",
		explained: "safety doesn't rest on leases: the fence and the wait for old reads keep the former holder out"},
	{name: "lease-taken-as-held", test: "TestCutHolder", breaks: "a node without a lease keeps its volume"},
	{name: "detach-without-checkpoint", quick: true, breaks: "a detached volume isn't durable"},

	// The replica on disk.
	{name: "sums-trusted-after-crash", breaks: "sums of journaled chunks aren't recomputed"},
	{name: "recomputed-sums-win", directed: "rotten source", breaks: "a recomputed sum wins over one that was stored"},
	{name: "trim-keeps-sums", quick: true, breaks: "a trim leaves the sums"},
	{name: "torn-record-trusted", test: "TestTorn", dir: "../../internal/replica", breaks: "a torn journal block or meta slot counts"},
	{name: "meta-in-one-slot", stalls: true, breaks: "meta overwrites its only valid slot"},
}
