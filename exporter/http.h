/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * As much of HTTP as Prometheus needs.  One client at a time is served: each has a time limit for
 * all that it does, however little of it it does at once.
 */
#ifndef MC_EXPORTER_HTTP_H
#define MC_EXPORTER_HTTP_H

#include <stddef.h>

/* Listens on ADDRESS:PORT or [V6ADDRESS]:PORT: an fd, -EINVAL when it is neither, or -errno. */
int http_listen(const char *where);

/*
 * Reads a request to its empty line, at most @ms and @len - 1 bytes, into @buf. 0, -ETIMEDOUT,
 * -EMSGSIZE, or -EIO when the client went.  Blocks.
 */
int http_read(int fd, int ms, char *buf, size_t len);

/* Answers. 0, -ETIMEDOUT when the client didn't take all of it within @ms, or -EIO.  Blocks. */
int http_reply(int fd, int ms, const char *status, const char *type, const char *body);

#endif
