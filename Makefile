# SPDX-License-Identifier: GPL-2.0
#
# For people and CI. The modules themselves are described in Kbuild.

KDIR ?= /lib/modules/$(shell uname -r)/build

modules_args := CONFIG_RUST_PERCPU_REF=m CONFIG_RUST_PERCPU_REF_TEST=m
kbuild = $(MAKE) -C $(KDIR) M=$(CURDIR) $(modules_args)

modules: check-kdir
	+$(kbuild) modules

# As with any external module; INSTALL_MOD_PATH and the like are passed on.
modules_install clean:
	+$(kbuild) $@

check-kdir:
	@RUSTC='$(RUSTC)' scripts/check-kdir '$(KDIR)'

run:
	@scripts/boot run amd64

test:
	@scripts/test $(TARGETS)

help:
	@echo 'make run              boot a kernel with the modules, from nothing; needs Debian and root'
	@echo 'make test             all tests, on all targets or on TARGETS="..."'
	@echo 'make KDIR=<tree>      the modules, against a kernel tree of yours'
	@echo 'make KDIR=<tree> modules_install, make KDIR=<tree> clean'

.PHONY: modules modules_install clean check-kdir run test help
