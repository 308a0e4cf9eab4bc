/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which way to track, and what both ways share. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ipc/util.h"
#include "tracker-private.h"

/* In the order of preference. */
static const struct tracker_ops *const ways[] = {&tracker_uffd, &tracker_softdirty};

static int choose(enum mc_tracker kind, const struct tracker_ops **ret, char *why, size_t why_len)
{
	for (size_t i = 0; i < MC_ARRAY_SIZE(ways); i++) {
		if (kind != MC_TRACKER_AUTO && kind != ways[i]->kind)
			continue;
		if (ways[i]->supported()) {
			*ret = ways[i];
			return 0;
		}
		if (kind == ways[i]->kind) {
			snprintf(why, why_len,
			         "this kernel can't track writes by %s: it lacks %s; leave the "
			         "choice to us (tracker=auto), or run one that has it",
			         mc_tracker_name(kind), ways[i]->needs);
			return -EOPNOTSUPP;
		}
	}
	snprintf(why, why_len,
	         "this kernel can't track writes: it has neither %s nor %s; run one that has one "
	         "of them, as Debian's do",
	         tracker_uffd.needs, tracker_softdirty.needs);
	return -EOPNOTSUPP;
}

static int choose_checked(const struct vm_info *vm, enum mc_tracker kind,
                          const struct tracker_ops **ret, char *why, size_t why_len)
{
	int r = choose(kind, ret, why, why_len);

	if (r == 0 && (*ret)->check)
		r = (*ret)->check(vm, why, why_len);
	return r;
}

int tracker_check(const struct vm_info *vm, enum mc_tracker kind, char *why, size_t why_len)
{
	const struct tracker_ops *ops = NULL;
	int r = choose_checked(vm, kind, &ops, why, why_len);

	return r < 0 ? r : (int)ops->kind;
}

void tracker_init(struct tracker *t)
{
	*t = (struct tracker){.pagemap = -1, .uffd = -1, .clear_refs = -1, .policy_fd = -1};
	for (int i = 0; i < VM_BLOCKS_MAX; i++)
		t->ram_fd[i] = -1;
}

int tracker_attach(struct tracker *t, enum mc_tracker kind, const struct vm_info *vm,
                   struct mc_arena *arena, char *why, size_t why_len)
{
	const struct tracker_ops *ops = NULL;
	char path[64];
	int r = choose_checked(vm, kind, &ops, why, why_len);

	if (r < 0)
		return r;
	tracker_init(t);
	t->ops = ops;
	t->vm = vm;
	t->arena = arena;
	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)vm->pid);
	t->pagemap = open(path, O_RDONLY | O_CLOEXEC);
	if (t->pagemap < 0) {
		r = -errno;
		snprintf(why, why_len, "%s: %s; CAP_SYS_PTRACE is needed", path, strerror(-r));
	} else {
		r = ops->attach(t, why, why_len);
	}
	if (r < 0)
		tracker_done(t);
	return r;
}

int tracker_start(struct tracker *t)
{
	return t->ops && t->ops->start ? t->ops->start(t) : 0;
}

enum mc_tracker tracker_kind(const struct tracker *t)
{
	return t->ops ? t->ops->kind : MC_TRACKER_AUTO;
}

bool tracker_needs_quiet(const struct tracker *t)
{
	return t->ops && t->ops->quiet;
}

int tracker_detach(struct tracker *t)
{
	int r = t->ops && t->ops->detach ? t->ops->detach(t) : 0;

	tracker_done(t);
	return r;
}

void tracker_done(struct tracker *t)
{
	if (t->ops && t->ops->done)
		t->ops->done(t);
	mc_closep(&t->pagemap);
	mc_closep(&t->uffd);
	mc_closep(&t->clear_refs);
	mc_closep(&t->policy_fd);
	for (int i = 0; i < VM_BLOCKS_MAX; i++)
		mc_closep(&t->ram_fd[i]);
	free(t->entries);
	tracker_init(t);
}

int64_t tracker_scan(struct tracker *t, _Atomic uint64_t *bitmap, _Atomic uint64_t *also)
{
	return t->ops->scan(t, bitmap, also);
}

int64_t tracker_recover(struct tracker *t, _Atomic uint64_t *bitmap)
{
	return t->ops && t->ops->recover ? t->ops->recover(t, bitmap) : 0;
}

void tracker_set_bits(_Atomic uint64_t *bitmap, uint64_t first, uint64_t n)
{
	while (n) {
		uint64_t bit = first % 64, take = mc_min_u64(64 - bit, n);
		uint64_t mask = (take == 64 ? ~0ULL : (1ULL << take) - 1) << bit;

		atomic_fetch_or_explicit(&bitmap[first / 64], mask, memory_order_relaxed);
		first += take;
		n -= take;
	}
}
