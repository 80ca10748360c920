# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=busybox
#
# The guest calls each function test_* with the module inserted. A case passes if it returns 0. The
# kernel must not complain of anything either. `logged TEXT` and `not_logged TEXT` look at the kernel
# log since the case began.

test_answers() {
	[ "$(cat /dev/my_driver)" = hello ]
}

test_removed() {
	echo remove > /dev/my_driver
	logged "the last request has ended" && ! cat /dev/my_driver
}
