// SPDX-License-Identifier: GPL-2.0

#include <linux/lockdep.h>

__rust_helper void rust_helper_lockdep_init_map(struct lockdep_map *lock, const char *name,
						struct lock_class_key *key)
{
	lockdep_init_map(lock, name, key, 0);
}

__rust_helper void rust_helper_lock_map_acquire(struct lockdep_map *lock)
{
	lock_map_acquire(lock);
}

__rust_helper void rust_helper_lock_map_release(struct lockdep_map *lock)
{
	lock_map_release(lock);
}
