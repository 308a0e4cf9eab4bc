/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The ways in which the libraries' calls say that they failed, each to a negative errno. */
#ifndef MC_VERBS_ERRORS_H
#define MC_VERBS_ERRORS_H

#include <errno.h>

/* Calls that return 0, or -1 with errno. */
static inline int from_minus(int r)
{
	return r == 0 ? 0 : errno > 0 ? -errno : -EIO;
}

/* Calls that return 0, or a positive errno (some providers: -1 with errno, or a negative errno). */
static inline int from_positive(int r)
{
	if (r == -1)
		return errno > 0 ? -errno : -EIO;
	return r > 0 ? -r : r;
}

/* Calls that return NULL with errno. */
static inline int from_null(void)
{
	return errno > 0 ? -errno : -ENOMEM;
}

#endif
