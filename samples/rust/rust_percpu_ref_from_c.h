/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What rust_percpu_ref_from_c_main.rs and rust_percpu_ref_from_c_user.c call in each other.
 */
#ifndef PERCPU_REF_FROM_C_H
#define PERCPU_REF_FROM_C_H

#include <linux/types.h>

/*
 * In Rust. A reference is a pointer that C cannot look into. All three can be called from any
 * context except NMI.
 *
 * The first returns NULL if the meter is removed. The others must be called with what it returned,
 * and not after the put.
 */
void *percpu_ref_from_c_get(void);
u64 percpu_ref_from_c_use(const void *ref);
void percpu_ref_from_c_put(void *ref);

/* In C. Both must be called from process context, and stop() only after start() succeeded. */
int percpu_ref_from_c_start(void);
void percpu_ref_from_c_stop(void);

#endif
