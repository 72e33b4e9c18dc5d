// Package arch describes the architectures whose kernels are swept: what others
// call one, what is booted of it, and what its kernels and guests have of their own.
// All that is data stands here, once. What is code stands where it belongs, each kind
// in one table by architecture: how machine code is read in report, how a console is
// in qemu/oops. It imports nothing of the project.
package arch

import (
	"debug/elf"
	"fmt"
	"path"
	"runtime"
	"slices"
	"strings"
)

// Arch is one architecture.
type Arch struct {
	Name   string      // a scenario's kernel.arch, and QEMU's name
	Also   string      // another name that kernel.arch takes for it; empty for none
	Kernel string      // the kernel's own name: its folder below arch, and make's ARCH
	GOARCH string      // Go's name, by which a machine of it is known
	GNU    string      // what its GNU tools are prefixed with on other machines
	Deb    string      // Debian's name
	ELF    elf.Machine // of objects and images
	Fill   byte        // what lld fills gaps in text with

	// Images are what QEMU boots, a scenario's kernel.image, the default first: VMLinux,
	// or files that kbuild makes of it in the folder boot.
	Images []string
	// Target is the image that plain make makes for a boot loader.
	Target string

	// Machine and CPU are QEMU's models where a scenario names none.
	Machine, CPU string
	// Switches of the kernel command line name a subsystem in one boot each.
	Switches []string
}

// VMLinux is the image that the linker makes.
const VMLinux = "vmlinux"

// X86_64 is x86-64.
var X86_64 = &Arch{
	Name:    "x86_64",
	Kernel:  "x86",
	GOARCH:  "amd64",
	GNU:     "x86_64-linux-gnu-",
	Deb:     "amd64",
	ELF:     elf.EM_X86_64,
	Fill:    0xcc, // int3: lld/ELF/Arch/X86_64.cpp, trapInstr
	Images:  []string{VMLinux, "bzImage"},
	Target:  "bzImage",
	Machine: "q35",
	CPU:     "max",
	Switches: []string{"cfi=off", "mitigations=off", "indirect_target_selection=off", "spectre_v2=off",
		"spec_rstack_overflow=off", "nokaslr", "nosmp"},
}

// ARM64 is arm64.
var ARM64 = &Arch{
	Name:   "aarch64",
	Also:   "arm64",
	Kernel: "arm64",
	GOARCH: "arm64",
	GNU:    "aarch64-linux-gnu-",
	Deb:    "arm64",
	ELF:    elf.EM_AARCH64,
	Fill:   0,                 // lld/ELF/Arch/AArch64.cpp sets no trapInstr; four zeros are udf #0
	Images: []string{"Image"}, // of vmlinux QEMU finds no entry, and shows nothing
	Target: "Image",
	// Without the seed for KASLR that QEMU puts into the device tree (hw/arm/virt.c).
	Machine: "virt,dtb-randomness=off",
	// QEMU's own algorithm of pointer authentication in place of the architected one,
	// which takes TCG half of a boot (QEMU: docs/system/arm/cpu-features.rst).
	CPU:      "max," + TCGOnly,
	Switches: []string{"arm64.nobti", "arm64.nopauth", "mitigations=off", "kpti=off", "rodata=off", "nokaslr", "nosmp"},
}

// TCGOnly is what QEMU takes behind a model of a CPU under TCG, and refuses under KVM.
const TCGOnly = "pauth-impdef=on"

// All are those that are known.
var All = []*Arch{X86_64, ARM64}

// Of is the architecture of a name.
func Of(name string) (*Arch, error) {
	i := slices.IndexFunc(All, func(a *Arch) bool { return name != "" && (a.Name == name || a.Also == name) })
	if i < 0 {
		return nil, fmt.Errorf("architecture %q is none of %s", name, strings.Join(Names(), ", "))
	}
	return All[i], nil
}

// OfELF is the architecture of an object or an image; nil for one that is not known.
func OfELF(machine elf.Machine) *Arch {
	i := slices.IndexFunc(All, func(a *Arch) bool { return a.ELF == machine })
	if i < 0 {
		return nil
	}
	return All[i]
}

// Names are those of all architectures.
func Names() (names []string) {
	for _, a := range All {
		names = append(names, a.Name)
	}
	return names
}

// Folder is that of an architecture in a kernel tree and in a build.
func (a *Arch) Folder() string { return path.Join("arch", a.Kernel) }

// BootFile is where a build has an image that is made of vmlinux; empty for vmlinux
// itself.
func (a *Arch) BootFile(image string) string {
	if image == VMLinux {
		return ""
	}
	return path.Join(a.Folder(), "boot", image)
}

// BootFiles are the names of all images that are made of vmlinux, of all
// architectures, each once.
func BootFiles() (names []string) {
	for _, a := range All {
		for _, image := range a.Images {
			if image != VMLinux && !slices.Contains(names, image) {
				names = append(names, image)
			}
		}
	}
	return names
}

// Cross is what the names of GNU's tools begin with on this machine: nothing where it
// is of the architecture itself.
func (a *Arch) Cross() string {
	if a.GOARCH == runtime.GOARCH {
		return ""
	}
	return a.GNU
}

// Emulator is the program of QEMU that runs kernels of an architecture.
func Emulator(name string) string { return "qemu-system-" + name }
