# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Sourced by the other scripts: what a target is, where things are kept, how steps are shown.

set -euo pipefail
set -o allexport # for the shells that step() starts

# What git tells its hooks is not for the repositories that are made here.
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_PREFIX GIT_COMMON_DIR

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${PERCPU_REF_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/percpu-ref}

# Sets the variables that describe target $1. A new target is a new case here.
#
# series		of the kernel, as in the name of Debian's linux-source-* package
# flavour		of the kernel, as in the names of its binary packages
# config		instead of a flavour: the configuration of a kernel that is built here
# deb_arch		Debian's name of the architecture
# tools			packages that it needs besides $packages
# make_args		what each make in the kernel tree is given
# debug			1: the library remembers what holds each object, as with DEBUG=1 on all targets;
#			with DEBUG= on none
# image			the kernel, in its build tree
# qemu			the emulator and its machine
# cpu			the processor, where it is emulated
# console		the kernel's name of its serial line
# seconds		that the guest may take
# memory		of the guest, in MB
# variants		kernel arguments, or what scripts/boot knows of, with each of which the test module
#			is run once more
# hot_path		the instructions that getting and putting a reference may take, in a function
#			by itself; none if helpers do it
targets="amd64 rt-amd64 amd64-7.2 arm64 debug"
describe_target() {
	config="" tools="" image="" cpu=max memory=256 seconds=420 variants="" hot_path="" debug=""
	case ${DEBUG:-} in
	1) debug=1 ;;
	?*) die "DEBUG=$DEBUG is not supported" "Use DEBUG=1, or leave it out." ;;
	esac
	case $1 in
	amd64)
		series=7.3 flavour=cloud-amd64 deb_arch=amd64
		make_args="ARCH=x86 CROSS_COMPILE=x86_64-linux-gnu-"
		qemu="qemu-system-x86_64 -machine q35" console=ttyS0
		# While identify_cpu() has the capabilities cleared, an interrupt takes five levels of
		# page tables for four (pgtable_l5_enabled()); KASAN noticed, in one boot of four.
		cpu=max,la57=off
		variants="preempt=none preempt=voluntary preempt=full preempt=lazy" hot_path=20
		;;
	rt-amd64)
		describe_target amd64
		flavour=rt-amd64 variants=""
		;;
	amd64-7.2)
		describe_target amd64
		series=7.2 variants=""
		;;
	arm64)
		series=7.3 flavour=cloud-arm64 deb_arch=arm64
		tools="gcc-aarch64-linux-gnu qemu-system-arm"
		make_args="ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu-"
		qemu="qemu-system-aarch64 -machine virt,gic-version=3" console=ttyAMA0
		hot_path=40
		# The kernel patches the this_cpu operations for what it finds.
		variants="cpu=cortex-a57 virtualization=on"
		;;
	debug)
		describe_target amd64
		# With gcc, KASAN and Rust exclude each other.
		config=scripts/debug.config tools="clang-19 lld-19 llvm-19" make_args="ARCH=x86 LLVM=-19"
		image=arch/x86/boot/bzImage memory=1024 seconds=1500 variants=""
		hot_path=""
		[ -z "${DEBUG-1}" ] || debug=1
		;;
	*)
		die "there is no target '$1'" "The targets are: $targets."
		;;
	esac
	# It takes more instructions with records.
	[ -z "$debug" ] || hot_path=""
}

# The series that the project is tested with, the newest first. Debian drops one when the next one comes.
tested="7.3 7.2"

# cross_compile: the prefix of the described target's binutils; none for the root's own.
cross_compile() {
	sed -n 's/.*CROSS_COMPILE=\([^ ]*\).*/\1/p' <<< "$make_args"
}

# What the toolchain's Debian root is made of.
suite=trixie
packages="
	bc bindgen bison ca-certificates cpio flex gcc kmod libc6-dev libdw-dev
	libelf-dev libssl-dev make pahole perl python3 qemu-system-x86 rsync rust-clippy rust-src
	rustc rustfmt seabios xz-utils zstd"

# die MESSAGE [REMEDY]: ends the script.
die() {
	printf 'error: %s\n' "$1" >&2
	[ $# -lt 2 ] || printf '       %s\n' "${@:2}" >&2
	exit 1
}

# step NAME LIMIT LOG COMMAND...: runs a command or function that may take LIMIT seconds, and shows
# how long it took. What it prints goes to LOG, the end of which is shown if it fails, with $remedy.
remedy=
step() {
	local name=$1 limit=$2 log=$3 start=$SECONDS status=0
	shift 3
	mkdir -p "$(dirname "$log")"
	printf '%-60s' "$name ..."
	# timeout ends all that the command has started, and so does an interrupt of this script.
	timeout --kill-after=10 "$limit" bash -euo pipefail -c '"$@"' step "$@" \
		< /dev/null > "$log" 2>&1 9>&- &
	trap "kill $! 2> /dev/null; exit 130" INT TERM HUP
	wait $! || status=$?
	trap - INT TERM HUP
	if [ $status -eq 0 ]; then
		printf '%4d s\n' $((SECONDS - start))
		return
	fi
	printf 'failed\n'
	tail -n 40 "$log" | sed 's/^/    /' >&2
	if [ "$(df --output=avail -k "$log" | tail -n 1)" -lt 102400 ]; then
		die "the disk is full, at $(dirname "$log")" "Make room, or set PERCPU_REF_CACHE."
	fi
	[ $status -ne 124 ] && [ $status -ne 137 ] || die "'$name' took more than $limit s, and was stopped" \
		"What it printed is in $log."
	die "'$name' failed" "All that it printed is in $log." ${remedy:+"$remedy"}
}

# cached NAME: says that something was taken from the cache.
cached() {
	printf '%-60s%6s\n' "$1" "cached"
}

# report NAME LOG COMMAND...: runs a command or function as a test case of $report_seconds at most, and
# shows its result.
passed=0 failed=0 report_seconds=60
report() {
	local name=$1 log=$2
	shift 2
	if timeout --kill-after=10 $report_seconds bash -euo pipefail -c '"$@"' report "$@" > "$log" 2>&1; then
		passed=$((passed + 1))
		echo "ok $name"
	else
		failed=$((failed + 1))
		echo "not ok $name"
		tail -n 30 "$log" | sed 's/^/    /'
	fi
}

# complaints_in LOG: what a kernel says when something is wrong, from its first line on.
complaints_in() {
	local complaints
	complaints='WARNING: |BUG: |BUG at |Oops|Kernel panic|Call [Tt]race:|general protection fault'
	complaints+='|Unable to handle kernel|KASAN: |KCSAN: |KFENCE: |UBSAN: |refcount_t: |INFO: task '
	complaints+='|rcu: INFO: |Internal error|unreferenced object|suspected memory leaks'
	complaints+='|possible recursive locking|DEBUG_LOCKS_WARN_ON'
	sed '/guest: warnings expected$/,/guest: no warnings expected$/s/.*//' "$1" |
		grep -anE "$complaints" || true
}

# report_end: ends with the counts, and fails if a case did.
report_end() {
	echo "$passed passed, $failed failed, 0 skipped"
	[ $failed -eq 0 ]
}

# in_root COMMAND...: runs a command in the toolchain's root, with the project and the cache mounted
# at /project and /cache, and $MODULE at /module. The mounts go with the command. The devices can be used, but not replaced, as
# some tools do with what they are told to write to; a KVM that does not work is not to be found.
in_root() {
	local hidden=
	[ ! -e /dev/kvm ] || kvm_works || hidden=dev/kvm
	# shellcheck disable=SC2016 # expanded by the inner shell
	unshare --mount sh -e -c '
		root=$1 project=$2 cache=$3 hidden=$4 module=$5; shift 5
		mkdir -p "$root/project" "$root/cache" "$root/module"
		[ -z "$module" ] || mount --bind "$module" "$root/module"
		mount --bind "$project" "$root/project"
		mount --bind "$cache" "$root/cache"
		mount -t proc proc "$root/proc"
		mount --rbind /dev "$root/dev"
		mount -o remount,bind,ro "$root/dev"
		[ -z "$hidden" ] || mount --bind /dev/null "$root/$hidden"
		exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
			"$@"' sh "$cache/root" "$project" "$cache" "$hidden" "${MODULE:-}" "$@"
}

# kvm_works: /dev/kvm may also be there and not work.
kvm_works() {
	[ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo
}

# lock_cache [NAME]: until the script ends, others that want the same wait.
lock_cache() {
	local lock=$cache/${1:+$1-}lock
	exec 9> "$lock"
	flock --timeout 1800 9 || die "another run has held $lock for half an hour"
}

# need_space MB: in the cache.
need_space() {
	local free
	free=$(df --output=avail -BM "$cache" | tail -n 1 | tr -dc 0-9)
	[ "$free" -ge "$1" ] || die "$cache has $free MB free, and $1 MB are needed" \
		"Make room, or set PERCPU_REF_CACHE to a folder on another disk."
}

# need_packages WHAT PACKAGE...: in the toolchain's root, besides what it was made of.
need_packages() {
	# When an earlier run was interrupted while it installed them, they are there but not ready.
	local states
	states=$(in_root dpkg-query -W -f '${db:Status-Status}\n' "${@:2}" 2>&1) || true
	grep -qvx installed <<< "$states" || return 0
	need_space 2000
	step "$1" 600 "$cache/log/${*: -1}" install_packages "${@:2}"
}
install_packages() {
	in_root dpkg --configure -a
	in_root apt-get update
	in_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

# in_crate CRATE TARGET TOOL ARGUMENT...: runs rustc or a tool that takes the same options as Kbuild
# would: for the library if CRATE is percpu_ref, and for a module that uses it if it is percpu_ref_test.
# The library must have been built for the target.
in_crate() {
	local crate=$1 modules=/project/build/$2/modules command
	command=$(sed -n 's|^savedcmd_[^ ]* := \(.*\) rustc \(.*\) --out-dir .*|\1 '"$3"' \2|p' \
		"$project/build/$2/modules/.percpu_ref_test.o.cmd")
	if [ "$crate" = percpu_ref ]; then
		# The kernel crate of this crate is that of the tree.
		command=$(sed 's/ --extern kernel=[^ ]*//' <<< "$command")
	fi
	shift 3
	# shellcheck disable=SC2016 # expanded by the inner shell
	in_root sh -c 'export RUSTC_BOOTSTRAP=1; cd "$1"; command=$2; shift 2; eval "$command \"\$@\""' \
		sh "$modules" "$command" "$@"
}

# make_modules TARGET GOAL [VARIABLE=VALUE...]: make, as a user would call it in the project, with the
# results in build/TARGET/modules.
make_modules() {
	local target=$1
	shift
	describe_target "$target"
	# shellcheck disable=SC2086
	in_root make -C /project -j"$(nproc)" KDIR="/cache/$target/build" \
		MO="/project/build/$target/modules" $make_args ${debug:+"DEBUG=$debug"} "$@"
}
