package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"

	"unlucky/linker"
	"unlucky/qemu"
	"unlucky/scenarios"
)

// needs are the programs and files that a sweep uses beside clang and lld,
// with the Debian package that brings each.
var needs = []struct{ name, pkg, version string }{
	{"make", "make", "--version"},
	{"flex", "flex", "--version"},
	{"bison", "bison", "--version"},
	{"bc", "bc", "--version"},
	{"patch", "patch", "--version"},
	{"tar", "tar", "--version"},
	{"xz", "xz-utils", "--version"},
	{"busybox", "busybox-static", ""},
	{"qemu-system-x86_64", "qemu-system-x86", "--version"},
	{"/usr/include/gelf.h", "libelf-dev", ""},
	{"/usr/include/openssl/opensslv.h", "libssl-dev", ""},
}

func doctor(ctx context.Context, args []string, _ io.Reader, out io.Writer) error {
	f := flag.NewFlagSet("doctor", flag.ContinueOnError)
	rest, err := parse(f, args, out, "doctor [SCENARIO]", 0, 1)
	if err != nil {
		return err
	}
	name := "kcfi-seal"
	if len(rest) == 1 {
		name = rest[0]
	}
	scenario, err := scenarios.Load(name)
	if err != nil {
		return err
	}
	var missing []string
	row := func(name, state string) { fmt.Fprintf(out, "  %-34s %s\n", name, state) }

	fmt.Fprintln(out, "tools:")
	tools, err := linker.FindToolchain(ctx)
	if err != nil {
		row("clang, lld", "missing: "+err.Error())
		missing = append(missing, "clang-22", "lld-22", "llvm-22")
	} else {
		row("clang", tools.Clang+" in "+tools.Dir)
		row("ld.lld", tools.LLD+", "+map[bool]string{
			true:  "has --randomize-section-padding",
			false: "has no --randomize-section-padding (LLVM 20 and later have it): strategy text only",
		}[tools.Randomizes()])
	}
	for _, n := range needs {
		state, ok := look(ctx, n.name, n.version)
		if !ok {
			missing = append(missing, n.pkg)
		}
		row(n.name, state)
	}
	if pkg := scenario.Kernel.Package; pkg != "" {
		path := "/usr/src/" + pkg + ".tar.xz"
		state, ok := look(ctx, path, "")
		if !ok {
			missing = append(missing, pkg)
		}
		row(path, state)
	}

	fmt.Fprintln(out, "\naccelerator:")
	row("kvm", tryKVM(ctx, scenario))
	if len(missing) == 0 {
		fmt.Fprintf(out, "\nnothing is missing; next, for example:\n  unlucky sweep %s\n", name)
		return nil
	}
	fmt.Fprintf(out, "\ninstall what is missing with:\n  apt-get install %s\n", strings.Join(missing, " "))
	return exit(exitFailed)
}

var versionNumber = regexp.MustCompile(`\d+\.\d+(\.\d+)*`)

// look says whether a program or a file is there, and a program's version.
func look(ctx context.Context, name, versionFlag string) (state string, ok bool) {
	path, err := exec.LookPath(name)
	if strings.HasPrefix(name, "/") {
		_, err = os.Stat(name)
	}
	if name == "busybox" && err == nil {
		path, err = qemu.FindBusybox()
	}
	switch {
	case errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist):
		return "missing", false
	case err != nil:
		return err.Error(), false
	case versionFlag == "":
		return "there", true
	}
	out, err := exec.CommandContext(ctx, path, versionFlag).Output()
	if err != nil {
		return "does not run: " + err.Error(), false
	}
	return versionNumber.FindString(string(out)), true
}

// tryKVM says whether KVM truly works, which only a kernel that reaches user
// space on it shows: nested and partial KVM run small guests and fail there.
func tryKVM(ctx context.Context, s scenarios.Scenario) string {
	if err := qemu.KVM(); err != nil {
		return "no: " + err.Error() + "; TCG is used"
	}
	if !linker.Prepared(ctx, cacheDir(), s.Kernel) {
		return "/dev/kvm answers; whether a kernel runs on it is seen once " + s.Name + " has been prepared (unlucky sweep does it)"
	}
	b, err := prepare(ctx, s, newScreen(os.Stderr))
	if err != nil {
		return "/dev/kvm answers; trying a kernel failed: " + err.Error()
	}
	defer b.Close()
	b.guest.Machine.Accel = "kvm"
	l, err := b.NewWorker()
	if err != nil {
		return err.Error()
	}
	defer l.Close()
	image, err := l.Link(ctx, linker.Plan{})
	if err != nil {
		return err.Error()
	}
	r, err := b.guest.Boot(ctx, image.Path)
	switch {
	case err != nil:
		return err.Error()
	case r.Kind == qemu.Infra:
		return "/dev/kvm is there but does not run a kernel (" + r.Reason + "); TCG is used"
	case r.Kind == qemu.Pass || r.Report != (qemu.Report{}):
		return "works: " + s.Name + " runs on it"
	}
	return "unclear: " + s.Name + " shows " + r.Title
}
