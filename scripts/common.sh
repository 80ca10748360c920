# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Sourced by the other scripts. Describes targets, and has functions that run steps and show their results.

set -euo pipefail
set -o allexport # for the shells that bounded() starts

# A script ends when the make or the script that started it ends, for whatever reason. A command after
# $with_parent ends when this script ends. Without setpriv, neither works.
if [ "${this_script:-}" != $$ ]; then
	started_by=${this_script:-${MAKELEVEL:-}}
	this_script=$$ with_parent="setpriv --pdeathsig TERM"
	if ! $with_parent true 2> /dev/null; then
		with_parent=
	elif [ -n "$started_by" ]; then
		exec $with_parent "$BASH" "$0" "$@"
	fi
fi
# An interrupt in a terminal reaches all scripts of a run. Each script ends when the command that it waits for has
# ended.
trap 'exit 130' INT

# If a git hook has started this script, git has set these variables. They must not apply to other repositories.
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_PREFIX GIT_COMMON_DIR
# With CDPATH, cd may enter another folder, and prints it.
unset CDPATH

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${PERCPU_REF_CACHE:-${XDG_CACHE_HOME:-${HOME:-$(echo ~root)}/.cache}/percpu-ref}

# Sets the variables that describe target $1, by its file in scripts/targets.
#
# series		the series of the kernel, as in the name of Debian's linux-source-* package
# flavour		the flavour of the kernel, as in the names of its binary packages
# config		instead of a flavour, the configuration of a kernel that is built here
# deb_arch		Debian's name of the architecture
# tools			packages that the target needs besides $packages
# make_args		the arguments of each make in the kernel tree
# debug			1: the library records what holds each object. DEBUG=1 sets this for all targets, and
#			DEBUG= for none
# image			the file of the kernel in its build tree
# qemu			the emulator and its machine
# cpu			the processor, if it is emulated
# console		the kernel's name of its serial line
# seconds		the time limit of the guest
# memory		the memory of the guest, in MB
# test_mode		the mode of scripts/boot in which `make test` boots the target: test or quick
# variants		kernel arguments, or arguments of scripts/boot. The test module is run once more with
#			each
# more_variants		further variants for `make test-everywhere`
# hot_path		the limit of instructions for getting and putting a reference in a function, or
#			empty if the helpers are called
targets=$(cd "$project/scripts/targets" && echo *)
describe_target() {
	config="" tools="" image="" cpu=max memory=256 seconds=420 hot_path="" debug=""
	test_mode=test variants="" more_variants=""
	case ${DEBUG:-} in
	1) debug=1 ;;
	?*) die "DEBUG=$DEBUG is not supported" "Use DEBUG=1, or leave it out." ;;
	esac
	if [ ! -f "$project/scripts/targets/$1" ]; then
		die "there is no target '$1'" "The targets are: $targets."
	fi
	# shellcheck source=scripts/targets/amd64
	. "$project/scripts/targets/$1"
	# With records of holders, getting and putting a reference takes more instructions.
	if [ -n "$debug" ]; then
		hot_path=""
	fi
}

# The kernel series that the project is tested with, newest first. Debian drops a series when the next one comes.
tested="7.3 7.2"

# cross_compile: prints the prefix of the described target's binutils, or nothing for the root's own binutils.
cross_compile() {
	sed -n 's/.*CROSS_COMPILE=\([^ ]*\).*/\1/p' <<< "$make_args"
}

# The Debian suite and packages of the toolchain's root.
suite=trixie
packages="
	bc bindgen bison ca-certificates cpio flex gcc kmod libc6-dev libdw-dev
	libelf-dev libssl-dev make pahole perl python3 qemu-system-x86 rsync rust-clippy rust-src
	rustc rustfmt seabios xz-utils zstd"

# complain MESSAGE [REMEDY...]: prints an error.
# die MESSAGE [REMEDY...]: prints an error and ends the script.
complain() {
	printf 'error: %s\n' "$1" >&2
	if [ $# -gt 1 ]; then
		printf '       %s\n' "${@:2}" >&2
	fi
}
die() {
	complain "$@"
	exit 1
}

# bounded LIMIT COMMAND...: runs a command or function for at most LIMIT seconds. All processes that it has started
# end when it ends, and when this script ends.
bounded() {
	local status=0
	$with_parent timeout --kill-after=10 "$1" bash -euo pipefail -c '"$@"' bounded "${@:2}" &
	trap "end_bounded $!" INT TERM HUP
	wait $! || status=$?
	trap 'exit 130' INT
	trap - TERM HUP
	return $status
}
end_bounded() {
	local n
	kill "$1" 2> /dev/null || true
	wait "$1" || true
	# Some processes clean up before they end.
	for n in {1..100}; do
		kill -0 -- "-$1" 2> /dev/null || break
		sleep 0.1
	done
	kill -KILL -- "-$1" 2> /dev/null || true
	exit 130
}

# attempt NAME LIMIT LOG COMMAND...: runs a command or function for at most LIMIT seconds, and shows how long it
# took. Its output goes to LOG. If it fails, shows the end of LOG, and $remedy.
# step NAME LIMIT LOG COMMAND...: does this too, and ends the script if the command fails.
remedy=
attempt() {
	local name=$1 limit=$2 log=$3 start=$SECONDS status=0
	mkdir -p "$(dirname "$log")"
	printf '%-60s' "$name ..."
	bounded "$limit" "${@:4}" > "$log" 2>&1 || status=$?
	if [ $status -eq 0 ]; then
		printf '%4d s\n' $((SECONDS - start))
		return
	fi
	printf 'failed\n'
	tail -n 40 "$log" | sed 's/^/    /' >&2
	if [ "$(df --output=avail -k "$log" | tail -n 1)" -lt 102400 ]; then
		complain "the disk is full, at $(dirname "$log")" \
			"Make room there. PERCPU_REF_CACHE=<folder> moves the cache elsewhere."
	elif [ $status -eq 124 ] || [ $status -eq 137 ]; then
		complain "'$name' took more than $limit s, and was stopped" "Its output is in $log."
	else
		complain "'$name' failed" "Its whole output is in $log." ${remedy:+"$remedy"}
	fi
	return 1
}
step() {
	attempt "$@" || exit 1
}

# cached NAME: shows that NAME was taken from the cache.
cached() {
	printf '%-60s%6s\n' "$1" "cached"
}

# report NAME LOG COMMAND...: runs a command or function as a test case for at most $report_seconds, and shows its
# result.
passed=0 failed=0 skipped=0 report_seconds=60
report() {
	if bounded $report_seconds "${@:3}" > "$2" 2>&1; then
		passed=$((passed + 1))
		echo "ok $1"
	else
		failed=$((failed + 1))
		echo "not ok $1"
		tail -n 30 "$2" | sed 's/^/    /'
	fi
}

# add_counts FILE: adds the counts in the last line of FILE. If there are none, the script that wrote FILE has ended
# too early, so adds one failure and fails.
add_counts() {
	local counts p f s
	counts=$(tail -n 1 "$1" | sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p')
	read -r p f s <<< "${counts:-0 1 0}"
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	[ -n "$counts" ]
}

# report_end: prints the counts, and fails if a case has failed.
report_end() {
	echo "$passed passed, $failed failed, $skipped skipped"
	[ $failed -eq 0 ]
}

# in_root COMMAND...: runs a command in the toolchain's root, with the project and the cache mounted at /project and
# /cache, and $MODULE at /module. The mounts end with the command. /dev is read-only, because some tools replace
# the file that they write to, which may be /dev/null. A /dev/kvm that does not work is hidden. UML needs a /dev/shm
# in which files can be executed, which the /dev/shm of a container forbids.
in_root() {
	local hidden=
	if [ -e /dev/kvm ] && ! kvm_works; then
		hidden=dev/kvm
	fi
	# shellcheck disable=SC2016 # expanded by the inner shell
	$with_parent unshare --mount sh -e -c '
		root=$1 project=$2 cache=$3 hidden=$4 module=$5; shift 5
		mkdir -p "$root/project" "$root/cache" "$root/module"
		if [ -n "$module" ]; then mount --bind "$module" "$root/module"; fi
		mount --bind "$project" "$root/project"
		mount --bind "$cache" "$root/cache"
		mount -t proc proc "$root/proc"
		mount --rbind /dev "$root/dev"
		mount -o remount,bind,ro "$root/dev"
		if [ -d "$root/dev/shm" ]; then mount -t tmpfs -o exec,mode=1777 tmpfs "$root/dev/shm"; fi
		if [ -n "$hidden" ]; then mount --bind /dev/null "$root/$hidden"; fi
		exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
			"$@"' sh "$cache/root" "$project" "$cache" "$hidden" "${MODULE:-}" "$@"
}

# kvm_works: returns whether /dev/kvm works. It may exist and not work. QEMU itself detects a /dev/kvm that cannot
# be opened.
kvm_works() {
	if [ "$(uname -m)" != aarch64 ]; then
		grep -qwE 'vmx|svm' /proc/cpuinfo || return 1
	fi
	[ -w /dev/kvm ]
}

# lock FILE WHAT: takes the lock FILE. If another run holds it, shows which run, and waits. The lock is held until
# this script and all processes that it has started have ended, or until the descriptor $locked is closed.
lock() {
	if ! touch "$1" 2> /dev/null; then
		die "$1 cannot be written to" "Run this as the owner of that folder, or as root."
	fi
	exec {locked}>> "$1"
	if ! flock --nonblock $locked; then
		echo "waiting for another run $2: $(cat "$1")"
		$with_parent flock $locked
	fi
	echo "scripts/${0##*/}${arguments:+ $arguments} (process $$)" > "$1"
}
arguments=$*

# lock_cache [NAME]: takes the lock of the cache, or of its part NAME.
lock_cache() {
	lock "$cache/${1:+$1-}lock" "that writes to $cache${1:+/$1}"
}

# need_space MB: ends the script if the cache has less than MB megabytes free.
need_space() {
	local free
	free=$(df --output=avail -BM "$cache" | tail -n 1 | tr -dc 0-9)
	[ "$free" -ge "$1" ] || die "$cache has $free MB free, and $1 MB are needed" \
		"Make room, or set PERCPU_REF_CACHE to a folder on another disk."
}

# need_packages WHAT PACKAGE...: installs packages in the toolchain's root.
# add_packages WHAT PACKAGE...: does this too; the caller must hold the lock of the cache.
need_packages() {
	local locked
	if ! has_packages "${@:2}"; then
		lock_cache
		add_packages "$@"
		exec {locked}>&-
	fi
}
add_packages() {
	if ! has_packages "${@:2}"; then
		need_space 2000
		step "$1" 1800 "$cache/log/${*: -1}" install_packages "${@:2}"
	fi
}
has_packages() {
	# If an earlier run was interrupted during the installation, the packages are unpacked but not installed.
	local states
	states=$(in_root dpkg-query -W -f '${db:Status-Status}\n' "$@" 2>&1) || return 1
	! grep -qvx installed <<< "$states"
}
install_packages() {
	in_root dpkg --configure -a
	update_root
	in_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

# mirror: prints the host's mirror of Debian. Prints nothing if the host is not Debian, or has no mirror that a root
# can use. Then mmdebstrap chooses the mirror.
mirror() {
	local release uri
	# shellcheck disable=SC1090,SC1091
	release=$(. "${OS_RELEASE:-/etc/os-release}" && [ "$ID" = debian ] && echo "${VERSION_CODENAME:-}") || return 0
	# shellcheck disable=SC2016
	uri=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI) $(CODENAME)' 'Created-By: Packages' |
		awk -v release="$release" '($1 == release || $4 == release) && $2 == "main" &&
			$3 ~ /^(https?|mirror[+]file):/ { print $3; exit }')
	if [ "${uri#mirror+file:}" != "$uri" ]; then
		uri=$(sed 's/^mirror+file://; s|/$||' <<< "$uri")
		uri=$(sed -n 's|^\(https\?://[^[:space:]]*\).*|\1|p' "$uri" 2> /dev/null | head -n 1) || true
	fi
	echo "$uri"
}

# apt_settings: prints the apt configuration of a root, with the host's proxies and similar settings.
apt_settings() {
	local scheme proxy
	printf '%s\n' 'APT::Install-Recommends "false";' 'APT::Sandbox::User "root";' \
		'APT::Update::Error-Mode "any";' 'Acquire::Retries "2";' 'Acquire::http::Timeout "20";'
	apt-config dump | grep -E '^Acquire::(https?|Check-[A-Za-z-]*)\b' | grep -v Auto-Detect || true
	for scheme in http https; do
		proxy=${scheme}_proxy
		if [ -n "${!proxy:-}" ]; then
			echo "Acquire::$scheme::Proxy \"${!proxy}\";"
		fi
	done
}

# update_root: updates the root's lists of packages, with the host's current mirror, proxy and resolver.
update_root() {
	local etc=$cache/root/etc mirror
	mirror=$(mirror)
	if [ -n "$mirror" ]; then
		printf "deb $mirror %s main\n" $suite $suite-backports > "$etc/apt/sources.list"
		rm -f "$etc/apt/sources.list.d/backports.list"
	fi
	apt_settings > "$etc/apt/apt.conf.d/99mmdebstrap"
	if [ -e /etc/resolv.conf ]; then
		cp --remove-destination -L /etc/resolv.conf "$etc/resolv.conf"
	fi
	in_root apt-get update
}

# in_crate CRATE TARGET TOOL ARGUMENT...: runs rustc, or a tool with the options of rustc, as Kbuild does: for the
# library if CRATE is percpu_ref, and for a module that uses it if CRATE is percpu_ref_test. The library must have
# been built for the target.
in_crate() {
	local crate=$1 modules=/project/build/$2/modules command
	command=$(sed -n 's|^savedcmd_[^ ]* := \(.*\) rustc \(.*\) --out-dir .*|\1 '"$3"' \2|p' \
		"$project/build/$2/modules/.percpu_ref_test.o.cmd")
	if [ "$crate" = percpu_ref ]; then
		# The library itself uses the kernel crate of the tree.
		command=$(sed 's/ --extern kernel=[^ ]*//' <<< "$command")
	fi
	shift 3
	# shellcheck disable=SC2016 # expanded by the inner shell
	in_root sh -c 'export RUSTC_BOOTSTRAP=1; cd "$1"; command=$2; shift 2; eval "$command \"\$@\""' \
		sh "$modules" "$command" "$@"
}

# make_modules TARGET GOAL [VARIABLE=VALUE...]: runs make as a user does in the project, with the results in
# build/TARGET/modules.
make_modules() {
	local target=$1
	shift
	describe_target "$target"
	# shellcheck disable=SC2086
	in_root make -C /project -j"$(nproc)" KDIR="/cache/$target/build" \
		MO="/project/build/$target/modules" $make_args ${debug:+"DEBUG=$debug"} "$@"
}

case $cache in
/*) ;;
*) die "the cache's path is not absolute: $cache" "Set PERCPU_REF_CACHE, XDG_CACHE_HOME or HOME to an absolute path." ;;
esac

# cleanup: runs before a script ends. A script may define its own. In the first script of a run, at_exit() also
# passes the files that root has made in the checkout of another user to that user.
cleanup() { :; }
at_exit() {
	local item
	cleanup || true
	if [ "${first:-}" = $$ ] && [ "$(id -u)" -eq 0 ] && [ "$(stat -c %u "$project")" -ne 0 ]; then
		for item in "$project"/build "$project"/rust-project.json; do
			if [ -e "$item" ]; then
				chown -Rh --reference="$project" "$item"
			fi
		done
	fi
}
trap at_exit EXIT

# Runs in one checkout wait for each other, because they would destroy each other's results.
if [ "${run_in:-}" != "$project" ]; then
	run_in=$project first=$$
	case ${0##*/} in
	in-tree | new | prepare | rust-analyzer) ;;
	*)
		mkdir -p "$project/build"
		lock "$project/build/lock" "in this checkout"
		checkout_lock=$locked
		;;
	esac
fi
