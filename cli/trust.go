package cli

import (
	"context"
	"flag"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"unlucky/host"
	"unlucky/linker/kbuild"
	"unlucky/qemu"
	"unlucky/scenarios"
)

// A seed file may come from anybody, and holds a whole scenario. Linking and
// booting a guest in QEMU's sandbox is what replay and minimize are for; what
// could run a program of the file's author on this machine needs the user's
// word, -trust:
//   - building a kernel: its source, its patches and even its configuration,
//     which make reads as a makefile, run programs
//   - QEMU's arguments: they open files, and can open the sandbox
//   - a command that boots in QEMU's place: it is a program, in no sandbox
//
// A bundle has its image in it, and builds nothing. Its run.sh is a program of its
// author's, which nothing here runs.
//
// Nothing in a results folder tells whose it is, as folders are mailed too. A
// kernel in the user's own cache does: somebody who may build has built it here.

// trusting adds the flag that takes a seed file's word.
func (o *setup) trusting(f *flag.FlagSet) {
	f.BoolVar(&o.trust, "trust", false, "build the kernel that the seed file describes, and give QEMU its arguments or run its guest.command, though each can run programs on this machine; "+
		"needed for a kernel that is neither a built-in scenario's nor was prepared here before, for qemu-args, and for guest.command")
}

// checkTrust refuses a seed file that asks for more than the boot of a guest,
// unless the user trusts it. now is its scenario with what the command line
// changes in it.
func (o *setup) checkTrust(ctx context.Context, path string, saved, now scenarios.Scenario) error {
	var asks []string
	if !o.trust && !o.kernelIsKnown(ctx, now.Kernel) {
		asks = append(asks, "to build a kernel that is neither a built-in scenario's nor was prepared here before")
	}
	return o.checkGuest(path, saved, asks...)
}

// checkGuest refuses a seed whose guest asks for more than a boot, unless the
// user trusts it; asks is what else it asks for.
func (o *setup) checkGuest(path string, saved scenarios.Scenario, asks ...string) error {
	if o.trust {
		return nil
	}
	if saved.Guest.Command != "" {
		asks = append(asks, fmt.Sprintf("to run %s", saved.Guest.Command))
	}
	if arguments := scenarios.OpenArguments(saved.Guest); arguments != nil {
		asks = append(asks, fmt.Sprintf("to give QEMU the arguments %s", qemu.Quote(arguments)))
	}
	if asks == nil {
		return nil
	}
	return &host.HintError{
		Err:  fmt.Errorf("%s asks %s; that can run programs on this machine", path, strings.Join(asks, ", and ")),
		Hint: fmt.Sprintf("read the scenario in %s; if you trust whoever wrote it, give -trust", path),
	}
}

// kernelIsKnown tells whether preparing a kernel runs nothing but what the user
// has chosen: by a built-in scenario, by an earlier build, or by -linux,
// -build or -kernel.
func (o *setup) kernelIsKnown(ctx context.Context, k scenarios.Kernel) bool {
	if o.build != "" || o.kernel != "" || o.linux != "" && plainConfig(k) {
		return true
	}
	known := func(s scenarios.Scenario) bool {
		b := s.Kernel
		k.LinkWithout, k.Sections = b.LinkWithout, b.Sections // which run nothing
		if b.Image = k.Image; o.linux != "" {
			b.Package, b.Dir = k.Package, k.Dir
		}
		if kbuild.SamePackage(k.Package, b.Package) {
			b.Package = k.Package // a seed file has the version, too
		}
		if kbuild.IsConfig(k.Config) && kbuild.SamePackage(k.Config, b.Config) {
			b.Config = k.Config
		}
		return reflect.DeepEqual(b, k)
	}
	return slices.ContainsFunc(scenarios.Builtin(), known) || kbuild.Prepared(ctx, kbuild.CacheDir(), k)
}

// plainConfig tells whether a kernel is a tree as it is, with symbols that make
// has nothing to expand in.
func plainConfig(k scenarios.Kernel) bool {
	return len(k.Patches) == 0 && !strings.Contains(k.Config, "\n") && !strings.ContainsAny(strings.Join(append(slices.Clip(k.Set), k.Try...), " "), "$`\\")
}
