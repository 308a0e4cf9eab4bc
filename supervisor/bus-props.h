/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Getters of the Guest interface's properties (sd_bus_property_get_t); userdata is the guest. */
#ifndef MC_SUPERVISOR_BUS_PROPS_H
#define MC_SUPERVISOR_BUS_PROPS_H

#include "supervisor.h"

int guest_property_text(sd_bus *bus, const char *path, const char *iface, const char *prop,
                        sd_bus_message *reply, void *userdata, sd_bus_error *e);
int guest_property_total(sd_bus *bus, const char *path, const char *iface, const char *prop,
                         sd_bus_message *reply, void *userdata, sd_bus_error *e);
int guest_property_number(sd_bus *bus, const char *path, const char *iface, const char *prop,
                          sd_bus_message *reply, void *userdata, sd_bus_error *e);
int guest_property_interval(sd_bus *bus, const char *path, const char *iface, const char *prop,
                            sd_bus_message *reply, void *userdata, sd_bus_error *e);
int guest_property_ratio(sd_bus *bus, const char *path, const char *iface, const char *prop,
                         sd_bus_message *reply, void *userdata, sd_bus_error *e);
int guest_property_link(sd_bus *bus, const char *path, const char *iface, const char *prop,
                        sd_bus_message *reply, void *userdata, sd_bus_error *e);

#endif
