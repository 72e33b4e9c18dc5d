#!/bin/sh
# Boots an image in virtme-ng's machine: boot.sh IMAGE INITRD APPEND
#
# --disable-microvm: the machine is q35, whose ttyS0 is the console that vng prints.
# --force-9p: the root that vng shares is not used, and virtiofsd need not be started.
# -no-reboot: a reboot ends the boot. VNG has further arguments, such as --disable-kvm.
exec vng --verbose --force-9p --disable-microvm --disable-monitor --memory 256M --cpus 1 ${VNG-} \
	--run "$1" --append "$3" --qemu-opts="-no-reboot -initrd $2" </dev/null
