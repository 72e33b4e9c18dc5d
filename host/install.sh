#!/bin/sh
# Installs what is missing of the needs named, by the package manager of the
# machine's distribution, and says so first; or prints the line that would:
#
#	install.sh NEED...
#	install.sh --print NEED...
#
# What the distribution does not have is named. A need is one of the first column.
set -eu
export LC_ALL=C
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# What each distribution calls it; + joins several, - is none, N the version of LLVM.
# Names as of Debian 12 and 13, Fedora 42 and Arch Linux of 2025.
table() {
	cat <<-END
		need              apt                    dnf                                            pacman
		llvm              clang-N+lld-N+llvm-N   clang+lld+llvm                                 clang+lld+llvm
		qemu-system-x86   qemu-system-x86        qemu-system-x86-core                           qemu-system-x86
		qemu-system-arm   qemu-system-arm        qemu-system-arm-core+qemu-system-aarch64-core  qemu-system-arm+qemu-system-aarch64
		qemu-system-misc  qemu-system-misc       qemu                                           qemu-full
		qemu-system       qemu-system            qemu                                           qemu-full
		busybox           busybox-static         busybox                                        busybox
		make              make                   make                                           make
		gcc               gcc                    gcc                                            gcc
		aarch64-linux-gnu-gcc  gcc-aarch64-linux-gnu  gcc-aarch64-linux-gnu                     aarch64-linux-gnu-gcc
		pahole            pahole                 dwarves                                        pahole
		flex              flex                   flex                                           flex
		bison             bison                  bison                                          bison
		bc                bc                     bc                                             bc
		python3           python3                python3                                        python
		patch             patch                  patch                                          patch
		tar               tar                    tar                                            tar
		xz                xz-utils               xz                                             xz
		libelf            libelf-dev             elfutils-libelf-devel                          libelf
		libssl            libssl-dev             openssl-devel                                  openssl
		git               git                    git                                            git
		chromium          chromium               chromium                                       chromium
		slurm             slurm-wlm              slurm-slurmctld+slurm-slurmd                   -
		munge             munge                  munge                                          -
		zsh               zsh                    zsh                                            zsh
		fish              fish                   fish                                           fish
		groff             groff-base             groff-base                                     groff
		mandoc            mandoc                 mandoc                                         mandoc
	END
}

error() {
	echo "unlucky: error: $1" >&2
	[ -z "${2-}" ] || echo "unlucky: hint: $2" >&2
	exit 1
}

# manager is the one of the distribution that os-release names, or is like.
manager() {
	file=${UNLUCKY_OS_RELEASE-/etc/os-release} # another one for tests
	ID=unknown ID_LIKE=
	[ ! -r "$file" ] || . "$file"
	for id in $ID $ID_LIKE; do
		case $id in
		debian | ubuntu) echo apt && return ;;
		fedora | rhel | centos) echo dnf && return ;;
		arch) echo pacman && return ;;
		esac
	done
	echo "none of $ID"
}

installed() {
	case $manager in
	apt) [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ] ;;
	dnf) rpm -q "$1" >/dev/null 2>&1 ;;
	pacman) pacman -Q "$1" >/dev/null 2>&1 ;;
	esac
}

# offered prints those packages that the distribution has, as far as is known here.
offered() {
	case $manager in
	apt) apt-cache policy "$@" 2>/dev/null | sed -n '/^[^ ].*:$/{s/:$//;h;}; /^  Candidate: [^(]/{x;p;}' ;;
	dnf) dnf -q repoquery --queryformat '%{name}\n' "$@" 2>/dev/null || true ;;
	pacman)
		for package; do
			! pacman -Si "$package" >/dev/null 2>&1 || echo "$package"
		done
		;;
	esac
}

# listed tells whether the lists of what is offered have been fetched.
listed() {
	[ "$manager" != apt ] || [ -n "$(apt-get indextargets --format '$(FILENAME)' 'Created-By: Packages' 2>/dev/null)" ]
}

# among tells whether the first of some words is one of the others.
among() {
	word=$1
	shift
	for other; do
		[ "$word" != "$other" ] || return 0
	done
	return 1
}

# llvm is the version of LLVM for apt to install: the newest that is installed, if
# its lld has --randomize-section-padding, or else the newest that is offered as a
# whole. It is empty where none is, and before apt has fetched its lists.
llvm() {
	of='s/^installed clang-\([0-9][0-9]*\)$/\1/p'
	for n in $(dpkg-query -W -f '${db:Status-Status} ${Package}\n' 'clang-*' 2>/dev/null | sed -n "$of" | sort -rn); do
		[ "$n" -ge 20 ] && installed "clang-$n" && installed "lld-$n" && installed "llvm-$n" && echo "$n" && return
	done
	listed || return 0
	known=$(apt-cache pkgnames clang- 2>/dev/null | sed -n 's/^clang-\([0-9][0-9]*\)$/\1/p' | sort -rn)
	[ -n "$known" ] || return 0
	have=$(offered $(for n in $known; do echo "clang-$n lld-$n llvm-$n"; done))
	for n in $known; do
		among "clang-$n" $have && among "lld-$n" $have && among "llvm-$n" $have && echo "$n" && return
	done
	return 0
}

# names are the packages of needs, none:NEED where there is none. A kernel's source
# and one version of lld are needs that the table has not.
names() {
	version=
	for need; do
		case $need in
		linux-source-*) row="$need - -" ;;
		lld-[0-9]*) row="$need lld lld" ;;
		*) row=$(table | sed -n "s/^$need  *//p") ;;
		esac
		[ -n "$row" ] || error "install.sh: there is no need $need"
		read -r apt dnf pacman <<-END
			$row
		END
		case $manager in
		apt) row=$apt ;;
		dnf) row=$dnf ;;
		pacman) row=$pacman ;;
		esac
		[ "$row" != - ] || row=none:$need
		case $row in
		*-N) [ -n "$version" ] || version=$(llvm) ;;
		esac
		for name in $(echo "$row" | tr + ' '); do
			case $name in
			*-N) echo "${name%-N}${version:+-$version}" ;;
			*) echo "$name" ;;
			esac
		done
	done
}

# sort_out makes missing the packages that are to be installed, and none those that
# the distribution does not have; before its lists are fetched all are hoped for. A
# kernel's source may be missing: a sweep fetches it by itself, or says what to do.
sort_out() {
	missing= none= wanted=
	all=$(names "$@")
	for name in $all; do
		case $name in
		none:linux-source-*) ;;
		none:*) none="$none ${name#none:}" ;;
		*) [ -z "$print" ] && installed "$name" || wanted="$wanted $name" ;;
		esac
	done
	[ -n "$wanted" ] || return 0
	if listed; then
		have=$(offered $wanted)
	else
		have=$wanted
	fi
	for name in $wanted; do
		if among "$name" $have; then
			missing="$missing $name"
		elif [ "${name#linux-source-}" = "$name" ]; then
			none="$none $name"
		fi
	done
}

# line is the command that installs packages.
line() {
	case $manager in
	apt) echo "apt-get install $*" ;;
	dnf) echo "dnf install $*" ;;
	pacman) echo "pacman -S $*" ;;
	esac
}

print=
if [ "${1-}" = --print ]; then
	print=yes
	shift
fi
manager=$(manager)
case $manager in
none*)
	text="this distribution's packages (${manager#none of }) are not known here; install $*"
	[ -z "$print" ] || { echo "$text" && exit; }
	for program in clang ld.lld qemu-system-x86_64 make flex bison bc python3; do
		command -v $program >/dev/null || error "$program is missing" "$text"
	done
	exit
	;;
esac
sort_out "$@"
if [ -n "$print" ]; then
	text=
	[ -z "$missing" ] || text=$(line $missing)
	[ -z "$none" ] || text="${text:+$text; }this distribution has no package for$none"
	echo "$text"
	exit
fi
[ -n "$missing$none" ] || exit 0

sudo=
if [ "$(id -u)" != 0 ]; then
	sudo=sudo
	command -v sudo >/dev/null ||
		error "these packages are missing, and neither root nor sudo is there to install them:$missing$none" "$(line $missing)"
fi
# The package manager's own lines are the progress.
case $manager in
apt) $sudo apt-get update -q ;;
pacman) [ -e /var/lib/pacman/sync/core.db ] || $sudo pacman -Sy ;;
esac
sort_out "$@"
if [ -n "$missing" ]; then
	echo "installing$missing (about 400 MB for a sweep, 900 MB for the tests)"
	case $manager in
	apt) $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing ;;
	dnf) $sudo dnf install -y --setopt=install_weak_deps=False $missing ;;
	pacman) $sudo pacman -S --needed --noconfirm $missing ;;
	esac
fi
case $manager in
apt) version=$(llvm) ;;
*) version=$(ld.lld --version 2>/dev/null | sed -n 's/.*LLD \([0-9][0-9]*\).*/\1/p') ;;
esac
[ "${version:-20}" -ge 20 ] ||
	echo "the newest LLVM here is $version: all strategies but lld work, as --randomize-section-padding came with 20"
[ -z "$none" ] || error "this distribution has no package for$none" "install what is named by hand; unlucky doctor looks for the programs themselves"
