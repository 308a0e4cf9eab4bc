/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "term.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "../ipc/fault.h"
#include "../ipc/util.h"

#define FORMAT "current %" PRIu64 " %" PRIx64 "\nreserved %" PRIu64 " %" PRIx64 "\n"
#define SCAN   "current %" SCNu64 " %" SCNx64 " reserved %" SCNu64 " %" SCNx64

int term_load(const char *dir, const char *guest, struct term_record *ret)
{
	char path[512], buf[256];
	int mc_autoclose fd = -1;
	ssize_t n;

	memset(ret, 0, sizeof(*ret));
	snprintf(path, sizeof(path), "%s/%s.term", dir, guest);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	n = read(fd, buf, sizeof(buf) - 1);
	if (n < 0)
		return -errno;
	buf[n] = '\0';
	if (sscanf(buf, SCAN, &ret->current.number, &ret->current.id, &ret->reserved.number,
	           &ret->reserved.id) != 4)
		return -EBADMSG;
	return 0;
}

static int write_durably(int dirfd, const char *tmp, const char *name, const char *text)
{
	int mc_autoclose fd = openat(dirfd, tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		return -EIO;
	(void)mc_fault(MC_FAULT_SUPERVISOR_TERM);
	if (fsync(fd) < 0 || renameat(dirfd, tmp, dirfd, name) < 0 || fsync(dirfd) < 0)
		return -errno;
	(void)mc_fault(MC_FAULT_SUPERVISOR_TERM_STORED);
	return 0;
}

int term_store(const char *dir, const char *guest, const struct term_record *r)
{
	char name[MC_NAME_MAX + 8], tmp[MC_NAME_MAX + 16], text[256];
	int mc_autoclose fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	snprintf(name, sizeof(name), "%s.term", guest);
	snprintf(tmp, sizeof(tmp), "%s.term.new", guest);
	snprintf(text, sizeof(text), FORMAT, r->current.number, r->current.id, r->reserved.number,
	         r->reserved.id);
	return write_durably(fd, tmp, name, text);
}

void term_random(uint64_t id[2])
{
	while (getrandom(id, 16, 0) != 16)
		;
}

struct mc_term term_next(const struct term_record *r)
{
	struct mc_term t = {.number = mc_max_u64(r->current.number, r->reserved.number) + 1};
	uint64_t id[2];

	term_random(id);
	t.id = id[0];
	return t;
}
