/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Every fault point of every process, in one list: X(id, name, role, side, when, error).
 *
 * role and side: the process that passes it.  when: what a guest has to go through for it to be
 * passed (enum mc_fault_when).  error: 1 when the code follows an error from there, 0 when only
 * `crash` and `stall` mean something.
 *
 * JOURNAL points come in pairs: NAME just before the transition, NAME.done just after it.
 */
#ifndef MC_IPC_FAULT_POINTS_H
#define MC_IPC_FAULT_POINTS_H

/* clang-format off */
#define MC_FAULT_POINTS_CAPTURE(X, R, S) \
	X(CAPTURE_QMP, "capture.attach.qmp", R, S, START, 0) \
	X(CAPTURE_MAPPED, "capture.attach.mapped", R, S, START, 0) \
	X(CAPTURE_PUBLISHED, "capture.attach.published", R, S, START, 0) \
	X(CAPTURE_FDSET, "capture.attach.fdset", R, S, START, 0) \
	X(PTRACE_SEIZED, "capture.ptrace.seized", R, S, START, 0) \
	X(PTRACE_INTERRUPTED, "capture.ptrace.interrupted", R, S, START, 0) \
	X(PTRACE_STOPPED, "capture.ptrace.stopped", R, S, START, 0) \
	X(PTRACE_REGISTERS, "capture.ptrace.registers", R, S, START, 0) \
	X(PTRACE_FRAME, "capture.ptrace.frame", R, S, START, 0) \
	X(PTRACE_WRITTEN, "capture.ptrace.written", R, S, START, 0) \
	X(PTRACE_SET, "capture.ptrace.set", R, S, START, 0) \
	X(PTRACE_CONTINUED, "capture.ptrace.continued", R, S, START, 0) \
	X(PTRACE_SYSCALL, "capture.ptrace.syscall", R, S, START, 0) \
	X(PTRACE_RESULT, "capture.ptrace.result", R, S, START, 0) \
	X(PTRACE_DETACHED, "capture.ptrace.detached", R, S, START, 0) \
	X(CAPTURE_FETCHED, "capture.uffd.fetched", R, S, START, 0) \
	X(CAPTURE_REGISTERED, "capture.uffd.registered", R, S, START, 0) \
	X(CAPTURE_GUARDED, "capture.attach.guarded", R, S, START, 0) \
	X(CAPTURE_SYNC_SCANNED, "capture.sync.scanned", R, S, SYNC, 0) \
	X(CAPTURE_SYNC_ROUND, "capture.sync.round", R, S, SYNC, 0) \
	X(CAPTURE_HASH_ASK, "capture.hash.asked", R, S, RESYNC, 0) \
	X(CAPTURE_HASH_COMPARED, "capture.hash.compared", R, S, RESYNC, 0) \
	X(CAPTURE_HASH_SETTLED, "capture.hash.settled", R, S, RESYNC, 0) \
	X(CAPTURE_SYNC_COPIED, "capture.sync.copied", R, S, SYNC, 0) \
	X(CAPTURE_SYNC_PUSHED, "capture.sync.pushed", R, S, SYNC, 0) \
	X(CAPTURE_SYNC_COUNTED, "capture.sync.counted", R, S, SYNC, 0) \
	X(CAPTURE_CAPTURING, "capture.journal.capturing", R, S, RUN, 0) \
	X(CAPTURE_CAPTURING_DONE, "capture.journal.capturing.done", R, S, RUN, 0) \
	X(CAPTURE_BEGUN, "capture.epoch.begun", R, S, RUN, 1) \
	X(CAPTURE_STOP_SENT, "capture.stop.sent", R, S, RUN, 0) \
	X(CAPTURE_STOPPED, "capture.stop.answered", R, S, RUN, 1) \
	X(CAPTURE_PRESCANNED, "capture.prescan.scanned", R, S, LARGE, 1) \
	X(CAPTURE_PRECOPIED, "capture.prescan.copied", R, S, LARGE, 1) \
	X(CAPTURE_BARRIER, "capture.barrier.asked", R, S, RUN, 0) \
	X(CAPTURE_VECTOR, "capture.scan.vector", R, S, RUN, 0) \
	X(CAPTURE_VECTOR_TAKEN, "capture.scan.taken", R, S, RUN, 0) \
	X(CAPTURE_SCAN, "capture.scan.block", R, S, RUN, 1) \
	X(CAPTURE_SCANNED, "capture.scan.done", R, S, RUN, 1) \
	X(CAPTURE_SLAB, "capture.copy.slab", R, S, RUN, 0) \
	X(CAPTURE_COPIED, "capture.copy.done", R, S, RUN, 1) \
	X(CAPTURE_STATE_COPIED, "capture.state.copied", R, S, RUN, 1) \
	X(CAPTURE_BARRIER_SET, "capture.barrier.set", R, S, RUN, 1) \
	X(CAPTURE_CONT_SENT, "capture.cont.sent", R, S, RUN, 0) \
	X(CAPTURE_RESUMED, "capture.cont.answered", R, S, RUN, 0) \
	X(CAPTURE_PUSHED_SOME, "capture.push.slab", R, S, RUN, 0) \
	X(CAPTURE_PUSHED, "capture.push.done", R, S, RUN, 1) \
	X(CAPTURE_CAPTURED, "capture.journal.captured", R, S, RUN, 0) \
	X(CAPTURE_CAPTURED_DONE, "capture.journal.captured.done", R, S, RUN, 0) \
	X(CAPTURE_CARRY, "capture.carry.cleared", R, S, RUN, 0) \
	X(CAPTURE_ABORTED, "capture.journal.aborted", R, S, ABORT, 0) \
	X(CAPTURE_ABORTED_DONE, "capture.journal.aborted.done", R, S, ABORT, 0) \
	X(CAPTURE_MERGED, "capture.carry.merged", R, S, ABORT, 0) \
	X(CAPTURE_END, "capture.end.ready", R, S, END, 0)

#define MC_FAULT_POINTS_STAGE(X, R, S) \
	X(STAGE_CLAIMED, "stage.claimed", R, S, RUN, 0) \
	X(STAGE_SHADOW, "stage.shadow.half", R, S, RUN, 0) \
	X(STAGE_SHADOW_FULL, "stage.shadow.written", R, S, RUN, 0) \
	X(STAGE_ENCODED, "stage.encoded", R, S, RUN, 1) \
	X(STAGE_PUSHED, "stage.pushed", R, S, RUN, 0) \
	X(STAGE_MARKED, "stage.marked", R, S, RUN, 0) \
	X(STAGE_STAGED, "stage.journal.staged", R, S, RUN, 0) \
	X(STAGE_STAGED_DONE, "stage.journal.staged.done", R, S, RUN, 0) \
	X(STAGE_ADVANCED, "stage.advanced", R, S, RUN, 0)

#define MC_FAULT_POINTS_TRANSPORT(X, R, S) \
	X(TRANSPORT_CONNECTED, "transport.connected", R, S, LINK, 0) \
	X(TRANSPORT_HELLO, "transport.hello.received", R, S, LINK, 1) \
	X(TRANSPORT_ACCEPTED, "transport.hello.accepted", R, S, LINK, 0) \
	X(TRANSPORT_HASH_ASK, "transport.hash.asked", R, S, RESYNC, 0) \
	X(TRANSPORT_HASHES, "transport.hash.answered", R, S, RESYNC, 0) \
	X(TRANSPORT_SYNC_SENT, "transport.sync.sent", R, S, SYNC, 0) \
	X(TRANSPORT_SYNC_FREED, "transport.sync.freed", R, S, SYNC, 0) \
	X(TRANSPORT_COLLECTED, "transport.collected", R, S, RUN, 0) \
	X(TRANSPORT_START, "transport.start.sent", R, S, RUN, 0) \
	X(TRANSPORT_SLAB, "transport.slab.sent", R, S, RUN, 0) \
	X(TRANSPORT_COMMIT, "transport.commit.sent", R, S, RUN, 0) \
	X(TRANSPORT_SENT, "transport.journal.sent", R, S, RUN, 0) \
	X(TRANSPORT_SENT_DONE, "transport.journal.sent.done", R, S, RUN, 0) \
	X(TRANSPORT_ACK, "transport.ack.received", R, S, RUN, 1) \
	X(TRANSPORT_COMMITTED, "transport.journal.committed", R, S, RUN, 0) \
	X(TRANSPORT_COMMITTED_DONE, "transport.journal.committed.done", R, S, RUN, 0) \
	X(TRANSPORT_FREED, "transport.ack.freed", R, S, RUN, 0) \
	X(TRANSPORT_LEASE, "transport.lease.renewed", R, S, RUN, 0) \
	X(TRANSPORT_ABORTED, "transport.journal.aborted", R, S, NACK, 0) \
	X(TRANSPORT_ABORTED_DONE, "transport.journal.aborted.done", R, S, NACK, 0) \
	X(TRANSPORT_END, "transport.end.sent", R, S, END, 0) \
	X(TRANSPORT_END_ACK, "transport.end.acked", R, S, END, 0)

#define MC_FAULT_POINTS_RECEIVER(X, R, S) \
	X(RECEIVER_CONNECTION, "transport.backup.connection", R, S, LINK, 0) \
	X(RECEIVER_HELLO, "transport.backup.hello", R, S, LINK, 1) \
	X(RECEIVER_HASH_ASK, "transport.backup.hash.asked", R, S, RESYNC, 0) \
	X(RECEIVER_HASHES, "transport.backup.hash.answered", R, S, RESYNC, 0) \
	X(RECEIVER_SYNC, "transport.backup.sync", R, S, SYNC, 0) \
	X(RECEIVER_CAPTURING, "transport.backup.journal.capturing", R, S, RUN, 0) \
	X(RECEIVER_CAPTURING_DONE, "transport.backup.journal.capturing.done", R, S, RUN, 0) \
	X(RECEIVER_LANDED, "transport.backup.slab.landed", R, S, RUN, 1) \
	X(RECEIVER_PUSHED, "transport.backup.slab.pushed", R, S, RUN, 0) \
	X(RECEIVER_COMMIT, "transport.backup.commit", R, S, RUN, 1) \
	X(RECEIVER_CAPTURED, "transport.backup.journal.captured", R, S, RUN, 0) \
	X(RECEIVER_CAPTURED_DONE, "transport.backup.journal.captured.done", R, S, RUN, 0) \
	X(RECEIVER_ACK, "transport.backup.ack", R, S, RUN, 1) \
	X(RECEIVER_ACKED, "transport.backup.ack.sent", R, S, RUN, 0) \
	X(RECEIVER_PING, "transport.backup.ping", R, S, RUN, 0) \
	X(RECEIVER_ABORTED, "transport.backup.journal.aborted", R, S, BREAK, 0) \
	X(RECEIVER_ABORTED_DONE, "transport.backup.journal.aborted.done", R, S, BREAK, 0) \
	X(RECEIVER_END, "transport.backup.end", R, S, END, 0) \
	X(RECEIVER_END_ACK, "transport.backup.end.acked", R, S, END, 0)

#define MC_FAULT_POINTS_NETGATE(X, R, S) \
	X(NETGATE_OPENED, "netgate.opened", R, S, START, 0) \
	X(NETGATE_MODE, "netgate.mode.wanted", R, S, START, 0) \
	X(NETGATE_MODE_SET, "netgate.mode.set", R, S, START, 0) \
	X(NETGATE_BARRIER, "netgate.barrier.wanted", R, S, RUN, 1) \
	X(NETGATE_BARRIER_SET, "netgate.barrier.set", R, S, RUN, 1) \
	X(NETGATE_BARRIER_DONE, "netgate.barrier.recorded", R, S, RUN, 0) \
	X(NETGATE_RELEASE, "netgate.release.wanted", R, S, RUN, 1) \
	X(NETGATE_RELEASED_ONE, "netgate.release.frame", R, S, RUN, 0) \
	X(NETGATE_RELEASE_SET, "netgate.release.set", R, S, RUN, 1) \
	X(NETGATE_RELEASED, "netgate.journal.released", R, S, RUN, 0) \
	X(NETGATE_RELEASED_DONE, "netgate.journal.released.done", R, S, RUN, 0) \
	X(PLUG_IFB, "netgate.plug.ifb", R, S, PLUG, 0) \
	X(PLUG_FRESH, "netgate.plug.fresh", R, S, PLUG, 0) \
	X(PLUG_QDISC, "netgate.plug.qdisc", R, S, PLUG, 0) \
	X(PLUG_UP, "netgate.plug.up", R, S, PLUG, 0) \
	X(PLUG_CLSACT, "netgate.plug.clsact", R, S, PLUG, 0) \
	X(PLUG_FILTER, "netgate.plug.filter", R, S, PLUG, 0) \
	X(PLUG_PASS, "netgate.plug.pass", R, S, PLUG, 0) \
	X(PLUG_HOLD, "netgate.plug.hold", R, S, PLUG, 0) \
	X(PLUG_BUFFER, "netgate.plug.buffer", R, S, PLUG, 1) \
	X(PLUG_BUFFERED, "netgate.plug.buffer.sent", R, S, PLUG, 1) \
	X(PLUG_RELEASE, "netgate.plug.release", R, S, PLUG, 1) \
	X(PLUG_RELEASED, "netgate.plug.release.sent", R, S, PLUG, 1) \
	X(PLUG_UNDO, "netgate.plug.undo", R, S, PLUG, 0)

#define MC_FAULT_POINTS_RESTORE(X, R, S) \
	X(RESTORE_MAPPED, "restore.attach.mapped", R, S, START, 0) \
	X(RESTORE_PUBLISHED, "restore.attach.published", R, S, START, 0) \
	X(RESTORE_EMPTIED, "restore.attach.emptied", R, S, START, 0) \
	X(RESTORE_HASHED, "restore.hash.computed", R, S, RESYNC, 0) \
	X(RESTORE_SYNC_APPLIED, "restore.sync.applied", R, S, SYNC, 0) \
	X(RESTORE_SYNC_COUNTED, "restore.sync.counted", R, S, SYNC, 0) \
	X(RESTORE_FIRST, "restore.first.committed", R, S, SYNC, 0) \
	X(RESTORE_DECODED, "restore.decoded", R, S, RUN, 1) \
	X(RESTORE_DROPPED, "restore.decoded.dropped", R, S, RUN, 0) \
	X(RESTORE_STAGED, "restore.journal.staged", R, S, RUN, 0) \
	X(RESTORE_STAGED_DONE, "restore.journal.staged.done", R, S, RUN, 0) \
	X(RESTORE_COMMIT, "restore.commit.wanted", R, S, RUN, 1) \
	X(RESTORE_COMMIT_SET, "restore.commit.set", R, S, RUN, 0) \
	X(RESTORE_COMMITTED, "restore.journal.committed", R, S, RUN, 0) \
	X(RESTORE_COMMITTED_DONE, "restore.journal.committed.done", R, S, RUN, 0) \
	X(RESTORE_APPLY, "restore.apply.page", R, S, RUN, 0) \
	X(RESTORE_APPLIED_SLAB, "restore.apply.slab", R, S, RUN, 0) \
	X(RESTORE_APPLIED, "restore.apply.done", R, S, RUN, 0) \
	X(RESTORE_RELEASED, "restore.journal.released", R, S, RUN, 0) \
	X(RESTORE_RELEASED_DONE, "restore.journal.released.done", R, S, RUN, 0) \
	X(RESTORE_ABORTED, "restore.journal.aborted", R, S, NACK, 0) \
	X(RESTORE_ABORTED_DONE, "restore.journal.aborted.done", R, S, NACK, 0) \
	X(RESTORE_TAKEN, "restore.take.taken", R, S, TAKEOVER, 0) \
	X(RESTORE_TAKING, "restore.take.state", R, S, TAKEOVER, 0) \
	X(RESTORE_GIVEN, "restore.take.fd", R, S, TAKEOVER, 0) \
	X(RESTORE_LOADING, "restore.take.loading", R, S, TAKEOVER, 0) \
	X(RESTORE_RUNNING, "restore.take.running", R, S, TAKEOVER, 0) \
	X(RESTORE_DISARMED, "restore.end.disarmed", R, S, END, 0) \
	X(RESTORE_ENDED, "restore.end.state", R, S, END, 0)

#define MC_FAULT_POINTS_SUPERVISOR(X, R, S) \
	X(SUPERVISOR_REAPED, "supervisor.reaped", R, S, RUN, 0) \
	X(SUPERVISOR_SPAWNED, "supervisor.spawned", R, S, RUN, 0) \
	X(SUPERVISOR_REGISTERED, "supervisor.registered", R, S, RUN, 0) \
	X(SUPERVISOR_TERM, "supervisor.term.written", R, S, START, 0) \
	X(SUPERVISOR_TERM_STORED, "supervisor.term.stored", R, S, START, 0) \
	X(SUPERVISOR_STARTED, "supervisor.guest.started", R, S, START, 0)

#define MC_FAULT_POINTS(X) \
	MC_FAULT_POINTS_CAPTURE(X, CAPTURE, PRIMARY) \
	MC_FAULT_POINTS_STAGE(X, STAGE0, PRIMARY) \
	MC_FAULT_POINTS_TRANSPORT(X, TRANSPORT, PRIMARY) \
	MC_FAULT_POINTS_RECEIVER(X, TRANSPORT, BACKUP) \
	MC_FAULT_POINTS_NETGATE(X, NETGATE, PRIMARY) \
	MC_FAULT_POINTS_RESTORE(X, RESTORE, BACKUP) \
	MC_FAULT_POINTS_SUPERVISOR(X, SUPERVISOR, PRIMARY)
/* clang-format on */

enum mc_fault_point {
	MC_FAULT_NONE,
#define X(id, name, role, side, when, error) MC_FAULT_##id,
	MC_FAULT_POINTS(X)
#undef X
	        MC_FAULT_COUNT
};

/* What makes a process pass a point. */
enum mc_fault_when {
	MC_FAULT_START,    /* protect, standby */
	MC_FAULT_LINK,     /* a connection between the two ends */
	MC_FAULT_SYNC,     /* the first copy */
	MC_FAULT_RESYNC,   /* a first copy to a standby that was filled before */
	MC_FAULT_RUN,      /* every epoch */
	MC_FAULT_LARGE,    /* an epoch with much to copy */
	MC_FAULT_ABORT,    /* an epoch that capture gives up */
	MC_FAULT_NACK,     /* an epoch that the backup refuses */
	MC_FAULT_BREAK,    /* a link that breaks in the middle of an epoch */
	MC_FAULT_TAKEOVER, /* the primary's death */
	MC_FAULT_END,      /* unprotect */
	MC_FAULT_PLUG,     /* a NIC whose gate is a plug (tests/kernel/plug-death.c) */
	MC_FAULT_WHENS
};

#endif
