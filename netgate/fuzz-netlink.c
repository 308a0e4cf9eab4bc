/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a kernel, or a message damaged on its way, may report: netlink events as datagrams. */
#include <sys/socket.h>
#include <unistd.h>

#include <linux/rtnetlink.h>

#include "../ipc/fuzz.h"
#include "nl.h"

#define DATAGRAMS 16

static void on_event(void *ctx, const struct nl_event *e)
{
	unsigned *n = ctx;

	FUZZ_CHECK(e->kind <= NL_EVENT_LOST);
	FUZZ_CHECK(e->major <= 0xffff && e->prio <= 0xffff);
	++*n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input in = {data, size};
	unsigned events = 0;
	int sp[2];

	if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sp) < 0)
		abort();
	for (int i = 0; i < DATAGRAMS && in.left; i++) {
		_Alignas(struct nlmsghdr) uint8_t buf[1024];
		uint8_t mode = fuzz_u8(&in);
		size_t len = fuzz_take(&in, buf, (size_t)fuzz_u16(&in) % sizeof(buf));
		struct nlmsghdr h;

		if (mode & 1 && len >= sizeof(h)) { /* one whole message */
			memcpy(&h, buf, sizeof(h));
			h.nlmsg_len = (uint32_t)len;
			memcpy(buf, &h, sizeof(h));
		}
		if (len)
			(void)send(sp[1], buf, len, MSG_DONTWAIT);
		FUZZ_CHECK(nl_event_read(sp[0], on_event, &events) == 0);
	}
	close(sp[0]);
	close(sp[1]);
	return 0;
}
