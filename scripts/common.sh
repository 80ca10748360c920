# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Sourced by the other scripts: what a target is, where things are kept, how steps are shown.

set -euo pipefail
set -o allexport # for the shells that bounded() starts

# A script ends when the make or the script that started it does, whatever ended that; and so does a command
# after $with_parent. Not all systems have that.
if [ "${this_script:-}" != $$ ]; then
	started_by=${this_script:-${MAKELEVEL:-}}
	this_script=$$ with_parent="setpriv --pdeathsig TERM"
	if ! $with_parent true 2> /dev/null; then
		with_parent=
	elif [ -n "$started_by" ]; then
		exec $with_parent "$BASH" "$0" "$@"
	fi
fi
# An interrupt in a terminal reaches all scripts of a run. Each ends when the one that it waits for has ended.
trap 'exit 130' INT

# What git tells its hooks is not for the repositories that are made here.
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_PREFIX GIT_COMMON_DIR
# With it, cd may go elsewhere, and prints where.
unset CDPATH

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${PERCPU_REF_CACHE:-${XDG_CACHE_HOME:-${HOME:-$(echo ~root)}/.cache}/percpu-ref}

# Sets the variables that describe target $1, by its file in scripts/targets.
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
# test_mode		the mode of scripts/boot in which `make test` boots it: test, or quick
# variants		kernel arguments, or what scripts/boot knows of, with each of which the test module
#			is run once more
# more_variants		those of `make test-everywhere`
# hot_path		the instructions that getting and putting a reference may take, in a function
#			by itself; none if helpers do it
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
	# It takes more instructions with records.
	if [ -n "$debug" ]; then
		hot_path=""
	fi
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

# complain MESSAGE [REMEDY...]; die MESSAGE [REMEDY...]: ends the script as well.
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

# bounded LIMIT COMMAND...: runs a command or function, which may take LIMIT seconds. All that it has started
# ends when it does, and when this script does.
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
	# Some clean up before they end.
	for n in {1..100}; do
		kill -0 -- "-$1" 2> /dev/null || break
		sleep 0.1
	done
	kill -KILL -- "-$1" 2> /dev/null || true
	exit 130
}

# attempt NAME LIMIT LOG COMMAND...: runs a command or function that may take LIMIT seconds, and shows
# how long it took. What it prints goes to LOG. If it fails, the end of that is shown, with $remedy.
# step: ends the script then.
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
		complain "'$name' took more than $limit s, and was stopped" "What it printed is in $log."
	else
		complain "'$name' failed" "All that it printed is in $log." ${remedy:+"$remedy"}
	fi
	return 1
}
step() {
	attempt "$@" || exit 1
}

# cached NAME: says that something was taken from the cache.
cached() {
	printf '%-60s%6s\n' "$1" "cached"
}

# report NAME LOG COMMAND...: runs a command or function as a test case of $report_seconds at most, and
# shows its result.
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

# add_counts FILE: adds those of its last line. A script that went wrong before it had any, has failed.
add_counts() {
	local counts p f s
	counts=$(tail -n 1 "$1" | sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p')
	read -r p f s <<< "${counts:-0 1 0}"
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	[ -n "$counts" ]
}

# report_end: ends with the counts, and fails if a case did.
report_end() {
	echo "$passed passed, $failed failed, $skipped skipped"
	[ $failed -eq 0 ]
}

# in_root COMMAND...: runs a command in the toolchain's root, with the project and the cache mounted
# at /project and /cache, and $MODULE at /module. The mounts go with the command. The devices can be used,
# but not replaced, as some tools do with what they are told to write to; a KVM that does not work is not to be
# found. UML needs a /dev/shm in which files can be executed, which a container's own forbids.
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

# kvm_works: /dev/kvm may also be there and not work. QEMU itself finds one that cannot be opened.
kvm_works() {
	if [ "$(uname -m)" != aarch64 ]; then
		grep -qwE 'vmx|svm' /proc/cpuinfo || return 1
	fi
	[ -w /dev/kvm ]
}

# lock FILE WHAT: waits until no other run holds the file, and says so and what that run is. Then others wait
# until this script has ended, and all that it has started; or until the descriptor $locked is closed.
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

# lock_cache [NAME]
lock_cache() {
	lock "$cache/${1:+$1-}lock" "that writes to $cache${1:+/$1}"
}

# need_space MB: in the cache.
need_space() {
	local free
	free=$(df --output=avail -BM "$cache" | tail -n 1 | tr -dc 0-9)
	[ "$free" -ge "$1" ] || die "$cache has $free MB free, and $1 MB are needed" \
		"Make room, or set PERCPU_REF_CACHE to a folder on another disk."
}

# need_packages WHAT PACKAGE...: in the toolchain's root, besides what it was made of. add_packages: with the
# lock of the cache held.
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
	# When an earlier run was interrupted while it installed them, they are there but not ready.
	local states
	states=$(in_root dpkg-query -W -f '${db:Status-Status}\n' "$@" 2>&1) || return 1
	! grep -qvx installed <<< "$states"
}
install_packages() {
	in_root dpkg --configure -a
	update_root
	in_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

# mirror: the host's mirror of Debian. Prints none if the host is no Debian itself, or has no such line that a
# root could use, too; that leaves it to mmdebstrap.
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

# apt_settings: of a root's apt, with the proxies and the like of the host.
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

# update_root: brings the root's lists of packages up to date, by the mirror, proxy and resolver that the host
# has today.
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

case $cache in
/*) ;;
*) die "the cache's path is not absolute: $cache" "Write PERCPU_REF_CACHE, XDG_CACHE_HOME or HOME from / on." ;;
esac

# cleanup: what a script has to do before it ends. Before the first of a run ends, what root has made in the
# checkout of another user becomes that user's.
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

# Runs in one checkout would destroy each other's results, so that they wait for each other.
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
