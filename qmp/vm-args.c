/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The command line of a standby, from that of the running guest. */
#include <ctype.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "../ipc/util.h"
#include "vm-private.h"

#define CMDLINE_MAX (1U << 20)
#define CONFIG_OFF  "migration.send-configuration=off"

int vm_read_cmdline(pid_t pid, char **ret, size_t *len)
{
	mc_autofree char *buf = malloc(CMDLINE_MAX + 1);
	mc_autoclose int fd = -1;
	char path[64];
	size_t n = 0;
	ssize_t r;

	if (!buf)
		return -ENOMEM;
	snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		/* cppcheck-suppress memleak */
		return -errno;
	do {
		r = read(fd, buf + n, CMDLINE_MAX - n);
		if (r < 0 && errno != EINTR)
			return -errno;
		n += r > 0 ? (size_t)r : 0;
	} while (r && n < CMDLINE_MAX);
	if (n == CMDLINE_MAX)
		return -E2BIG;
	if (!n) /* a zombie */
		return -ESRCH;
	buf[n] = '\0';
	*ret = mc_take_ptr(buf);
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

/* QEMU takes its options with one dash and with two. */
static bool is_option(const char *arg, const char *name)
{
	if (arg[0] != '-')
		return false;
	return !strcmp(arg + 1, name) || (arg[1] == '-' && !strcmp(arg + 2, name));
}

/*
 * Options with a value that may look like an option: "-append -S" is no -S.  Only those whose
 * value is free text matter.
 */
static bool takes_text(const char *arg)
{
	static const char *const names[] = {"append", "name", "kernel", "initrd", "pidfile", "D"};

	for (size_t i = 0; i < MC_ARRAY_SIZE(names); i++)
		if (is_option(arg, names[i]))
			return true;
	return false;
}

/*
 * Arguments that a standby can't have, 0, 1 or 2 of them: how it starts is its own matter
 * (-incoming, -loadvm), and with -S it would not run after a takeover.
 */
static unsigned dropped(const char *arg, const char *next)
{
	if (is_option(arg, "S"))
		return 1;
	if (is_option(arg, "incoming") || is_option(arg, "loadvm"))
		return 2;
	return is_option(arg, "global") && next && !strcmp(next, CONFIG_OFF) ? 2 : 0;
}

static void put_args(FILE *f, const char *cmd, const char *end)
{
	bool text = false; /* the argument belongs to the option before */

	for (const char *p = cmd; p < end;) {
		const char *next = p + strlen(p) + 1;
		unsigned drop = text ? 0 : dropped(p, next < end ? next : NULL);

		if (drop) {
			p = drop == 2 && next < end ? next + strlen(next) + 1 : next;
			continue;
		}
		if (p != cmd)
			fputc(' ', f);
		put_quoted(f, p);
		text = !text && takes_text(p);
		p = next;
	}
	fputs(" -incoming defer -global " CONFIG_OFF, f);
}

/* What was plugged in later isn't in the command line: said in comments before it. */
static int put_plugged(struct qmp *q, FILE *f)
{
	struct vm_devices all = {0};
	int r = vm_devices_load(q, &all);

	for (size_t i = 0; r == 0 && i < all.n; i++) {
		json_t *v = NULL;

		if (strncmp(all.d[i].path, "/machine/peripheral", strlen("/machine/peripheral")) !=
		    0)
			continue;
		r = vm_qom_get(q, all.d[i].path, "hotplugged", &v);
		if (r == 0 && json_is_true(v) && all.d[i].id[0])
			fprintf(f, "# plugged in later, add: -device %s,id=%s%s\n", all.d[i].type,
			        all.d[i].id, all.d[i].address);
		json_decref(v);
		if (r == -ENOENT)
			r = 0;
	}
	vm_devices_done(&all);
	return r;
}

int vm_standby_args(struct qmp *q, const struct vm_info *i, char **ret)
{
	mc_autofree char *cmd = NULL;
	char *text = NULL;
	size_t len = 0, out_len;
	FILE *f;
	int r = vm_read_cmdline(i->pid, &cmd, &len);

	if (r < 0)
		return r;
	f = open_memstream(&text, &out_len);
	if (!f)
		return -ENOMEM;
	r = put_plugged(q, f);
	put_args(f, cmd, cmd + len);
	if (fclose(f) != 0 && r == 0)
		r = -ENOMEM;
	if (r < 0)
		free(text);
	else
		*ret = text;
	return r;
}
