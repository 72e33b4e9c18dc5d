package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"runtime"

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

// rig is all that is needed to link and boot layouts of one scenario.
type session struct {
	*linker.Kernel // nil for a bundle, which is only booted
	guest          *fuzz.Guest
	saved          seeds.File   // what every saved seed has in common
	free           func() error // removes the initrd
}

// Linker makes a rig a fuzz.Kernel.
func (b *session) Linker() (fuzz.Linker, error) { return b.NewWorker() }

func (b *session) Close() error {
	err := b.free()
	if b.Kernel != nil {
		err = errors.Join(err, b.Kernel.Close())
	}
	return err
}

// qemuMemory is what QEMU takes beside the guest's memory: 84 MB were measured.
const qemuMemory = 96 << 20

// workers is how many layouts are tried at the same time, unless it is given:
// as many as there are CPUs for, and memory.
func (b *session) workers(scr *screen) (int, error) {
	m := b.guest.Machine
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

// prepare makes the kernel and the initrd of a scenario.
func openSession(ctx context.Context, s scenarios.Scenario, scr *screen) (_ *session, err error) {
	if _, err := qemu.Version(ctx, arch.Emulator(s.Kernel.Arch)); err != nil {
		return nil, err // before minutes have gone into a build
	}
	initrd, err := initrdOf(s.Guest)
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
	return newSession(ctx, kernel, s, initrd, scr)
}

// newRig makes a rig of a kernel, which it closes if it fails.
func newSession(ctx context.Context, kernel *linker.Kernel, s scenarios.Scenario, initrd []byte, scr *screen) (_ *session, err error) {
	version, err := qemu.Version(ctx, arch.Emulator(s.Kernel.Arch))
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
	kernel.Note = scr.note
	dir, free, err := kernel.Room()
	if err != nil {
		return nil, errors.Join(err, kernel.Close())
	}
	b := &session{Kernel: kernel, free: free}
	path := filepath.Join(dir, "initrd")
	if err := os.WriteFile(path, initrd, 0o644); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	b.guest = fuzz.NewGuest(s, path)
	sum := sha256.Sum256(initrd)
	b.saved = seeds.File{
		Scenario: s,
		Digests:  seeds.Digests{Object: kernel.Digest, Initrd: hex.EncodeToString(sum[:])},
		Tools:    seeds.Tools{Clang: kernel.Clang, LLD: kernel.LLD, QEMU: version},
	}
	return b, nil
}

// prepareSaved makes what a saved layout was booted with, with what the command
// line changes in that. path is the seed file's, for messages.
func savedSession(ctx context.Context, path string, saved seeds.File, o *setup, scr *screen) (_ *session, err error) {
	s := saved.Scenario
	s.Guest.Accel = saved.Accel
	if err := o.apply(&s); err != nil {
		return nil, err
	}
	if err := o.checkTrust(ctx, path, saved.Scenario, s); err != nil {
		return nil, err
	}
	if o.mend != nil {
		o.mend(&s.Kernel)
	}
	var b *session
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
func (b *session) advise(err error) error {
	if failed := new(fuzz.InfraError); errors.As(err, &failed) && failed.KVM() && b.guest.Machine.Accel == "kvm" {
		return &host.HintError{Err: err, Hint: "give -accel tcg if KVM does not work here"}
	}
	return err
}

// accelerate settles the accelerator for a saved layout, unless it was given.
// The baseline decided between KVM and TCG; this image may be silent on both.
func (b *session) accelerate(given string, scr *screen) error {
	accel := b.guest.Machine.Accel
	if err := qemu.KVM(); accel != "tcg" && err != nil {
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
// plain: a small kernel knows no compression.
func initrdOf(g scenarios.Guest) ([]byte, error) {
	if g.Rootfs != "" {
		return qemu.ReadCpio(g.Rootfs)
	}
	busybox, err := qemu.FindBusybox()
	if err != nil {
		return nil, err
	}
	return qemu.Initrd(busybox, g.Init)
}
