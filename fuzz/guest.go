package fuzz

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"unlucky/arch"
	"unlucky/qemu"
	"unlucky/qemu/oops"
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
	slots chan string  // the boards that are free, in the order in which they became so; nil for QEMU
}

// NewGuest is the guest of a scenario, with its initrd.
func NewGuest(s scenarios.Scenario, initrd string) *Guest {
	g := &Guest{
		Machine: qemu.Machine{
			Program:   s.Guest.Program(),
			Binary:    arch.Emulator(s.Kernel.Arch),
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
			Infra:    s.Guest.Infra.Regexp,
			Warnings: s.Verdict.Warnings,
			Limit:    time.Duration(s.Guest.Limit),
		},
		Run: qemu.Machine.Boot,
	}
	if g.Machine.Program != nil {
		g.slots = make(chan string, s.Guest.Slots)
		for n := range s.Guest.Slots {
			g.slots <- strconv.Itoa(n)
		}
		g.Machine.Slot = "0" // of a command line that somebody runs by hand
	}
	return g
}

// retries is how often a boot is tried again after QEMU itself failed.
const retries = 2

// Boot boots an image and returns a verdict: QEMU's own failures are tried
// again, and a hang is believed after a second one, alone on the machine and
// with twice the limit.
func (g *Guest) Boot(ctx context.Context, image string) (qemu.Result, error) {
	return g.BootWith(ctx, image, "")
}

// BootWith is Boot with switches added to the kernel command line.
func (g *Guest) BootWith(ctx context.Context, image, switches string) (qemu.Result, error) {
	return g.judged(ctx, g.with(image, switches))
}

// judged is Boot of a machine that has its kernel.
func (g *Guest) judged(ctx context.Context, m qemu.Machine) (qemu.Result, error) {
	done := g.Share()
	r, err := g.learn(ctx, m, g.Expect)
	done()
	if err != nil || r.Kind != qemu.Hang {
		return r, err
	}
	g.alone.Lock()
	defer g.alone.Unlock()
	patient := g.Expect
	patient.Limit *= 2
	return g.learn(ctx, m, patient)
}

// Again is a further boot of an image that has a verdict: what is known to
// hang is not waited for twice.
func (g *Guest) Again(ctx context.Context, image string) (qemu.Result, error) {
	defer g.Share()()
	return g.learn(ctx, g.with(image, ""), g.Expect)
}

// Share says that others may use the machine at the same time, until the
// function that it returns is called.
func (g *Guest) Share() (done func()) {
	g.alone.RLock()
	return g.alone.RUnlock
}

// with is the guest's machine with a kernel, and switches added to its command line.
func (g *Guest) with(image, switches string) qemu.Machine {
	m := g.Machine
	m.Kernel = image
	if switches != "" {
		m.Append += " " + switches
	}
	return m
}

// learn boots until something is learnt, a few times at most, each on the board that
// has been free for the longest.
func (g *Guest) learn(ctx context.Context, m qemu.Machine, e qemu.Expect) (r qemu.Result, err error) {
	for range 1 + retries {
		if r, err = g.run(m, ctx, e); err != nil || r.Kind != qemu.Infra {
			break
		}
	}
	return r, err
}

// run is Run on a board of its own, where there are boards.
func (g *Guest) run(m qemu.Machine, ctx context.Context, e qemu.Expect) (qemu.Result, error) {
	if g.slots != nil {
		select {
		case m.Slot = <-g.slots:
			defer func() { g.slots <- m.Slot }()
		case <-ctx.Done():
			return qemu.Result{}, fmt.Errorf("boot: %w", ctx.Err())
		}
	}
	return g.Run(m, ctx, e)
}

// Accelerate sets the accelerator, which decides what CPU model can be had.
func (g *Guest) Accelerate(accel string, note func(string, ...any)) {
	g.Machine.Accel = accel
	if plain, ok := strings.CutSuffix(g.Machine.CPU, ","+arch.TCGOnly); ok && accel == "kvm" {
		note("CPU model %s: %s is for TCG", plain, arch.TCGOnly)
		g.Machine.CPU = plain
	}
	if accel == "tcg" && g.Machine.CPU == "host" {
		note("CPU model max: there is no host under TCG")
		g.Machine.CPU = "max"
	}
}

// slowKVM is how long a nested KVM may take to say that it does not work: 22 s
// were seen.
const slowKVM = time.Minute

// Settle decides what the accelerator auto stands for, by booting an image
// whose verdict it returns. KVM is tried first, and a crash that the guest
// prints there is a verdict. QEMU's own evidence against KVM, or a kernel that
// passes under TCG and shows nothing under KVM, moves the guest to TCG, and
// note is told why.
func (g *Guest) Settle(ctx context.Context, image string, note func(string, ...any)) (qemu.Result, error) {
	if err := g.Machine.KVM(); err != nil {
		note("accelerator tcg: %v", err)
		g.Accelerate("tcg", note)
		return g.Boot(ctx, image)
	}
	cpu := g.Machine.CPU
	g.Accelerate("kvm", func(string, ...any) {})
	m, patient := g.Machine, g.Expect
	m.Kernel = image
	patient.Limit = max(2*patient.Limit, slowKVM)
	kvm, err := g.Run(m, ctx, patient)
	if err != nil || kvm.Kind == qemu.Pass || kvm.Report != (oops.Report{}) {
		return kvm, err
	}
	if kvm.Kind == qemu.Infra {
		var notes []string // for after the boot: what QEMU refuses under TCG too is not KVM's fault
		g.Machine.CPU = cpu
		g.Accelerate("tcg", func(format string, a ...any) { notes = append(notes, fmt.Sprintf(format, a...)) })
		tcg, err := g.Boot(ctx, image)
		if err != nil || tcg.Kind == qemu.Infra && tcg.Reason == kvm.Reason {
			return tcg, err
		}
		note("accelerator tcg: KVM does not work here: %s", kvm.Reason)
		for _, text := range notes {
			note("%s", text)
		}
		return tcg, nil
	}
	g.Machine.CPU = cpu
	g.Accelerate("tcg", func(string, ...any) {})
	tcg, err := g.Boot(ctx, image)
	if err != nil || tcg.Kind == qemu.Pass {
		note("accelerator tcg: the baseline passes there, and under KVM shows only %q", kvm.Title)
		return tcg, err
	}
	g.Machine.CPU = cpu
	g.Accelerate("kvm", note)
	return kvm, nil
}
