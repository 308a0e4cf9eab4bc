/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Relay, frames for the guest: from a tap or a socket to QEMU, as far as it takes them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "relay-private.h"

/* QEMU's socket, when it is there. */
static int connect_qemu(struct relay *r)
{
	if (connect(r->to_qemu, (struct sockaddr *)&r->qemu_addr, sizeof(r->qemu_addr)) == 0)
		return 0;
	return -errno;
}

/*
 * A new QEMU has taken a dead one's place.  Its socket may be another user's, which only a
 * process that has its privileges still can connect to: our successor.  Nothing is held then.
 */
static bool reconnect_qemu(struct relay *r)
{
	int e = connect_qemu(r);

	if (e == -EACCES && r->mode == GATE_PASS) {
		mc_info("QEMU at %s is a new one; the gate starts again", r->qemu_addr.sun_path);
		(void)sd_event_exit(r->event, 0);
	}
	return e == 0;
}

/* A frame for the guest. False: QEMU takes no more at present. */
static bool send_in(struct relay *r, const void *frame, size_t len)
{
	ssize_t n = -1;

	if (r->qemu_addr.sun_path[0]) {
		n = send(r->to_qemu, frame, len, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0 && (errno == ENOTCONN || errno == ECONNREFUSED || errno == ECONNRESET) &&
		    reconnect_qemu(r))
			n = send(r->to_qemu, frame, len, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0 && errno == EAGAIN)
			return false;
	}
	mc_metric_add(r->m, n < 0 ? MC_M_PURGED : MC_M_FRAMES_IN, 1);
	return true;
}

/*
 * QEMU's socket queues ten datagrams, and in a pause nobody reads them: what comes then waits where
 * it is, in the tap's own queue, and the sender's TCP sees a delay instead of a loss.
 */
static void wait_for_room(struct relay *r, const uint8_t *frame, size_t len)
{
	memcpy(r->waiting, frame, len);
	r->waits = len;
	(void)sd_event_source_set_enabled(r->world_io, SD_EVENT_OFF);
	(void)sd_event_source_set_enabled(r->room_io, SD_EVENT_ON);
}

void relay_in_drop(struct relay *r)
{
	r->waits = 0;
	(void)sd_event_source_set_enabled(r->room_io, SD_EVENT_OFF);
	(void)sd_event_source_set_enabled(r->world_io, SD_EVENT_ON);
}

static int on_room(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct relay *r = userdata;

	(void)s;
	(void)fd;
	(void)revents;
	if (!r->waits || send_in(r, r->waiting, r->waits))
		relay_in_drop(r);
	return 0;
}

void relay_in_learn(struct relay *r, const struct msghdr *h)
{
	const struct sockaddr_un *from = h->msg_name;

	if (r->spec.qemu_path[0] || h->msg_namelen <= offsetof(struct sockaddr_un, sun_path) + 1 ||
	    strncmp(r->qemu_addr.sun_path, from->sun_path, sizeof(from->sun_path)) == 0)
		return;
	r->qemu_addr = *from;
	(void)connect_qemu(r);
}

static int on_world(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	struct relay *r = userdata;

	(void)s;
	(void)revents;
	for (int n = 0; n < BURST * BURSTS; n++) {
		uint8_t *buf = r->b.data[0];
		ssize_t len = r->world_is_sock ? recv(fd, buf, FRAME_MAX, MSG_DONTWAIT)
		                               : read(fd, buf, FRAME_MAX);

		if (len <= 0)
			break;
		/* A standby that is fed while it waits would answer all of it when it starts. */
		if (r->mode != GATE_SHUT && !send_in(r, buf, (size_t)len)) {
			wait_for_room(r, buf, (size_t)len);
			break;
		}
	}
	return 0;
}

/* Our socket is for QEMU's user alone, its own is connected to as long as we may. */
int relay_in_open(struct relay *r)
{
	const char *theirs = r->qemu_addr.sun_path;
	struct stat st;

	if (theirs[0] && stat(theirs, &st) == 0 && geteuid() == 0 &&
	    (chown(r->spec.path, st.st_uid, st.st_gid) < 0 || chmod(r->spec.path, 0600) < 0))
		return -errno;
	r->to_qemu = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (r->to_qemu < 0)
		return -errno;
	if (theirs[0])
		(void)connect_qemu(r); /* tried again with the first frame */
	return 0;
}

int relay_in_start(struct relay *r)
{
	int e = sd_event_add_io(r->event, &r->world_io, r->world, EPOLLIN, on_world, r);

	if (e >= 0)
		e = sd_event_add_io(r->event, &r->room_io, r->to_qemu, EPOLLOUT, on_room, r);
	return e < 0 ? e : sd_event_source_set_enabled(r->room_io, SD_EVENT_OFF);
}

void relay_in_close(struct relay *r)
{
	sd_event_source_disable_unref(r->world_io);
	sd_event_source_disable_unref(r->room_io);
	mc_closep(&r->to_qemu);
}
