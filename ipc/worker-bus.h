/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The worker's end of the control connection (worker.h describes the interface).  Private
 * to worker.c and worker-bus.c.
 */
#ifndef MC_IPC_WORKER_BUS_H
#define MC_IPC_WORKER_BUS_H

#include "worker.h"

#define MC_CONTROL_PATH  "/org/microcheckpoint1/control"
#define MC_CONTROL_IFACE "org.microcheckpoint1.Control"
#define MC_WORKER_PATH   "/org/microcheckpoint1/worker"
#define MC_WORKER_IFACE  "org.microcheckpoint1.Worker"

/* Connects to @path (copied), now and again whenever the connection is lost. */
int mc_worker_bus_new(struct mc_worker *w, const char *path);
struct mc_worker_bus *mc_worker_bus_free(struct mc_worker_bus *b); /* NULL ok; returns NULL */

/* Start time (field 22 of /proc/PID/stat) of a process; 0 when it can't be read. */
uint64_t mc_pid_start_time(int pid);

#endif
