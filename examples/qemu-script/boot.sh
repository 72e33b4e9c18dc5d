#!/bin/sh
# Boots an image in QEMU: boot.sh IMAGE INITRD APPEND
#
# exec: unlucky ends this process, and QEMU must be it. ACCEL is kvm or tcg.
exec qemu-system-x86_64 -nodefaults -no-user-config -display none -serial stdio -no-reboot \
	-M microvm,acpi=off -accel "${ACCEL:-tcg}" -cpu max -smp 1 -m 128M \
	-kernel "$1" -initrd "$2" -append "$3"
