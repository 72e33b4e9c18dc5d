#!/bin/sh
# Boots an image on a board of a labgrid lab: boot.sh IMAGE APPEND SLOT
#
# PLACES are the boards, in the order of the slots; TFTP is the folder of each that its
# boot loader reads, with PLACE in it. The loader is set up once, by hand, to fetch
# "image" and "append" from there and to boot them.
set -eu
image=$1 append=$2 slot=$3
set -- ${PLACES:?the names of the places}
shift "$slot"
place=${1:?there is no place for slot $slot}
folder=${TFTP:-/srv/tftp}/$place

board() { labgrid-client -p "$place" "$@" >&2; }
console=
room=$(mktemp -d)
off() {
	trap - EXIT TERM
	[ -z "$console" ] || kill "$console" 2>/dev/null || true
	rm -rf "$room"
	board power off || true
	board release || true
}
trap off EXIT
trap 'off; exit 0' TERM

board acquire
cp "$image" "$folder/image"
printf '%s\n' "$append" >"$folder/append"
board power off
# The console is a program for terminals, so script(1) gives it one; it stays when the
# boot has ended, so sed looks for the last line of one.
mkfifo "$room/console"
script -qfec "labgrid-client -p '$place' console --loop" /dev/null </dev/null >"$room/console" &
console=$!
sed -u '/reboot: \(Power down\|Restarting system\|machine restart\)/q' "$room/console" &
ended=$!
sleep 2 # until it is connected
board power on
wait "$ended"
