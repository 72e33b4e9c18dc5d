#!/bin/sh
# Boots an image by tuxrun: boot.sh IMAGE APPEND
#
# tuxrun's log goes to nowhere, and the device's lines to stdout. It brings a root file
# system of its own, logs in, runs the command behind --, and ends with a status other
# than 0 for a kernel that fails as for a container that does not start: what tells
# them apart is whether a kernel has printed anything.
set -u
log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'kill "$job" 2>/dev/null; wait "$job"; exit 1' TERM
tuxrun --device qemu-x86_64 --kernel "$1" --boot-args "$2" --timeouts boot=2 \
	--log-file /dev/null --log-file-text "$log" -- true >&2 &
job=$!
wait "$job"
status=$?
cat "$log"
grep -q 'Linux version' "$log" && exit 0
exit "$status"
