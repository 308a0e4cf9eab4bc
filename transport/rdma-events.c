/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Completions, and what the device has to say. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "rdma.h"

#define BATCH  16
#define ROUNDS 8 /* before others get their turn */

static void failed(struct rdma *r, const struct ibv_wc *wc, int e)
{
	r->broken = true;
	/* Flushed: why is known from elsewhere, or the peer ended the connection. */
	if (e == -ECANCELED)
		rdma_closed(r, -ECONNRESET, "the RDMA connection ended");
	else if (e == -ETIMEDOUT)
		rdma_closed(r, e, "the peer doesn't answer on the RDMA connection");
	else
		rdma_closed(r, e, "an RDMA request failed (%s)", verbs_wc_text(wc));
}

static void one(struct rdma *r, const struct ibv_wc *wc)
{
	unsigned i = (unsigned)(wc->wr_id & UINT32_MAX);
	int e = verbs_wc_error(wc);

	switch (wc->wr_id & ~(uint64_t)UINT32_MAX) {
	case WR_WRITE:
		r->chunks--;
		break;
	case WR_SEND:
		r->sends--;
		if (e == 0)
			send_completed(r, i);
		break;
	case WR_RECV:
		if (e == 0)
			receive_completed(r, i, wc->byte_len);
		break;
	}
	if (e < 0)
		failed(r, wc, e);
}

void events_drain(struct rdma *r)
{
	struct ibv_wc wc[BATCH];
	int n = BATCH;

	if (!r->cq)
		return;
	for (int k = 0; k < ROUNDS && n == BATCH; k++) {
		n = verbs_poll(r->cq, BATCH, wc);
		for (int i = 0; i < n; i++)
			one(r, &wc[i]);
	}
	if (n < 0) {
		r->broken = true;
		rdma_closed(r, n, "completions can't be read");
	}
	if (n == BATCH && !r->opt.poll)
		(void)sd_event_source_set_enabled(r->spin, SD_EVENT_ON);
	receive_tend(r);
	send_pump(r);
}

static int on_completion(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct rdma *r = userdata;
	int e = verbs_cq_wakeups(r->comp, r->cq);

	(void)s;
	(void)fd;
	(void)revents;
	if (e >= 0)
		e = verbs_cq_arm(r->cq); /* before the look: what comes after it wakes us */
	if (e < 0) {
		r->broken = true;
		rdma_closed(r, e, "the completion channel failed");
	}
	events_drain(r);
	(void)rdma_linger_over(r);
	return 0;
}

static int on_async(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct rdma *r = userdata;
	struct verbs_async e;

	(void)s;
	(void)fd;
	(void)revents;
	while (verbs_async_event(r->id->verbs, &e) == 1) {
		if (e.qp && e.qp != r->id->qp)
			continue; /* of an older link: its requests are flushed as well */
		if (e.error == 0) {
			mc_debug("RDMA device %s: %s", r->id->verbs->device->name, e.text);
			continue;
		}
		r->broken = true;
		rdma_closed(r, e.error, "RDMA device %s: %s", r->id->verbs->device->name, e.text);
	}
	(void)rdma_linger_over(r);
	return 0;
}

int events_watch_device(struct rdma *r)
{
	int fd = verbs_async_fd(r->id->verbs), copy, e;

	if (fd < 0)
		return fd;
	e = sd_event_add_io(r->event, &r->comp_io, r->comp->fd, EPOLLIN, on_completion, r);
	if (e < 0)
		return e;
	/* All links of this process share the device's: a copy each for the event loop. */
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (copy < 0)
		return -errno;
	e = sd_event_add_io(r->event, &r->async_io, copy, EPOLLIN, on_async, r);
	if (e >= 0)
		e = sd_event_source_set_io_fd_own(r->async_io, 1);
	else
		close(copy);
	return e < 0 ? e : verbs_cq_arm(r->cq);
}
