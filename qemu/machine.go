// Package qemu boots one kernel image under QEMU, or by a program of the user's in
// its place, and says what was learnt: that it passed, that it crashed and by which
// title, that it hung, or that QEMU, KVM or the program failed and nothing was learnt.
//
// It knows nothing of layouts, seeds or scenarios: an image is a path, and one
// boot is one boot. Whether a hang is believed or a crash is confirmed by
// further boots is for the caller to decide.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/kballard/go-shellquote"

	"unlucky/host"
)

// Machine is one guest as QEMU, or a program in its place, is asked to run it. It is
// data only: the same Machine always gives the same command line.
type Machine struct {
	// Program, unless it is nil, boots the guest in QEMU's place: a command line in
	// which {image}, {initrd}, {append} and {slot} stand for Kernel, Initrd, Append
	// and Slot, which it is told in the environment as well. It prints the console to
	// stdout, and ends with the guest. Of the other fields only Accel counts, which
	// is ByProgram.
	Program []string
	Slot    string // which of a few boards this is, from "0" on

	Binary    string   // such as "qemu-system-x86_64", looked up in PATH
	Type      string   // -M, such as "microvm,acpi=off"
	Accel     string   // -accel: "kvm" or "tcg"
	CPU       string   // -cpu: a model with its features, such as "Nehalem"
	CPUs      int      // -smp
	MemoryMiB int      // -m
	Kernel    string   // -kernel: an ELF file with a PVH note, or a bzImage
	Initrd    string   // -initrd; may be empty
	Append    string   // -append: the kernel command line; may be empty
	Args      []string // further QEMU arguments; they come last, so they can overrule
	GDB       bool     // start stopped, and wait for gdb on port 1234 of this host

	RAM   *Memory // its memory, to be looked at behind its end; nil for QEMU's own
	Trace *Trace  // told what code runs; nil for none. TCG's alone
	// Debugger, unless it is nil, has the guest stopped before its first instruction.
	Debugger *Debugger
	Core     *Core // where its memory goes as it ends; nil for nowhere
	qmp      *os.File
}

// confined is how every guest runs: with no device that was not asked for (so
// no network), no configuration of the user, no monitor, the first serial port
// as the console on stdout, and QEMU locked into its seccomp sandbox. With
// -no-reboot a reboot, a reset and a triple fault all end QEMU, with status 0.
var confined = []string{
	"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
	"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
	"-serial", "stdio",
}

// Argv returns the command line, the program's name first: of QEMU, where fields that
// are empty or zero are left to its defaults, or of env, which runs the program in its
// place.
func (m Machine) Argv() []string {
	if m.Program != nil {
		return slices.Concat([]string{"env"}, m.variables(), m.words())
	}
	kind, watch, _ := m.watched(firstExtra)
	return m.argv(kind, watch)
}

// firstExtra is the descriptor of the first of os/exec.Cmd.ExtraFiles.
const firstExtra = 3

// argv is QEMU's command line for a type of machine, with further options.
func (m Machine) argv(kind string, watch []string) []string {
	argv := append([]string{m.Binary}, confined...)
	option := func(name, value string) {
		if value != "" {
			argv = append(argv, name, value)
		}
	}
	option("-M", kind)
	option("-accel", m.Accel)
	option("-cpu", m.CPU)
	if m.CPUs > 0 {
		option("-smp", strconv.Itoa(m.CPUs))
	}
	if m.MemoryMiB > 0 {
		option("-m", strconv.Itoa(m.MemoryMiB)+"M")
	}
	option("-kernel", m.Kernel)
	option("-initrd", m.Initrd)
	option("-append", m.Append)
	if m.GDB {
		// Not "tcp::1234", which lets the whole network write the guest's memory.
		argv = append(argv, "-S", "-gdb", "tcp:127.0.0.1:1234")
	}
	return slices.Concat(argv, watch, m.Args)
}

// Quote returns argv as one line that a shell takes as it stands.
func Quote(argv []string) string { return shellquote.Join(argv...) }

var versionRE = regexp.MustCompile(`version (\d+(?:\.\d+)+)`)

// Version returns the version of the machine's QEMU, and "" for a program in its
// place, once it is known that it can be run.
func (m Machine) Version(ctx context.Context) (string, error) {
	if m.Program != nil {
		_, err := findProgram(m.Program[0])
		return "", err
	}
	return Version(ctx, m.Binary)
}

// Named says in a few words what boots a machine with an accelerator, by QEMU in a
// version or by a program.
func Named(version, accel string) string {
	if accel == ByProgram {
		return "booted by a command"
	}
	return fmt.Sprintf("QEMU %s (%s)", version, accel)
}

// Version returns the version of a QEMU, such as "7.2.22", as its --version
// says. The error for a binary that is not there names the package to install.
func Version(ctx context.Context, binary string) (string, error) {
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return "", startError(binary, err)
	}
	found := versionRE.FindSubmatch(out)
	if found == nil {
		first, _, _ := strings.Cut(string(out), "\n")
		return "", fmt.Errorf("%s --version: no version in %q", binary, first)
	}
	return string(found[1]), nil
}

// startError says why a QEMU could not be started and, if it is not installed,
// what to install.
func startError(binary string, err error) error {
	if path, lookErr := exec.LookPath(binary); errors.Is(err, fs.ErrNotExist) && lookErr == nil {
		return fmt.Errorf("cannot run %s: what it needs to be loaded is not there (file %[1]s tells): %w", path, err)
	}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is not installed: %s: %w", binary, host.Install(NeedOf(binary)), err)
	}
	return fmt.Errorf("cannot run %s: %w", binary, err)
}

// NeedOf returns what package host calls a QEMU binary.
func NeedOf(binary string) string {
	switch arch := strings.TrimPrefix(filepath.Base(binary), "qemu-system-"); arch {
	case "x86_64", "i386":
		return "qemu-system-x86"
	case "aarch64", "arm":
		return "qemu-system-arm"
	case "riscv64", "riscv32", "s390x", "loongarch64":
		return "qemu-system-misc"
	}
	return "qemu-system"
}
