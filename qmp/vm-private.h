/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Shared by the vm*.c files only. */
#ifndef MC_QMP_VM_PRIVATE_H
#define MC_QMP_VM_PRIVATE_H

#include <stdarg.h>

#include "vm.h"

/* Formats a sentence into @why and returns @r. */
int vm_fail(char *why, size_t len, int r, const char *fmt, ...)
        __attribute__((format(printf, 4, 5)));

/* Makes i->description. */
int vm_describe(struct qmp *q, struct vm_info *i, char *why, size_t why_len);

/*
 * Calls @fn for each device of `info qtree`: its type, id ("" when none) and address on its
 * bus ("" when none).  Stops when @fn returns negative.
 */
typedef int (*vm_device_fn)(void *ctx, const char *type, const char *id, const char *addr);
int vm_devices(struct qmp *q, vm_device_fn fn, void *ctx);

#endif
