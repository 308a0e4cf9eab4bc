/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "creds.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "util.h"

#define MAGIC 0x7364657263636d31ULL
#define SEALS (F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL)

struct head {
	uint64_t magic;
	uint32_t len[MC_CREDS_PARTS];
	uint32_t reserved;
};

static int write_all(int fd, const void *data, size_t len)
{
	const uint8_t *p = data;

	while (len) {
		ssize_t n = write(fd, p, len);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			p += n;
			len -= (size_t)n;
		}
	}
	return 0;
}

int mc_creds_pack(const struct mc_creds *c)
{
	int mc_autoclose fd = memfd_create("mc-creds", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct head h = {.magic = MAGIC};
	int r;

	if (fd < 0)
		return -errno;
	for (int i = 0; i < MC_CREDS_PARTS; i++) {
		if (c->len[i] > MC_CREDS_PART_MAX)
			return -EFBIG;
		h.len[i] = (uint32_t)c->len[i];
	}
	r = write_all(fd, &h, sizeof(h));
	for (int i = 0; r == 0 && i < MC_CREDS_PARTS; i++)
		r = write_all(fd, c->part[i], c->len[i]);
	if (r == 0 && fcntl(fd, F_ADD_SEALS, SEALS) < 0)
		r = -errno;
	return r < 0 ? r : mc_take_fd(&fd);
}

static int read_at(int fd, void *to, size_t len, off_t *at)
{
	ssize_t n = pread(fd, to, len, *at);

	if (n < 0)
		return -errno;
	*at += n;
	return (size_t)n == len ? 0 : -EBADMSG;
}

int mc_creds_unpack(int fd, struct mc_creds *ret)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct head h;
	struct stat st;
	off_t at = 0, total = sizeof(h);
	int r;

	memset(ret, 0, sizeof(*ret));
	if (seals < 0 || (seals & SEALS) != SEALS || fstat(fd, &st) < 0)
		return -EBADMSG;
	r = read_at(fd, &h, sizeof(h), &at);
	if (r < 0)
		return r;
	for (int i = 0; i < MC_CREDS_PARTS; i++) {
		if (h.len[i] > MC_CREDS_PART_MAX)
			return -EBADMSG;
		total += h.len[i];
	}
	if (h.magic != MAGIC || h.reserved || st.st_size != total)
		return -EBADMSG;
	for (int i = 0; r == 0 && i < MC_CREDS_PARTS; i++) {
		if (!h.len[i])
			continue;
		ret->part[i] = calloc(1, h.len[i] + 1);
		if (!ret->part[i])
			r = -ENOMEM;
		else
			r = read_at(fd, ret->part[i], h.len[i], &at);
		ret->len[i] = h.len[i];
	}
	if (r < 0)
		mc_creds_done(ret);
	return r;
}

void mc_creds_done(struct mc_creds *c)
{
	for (int i = 0; i < MC_CREDS_PARTS; i++) {
		if (c->part[i])
			explicit_bzero(c->part[i], c->len[i]);
		mc_freep(&c->part[i]);
		c->len[i] = 0;
	}
}
