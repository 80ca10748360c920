# SPDX-License-Identifier: GPL-2.0
#
# The commands of the project, for users and CI. Kbuild describes the modules.

KDIR ?= /lib/modules/$(shell uname -r)/build
quote := '
ifneq ($(findstring $(quote),$(KDIR)),)
$(error KDIR has a quote in it: make a symbolic link without one, and give that)
endif

# The configuration of the modules that are built. The torture needs CPU hotplug and kprobes.
has = $(shell grep -sx 'CONFIG_$(1)=y' '$(KDIR)/include/config/auto.conf')
modules_args = CONFIG_RUST_PERCPU_REF=m CONFIG_RUST_PERCPU_REF_TEST=m CONFIG_SAMPLE_RUST_PERCPU_REF=m \
	$(if $(and $(call has,HOTPLUG_CPU),$(call has,KPROBES),$(call has,HAVE_FUNCTION_ARG_ACCESS_API)), \
		CONFIG_RUST_PERCPU_REF_TORTURE=m)
# With DEBUG=1 on the command line, the library records what holds each object.
ifneq ($(findstring command,$(origin DEBUG)),)
ifeq ($(DEBUG),1)
debug_args = CONFIG_RUST_PERCPU_REF_DEBUG=y
else ifneq ($(DEBUG),)
$(error DEBUG=$(DEBUG) is not supported: use DEBUG=1, or leave it out)
endif
endif
# The folder of the built modules. It is separate from the sources, because they are built for other targets, too.
MO = $(CURDIR)/build/modules
override MO := $(abspath $(MO))
# An absolute path, because make runs in another folder.
ifdef INSTALL_MOD_PATH
override INSTALL_MOD_PATH := $(abspath $(INSTALL_MOD_PATH))
endif
# Without TARGETS, commands use their default targets. An empty TARGETS= is an error.
ifneq ($(findstring command,$(origin TARGETS)),)
ifeq ($(strip $(TARGETS)),)
$(error TARGETS= names no target: name some of scripts/targets, or leave it out)
endif
endif
# The folder of the user's module, for the guest.
ifdef MODULE
override MODULE := $(abspath $(MODULE))
export MODULE
endif
kbuild = $(MAKE) -C $(KDIR) M=$(CURDIR) MO=$(MO) $(modules_args) $(debug_args)

# The kernel's Makefile uses these variables only if they are on the command line. So must the doctor.
$(foreach tool,RUSTC CC BINDGEN,$(if $(findstring command,$(origin $(tool))),,$(eval unexport $(tool))))

modules:
	@scripts/doctor '$(KDIR)' first
	@mkdir -p '$(MO)'
	+$(kbuild) modules

# Installs the library only.
install:
	+$(MAKE) modules modules_args=CONFIG_RUST_PERCPU_REF=m
	+$(MAKE) modules_install modules_args=CONFIG_RUST_PERCPU_REF=m

# Installs the modules like other external modules; INSTALL_MOD_PATH and similar variables are passed on. Also
# installs the files that modules which use the library are built against.
modules_install: libdir = $(INSTALL_MOD_PATH)/lib/modules/$(release)/updates/rust_percpu_ref
modules_install uninstall: release = $(shell cat '$(KDIR)/include/config/kernel.release')
# Header packages have neither the key, nor the System.map that the kernel's own installation needs.
unsigned = $(if $(call has,MODULE_SIG),$(if $(wildcard $(KDIR)/certs/signing_key.pem),,y))
modules_install:
	@[ -e '$(MO)/libpercpu_ref.rmeta' ] || { echo "error: there is nothing to install: run 'make' first" >&2; exit 1; }
	+$(kbuild) $@ $(if $(unsigned),CONFIG_MODULE_SIG_ALL=)
	install -D -m 644 -t '$(libdir)' $(addprefix $(MO)/,libpercpu_ref.rmeta Module.symvers)
	$(if $(INSTALL_MOD_PATH)$(wildcard $(KDIR)/System.map),,depmod $(release))
	$(if $(unsigned),@echo "The modules are not signed: $(KDIR) has no key. Secure Boot refuses them until you sign them.")
	$(if $(INSTALL_MOD_PATH),,@echo "To insert the library: modprobe rust_percpu_ref")

uninstall:
	$(if $(release),,$(error KDIR=$(KDIR) is not a kernel tree, whose release is needed to find the modules))
	find '$(INSTALL_MOD_PATH)/lib/modules/$(release)' '(' -name 'rust_percpu_*.ko*' -o -path '*/updates/rust_percpu_ref/*' \
		-o -path '*/updates/rust_percpu_ref' ')' ! -path '*/dkms/*' ! -path '*/build/*' -delete
	$(if $(INSTALL_MOD_PATH),,depmod $(release))

# Removes everything that was built here, also by scripts.
cache = $(or $(PERCPU_REF_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/percpu-ref)
clean:
	$(if $(filter-out $(CURDIR)/build/%,$(MO)),+$(kbuild) $@)
	@mkdir -p build
	@flock --nonblock build/lock rm -rf build || \
		{ echo "error: another run in this checkout uses build: $$(cat build/lock)" >&2; exit 1; }
	$(if $(wildcard $(cache)),@echo "What 'make run' has downloaded is in $(cache); remove that folder if you need the room.")

doctor:
	@scripts/doctor '$(KDIR)'

run:
	@scripts/boot $(if $(MODULE),module,run) $(or $(firstword $(TARGETS)),amd64)

new:
	@scripts/new '$(DIR)' $(if $(filter file,$(origin KDIR)),,'$(KDIR)')

# With TARGETS=, run the quick suite only.
test:
	@scripts/test $(if $(TARGETS),quick,all) $(TARGETS)

test-everywhere:
	@scripts/test everywhere $(TARGETS)

shell:
	@scripts/boot shell $(or $(firstword $(TARGETS)),amd64)

kunit:
	@scripts/kunit $(ARCHS)

series:
	@scripts/series

model:
	@scripts/model $(SCENARIOS)

mutants:
	@scripts/mutants $(MUTANTS)

SECONDS ?= 60
torture:
	@case '$(SECONDS)' in ''|0*|*[!0-9]*|???????*) \
		echo "error: SECONDS=$(SECONDS) is no number of seconds, of six digits at most" >&2; exit 1;; esac
	@status=0; for target in $(or $(TARGETS),amd64); do \
		scripts/boot torture $$target torture_seconds=$(SECONDS) || status=1; \
	done; exit $$status

bench:
	@scripts/bench $(TARGETS)

check:
	@scripts/check

litmus:
	@scripts/litmus

doc:
	@scripts/doc

rust-analyzer:
	@scripts/rust-analyzer $(if $(filter file,$(origin KDIR)),,'$(KDIR)')

help:
	@echo 'make run              boot a kernel with the modules, from nothing; needs Debian and root'
	@echo 'make new DIR=...      a module of your own to begin with, and its tests'
	@echo 'make run MODULE=...   boot a kernel with that module, and run its tests; or TARGETS=debug'
	@echo 'make test             all tests, on all targets'
	@echo 'make test TARGETS=... the cases of the test module alone, on these; make test-everywhere: all, for hours'
	@echo 'make kunit            the same cases, in the kernel crate: UML, and QEMU; or ARCHS="..."'
	@echo 'make series           builds the kernel after each patch of the series, in ten minutes'
	@echo 'make model            two or three threads, in each order of their steps; or SCENARIOS="..."'
	@echo 'make mutants          breaks the library in many ways, each of which a test must find'
	@echo 'make torture          everything at once, for SECONDS=60, on amd64 or TARGETS="...": rates, verdict'
	@echo 'make bench            what it costs, beside the C original; on amd64 or on TARGETS="..."'
	@echo 'make shell            a shell in the guest, on amd64 or on TARGETS=...; with MODULE=..., too'
	@echo 'make check            formatting, lints, documentation, patches'
	@echo 'make litmus           the orders of memory accesses, by the model of the kernel'
	@echo 'make doc              the documentation, as HTML'
	@echo 'make rust-analyzer    rust-project.json, for an editor'
	@echo
	@echo 'With a kernel tree of yours:'
	@echo 'make KDIR=<tree>      the modules; DEBUG=1: the library remembers what holds each object'
	@echo 'make KDIR=<tree> doctor, install, modules_install, uninstall, rust-analyzer'
	@echo 'make clean            removes all that was built here'

.PHONY: modules install modules_install uninstall clean doctor run new test test-everywhere shell kunit litmus model mutants \
	series torture bench check doc rust-analyzer help
