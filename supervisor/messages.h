/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Message ids in the journal; what each means and asks for is in contrib/microcheckpoint.catalog.
 */
#ifndef MC_SUPERVISOR_MESSAGES_H
#define MC_SUPERVISOR_MESSAGES_H

#define MC_MESSAGE_PROTECTED    "6b0c1f7c9a0b4cfb8d5e3a1f24b7e001"
#define MC_MESSAGE_HELD         "6b0c1f7c9a0b4cfb8d5e3a1f24b7e002"
#define MC_MESSAGE_DEGRADED     "6b0c1f7c9a0b4cfb8d5e3a1f24b7e003"
#define MC_MESSAGE_STOPPED      "6b0c1f7c9a0b4cfb8d5e3a1f24b7e004"
#define MC_MESSAGE_ACTIVE       "6b0c1f7c9a0b4cfb8d5e3a1f24b7e005"
#define MC_MESSAGE_GIVEN_UP     "6b0c1f7c9a0b4cfb8d5e3a1f24b7e006"
#define MC_MESSAGE_PROCESS_DIED "6b0c1f7c9a0b4cfb8d5e3a1f24b7e007"
#define MC_MESSAGE_BAD_CONFIG   "6b0c1f7c9a0b4cfb8d5e3a1f24b7e008"

#endif
