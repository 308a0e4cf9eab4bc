/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What comes in over a TCP link: messages, whole and verified; slabs into memory that was lent. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "../ipc/util.h"
#include "tcp-private.h"

#define READS_MAX 16 /* reads before others, and the sign of life, get their turn */

/* Where the next bytes go and how many are wanted; 0: the message is complete. */
static size_t next_piece(struct tcp *t, uint8_t **to)
{
	size_t fixed = MC_WIRE_HEADER, got;

	if (t->have < fixed) {
		*to = (uint8_t *)&t->h + t->have;
		return fixed - t->have;
	}
	got = t->have - fixed;
	if (t->h.type != MC_MSG_SLAB) {
		*to = t->control + got;
		return t->h.length - got;
	}
	if (got < sizeof(struct mc_wire_slab)) {
		*to = t->control + got;
		return sizeof(struct mc_wire_slab) - got;
	}
	*to = t->slab ? t->slab + (got - sizeof(struct mc_wire_slab)) : NULL;
	return t->h.length - got;
}

/* A slab's head is here: asks where its content goes. false: stalled or closed. */
static bool open_slab(struct tcp *t)
{
	struct mc_wire_slab s;

	memcpy(&s, t->control, sizeof(s));
	if (s.bytes != t->h.length - sizeof(s)) {
		tcp_closed(t, -EPROTO, "SLAB whose lengths contradict each other");
		return false;
	}
	t->lent = t->l.events->lend(t->l.ctx, &t->l, (void **)&t->slab);
	if (t->lent)
		return true;
	t->slab = NULL;
	t->stalled = true;
	tcp_set_io(t);
	return false;
}

static bool message_complete(struct tcp *t)
{
	bool is_slab = t->h.type == MC_MSG_SLAB;
	size_t head = is_slab ? sizeof(struct mc_wire_slab) : t->h.length;
	uint64_t sum = mc_wire_checksum(&t->h, t->control, head, t->slab, t->h.length - head);
	uint64_t slab = t->lent;
	int r;

	if (sum != t->h.checksum) {
		tcp_closed(t, -EBADMSG, "message with a wrong checksum");
		return false;
	}
	t->have = 0;
	t->slab = NULL;
	t->lent = 0;
	t->l.copied += t->h.length - head; /* out of the socket */
	r = t->l.events->message(t->l.ctx, &t->l, &t->h, t->control, slab);
	if (r < 0)
		tcp_closed(t, r, "what the peer sent is refused");
	return !t->dead;
}

/* After every read: checks what became complete. false: no more reading now. */
static bool advance(struct tcp *t)
{
	char why[128];
	int r;

	if (t->have == MC_WIRE_HEADER) {
		r = mc_wire_header_check(&t->h, &t->l.limits, why, sizeof(why));
		if (r < 0) {
			tcp_closed(t, r, why);
			return false;
		}
	}
	if (t->have >= MC_WIRE_HEADER && t->have == MC_WIRE_HEADER + t->h.length)
		return message_complete(t);
	if (t->h.type == MC_MSG_SLAB && !t->slab &&
	    t->have == MC_WIRE_HEADER + sizeof(struct mc_wire_slab))
		return open_slab(t);
	return true;
}

static ssize_t read_some(struct tcp *t, void *to, size_t want)
{
	ssize_t n;

	if (t->tls)
		return tls_recv(t->tls, to, want);
	n = recv(t->fd, to, want, MSG_DONTWAIT);
	return n < 0 ? -errno : n;
}

/* What TLS has deciphered already wakes nobody: it is read at the next turn of the loop. */
static void read_more(struct tcp *t)
{
	if (t->tls && !t->dead && !t->stalled && tls_pending(t->tls))
		(void)sd_event_source_set_enabled(t->more, SD_EVENT_ONESHOT);
}

void tcp_receive(struct tcp *t)
{
	for (int i = 0; i < READS_MAX && !t->dead && !t->stalled; i++) {
		uint8_t *to;
		size_t want = next_piece(t, &to);
		ssize_t n = read_some(t, to, want);

		if (n < 0) {
			if (n != -EAGAIN && n != -EINTR)
				tcp_closed(t, (int)n, tcp_broken(t, "read failed"));
			return;
		}
		if (n == 0) {
			tcp_closed(t, -ECONNRESET,
			           t->have ? "peer closed in the middle of a message"
			                   : "peer closed the connection");
			return;
		}
		t->l.heard = mc_now_ns();
		t->have += (size_t)n;
		if (!advance(t))
			return;
	}
	read_more(t);
}

int tcp_on_more(sd_event_source *s, void *userdata)
{
	(void)s;
	tcp_receive(userdata);
	return 0;
}

void tcp_resume(struct link *l)
{
	struct tcp *t = (struct tcp *)l;

	if (!t->stalled || t->dead)
		return;
	t->stalled = false;
	if (open_slab(t)) {
		tcp_set_io(t);
		read_more(t);
	}
}
