/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The functions of Rust that `torture_c.c` calls.
 */

#ifndef PERCPU_REF_TORTURE_H
#define PERCPU_REF_TORTURE_H

#include <linux/types.h>

/* The context of an interrupt, as in `Context` in torture/interrupts.rs. */
enum { HARD_TIMER, SOFT_TIMER, WORK };

void rust_percpu_ref_torture_tick(unsigned int context, bool is_right);
void rust_percpu_ref_torture_put(void *guard);

#endif
