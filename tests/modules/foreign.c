// SPDX-License-Identifier: GPL-2.0
/*
 * A module that does not use the library, so its unloading must not wait for the library.
 */

#include <linux/module.h>

static int __init foreign_init(void)
{
	return 0;
}
module_init(foreign_init);

static void __exit foreign_exit(void)
{
}
module_exit(foreign_exit);

MODULE_DESCRIPTION("A module that does not use per-CPU reference counts");
MODULE_LICENSE("GPL");
