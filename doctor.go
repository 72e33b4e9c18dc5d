package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"

	"unlucky/linker"
	"unlucky/qemu"
	"unlucky/qemu/oops"
	"unlucky/scenarios"
)

func doctor(ctx context.Context, args []string, _ io.Reader, out io.Writer) error {
	f := flag.NewFlagSet("doctor", flag.ContinueOnError)
	asJSON := f.Bool("json", false, "print it as JSON")
	rest, err := parse(f, args, out, "doctor [SCENARIO] [flags]", 0, 1)
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
	type finding struct {
		Name  string `json:"name"`
		State string `json:"state"`
	}
	var all []finding
	row := func(name, state string) {
		all = append(all, finding{name, state})
		fmt.Fprintf(out, "  %-34s %s\n", name, state)
	}
	asked := out
	if *asJSON {
		out = io.Discard
	}

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
	needs := append([]linker.Need{{Name: "qemu-system-" + scenario.Kernel.Arch, Package: "qemu-system-x86"}}, linker.Needs...)
	if pkg := scenario.Kernel.Package; pkg != "" {
		needs = append(needs, linker.Need{Name: "/usr/src/" + pkg + ".tar.xz", Package: pkg})
	}
	for _, n := range needs {
		path, err := n.Find()
		switch {
		case err != nil:
			missing = append(missing, n.Package)
			row(n.Name, "missing")
		case strings.HasPrefix(n.Name, "/"):
			row(n.Name, "there")
		default:
			row(n.Name, toolVersion(ctx, path))
		}
	}
	if path, err := qemu.FindBusybox(); err != nil {
		missing = append(missing, "busybox-static")
		row("busybox", err.Error())
	} else {
		row("busybox", "there, statically linked, "+path)
	}

	fmt.Fprintln(out, "\ncache:")
	row("prepared kernels", cacheDir())

	fmt.Fprintln(out, "\naccelerator:")
	row("kvm", tryKVM(ctx, scenario))
	for _, accel := range []string{"tcg", "kvm"} {
		row("QEMU under "+accel+" runs as", runsAs(accel))
	}
	if *asJSON {
		if err := json.NewEncoder(asked).Encode(map[string]any{"scenario": name, "found": all, "missing": append([]string{}, missing...)}); err != nil {
			return err
		}
	}
	if len(missing) == 0 {
		fmt.Fprintf(out, "\nnothing is missing; next, for example:\n  unlucky sweep %s\n", name)
		return nil
	}
	fmt.Fprintf(out, "\ninstall what is missing with:\n  apt-get install %s\n", strings.Join(missing, " "))
	return exit(exitFailed)
}

var versionNumber = regexp.MustCompile(`\d+\.\d+(\.\d+)*`)

// toolVersion is the version that a program tells of itself.
func toolVersion(ctx context.Context, path string) string {
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "does not run: " + err.Error()
	}
	return versionNumber.FindString(string(out))
}

// runsAs says whose QEMU's rights are.
func runsAs(accel string) string {
	who, err := qemu.Machine{Accel: accel}.User()
	switch {
	case err != nil:
		return who + ": " + err.Error()
	case who == "":
		return "you, not as root"
	}
	return who + ", not as root"
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
	case r.Kind == qemu.Pass || r.Report != (oops.Report{}):
		return "works: " + s.Name + " runs on it"
	}
	return "unclear: " + s.Name + " shows " + r.Title
}
