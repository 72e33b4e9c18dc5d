package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	kvmDevice        = "/dev/kvm"
	kvmGetAPIVersion = 0xae00 // KVM_GET_API_VERSION, _IO(0xAE, 0x00) in linux/kvm.h
	kvmAPIVersion    = 12     // the only one since Linux 2.6.22 (Documentation/virt/kvm/api.rst)
)

// kvmFailed are QEMU's words for what is KVM's fault, not its own refusal of an
// argument.
var kvmFailed = regexp.MustCompile(`(?i)\bkvm\b|failed to [gs]et MSR`)

// KVMFailed tells whether the reason of an Infra is KVM.
func KVMFailed(reason string) bool { return kvmFailed.MatchString(reason) }

// KVM returns nil if KVM may be tried for the machine's guest: it is of this host's
// architecture, and KVM is there.
func (m Machine) KVM() error {
	guest := strings.TrimPrefix(filepath.Base(m.Binary), "qemu-system-")
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Errorf("no KVM: %w", err)
	}
	host := unix.ByteSliceToString(u.Machine[:])
	if guest != host && !(guest == "i386" && host == "x86_64") {
		return fmt.Errorf("no KVM: the guest is of %s, and this machine of %s", guest, host)
	}
	return KVM()
}

// KVM returns nil if KVM's device is there, may be opened, and speaks the one
// API version there is; otherwise why not and what to do about it.
//
// A nil is no proof that a kernel runs on it: a nested or partial KVM says the
// same, and then fails an MSR or an instruction of the guest. Believe KVM only
// once a kernel has passed on it; Boot gives KVM's failures as Infra.
func KVM() error { return kvmAt(kvmDevice) }

// kvmAt is KVM for the device at path.
func kvmAt(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("no KVM: %w: modprobe kvm_intel or kvm_amd; in a virtual machine its host must allow nested virtualization", err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("no KVM: %w: join the device's group, usually with adduser $USER kvm, and log in again", err)
	case err != nil:
		return fmt.Errorf("no KVM: %w", err)
	}
	defer f.Close()
	version, err := unix.IoctlRetInt(int(f.Fd()), kvmGetAPIVersion)
	if err != nil {
		return fmt.Errorf("no KVM: %s: KVM_GET_API_VERSION: %w", path, err)
	}
	if version != kvmAPIVersion {
		return fmt.Errorf("no KVM: %s: API version %d, not %d", path, version, kvmAPIVersion)
	}
	return nil
}
