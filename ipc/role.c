/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "role.h"

#include <errno.h>
#include <string.h>

static const struct {
	const char *name;
	enum mc_role role;
} roles[] = {
        {"supervisor", MC_ROLE_SUPERVISOR}, {"capture", MC_ROLE_CAPTURE},
        {"transport", MC_ROLE_TRANSPORT},   {"netgate", MC_ROLE_NETGATE},
        {"restore", MC_ROLE_RESTORE},       {"stage", MC_ROLE_STAGE0},
};

#define NROLES (sizeof(roles) / sizeof(roles[0]))

const char *mc_role_name(enum mc_role r)
{
	if (mc_role_is_stage(r))
		return "stage";
	for (unsigned i = 0; i < NROLES; i++)
		if (roles[i].role == r)
			return roles[i].name;
	return "?";
}

int mc_role_parse(const char *name, unsigned index, enum mc_role *ret)
{
	for (unsigned i = 0; i < NROLES; i++) {
		if (strcmp(roles[i].name, name) != 0)
			continue;
		if (roles[i].role != MC_ROLE_STAGE0) {
			if (index)
				return -EINVAL;
			*ret = roles[i].role;
			return 0;
		}
		if (index >= MC_STAGES_MAX)
			return -EINVAL;
		*ret = mc_role_stage(index);
		return 0;
	}
	return -EINVAL;
}
