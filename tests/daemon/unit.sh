#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# unit.sh: what tests/daemon/unit.c asks of systemd.
#
#   unit.sh STEP BUILD-FOLDER, in the top folder. 0: passed, 77: skipped for the reason printed, else failed.
#
# The step "run" starts a manager of its own (systemd --user), as root, with nothing of the host within its reach: in a
# process, a mount and a control group namespace, on an empty /run, and with a mount of that part of the control groups
# alone that this script has made. It looks twice that this is so, since a manager rules over the groups that it finds.
set -u
step=$1
B=$(realpath "$2")

fail() { echo "unit.sh: $*" >&2; exit 1; }
skip() { echo "skipped: $step: $*"; exit 77; }
need() { for tool; do command -v "$tool" >/dev/null || skip "no $tool here"; done; }

# Puts everything below $1, as its own prefix. The make above this test is none of its business.
place() { env -u MAKEFLAGS -u MAKELEVEL make --no-print-directory B="$B" "${@:2}" run-install || fail "install"; }

place_here() { place "$1" prefix="$1/usr" sysconfdir="$1/etc"; }

folder=
leave() { [ -z "$folder" ] || rm -rf "$folder"; }
temporary() { folder=$(mktemp -d "${TMPDIR:-/tmp}/kvrecall-unit-XXXXXX") || exit 1; trap leave EXIT; }

mode() { [ "$(stat -c %a "$1")" = "$2" ] || fail "$1 has mode $(stat -c %a "$1"), not $2"; }

# ---- what make install does ---------------------------------------------------------------------

step_install() {
	temporary
	local d=$folder conf=$folder/etc/kvrecall/kvrecalld.conf
	place "$d" DESTDIR="$d"
	mode "$d/usr/lib/systemd/system/kvrecalld.service" 644
	mode "$d/usr/lib/sysusers.d/kvrecall.conf" 644
	mode "$d/usr/lib/tmpfiles.d/kvrecall.conf" 644
	mode "$d/usr/bin/kvrecalld" 755
	"$d/usr/bin/kvrecalld" --config "$conf" --check-config || fail "the configuration that comes with it"
	echo '# mine' >"$conf"
	place "$d" DESTDIR="$d"
	[ "$(cat "$conf")" = '# mine' ] || fail "a second install took the configuration"
	make --no-print-directory B="$B" DESTDIR="$d" uninstall >/dev/null || fail "uninstall"
	[ "$(find "$d" ! -type d)" = "$conf" ] || fail "uninstall leaves: $(find "$d" ! -type d)"
	# Another prefix is in everything that systemd reads.
	place "$d" DESTDIR="$d" prefix=/opt/k sysconfdir=/opt/k/etc
	! grep -rn '^[^#]*\(/usr/\| /etc/\)' "$d"/opt/k/lib/{systemd,sysusers.d,tmpfiles.d} || fail "paths of another prefix"
	grep -q '^ExecStart=/opt/k/bin/kvrecalld --config /opt/k/etc/kvrecall/kvrecalld.conf$' \
		"$d/opt/k/lib/systemd/system/kvrecalld.service" || fail "ExecStart"
}

step_verify() {
	need systemd-analyze
	temporary
	place_here "$folder"
	local unit=$folder/usr/lib/systemd/system/kvrecalld.service said
	said=$(systemd-analyze verify --man=no "$unit" 2>&1) || fail "verify: $said"
	# Other units of this host may be wrong, too.
	! grep kvrecall <<<"$said" || fail "verify has something to say"
	sed -i 's/^WatchdogSec=.*/WatchdogSec=soon/' "$unit"
	systemd-analyze verify --man=no "$unit" 2>&1 | grep -q soon || fail "verify sees no mistake"
}

step_exposure() {
	need systemd-analyze
	systemd-analyze security --help | grep -q -- --offline ||
		skip "this systemd-analyze has no --offline (it came with 250)"
	temporary
	place_here "$folder"
	systemd-analyze security --offline=yes --no-pager --threshold=10 \
		"$folder/usr/lib/systemd/system/kvrecalld.service" >"$folder/said" ||
		fail "$(grep -v '✓' "$folder/said")"
	grep 'Overall exposure' "$folder/said"
}

step_users() {
	need systemd-sysusers systemd-tmpfiles
	[ "$(id -u)" = 0 ] || skip "needs root, to give files away"
	temporary
	local d=$folder
	place "$d" DESTDIR="$d"
	systemd-sysusers --root="$d" kvrecall.conf || fail "sysusers"
	grep -q '^kvrecall:.*nologin$' "$d/etc/passwd" || fail "user: $(cat "$d/etc/passwd")"
	systemd-tmpfiles --root="$d" --create "$d/usr/lib/tmpfiles.d/kvrecall.conf" || fail "tmpfiles"
	mode "$d/var/lib/kvrecall" 700
	[ "$(stat -c %u "$d/var/lib/kvrecall")" = "$(sed -n 's/^kvrecall:[^:]*:\([0-9]*\):.*/\1/p' "$d/etc/passwd")" ] ||
		fail "owner of /var/lib/kvrecall"
	mode "$d/etc/kvrecall/kvrecalld.conf" 640
}

# ---- the unit, running --------------------------------------------------------------------------

group= # the control group that is made for it

remove_group() {
	[ -d "$group" ] || return 0
	for _ in $(seq 100); do # what was killed is reaped a little later
		find "$group" -depth -type d -exec rmdir {} + 2>/dev/null
		[ -d "$group" ] || return 0
		sleep 0.1
	done
	fail "$group is not empty"
}

step_run() {
	need unshare systemctl mount
	local systemd=/lib/systemd/systemd base status
	[ -x $systemd ] || skip "no $systemd here"
	[ "$(id -u)" = 0 ] || skip "needs root, for namespaces of its own"
	base=$(findmnt -n -t cgroup2 -o TARGET | head -n 1)
	[ -n "$base" ] || skip "no unified control group hierarchy is mounted"
	group=$base$(sed -n 's/^0:://p' /proc/self/cgroup | sed 's|/$||')/kvrecall-unit-$$
	mkdir "$group" 2>/dev/null || skip "no control group can be made in $base"
	temporary
	trap 'remove_group; leave' EXIT
	FOLDER=$folder GROUP=$group unshare --mount --propagation private --pid --fork --kill-child --mount-proc \
		bash "$0" enter "$B"
	status=$?
	[ $status != 1 ] || fail "the unit"
	return $status
}

# The first process of the process namespace: moves into the group, which becomes all that there is.
step_enter() {
	echo 0 >"$GROUP/cgroup.procs" || skip "may not enter $GROUP"
	exec unshare --cgroup bash "$0" inside "$B"
}

# Nothing but this may be in sight before a manager starts.
contained() {
	[ "$(sed -n 's/^0:://p' /proc/self/cgroup)" = / ] || skip "no control group namespace"
	mount -t tmpfs tmpfs /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup || skip "cannot mount control groups"
	# The host's root group has no type; a process outside the process namespace has the number 0.
	[ -e /sys/fs/cgroup/cgroup.type ] || skip "the control groups of the host are in sight"
	! grep -qx 0 /sys/fs/cgroup/cgroup.procs || skip "processes of the host are in sight"
}

user() { timeout 60 systemctl --user "$@"; }
show() { user show -P "$1" kvrecalld.service; }

is() { # PROPERTY VALUE: within 30 s
	for _ in $(seq 300); do
		[ "$(show "$1")" = "$2" ] && return
		sleep 0.1
	done
	user status --no-pager -l kvrecalld.service >&2
	tail -n 20 /run/k/log /run/k/manager >&2
	fail "$1 is '$(show "$1")', not '$2'"
}

answers() { "$B/kvrecall" --socket "$runtime/attach.sock" status >/dev/null || fail "kvrecall status, $1"; }

settings() { printf 'runtime_dir = "%s";\nmemory: { host_bytes = "16 MiB"; };\n%s\n' "$runtime" "$1" >/run/k/etc/kvrecall/kvrecalld.conf; }

runtime=/run/manager/kvrecall
store='store: { dir = "/run/state/kvrecall"; bytes = "64 MiB"; catalog_bytes = "16 MiB"; read_buffer_bytes = "64 MiB"; };'

# Its own paths; no other user, and times in which a test can wait. Everything else is the unit as installed.
adapt() {
	place_here /run/k
	mkdir -p /run/manager/systemd/user/kvrecalld.service.d
	sed -e '/^User=/d' -e '/^Group=/d' -e 's/^WatchdogSec=.*/WatchdogSec=3s/' /run/k/usr/lib/systemd/system/kvrecalld.service \
		>/run/manager/systemd/user/kvrecalld.service
	printf '[Unit]\nRequiresMountsFor=\n[Service]\nStandardError=append:/run/k/log\n%s\n' \
		'Environment=ASAN_OPTIONS=detect_leaks=0' >/run/manager/systemd/user/kvrecalld.service.d/test.conf
}

step_inside() {
	contained
	mkdir -p "$FOLDER/state"
	mount -t tmpfs -o mode=755 tmpfs /run && mkdir -p -m 700 /run/manager /run/state /run/systemd/system ||
		fail "a /run of its own"
	mount --bind "$FOLDER/state" /run/state || fail "state" # on a disk: tmpfs is none
	export XDG_RUNTIME_DIR=/run/manager HOME=/run/manager XDG_CONFIG_HOME=/run/state XDG_STATE_HOME=/run/state
	# What services may not see is covered by these nodes; the first manager of a host makes them here.
	ln -s /run/manager/systemd/inaccessible /run/systemd/inaccessible
	adapt
	settings "$store"
	/lib/systemd/systemd --user --unit=basic.target --log-target=console --log-level=warning >/run/k/manager 2>&1 &
	for _ in $(seq 100); do [ -S /run/manager/systemd/private ] && user is-system-running --wait >/dev/null 2>&1 && break; sleep 0.1; done
	[ -S /run/manager/systemd/private ] || skip "systemd --user does not start: $(tail -n 1 /run/k/manager)"
	start_and_look
	reloads
	failures
	stops
}

start_and_look() {
	user start kvrecalld || is ActiveState active
	is ActiveState active
	is StatusText "serving $runtime"
	answers "after the start"
	local pid lock call
	pid=$(show MainPID)
	# The sandbox is there: a filter, no privileges to gain, none to have, memory to lock.
	grep -q '^Seccomp:[[:space:]]*2$' "/proc/$pid/status" || fail "no filter"
	for call in read io_uring_setup io_uring_enter io_uring_register mlock2 memfd_create fallocate; do
		show SystemCallFilter | grep -qw "$call" || fail "the filter forbids $call"
	done
	for call in mbind chroot ptrace mount bpf; do
		! show SystemCallFilter | grep -qw "$call" || fail "the filter allows $call"
	done
	grep -q '^NoNewPrivs:[[:space:]]*1$' "/proc/$pid/status" || fail "NoNewPrivs"
	grep -q '^CapBnd:[[:space:]]*0*$' "/proc/$pid/status" || fail "CapBnd"
	# As much as a container that may not raise limits allows.
	lock=$(ulimit -l unlimited 2>/dev/null; ulimit -H -l)
	[ "$lock" = unlimited ] || lock=$((lock * 1024))
	grep -q "^Max locked memory *$lock " "/proc/$pid/limits" || fail "LimitMEMLOCK: $lock"
	mode /run/state/kvrecall 700
	mode $runtime 755
}

reloads() {
	local pid
	pid=$(show MainPID)
	settings "$store log_level = \"debug\";"
	user reload kvrecalld || fail "reload"
	is ActiveState active
	grep -q 'changed: log_level' /run/k/log || fail "reload is not in the log: $(cat /run/k/log)"
	settings 'log_level = 5;'
	! user reload kvrecalld 2>/dev/null || fail "reload of a broken file"
	is ActiveState active
	[ "$(show MainPID)" = "$pid" ] || fail "another process after reloads"
	answers "after a broken reload"
	settings "$store"
}

failures() {
	sleep 4 # more than the watchdog's interval: it is content
	is NRestarts 0
	kill -STOP "$(show MainPID)" # a core thread that hangs
	is NRestarts 1
	is ActiveState active
	answers "after the watchdog"
	kill -KILL "$(show MainPID)"
	is NRestarts 2
	is ActiveState active
	answers "after SIGKILL"
	settings 'nonsense = 1;'
	! user restart kvrecalld 2>/dev/null || fail "start with nonsense"
	is ActiveState failed
	is ExecMainStatus 2
	sleep 1
	is NRestarts 0 # nobody tries again
	settings "$store"
}

stops() {
	user reset-failed kvrecalld
	user start kvrecalld || fail "start after failures"
	user stop kvrecalld || fail "stop"
	is ActiveState inactive
	is Result success
	[ ! -e $runtime ] || fail "$runtime is left"
	[ -d /run/state/kvrecall ] || fail "the state is gone"
}

"step_$step"
