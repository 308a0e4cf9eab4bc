/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A message on a unix socket with at most one file descriptor (unix(7), SCM_RIGHTS). */
#ifndef MC_IPC_PASS_FD_H
#define MC_IPC_PASS_FD_H

#include <stddef.h>
#include <sys/types.h>

/*
 * Sends @len bytes at @buf, and a duplicate of @fd (-1: none; it stays the caller's) with the first
 * of them.  Never blocks, raises no SIGPIPE.  Bytes sent (a stream may take less than all), or
 * negative errno: -EAGAIN when there is no room now.
 */
ssize_t mc_fd_send(int sock, const void *buf, size_t len, int fd);

/*
 * Receives at most @len bytes.  *fd: the descriptor that came with them, close-on-exec and the
 * caller's to close, or -1.  Blocks as the socket does; goes on after signals.  Bytes received, 0
 * at the end of a stream or connection, or negative errno: -EBADMSG, and nothing stays open, when
 * more than one descriptor came.
 */
ssize_t mc_fd_receive(int sock, void *buf, size_t len, int *fd);

#endif
