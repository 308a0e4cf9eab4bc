/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "arbiter.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "arbiter-private.h"
#include "util.h"

#define LOST_MAX 125 /* beyond it the shell speaks, not the command */

struct mc_arbiter {
	int helper; /* borrowed */
	uint32_t number;
	enum mc_verdict verdict;
	sd_event *event;
	sd_event_source *io;
	char text[64];
};

bool mc_arbiter_configured(const struct mc_config *cfg)
{
	return strncmp(cfg->arbiter, MC_ARBITER_PREFIX, strlen(MC_ARBITER_PREFIX)) == 0;
}

/* The verdict of a command that has ended. */
static void judge(struct mc_arbiter *a, const struct mc_arbiter_answer *got)
{
	int status = got->status;

	a->verdict = MC_VERDICT_FAILED;
	if (got->late) {
		snprintf(a->text, sizeof(a->text), "gave no answer in time");
	} else if (status < 0) {
		snprintf(a->text, sizeof(a->text), "can't be run (%s)", strerror(-status));
	} else if (WIFSIGNALED(status)) {
		snprintf(a->text, sizeof(a->text), "was killed by signal %d", WTERMSIG(status));
	} else {
		snprintf(a->text, sizeof(a->text), "exited with status %d", WEXITSTATUS(status));
		if (!WEXITSTATUS(status))
			a->verdict = MC_VERDICT_WON;
		else if (WEXITSTATUS(status) <= LOST_MAX)
			a->verdict = MC_VERDICT_LOST;
	}
}

static int on_answer(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct mc_arbiter *a = userdata;
	struct mc_arbiter_answer got;
	ssize_t n = recv(fd, &got, sizeof(got), MSG_DONTWAIT);

	(void)revents;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n != sizeof(got)) {
		a->verdict = MC_VERDICT_FAILED;
		snprintf(a->text, sizeof(a->text), "can't be asked any more: its helper is gone");
		(void)sd_event_exit(a->event, 1);
	} else if (got.number != a->number) {
		return 0; /* of a question that was forgotten */
	} else {
		judge(a, &got);
	}
	return sd_event_source_set_enabled(s, SD_EVENT_OFF);
}

static int tell(int helper, const struct mc_arbiter_question *q)
{
	return send(helper, q, sizeof(*q), MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

int mc_arbiter_ask(struct mc_arbiter **ret, sd_event *e, int helper, uint32_t limit_ms,
                   enum mc_reason why, uint64_t term, uint64_t epoch)
{
	struct mc_arbiter_question q = {.number = (uint32_t)mc_now_ns() | 1,
	                                .reason = why,
	                                .term = term,
	                                .epoch = epoch,
	                                .limit_ms = limit_ms};
	struct mc_arbiter *a = calloc(1, sizeof(*a));
	int r;

	if (!a)
		return -ENOMEM;
	a->helper = helper;
	a->number = q.number;
	a->event = sd_event_ref(e);
	r = sd_event_add_io(e, &a->io, helper, EPOLLIN, on_answer, a);
	if (r >= 0)
		r = tell(helper, &q);
	if (r == -EPIPE || r == -ECONNRESET)
		(void)sd_event_exit(e, 1);
	if (r < 0) {
		a->verdict = MC_VERDICT_FAILED;
		mc_arbiter_free(a);
		return r;
	}
	*ret = a;
	return 0;
}

enum mc_verdict mc_arbiter_verdict(const struct mc_arbiter *a)
{
	return a->verdict;
}

const char *mc_arbiter_text(const struct mc_arbiter *a)
{
	return a->text;
}

struct mc_arbiter *mc_arbiter_free(struct mc_arbiter *a)
{
	if (!a)
		return NULL;
	if (a->verdict == MC_VERDICT_PENDING)
		(void)tell(a->helper, &(struct mc_arbiter_question){0});
	sd_event_source_disable_unref(a->io);
	sd_event_unref(a->event);
	free(a);
	return NULL;
}
