package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"

	"unlucky/linker"
	"unlucky/linker/kbuild"
	"unlucky/qemu"
	"unlucky/scenarios"
)

// packed adds the flag that takes a kernel file in place of a build.
func (o *setup) packed(f *flag.FlagSet) {
	f.StringVar(&o.kernel, "kernel", "", "kernel `file`, as unlucky prepare writes it, to use instead of a build: it takes QEMU and nothing else, but lld to prove what is linked, or where unlucky prepare has said so. "+
		"A program in it is run: trust it as you trust a kernel tree")
}

// again is what a command must have added to use the same kernel file.
func (o *setup) again() string {
	if o.kernel == "" {
		return ""
	}
	return " -kernel " + qemu.Quote([]string{o.kernel})
}

// session is openSession for a scenario or, with -kernel, for the one that the kernel
// file has.
func (o *setup) session(ctx context.Context, s scenarios.Scenario, scr *screen) (*session, error) {
	if o.kernel == "" {
		return openSession(ctx, s, scr)
	}
	return o.open(ctx, nil, scr)
}

// open makes a session of a kernel file, for its own scenario or that of a saved
// layout.
func (o *setup) open(ctx context.Context, saved *scenarios.Scenario, scr *screen) (*session, error) {
	kernel, err := linker.Unpack(ctx, kbuild.CacheDir(), o.kernel, scr.progress)
	scr.done()
	if err != nil {
		return nil, err
	}
	s, initrd, err := o.contents(ctx, scr, kernel, saved)
	if err != nil {
		return nil, errors.Join(err, kernel.Close())
	}
	return newSession(ctx, kernel, s, initrd, scr)
}

// contents are the scenario and the initrd of a kernel file, or those of a saved
// layout.
func (o *setup) contents(ctx context.Context, scr *screen, kernel *linker.Kernel, saved *scenarios.Scenario) (s scenarios.Scenario, initrd []byte, err error) {
	data, err := kernel.More(packedScenario)
	if err != nil {
		return s, nil, err
	}
	if s, err = scenarios.ParseWhole(data, o.kernel+": "+packedScenario); err != nil {
		return s, nil, err
	}
	if initrd, err = kernel.More(packedInitrd); err != nil {
		return s, nil, err
	}
	if saved == nil {
		err = o.apply(&s)
		return s, initrd, err
	}
	if s.Kernel.Sections != saved.Kernel.Sections {
		return s, nil, fmt.Errorf("%s was packed for layouts in which other sections move", o.kernel)
	}
	if s.Guest.Init != saved.Guest.Init || s.Guest.Rootfs != saved.Guest.Rootfs {
		initrd, err = initrdOf(ctx, *saved, scr)
	}
	return *saved, initrd, err
}
