/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Scans by PAGEMAP_SCAN for the uffd tracker: of what is populated only, and of a large guest by
 * two threads.  The second one sleeps between scans, and one that doesn't wake up in time is not
 * waited for.
 */
#ifndef MC_CAPTURE_UFFD_SCAN_H
#define MC_CAPTURE_UFFD_SCAN_H

#include "tracker.h"

/* With less than this to scan the second thread would cost more than it brings. */
#define UFFD_SCAN_PARALLEL (2ULL << 30)

struct uffd_scan;

/* Opens the RAM files of @t, which is attached otherwise.  0 or negative errno. */
int uffd_scan_new(struct uffd_scan **ret, struct tracker *t);
/* Ends the thread; returns NULL. */
struct uffd_scan *uffd_scan_free(struct uffd_scan *s);

/*
 * Starts the second thread for a guest of @parallel bytes or more, which then has a part in each
 * scan of as much.  0, also for a smaller one, or negative errno: one thread does it all.
 */
int uffd_scan_start(struct uffd_scan *s, uint64_t parallel);

/* tracker_scan() and tracker_recover(). */
int64_t uffd_scan_run(struct uffd_scan *s, _Atomic uint64_t *bitmap, _Atomic uint64_t *also);
int64_t uffd_scan_recover(struct uffd_scan *s, _Atomic uint64_t *bitmap);

/* Scans that the second thread had a part in, for tests. */
uint64_t uffd_scan_shared(const struct uffd_scan *s);

#endif
