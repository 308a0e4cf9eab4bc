/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The socket below the QMP client; private to libmcqmp.  Nothing blocks beyond its deadline. */
#ifndef MC_QMP_IO_H
#define MC_QMP_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * Connects to the unix socket @path; *fd is non-blocking, *pid who listened.  0; -EBUSY (others
 * wait to be accepted), -ENAMETOOLONG, other errors of connect().
 */
int qmp_io_connect(const char *path, int *fd, pid_t *pid);

/* Waits for POLLIN or POLLOUT. 0, -ETIMEDOUT, negative errno. */
int qmp_io_wait(int fd, short events, uint64_t deadline_ns);

/* Waits until one of the two (@other -1: none) can be read. 1: @other; 0, negative as above. */
int qmp_io_wait_two(int fd, int other, uint64_t deadline_ns);

/*
 * Sends all of @text, and @pass (-1: none; stays the caller's) with its first byte.  0,
 * -ETIMEDOUT, negative errno; *partly: some of it went out.
 */
int qmp_io_send(int fd, const char *text, size_t len, int pass, uint64_t deadline_ns, bool *partly);

#endif
