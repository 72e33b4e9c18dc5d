package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/dustin/go-humanize"

	"unlucky/arch"
	"unlucky/fuzz"
	"unlucky/host"
	"unlucky/linker"
	"unlucky/linker/kbuild"
	"unlucky/qemu"
	"unlucky/scenarios"
	"unlucky/seeds"
)

// cacheLimit keeps prepared kernels from piling up: room for some ten small
// kernels, or four of a distribution's size.
const cacheLimit = 20 << 30

// bootable is all that is needed to boot images of one scenario.
type bootable struct {
	guest    *fuzz.Guest
	template seeds.Template // of its saved seeds
	free     func() error   // removes its files
}

func (b *bootable) Close() error { return b.free() }

// session is all that is needed to link and boot layouts of one scenario.
type session struct {
	*linker.Kernel
	bootable
}

// Linker makes a session a fuzz.Kernel.
func (b *session) Linker() (fuzz.Linker, error) { return b.NewWorker() }

func (b *session) Close() error { return errors.Join(b.free(), b.Kernel.Close()) }

// qemuMemory is what QEMU takes beside the guest's memory: 84 MB were measured.
const qemuMemory = 96 << 20

// workers is how many layouts are tried at the same time, unless it is given:
// as many as there are CPUs for, and memory.
func (b *session) workers(scr *screen) (int, error) {
	m := b.guest.Machine
	if m.Program != nil {
		return b.template.Scenario.Guest.Slots, nil
	}
	cpus := max(1, runtime.NumCPU()/max(1, m.CPUs))
	each, err := b.WorkerMemory()
	if err != nil {
		return 0, err
	}
	each += uint64(m.MemoryMiB)<<20 + qemuMemory
	fit := max(1, int(host.AvailableMemory()/each))
	if fit < cpus {
		scr.note("memory for %d layouts at a time, of %s each; -j overrules", fit, humanize.IBytes(each))
	}
	return min(cpus, fit), nil
}

// openSession makes the kernel and the initrd of a scenario.
func openSession(ctx context.Context, s scenarios.Scenario, scr *screen) (_ *session, err error) {
	if _, err := fuzz.NewGuest(s, "").Machine.Version(ctx); err != nil {
		return nil, err // before minutes have gone into a build
	}
	initrd, err := initrdOf(ctx, s, scr)
	if err != nil {
		return nil, err
	}
	if !kbuild.Prepared(ctx, kbuild.CacheDir(), s.Kernel) && kbuild.Check(ctx, s.Kernel) == nil {
		scr.note("preparing the kernel in %s", kbuild.CacheDir())
	}
	kernel, err := linker.Prepare(ctx, kbuild.CacheDir(), s.Kernel, scr.progress)
	scr.done()
	if err != nil {
		return nil, err
	}
	if p := kernel.Package; p.Name != "" {
		if p.Suite != "" || p.Name != s.Kernel.Package {
			scr.note("kernel: %s, %s", p, p.From())
		}
		s.Kernel.Package = p.String() // for a replay elsewhere
	}
	if kernel.Config.Name != "" {
		s.Kernel.Config = kernel.Config.String()
	}
	return newSession(ctx, kernel, s, initrd, scr)
}

// newSession makes a session of a kernel, which it closes if it fails.
func newSession(ctx context.Context, kernel *linker.Kernel, s scenarios.Scenario, initrd []byte, scr *screen) (_ *session, err error) {
	version, err := fuzz.NewGuest(s, "").Machine.Version(ctx)
	if err != nil {
		return nil, errors.Join(err, kernel.Close())
	}
	removed, err := kbuild.Clean(kbuild.CacheDir(), cacheLimit)
	for _, k := range removed {
		scr.note("removed %s (%s), the least recently used prepared kernel", k.Dir, humanize.IBytes(uint64(k.Bytes)))
	}
	if err != nil {
		return nil, errors.Join(err, kernel.Close())
	}
	kernel.Note, kernel.Sections = scr.note, s.Kernel.Sections
	dir, free, err := kernel.Room()
	if err != nil {
		return nil, errors.Join(err, kernel.Close())
	}
	b := &session{Kernel: kernel, bootable: bootable{free: free}}
	path := filepath.Join(dir, "initrd")
	if err := os.WriteFile(path, initrd, 0o644); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	b.guest = fuzz.NewGuest(s, path)
	sum := sha256.Sum256(initrd)
	b.template = seeds.Template{
		Scenario: s, Object: kernel.Digest, Initrd: hex.EncodeToString(sum[:]),
		Tools: seeds.Tools{Clang: kernel.Clang, GCC: kernel.GCC, LLD: linkedBy(kernel, s), QEMU: version, Unlucky: programVersion()},
	}
	return b, nil
}

// linkedBy is the linker's version, with what the kernel's links are done without:
// verdicts on such images are another sweep.
func linkedBy(kernel *linker.Kernel, s scenarios.Scenario) string {
	if len(s.Kernel.LinkWithout) == 0 {
		return kernel.LLD
	}
	return kernel.LLD + " without " + strings.Join(s.Kernel.LinkWithout, " ")
}

// savedScenario is what a saved layout was booted with, with what the command line
// changes in that, once it is trusted. path is the seed file's, for messages.
func savedScenario(ctx context.Context, path string, saved seeds.File, o *setup) (scenarios.Scenario, error) {
	s := saved.Scenario
	s.Guest.Accel = saved.Accel
	if err := o.apply(&s); err != nil {
		return s, err
	}
	return s, o.checkTrust(ctx, path, saved.Scenario, s)
}

// savedSession makes a session of savedScenario's.
func savedSession(ctx context.Context, s scenarios.Scenario, o *setup, scr *screen) (b *session, err error) {
	if o.kernel != "" {
		b, err = o.open(ctx, &s, scr)
	} else {
		b, err = openSession(ctx, s, scr)
	}
	if err != nil {
		return nil, err
	}
	if err := b.accelerate(o.accel, scr); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// advise says what may help where QEMU failed under KVM.
func (b *bootable) advise(err error) error {
	if failed := new(fuzz.InfraError); errors.As(err, &failed) && failed.KVM() && b.guest.Machine.Accel == "kvm" {
		return &host.HintError{Err: err, Hint: "give -accel tcg if KVM does not work here"}
	}
	return err
}

// accelerate settles the accelerator for a saved layout, unless it was given.
// The baseline decided between KVM and TCG; this image may be silent on both.
func (b *bootable) accelerate(given string, scr *screen) error {
	accel := b.guest.Machine.Accel
	if accel == qemu.ByProgram {
		return nil
	}
	if err := b.guest.Machine.KVM(); accel != "tcg" && err != nil {
		if given == "kvm" {
			return err
		}
		scr.note("accelerator tcg: %v", err)
		accel = "tcg"
	} else if accel == "auto" {
		accel = "kvm"
	}
	b.guest.Accelerate(accel, scr.note)
	return nil
}

// initrdOf is the user space of a guest. A compressed cpio is handed over
// plain: a small kernel knows no compression. It is empty where a command has a user
// space of its own.
func initrdOf(ctx context.Context, s scenarios.Scenario, scr *screen) ([]byte, error) {
	g := s.Guest
	if g.Init == "" && g.Rootfs == "" {
		return nil, nil
	}
	if g.Rootfs != "" {
		return qemu.ReadCpio(g.Rootfs)
	}
	a, err := arch.Of(s.Kernel.Arch)
	if err != nil {
		return nil, err
	}
	busybox, err := qemu.FindBusybox(a.ELF)
	if err != nil && a.Cross() != "" {
		busybox, err = kbuild.FetchBusybox(ctx, kbuild.CacheDir(), a, scr.progress)
		scr.done()
		if err == nil {
			err = qemu.CheckBusybox(busybox, a.ELF)
		}
	}
	if err != nil {
		return nil, err
	}
	return qemu.Initrd(busybox, g.Init)
}
