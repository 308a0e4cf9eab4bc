/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Linux 6.7's PAGEMAP_SCAN, which older headers lack (include/uapi/linux/fs.h). */
#ifndef MC_CAPTURE_PAGEMAP_SCAN_H
#define MC_CAPTURE_PAGEMAP_SCAN_H

#include <stdint.h>
#include <sys/ioctl.h>

struct pm_scan {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define PM_SCAN_IOCTL   _IOWR('f', 16, struct pm_scan)
#define PM_SCAN_WP      (1 << 0)
#define PM_SCAN_WPASYNC (1 << 1)
#define PM_PAGE_WRITTEN (1 << 1)

#endif
