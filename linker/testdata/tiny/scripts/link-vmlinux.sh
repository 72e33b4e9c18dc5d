#!/bin/sh
# The part of the kernel's script that matters: two passes through one function.
set -e

LD="$1"
KBUILD_LDFLAGS="$2"
LDFLAGS_vmlinux="$3"

vmlinux_link()
{
	${LD} ${KBUILD_LDFLAGS} ${LDFLAGS_vmlinux} --script=${objtree}/${KBUILD_LDS} -o ${1} vmlinux.o
}

vmlinux_link .tmp_vmlinux1
vmlinux_link vmlinux
${NM} -n vmlinux >System.map
