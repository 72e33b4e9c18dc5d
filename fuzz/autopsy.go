package fuzz

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"unlucky/autopsy"
	"unlucky/qemu"
)

// Autopsy is what the memory of a dead guest has told of its code.
type Autopsy struct {
	Kind   qemu.Kind         `json:"kind"`
	Title  string            `json:"title"` // of the boot that was looked into; empty where it passed
	Boots  int               `json:"boots"`
	Damage []*autopsy.Damage `json:"damage"` // the most important first
	// Seconds is what it took beside the boots: images and memories read and compared.
	Seconds float64 `json:"seconds"`
	// Traced tells that it was watched what runs, which TCG alone can tell.
	Traced bool `json:"traced"`
	// Healed is nil where it was not asked for, or nothing is damaged.
	Healed *Healed `json:"healed,omitempty"`
}

// ErrTwin tells that what was to be compared with does not pass.
var ErrTwin = errors.New("the twin does not pass")

// Watches tells, by the error, why it cannot be had which code of the guest runs.
func (g *Guest) Watches() error {
	if g.Machine.Accel != "tcg" {
		return fmt.Errorf("only under TCG it is seen what runs (this is %s)", g.Machine.Accel)
	}
	return nil
}

// Body is a guest behind its end.
type Body struct {
	qemu.Result
	Run *autopsy.Run // the code in its memory as it ended; nil where that cannot be had
	Err error        // why

	took    time.Duration // beside the boot
	watched []*autopsy.Damage
	log     []byte // what QEMU has translated of their functions; nil where nothing was watched
}

// Damage is what is wrong with its code, held against a guest that has passed, the most
// important first.
func (b *Body) Damage(twin *Body) []*autopsy.Damage {
	start := time.Now()
	all := autopsy.Compare(b.Run, twin.Run)
	b.Run.MarkTrap(all, b.Console)
	autopsy.Sort(all)
	b.took += time.Since(start)
	return all
}

// Still is what is wrong with the code that was watched, with what of it has run. What
// the kernel rewrites by itself is told by another guest.
func (b *Body) Still(twin, other *Body) []*autopsy.Damage {
	b.Run.LearnFrom(other.Run)
	all := autopsy.Compare(b.Run, twin.Run, b.watched...)
	b.Run.MarkTrap(all, b.Console)
	autopsy.Mark(all, b.log, nil)
	autopsy.Sort(all)
	return all
}

// Look boots an image as [Guest.Boot] does, with the guest's memory kept. Of functions
// with damage it watches what runs, which TCG alone can tell. vmlinux is the ELF file
// with the image's symbols. A memory that cannot be had costs nothing but itself.
func (g *Guest) Look(ctx context.Context, image, vmlinux string, watched []*autopsy.Damage) (*Body, error) {
	if _, err := os.Stat(image); err != nil {
		return nil, err
	}
	m := g.with(image, "")
	start := time.Now()
	kernel, err := autopsy.Open(vmlinux)
	opened := time.Since(start)
	if m.Program != nil {
		err = errors.New("an autopsy reads the memory of QEMU's guest: a guest.command has none that can be read")
	}
	if err == nil {
		m.RAM, err = qemu.NewMemory(m.MemoryMiB)
	}
	if err == nil {
		defer m.RAM.Close()
	}
	if err == nil && len(watched) > 0 {
		var ranges []qemu.Range
		for _, e := range kernel.Extents(watched) {
			ranges = append(ranges, qemu.Range(e))
		}
		if m.Trace, err = qemu.NewTrace(ranges); err == nil {
			defer m.Trace.Close()
		}
	}
	b := &Body{Err: err, watched: watched, took: opened}
	if err == nil {
		if b.Result, err = g.judged(ctx, m); err != nil {
			return nil, err
		}
		if b.Kind != qemu.Infra {
			b.Err = b.open(kernel, m)
			return b, nil
		}
		b.Err = fmt.Errorf("QEMU failed: %s", b.Reason)
	}
	b.Result, err = g.Boot(ctx, image)
	return b, err
}

// open reads what a machine has left.
func (b *Body) open(kernel *autopsy.Image, m qemu.Machine) (err error) {
	start := time.Now()
	defer func() { b.took += time.Since(start) }()
	if b.Run, err = kernel.Load(m.RAM); err != nil || m.Trace == nil {
		return err
	}
	b.log, err = m.Trace.Read()
	if b.log == nil {
		b.log = []byte{} // known to be nothing
	}
	return err
}

// Autopsy boots an image, and one of another layout of the same kernel that passes, and
// holds the code in their memories against the files and each other. Where there is
// damage it boots both again, to see which of it runs. vmlinux and twinLinux are the ELF
// files with symbols of the two; where there is no twin they are empty, and only branches that
// lead astray are told. To heal is to boot it with the damage mended.
func (g *Guest) Autopsy(ctx context.Context, image, vmlinux, twin, twinLinux string, heal bool, step func(string)) (a Autopsy, err error) {
	other := &Body{}
	if twin != "" {
		step("booting the twin")
		if other, err = g.twin(ctx, twin, twinLinux); err != nil {
			return a, err
		}
	}
	a, body, err := g.autopsy(ctx, image, vmlinux, other, step)
	a.Seconds += other.took.Seconds()
	if err != nil || len(a.Damage) == 0 {
		return a, err
	}
	if a.Traced && twin != "" {
		step("watching what runs in the twin")
		again, err := g.look(ctx, twin, twinLinux, a.Damage)
		if err != nil {
			return a, err
		}
		a.Boots++
		a.Seconds += again.took.Seconds()
		autopsy.Mark(a.Damage, nil, again.log)
	}
	if heal {
		step("booting it mended")
		a.Healed, err = g.heal(ctx, image, body, other, a.Damage)
	}
	return a, err
}

// twin is the body of an image that is to pass.
func (g *Guest) twin(ctx context.Context, image, vmlinux string) (*Body, error) {
	b, err := g.look(ctx, image, vmlinux, nil)
	if err != nil {
		return nil, fmt.Errorf("the twin: %w", err)
	}
	if b.Kind != qemu.Pass {
		return nil, fmt.Errorf("%w: %s", ErrTwin, b.Title)
	}
	return b, nil
}

// look is Look where nothing can be told without the memory.
func (g *Guest) look(ctx context.Context, image, vmlinux string, watched []*autopsy.Damage) (*Body, error) {
	b, err := g.Look(ctx, image, vmlinux, watched)
	if err == nil && b.Err != nil {
		err = b.Err
	}
	return b, err
}

// autopsy is Autopsy with a twin that has been looked into.
func (g *Guest) autopsy(ctx context.Context, image, vmlinux string, twin *Body, step func(string)) (a Autopsy, body *Body, err error) {
	step("booting the layout")
	body, err = g.look(ctx, image, vmlinux, nil)
	if err != nil {
		return a, nil, err
	}
	a.Boots = 1
	if twin.Run != nil {
		a.Boots++
	}
	if a.Kind = body.Kind; body.Kind != qemu.Pass {
		a.Title = body.Title
	}
	step("comparing the code in memory")
	a.Damage = body.Damage(twin)
	a.Seconds = body.took.Seconds()
	if len(a.Damage) == 0 || g.Machine.Accel != "tcg" {
		return a, body, nil
	}
	step("watching what runs")
	again, err := g.look(ctx, image, vmlinux, a.Damage)
	if err != nil {
		return a, nil, err
	}
	a.Boots++
	a.Seconds += again.took.Seconds()
	a.Traced = true
	autopsy.Mark(a.Damage, again.log, nil)
	autopsy.Sort(a.Damage)
	return a, body, nil
}
