#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# demo.sh: runs the demo of tinylm on a daemon of its own, in a temporary directory.
#
#   examples/tinylm/demo.sh BUILD_FOLDER [options of `tinylm demo`]
#
# Its last line is the demo's JSON object. It fails if the demo fails, or if the daemon does not end
# cleanly. Nothing is left behind.
set -eu

if [ $# -lt 1 ] || [ ! -x "$1/kvrecalld" ] || [ ! -x "$1/kvrecall" ] || [ ! -x "$1/tinylm" ]; then
	echo "usage: $0 BUILD_FOLDER [options]; build kvrecalld, kvrecall and tinylm there first" >&2
	exit 2
fi
build=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d /tmp/kvrecall-demo.XXXXXX)
daemon=

finish() {
	status=$?
	trap - EXIT
	if [ -n "$daemon" ]; then
		kill "$daemon" 2>/dev/null || :
		wait "$daemon" 2>/dev/null || :
	fi
	[ "$status" -eq 0 ] || [ ! -s "$folder/log" ] || sed 's/^/kvrecalld: /' "$folder/log" >&2
	rm -rf "$folder"
	exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

cat >"$folder/kvrecalld.conf" <<END
runtime_dir = "$folder/run";
memory: { host_bytes = "256 MiB"; };
store: { dir = "$folder/store"; bytes = "1 GiB"; };
END

start() {
	"$build/kvrecalld" --config "$folder/kvrecalld.conf" 2>>"$folder/log" &
	daemon=$!
	tries=0
	while [ "$("$build/kvrecall" --socket "$folder/run/attach.sock" --json status 2>/dev/null |
		head -c 1)" != "{" ]; do
		if ! kill -0 "$daemon" 2>/dev/null || [ "$tries" -ge 100 ]; then
			echo "$0: kvrecalld did not start" >&2
			exit 1
		fi
		tries=$((tries + 1))
		sleep 0.1
	done
}

start
"$build/tinylm" selftest --model "$here/model" >&2
"$build/tinylm" demo --socket "$folder/run/attach.sock" --model "$here/model" \
	--text "$here/text.txt" --kept "$folder/kept" "$@" >"$folder/output"

# As a power cut would end it, but for the disk: nothing is flushed, nothing is closed.
kill -KILL "$daemon"
wait "$daemon" 2>/dev/null || :
start
"$build/tinylm" revive --socket "$folder/run/attach.sock" --model "$here/model" \
	--text "$here/text.txt" --kept "$folder/kept" "$@" >"$folder/revived"

kill -TERM "$daemon"
status=0
wait "$daemon" || status=$?
daemon=
if [ "$status" -ne 0 ]; then
	echo "$0: kvrecalld ended with status $status" >&2
	exit 1
fi
# One JSON object, last: the demo's, with the revival's in it.
sed '$d' "$folder/output"
sed '$d' "$folder/revived"
printf '%s,"revived":%s}\n' "$(tail -n 1 "$folder/output" | sed 's/}$//')" \
	"$(tail -n 1 "$folder/revived")"
