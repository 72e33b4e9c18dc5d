package cli

import (
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"strings"

	"unlucky/qemu"
	"unlucky/scenarios"
)

// setup is what the command line changes in a scenario.
type setup struct {
	linux, build, kernel, append, cpu, accel string
	smp                                      int
	sections                                 string
	qemuArgs, linkWithout                    []string
	trust                                    bool // a seed file
}

func newSetup(f *flag.FlagSet) *setup {
	o := new(setup)
	o.source(f)
	o.guest(f)
	return o
}

// source adds the flags that change the kernel, not the guest.
func (o *setup) source(f *flag.FlagSet) {
	f.StringVar(&o.linux, "linux", "", "kernel `tree` to build instead of the scenario's; it is not written to")
	f.StringVar(&o.build, "build", "", "finished kernel build `folder` to use instead; it is not written to")
	f.Func("link-without", "link without this `option` of the kernel's, such as --fix-cortex-a53-843419; give it once for each", func(a string) error {
		o.linkWithout = append(o.linkWithout, a)
		return nil
	})
}

// moving adds the flag that says which input sections move: a saved seed has it.
func (o *setup) moving(f *flag.FlagSet) {
	f.StringVar(&o.sections, "sections", "", "which input `sections` move, text, data or blocks: those of functions (the default), of objects in .data, .bss and .rodata, or of functions and, each as a whole, what the linker script places by hand among them")
}

// kernelFlags are those of source as they were given, quoted.
func (o *setup) kernelFlags() (flags string) {
	switch {
	case o.linux != "":
		flags = " -linux " + qemu.Quote([]string{o.linux})
	case o.build != "":
		flags = " -build " + qemu.Quote([]string{o.build})
	}
	for _, option := range o.linkWithout {
		flags += " -link-without " + qemu.Quote([]string{option})
	}
	return flags
}

// guest adds the flags that change the guest, not the kernel.
func (o *setup) guest(f *flag.FlagSet) {
	f.StringVar(&o.append, "append", "", "`arguments` to add to the kernel command line")
	f.StringVar(&o.cpu, "cpu", "", "QEMU's CPU `model`")
	f.IntVar(&o.smp, "smp", 0, "`CPUs` of the guest")
	f.StringVar(&o.accel, "accel", "", "what runs the guest: `auto, kvm or tcg`")
	f.Func("qemu-arg", "further `argument` of QEMU; give it once for each", func(a string) error {
		o.qemuArgs = append(o.qemuArgs, a)
		return nil
	})
}

// load reads the scenario that the first of some arguments names, or else the
// given one.
func (o *setup) load(args []string, otherwise ...string) (scenarios.Scenario, error) {
	s, err := scenarios.Load(append(args, otherwise...)[0])
	if err == nil {
		err = o.apply(&s)
	}
	return s, err
}

func (o *setup) apply(s *scenarios.Scenario) error {
	if o.linux != "" && o.build != "" {
		return usageError{errors.New("-linux and -build exclude each other")}
	}
	if o.kernel != "" && o.linux+o.build != "" {
		return usageError{errors.New("-kernel excludes -linux and -build")}
	}
	for flag, to := range map[*string]*string{&o.linux: &s.Kernel.Dir, &o.build: &s.Kernel.Build} {
		if *flag == "" {
			continue
		}
		dir, err := filepath.Abs(*flag)
		if err != nil {
			return err
		}
		s.Kernel.Package, s.Kernel.Dir, s.Kernel.Build = "", "", ""
		*to = dir
	}
	switch o.sections {
	case "":
	case scenarios.Text:
		s.Kernel.Sections = ""
	case scenarios.Data, scenarios.Blocks:
		s.Kernel.Sections = o.sections
	default:
		return usageError{fmt.Errorf("-sections %s: there are text, data and blocks", o.sections)}
	}
	if o.kernel != "" && o.sections != "" {
		return usageError{errors.New("-kernel excludes -sections: a kernel file is linked as it was packed")}
	}
	if o.kernel != "" && o.linkWithout != nil {
		return usageError{errors.New("-kernel excludes -link-without: a kernel file is linked as it was packed")}
	}
	s.Kernel.LinkWithout = append(s.Kernel.LinkWithout[:len(s.Kernel.LinkWithout):len(s.Kernel.LinkWithout)], o.linkWithout...)
	if s.Kernel.Build != "" { // it is what it is
		s.Kernel.Patches, s.Kernel.Config, s.Kernel.Set, s.Kernel.Try = nil, "", nil, nil
	}
	g := &s.Guest
	if g.Command != "" && (o.cpu != "" || o.smp != 0 || o.accel != "" || o.qemuArgs != nil) {
		return usageError{fmt.Errorf("-cpu, -smp, -accel and -qemu-arg are QEMU's, and %s is booted by guest.command: %s", s.Name, g.Command)}
	}
	if o.append != "" {
		g.Append = strings.TrimSpace(g.Append + " " + o.append)
	}
	if o.cpu != "" {
		g.CPU = o.cpu
	}
	if o.smp < 0 {
		return usageError{fmt.Errorf("-smp %d: a guest has at least one CPU", o.smp)}
	}
	if o.smp > 0 {
		g.CPUs = o.smp
	}
	switch o.accel {
	case "":
	case "auto", "kvm", "tcg":
		g.Accel = o.accel
	default:
		return usageError{fmt.Errorf("-accel %s: there are auto, kvm and tcg", o.accel)}
	}
	g.QEMUArgs = append(g.QEMUArgs[:len(g.QEMUArgs):len(g.QEMUArgs)], o.qemuArgs...)
	return nil
}
