/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the commands of mcctl share. */
#ifndef MC_SUPERVISOR_MCCTL_H
#define MC_SUPERVISOR_MCCTL_H

#include <jansson.h>

#include "supervisor.h"

struct ctl {
	sd_bus *bus;
	const char *bus_address;
};

/* Connects to the bus. 0 or negative errno. */
int ctl_connect(struct ctl *c);
/* Object path of a guest. */
int ctl_guest_path(const char *name, char *buf, size_t len);
/* A new method call to the service. */
int ctl_new_call(struct ctl *c, sd_bus_message **m, const char *path, const char *iface,
                 const char *method);
/* Makes the call (consumes @m). 0, or exit status 1 with the error printed. @name: guest or NULL.
 */
int ctl_call(struct ctl *c, sd_bus_message *m, const char *name, sd_bus_message **reply);

/* Appends one {sv} of an a{sv}. */
int ctl_append_option(sd_bus_message *m, const char *key, const char *value);

/* mcctl-guest.c */
int cmd_checkpoint(struct ctl *c, int argc, char **argv);
int cmd_rehearse(struct ctl *c, int argc, char **argv);
int cmd_hold(struct ctl *c, int argc, char **argv);
int cmd_resume(struct ctl *c, int argc, char **argv);
int cmd_failover(struct ctl *c, int argc, char **argv);
int cmd_resolve(struct ctl *c, int argc, char **argv);
int cmd_set(struct ctl *c, int argc, char **argv);
int cmd_workers(struct ctl *c, int argc, char **argv);
int cmd_restart(struct ctl *c, int argc, char **argv);

/* mcctl-status.c */
int cmd_status(struct ctl *c, int argc, char **argv);
/* All guests as an array of objects; NULL after an error was printed. */
json_t *status_list(struct ctl *c);
void status_print_head(void);
void status_print_row(json_t *g);

/*
 * mcctl-check.c: prints the line for monitoring, returns the exit status.  @list: guests, NULL when
 * there was no answer; @pending: objects {name, why} of what the configuration asks for in vain, or
 * NULL; @name: whom it is about, NULL for all.
 */
int check_print(json_t *list, json_t *pending, const char *name);

/* mcctl-top.c, mcctl-service.c, mcctl-doctor.c */
int cmd_top(struct ctl *c, int argc, char **argv);
int cmd_events(struct ctl *c, int argc, char **argv);
int cmd_metrics(struct ctl *c, int argc, char **argv);
int cmd_reload(struct ctl *c, int argc, char **argv);
int cmd_check_config(struct ctl *c, int argc, char **argv);
int cmd_doctor(struct ctl *c, int argc, char **argv);

/* mcctl-arena.c: command arena, which needs no bus. */
int cmd_arena(struct ctl *c, int argc, char **argv);

#endif
