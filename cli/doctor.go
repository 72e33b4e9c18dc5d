package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strings"

	"unlucky/arch"
	"unlucky/fuzz"
	"unlucky/host"
	"unlucky/layout"
	"unlucky/linker/kbuild"
	"unlucky/qemu"
	"unlucky/qemu/oops"
	"unlucky/report"
	"unlucky/scenarios"
)

func doctor(f *flag.FlagSet) *command {
	asJSON := f.Bool("json", false, "print it as JSON")
	o := new(setup)
	o.source(f)
	return &command{
		args: "[SCENARIO]", min: 0, max: 1, long: true,
		summary:  "say what is missing, what a sweep of this kernel would build, and whether KVM works",
		examples: []string{"unlucky doctor my.yaml -linux ~/src/linux"},
		run: func(ctx context.Context, c call) error {
			name := "kcfi-seal"
			if o.linux+o.build != "" {
				name = "kcfi-hash" // which takes any tree
			}
			if len(c.args) == 1 {
				name = c.args[0]
			}
			scenario, err := o.load([]string{name})
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
				fmt.Fprintf(c.out, "  %-34s %s\n", name, report.Printable(state))
			}
			asked := c.out
			if *asJSON {
				c.out = io.Discard
			}

			fmt.Fprintln(c.out, "tools:")
			tools, err := kbuild.FindToolchain(ctx, "")
			if err != nil {
				row("clang, lld", "missing: "+err.Error())
				missing = append(missing, "llvm")
			} else {
				row("clang", tools.Clang+" in "+tools.Dir)
				row("ld.lld", tools.LLD+", "+map[bool]string{
					true:  "has --randomize-section-padding",
					false: "has no --randomize-section-padding (LLVM 20 and later have it): all strategies but lld",
				}[tools.Randomizes()])
			}
			needs := kbuild.Needs
			machine := fuzz.NewGuest(scenario, "").Machine
			if machine.Program == nil {
				needs = append([]kbuild.Need{{Name: machine.Binary, Package: qemu.NeedOf(machine.Binary)}}, needs...)
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
			a, err := arch.Of(scenario.Kernel.Arch)
			if err != nil {
				return err
			}
			path, err := qemu.FindBusybox(a.ELF)
			fetched := kbuild.Busybox(kbuild.CacheDir(), a)
			switch {
			case scenario.Guest.Init == "":
				row("busybox", "not needed")
			case err == nil:
				row("busybox", "there, statically linked, "+path)
			case a.Cross() == "":
				missing = append(missing, "busybox")
				row("busybox", err.Error())
			case qemu.CheckBusybox(fetched, a.ELF) == nil:
				row("busybox", "there, statically linked, "+fetched)
			default:
				row("busybox", "of "+a.Name+": a sweep fetches it from Debian, without root; so does unlucky fetch busybox:"+a.Name)
			}

			fmt.Fprintln(c.out, "\ncache:")
			row("prepared kernels", kbuild.CacheDir())

			fmt.Fprintf(c.out, "\nthe kernel of %s:\n", name)
			facts := kbuild.Foresee(ctx, kbuild.CacheDir(), scenario.Kernel, c.scr.progress)
			stopped := foretell(c.out, facts)
			c.scr.done()

			if machine.Program != nil {
				fmt.Fprintln(c.out, "\ncommand, in QEMU's place:")
				if _, err := machine.Version(ctx); err != nil {
					stopped = true
					row("guest.command", "WILL STOP: "+err.Error())
				} else {
					row("guest.command", scenario.Guest.Command)
				}
				row("guest.slots", fmt.Sprintf("%d at a time, told apart by UNLUCKY_SLOT, from 0 on", scenario.Guest.Slots))
				if infra := scenario.Guest.Infra; !infra.IsZero() {
					row("guest.infra", infra.String())
				}
			} else {
				fmt.Fprintln(c.out, "\naccelerator:")
				row("kvm", tryKVM(ctx, scenario, c.scr))
				for _, accel := range []string{"tcg", "kvm"} {
					row("QEMU under "+accel+" runs as", runsAs(accel))
				}
			}
			if *asJSON {
				for _, f := range facts {
					if f.Err != nil {
						f.Text = "will stop: " + f.Err.Error()
					}
					all = append(all, finding{f.Name, f.Text})
				}
				if err := json.NewEncoder(asked).Encode(map[string]any{"scenario": name, "found": all, "missing": append([]string{}, missing...)}); err != nil {
					return err
				}
			}
			if len(missing) > 0 {
				fmt.Fprintf(c.out, "\ninstall what is missing with:\n  %s\n", host.Install(missing...))
			}
			if len(missing) > 0 || stopped {
				return exit(ExitFailed)
			}
			fmt.Fprintf(c.out, "\nnothing is missing; next, for example:\n  unlucky sweep %s%s\n", name, o.kernelFlags())
			return nil
		},
	}
}

// foretell prints what is known of a kernel before it is built, and tells whether
// something of that will stop it.
func foretell(out io.Writer, facts []kbuild.Fact) (stopped bool) {
	const column = 17
	for _, f := range facts {
		if f.Err == nil {
			text := report.Wrap(fmt.Sprintf("  %-*s", column, f.Name), strings.Repeat(" ", 2+column), report.Printable(f.Text))
			fmt.Fprint(out, text, "\n")
			continue
		}
		stopped = true
		fmt.Fprintf(out, "  %-*s WILL STOP: %s\n", column, f.Name, report.Printable(f.Err.Error()))
		if h := new(host.HintError); errors.As(f.Err, &h) {
			fmt.Fprintf(out, "  %-*s hint: %s\n", column, "", report.Printable(h.Hint))
		}
	}
	return stopped
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
func tryKVM(ctx context.Context, s scenarios.Scenario, scr *screen) string {
	if err := fuzz.NewGuest(s, "").Machine.KVM(); err != nil {
		return "no: " + err.Error() + "; TCG is used"
	}
	if s.Kernel.Dir != "" || !kbuild.Prepared(ctx, kbuild.CacheDir(), s.Kernel) { // a tree would be built
		return "/dev/kvm answers; whether a kernel runs on it is seen once " + s.Name + " has been prepared (unlucky sweep does it)"
	}
	b, err := openSession(ctx, s, scr)
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
	image, err := l.Link(ctx, layout.Plan{})
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
