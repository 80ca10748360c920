/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The functions that rust_percpu_ref_from_c_main.rs and rust_percpu_ref_from_c_user.c call in each
 * other.
 */
#ifndef PERCPU_REF_FROM_C_H
#define PERCPU_REF_FROM_C_H

#include <linux/types.h>

/*
 * These are defined in Rust. A reference is an opaque pointer for C. All three functions can be
 * called from any context except NMI.
 *
 * percpu_ref_from_c_get() returns NULL if the meter was removed. The other functions must be called
 * with a reference that percpu_ref_from_c_get() returned, which must not be used after
 * percpu_ref_from_c_put().
 */
void *percpu_ref_from_c_get(void);
u64 percpu_ref_from_c_use(const void *ref);
void percpu_ref_from_c_put(void *ref);

/*
 * These are defined in C. Both must be called from process context. percpu_ref_from_c_stop() must
 * be called only after percpu_ref_from_c_start() has succeeded.
 */
int percpu_ref_from_c_start(void);
void percpu_ref_from_c_stop(void);

#endif
