/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What every worker process (capture, stage, transport, netgate, restore) does alike:
 * command line, inherited fds, arena, event loop, doorbell, the control connection.
 *
 * Command line, made by the supervisor:
 *
 *   mc-ROLE --guest NAME [--index N] --arena-fd 3 --bell-fd 4 --config-fd N --control PATH
 *           [--debug] [--uid N --gid N] [--creds-fd N]
 *
 * mc-ROLE --version prints "mc-ROLE BUILD abi N"; one that finds an arena of another ABI ends with
 * exit status MC_EXIT_ABI before it touches anything.
 *
 * fd 3 is the arena, fds 4 .. 4 + MC_ROLE_MAX - 1 the eventfds in role order, the next one the
 * configuration, which can't be written by it; then, which only a transport with TLS has, its
 * credentials (creds.h).
 *
 * A worker gives up its privileges (confine.h) once start() has returned, or when it calls
 * mc_worker_confine() if its ops say that it does so itself; --uid and --gid are who it becomes.
 *
 * The worker connects to the supervisor's socket PATH and speaks D-Bus on it, peer to peer
 * (sd-bus); it goes on without, and tries again every 100 ms, when the supervisor is away.
 * After connecting it calls
 *
 *   Register(s guest, s role, u index, u pid, t start_time, s build, h arena, ah bells)
 *
 * on object /org/microcheckpoint1/control, interface org.microcheckpoint1.Control; the
 * answer is empty, or an error after which it tries again.  It serves on object
 * /org/microcheckpoint1/worker, interface org.microcheckpoint1.Worker:
 *
 *   Quit()                   end in good order
 *   Connection(h fd)         transport on the backup: an accepted link
 *   Do(s verb, s arg) -> s   process specific; errors carry a sentence
 *
 * and may send it the signal Event(s id, s text, t epoch).
 */
#ifndef MC_IPC_WORKER_H
#define MC_IPC_WORKER_H

#include <stdbool.h>
#include <stdint.h>

#include <systemd/sd-event.h>

#include "arena.h"
#include "confine.h"
#include "util.h"

#define MC_EXIT_ABI  3
#define MC_EXIT_BUSY 4 /* another process has this place */

struct mc_worker;

struct mc_worker_ops {
	enum mc_role role;     /* stage: MC_ROLE_STAGE0; the index is added */
	const char *process;   /* "mc-capture" */
	uint64_t capabilities; /* 1 << CAP_X of those that it keeps */
	unsigned allow;        /* enum mc_allow: system calls beyond the base */
	bool asks_arbiter;     /* with an arbiter (arbiter.h) it starts a helper that runs it */
	bool confines_itself;  /* it calls mc_worker_confine() before it touches what others sent */

	/* Called once with arena and event loop ready, before the first work(). */
	int (*start)(struct mc_worker *w, void *ctx);
	/*
	 * Does all that can be done now.  Called after every wake-up and once more after the
	 * sleep word was set (bell.h).  Returns 1 when it did something (is called again), 0 when
	 * there is nothing left to do, negative errno to end the process.
	 */
	int (*work)(struct mc_worker *w, void *ctx);
	/* SIGTERM or Quit(): finish; optional. Afterwards the process leaves its loop. */
	void (*quit)(struct mc_worker *w, void *ctx);
	/* Optional: takes the fd over. */
	int (*connection)(struct mc_worker *w, void *ctx, int fd);
	/* Optional: 0 and *reply (malloc'ed, may stay NULL), or negative errno with *reply the
	 * sentence. */
	int (*do_verb)(struct mc_worker *w, void *ctx, const char *verb, const char *arg,
	               char **reply);
};

struct mc_worker {
	const struct mc_worker_ops *ops;
	void *ctx;
	sd_event *event;
	struct mc_arena arena;
	enum mc_role role;
	char guest[MC_NAME_MAX];
	int creds_fd;   /* owned; -1: none */
	int arbiter_fd; /* owned; the arbiter's helper, -1: none */
	bool debug;
	uid_t uid; /* who it becomes; (uid_t)-1: stays who it is */
	gid_t gid;
	bool confined;
	uint64_t start_time;       /* of this process, from /proc */
	struct mc_worker_bus *bus; /* control connection, private */
	int place_fd;              /* mc_arena_take_place() */
};

/*
 * Runs a worker to its end; for main().  @ctx is given to every op.  Returns the process'
 * exit status: 0 ended as told, 1 error (logged), 2 usage,
 * MC_EXIT_ABI, MC_EXIT_BUSY.
 */
int mc_worker_run(int argc, char **argv, const struct mc_worker_ops *ops, void *ctx);

/*
 * Sends Event(id, text, epoch) to the supervisor; never blocks.  While there is none the first few
 * wait for it.
 */
void mc_worker_event(struct mc_worker *w, const char *id, uint64_t epoch, const char *fmt, ...)
        __attribute__((format(printf, 4, 5)));

/* Raises the heartbeat in the middle of a long work(). */
static inline void mc_worker_alive(struct mc_worker *w)
{
	mc_arena_alive(&w->arena, w->role);
}

/*
 * Announces an operation that keeps the loop from turning for up to @ns nanoseconds from now;
 * beyond that the process counts as hung and is killed.  0: done.  A loop that turns needs no
 * announcement: its heartbeat is raised by every work().
 */
static inline void mc_worker_busy(struct mc_worker *w, uint64_t ns)
{
	mc_arena_busy(&w->arena, w->role, ns);
}

/* Makes the loop end with exit status @status after the current callback. */
void mc_worker_exit(struct mc_worker *w, int status);

/*
 * Gives up everything but @capabilities and what the ops allow, with @more of enum mc_allow.
 * 0 or negative errno (logged): the process must end.
 */
int mc_worker_confine(struct mc_worker *w, uint64_t capabilities, unsigned more);

/* Short cuts. */
static inline struct mc_metrics_block *mc_worker_metrics(struct mc_worker *w)
{
	return &w->arena.metrics[w->role];
}

#endif
