/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What `torture_c.c` calls in Rust.
 */

#ifndef PERCPU_REF_TORTURE_H
#define PERCPU_REF_TORTURE_H

#include <linux/types.h>

/* Where an interrupt runs, as `Context` in torture/interrupts.rs. */
enum { HARD_TIMER, SOFT_TIMER, WORK };

void rust_percpu_ref_torture_tick(unsigned int context, bool is_right);
void rust_percpu_ref_torture_put(void *guard);

#endif
