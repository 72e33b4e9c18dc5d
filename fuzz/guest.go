package fuzz

import (
	"context"
	"fmt"
	"sync"
	"time"

	"unlucky/qemu"
	"unlucky/scenarios"
)

// Guest boots images one way and turns what single boots show into verdicts
// that do not depend on how many run at the same time.
type Guest struct {
	// Machine is the guest without its kernel. Accel may be auto until
	// Settle has been called.
	Machine qemu.Machine
	Expect  qemu.Expect
	// Run is one boot; qemu.Machine.Boot unless a test needs a fault that
	// can't be caused otherwise.
	Run func(qemu.Machine, context.Context, qemu.Expect) (qemu.Result, error)

	alone sync.RWMutex // held for writing by a boot that must have the machine to itself
}

// NewGuest is the guest of a scenario, with its initrd.
func NewGuest(s scenarios.Scenario, initrd string) *Guest {
	return &Guest{
		Machine: qemu.Machine{
			Binary:    "qemu-system-" + s.Kernel.Arch,
			Type:      s.Guest.Machine,
			Accel:     s.Guest.Accel,
			CPU:       s.Guest.CPU,
			CPUs:      s.Guest.CPUs,
			MemoryMiB: int(s.Guest.Memory >> 20),
			Initrd:    initrd,
			Append:    s.Guest.Append,
			Args:      s.Guest.QEMUArgs,
		},
		Expect: qemu.Expect{
			Pass:     s.Verdict.Pass.Regexp,
			Warnings: s.Verdict.Warnings,
			Limit:    time.Duration(s.Guest.Limit),
		},
		Run: qemu.Machine.Boot,
	}
}

// retries is how often a boot is tried again after QEMU itself failed.
const retries = 2

// Boot boots an image and returns a verdict: QEMU's own failures are tried
// again, and a hang is believed after a second one, alone on the machine and
// with twice the limit.
func (g *Guest) Boot(ctx context.Context, image string) (qemu.Result, error) {
	r, err := g.Again(ctx, image)
	if err != nil || r.Kind != qemu.Hang {
		return r, err
	}
	g.alone.Lock()
	defer g.alone.Unlock()
	m, patient := g.Machine, g.Expect
	m.Kernel = image
	patient.Limit *= 2
	return g.Run(m, ctx, patient)
}

// Again is a further boot of an image that has a verdict: what is known to
// hang is not waited for twice.
func (g *Guest) Again(ctx context.Context, image string) (r qemu.Result, err error) {
	m := g.Machine
	m.Kernel = image
	for range 1 + retries {
		g.alone.RLock()
		r, err = g.Run(m, ctx, g.Expect)
		g.alone.RUnlock()
		if err != nil || r.Kind != qemu.Infra {
			break
		}
	}
	return r, err
}

// Settle decides what the accelerator auto stands for, by booting an image
// whose verdict it returns. KVM is tried first. QEMU's own evidence against
// it, or a kernel that says nothing on it but does under TCG, moves the guest
// to TCG, and note is told why; a crash that the guest prints is a verdict.
func (g *Guest) Settle(ctx context.Context, image string, note func(string, ...any)) (qemu.Result, error) {
	if g.Machine.Accel != "auto" {
		return g.Boot(ctx, image)
	}
	tcg := func(why string) (qemu.Result, error) {
		note("accelerator tcg: %s", why)
		g.Machine.Accel = "tcg"
		if g.Machine.CPU == "host" {
			note("CPU model max: there is no host under TCG")
			g.Machine.CPU = "max"
		}
		return g.Boot(ctx, image)
	}
	if err := qemu.KVM(); err != nil {
		return tcg(err.Error())
	}
	g.Machine.Accel = "kvm"
	m, patient := g.Machine, g.Expect
	m.Kernel = image
	patient.Limit *= 3 // a nested KVM can take half a minute to fail
	r, err := g.Run(m, ctx, patient)
	switch {
	case err != nil || r.Kind == qemu.Pass || r.Report != (qemu.Report{}):
		return r, err
	case r.Kind == qemu.Infra:
		return tcg("KVM does not work here: " + r.Reason)
	default:
		return tcg(fmt.Sprintf("under KVM the baseline shows only %q", r.Title))
	}
}
