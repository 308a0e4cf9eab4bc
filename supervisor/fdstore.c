/* SPDX-License-Identifier: GPL-2.0-or-later */
/* systemd keeps the port open from one supervisor to the next. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "../ipc/util.h"
#include "supervisor.h"

/* A port of another address, from before --listen was changed, has another name. */
static void name_of(const struct manager *m, char *buf, size_t len)
{
	uint32_t h = 2166136261U; /* FNV-1a */

	for (const char *s = m->listen; *s; s++)
		h = (h ^ (uint8_t)*s) * 16777619U;
	snprintf(buf, len, "listen-%08x", h);
}

int fdstore_take_port(const struct manager *m)
{
	char **names = NULL, want[32];
	int n = sd_listen_fds_with_names(1, &names), fd = -1;

	name_of(m, want, sizeof(want));
	for (int i = 0; i < n; i++) {
		int one = SD_LISTEN_FDS_START + i;

		if (fd < 0 && strcmp(names[i], want) == 0 &&
		    sd_is_socket(one, AF_UNSPEC, SOCK_STREAM, 1) > 0)
			fd = one;
		else
			close(one);
		free(names[i]);
	}
	free(names);
	return fd;
}

void fdstore_keep_port(const struct manager *m)
{
	char name[32], state[64];

	name_of(m, name, sizeof(name));
	snprintf(state, sizeof(state), "FDSTORE=1\nFDNAME=%s", name);
	(void)sd_pid_notify_with_fds(0, 0, state, &m->listen_fd, 1);
}
