#!/bin/sh
# Installs the Debian packages named that are missing, and says so first.
set -e

missing=
for package; do
	status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || status=
	[ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

sudo=
if [ "$(id -u)" != 0 ]; then
	sudo="sudo DEBIAN_FRONTEND=noninteractive"
	command -v sudo >/dev/null || {
		echo "unlucky: error: these packages are missing, and neither root nor sudo is there to install them" >&2
		echo "unlucky: hint: apt-get install$missing" >&2
		exit 1
	}
fi
echo "installing$missing (about 400 MB for a sweep, 900 MB for the tests)"
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -q
# apt's own lines are the progress.
$sudo apt-get install -y -q --no-install-recommends $missing
