/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Small helpers that every process uses: scoped clean-up, time, overflow-checked
 * arithmetic.  Nothing here allocates, blocks or logs.
 */
#ifndef MC_IPC_UTIL_H
#define MC_IPC_UTIL_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define MC_NS_PER_US 1000ULL
#define MC_NS_PER_MS 1000000ULL
#define MC_NS_PER_S  1000000000ULL

#define MC_ARRAY_SIZE(a)  (sizeof(a) / sizeof((a)[0]))
#define MC_ALIGN_UP(x, a) (((x) + (a)-1) / (a) * (a))

#define mc_cleanup(f) __attribute__((cleanup(f)))

static inline void mc_freep(void *p)
{
	free(*(void **)p);
	*(void **)p = NULL;
}

/* Closes *fd when it is valid; keeps errno. */
static inline void mc_closep(int *fd)
{
	int saved = errno;

	if (*fd >= 0)
		close(*fd);
	*fd = -1;
	errno = saved;
}

#define mc_autofree  mc_cleanup(mc_freep)
#define mc_autoclose mc_cleanup(mc_closep)

/* Hands an fd over to the caller: the variable no longer owns it. */
static inline int mc_take_fd(int *fd)
{
	int r = *fd;

	*fd = -1;
	return r;
}

static inline void *mc_take_ptr_(void *pp)
{
	void *r = *(void **)pp;

	*(void **)pp = NULL;
	return r;
}
#define mc_take_ptr(p) ((__typeof__(p))mc_take_ptr_(&(p)))

/* CLOCK_MONOTONIC in nanoseconds; comparable between all processes of a host. */
static inline uint64_t mc_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * MC_NS_PER_S + (uint64_t)ts.tv_nsec;
}

static inline uint64_t mc_min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t mc_max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* True when a + b, or a * b, does not fit; *ret is set only when it does. */
static inline bool mc_add_overflows(uint64_t a, uint64_t b, uint64_t *ret)
{
	uint64_t v;

	if (__builtin_add_overflow(a, b, &v))
		return true;
	*ret = v;
	return false;
}

static inline bool mc_mul_overflows(uint64_t a, uint64_t b, uint64_t *ret)
{
	uint64_t v;

	if (__builtin_mul_overflow(a, b, &v))
		return true;
	*ret = v;
	return false;
}

/* True when the array s of n bytes holds a NUL: strings read from shared memory. */
static inline bool mc_terminated(const char *s, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!s[i])
			return true;
	return false;
}

/* True when a terminated text holds only printable ASCII and newlines: it may go into logs. */
static inline bool mc_printable(const char *s)
{
	for (; *s; s++)
		if (*s != '\n' && (*s < ' ' || *s > '~'))
			return false;
	return true;
}

#endif
