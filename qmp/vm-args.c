/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The command line of a standby, from that of the running guest. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ipc/util.h"
#include "vm-private.h"

#define CMDLINE_MAX (1 << 20)

static int read_cmdline(pid_t pid, char **ret, size_t *len)
{
	char path[64], *buf;
	int mc_autoclose fd = -1;
	size_t n = 0;

	snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	buf = malloc(CMDLINE_MAX + 1);
	if (!buf)
		return -ENOMEM;
	while (n < CMDLINE_MAX) {
		ssize_t r = read(fd, buf + n, CMDLINE_MAX - n);

		if (r < 0) {
			int e = -errno;

			free(buf);
			return e;
		}
		if (r == 0)
			break;
		n += (size_t)r;
	}
	buf[n] = '\0';
	*ret = buf;
	*len = n;
	return 0;
}

static void put_quoted(FILE *f, const char *s)
{
	bool plain = *s;

	for (const char *p = s; *p; p++)
		plain = plain && (isalnum((unsigned char)*p) || strchr("-_./:=,@+%", *p));
	if (plain) {
		fputs(s, f);
		return;
	}
	fputc('\'', f);
	for (; *s; s++)
		if (*s == '\'')
			fputs("'\\''", f);
		else
			fputc(*s, f);
	fputc('\'', f);
}

static bool is_option(const char *arg, const char *name)
{
	while (*arg == '-')
		arg++;
	return strcmp(arg, name) == 0;
}

int vm_standby_args(struct qmp *q, const struct vm_info *i, char **ret)
{
	char mc_autofree *cmd = NULL;
	bool has_global = false;
	size_t len = 0, out_len;
	FILE *f;
	int r = read_cmdline(i->pid, &cmd, &len);

	(void)q;
	if (r < 0)
		return r;
	f = open_memstream(ret, &out_len);
	if (!f)
		return -ENOMEM;
	for (const char *p = cmd; p < cmd + len; p += strlen(p) + 1) {
		if (*p == '-' && is_option(p, "S"))
			continue;
		if (*p == '-' && is_option(p, "incoming")) {
			p += strlen(p) + 1;
			if (p >= cmd + len)
				break;
			continue;
		}
		has_global = has_global || strcmp(p, "migration.send-configuration=off") == 0;
		if (p != cmd)
			fputc(' ', f);
		put_quoted(f, p);
	}
	fputs(" -incoming defer", f);
	if (!has_global)
		fputs(" -global migration.send-configuration=off", f);
	return fclose(f) == 0 ? 0 : -ENOMEM;
}
