# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=busybox
#
# Each function test_* is a case, and the guest calls it with the module inserted. It passes if it returns
# 0 and the kernel complains of nothing. `logged TEXT` and `not_logged TEXT` look at the kernel log since the
# case began.

test_answers() {
	[ "$(cat /dev/my_driver)" = hello ]
}

test_removed() {
	echo remove > /dev/my_driver
	logged "the last request has ended" && ! cat /dev/my_driver
}
