/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who may call what.  Root and the supervisor's own user may call everything; the processes'
 * user may read.  Others are asked for at polkit when the bus is the system's, one action a kind of
 * method (packaging/org.microcheckpoint1.policy), and refused on any other bus.
 */
#ifndef MC_SUPERVISOR_ACCESS_H
#define MC_SUPERVISOR_ACCESS_H

#include "supervisor.h"

enum access {
	ACCESS_READ,
	ACCESS_PROTECT,
	ACCESS_FAILOVER,
	ACCESS_RESOLVE,
};

/*
 * Calls @fn(@msg, userdata) now, or once polkit has agreed, or refuses.  For a method handler;
 * returns what it must.  userdata is the process of @role of @g, or @g, or, with @g NULL, @m;
 * a guest that is gone when polkit answers is an error.
 */
int access_call(struct manager *m, struct guest *g, enum mc_role role, enum access a,
                sd_bus_message *msg, sd_bus_message_handler_t fn, sd_bus_error *e);

/* Keeps strangers from properties where no bus policy does. After the bus was connected. */
int access_start(struct manager *m);

/* Handlers guarded_X for method_X: of the Manager, and of a Guest. */
#define GUARD_MANAGER(x, a)                                                                        \
	static int guarded_##x(sd_bus_message *msg, void *m, sd_bus_error *e)                      \
	{                                                                                          \
		return access_call(m, NULL, MC_ROLE_NONE, a, msg, method_##x, e);                  \
	}
#define GUARD_GUEST(x, a)                                                                          \
	static int guarded_##x(sd_bus_message *msg, void *g, sd_bus_error *e)                      \
	{                                                                                          \
		return access_call(((struct guest *)g)->m, g, MC_ROLE_NONE, a, msg, method_##x,    \
		                   e);                                                             \
	}

#endif
