package fuzz

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"unlucky/layout"
	"unlucky/qemu"
	"unlucky/seeds"
)

// examiner looks into the memory of the first find of each title while its sweep goes
// on, and writes what that has told beside the seed file. It changes no verdict.
type examiner struct {
	sweep  *Sweep
	linker Linker
	work   chan seeds.Record
	done   chan struct{}
	twin   *Body // a layout that passes
	name   string

	mu     sync.Mutex
	titles map[string]bool
	passed bool
}

// maxExamined bounds how many titles are looked into.
const maxExamined = 64

// newExaminer begins to look into what take is told of.
func (s *Sweep) newExaminer(ctx context.Context) (*examiner, error) {
	if err := s.Guest.Watches(); err != nil {
		s.Say("no autopsy: %v", err)
		return nil, nil
	}
	l, err := s.Kernel.Linker()
	if err != nil {
		return nil, err
	}
	x := &examiner{sweep: s, linker: l, work: make(chan seeds.Record, maxExamined+1), done: make(chan struct{}), titles: map[string]bool{}}
	go x.run(ctx)
	return x, nil
}

// take takes in a layout that has its verdict. A nil examiner takes none.
func (x *examiner) take(r seeds.Record) {
	if x == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case r.Kind == qemu.Pass && !x.passed:
		x.passed = true
	case r.Path != "" && (r.Kind == qemu.Crash || r.Kind == qemu.Hang) && !x.titles[r.Title] && len(x.titles) < maxExamined:
		x.titles[r.Title] = true
		if _, err := os.Stat(seeds.AutopsyPath(x.path(r))); !errors.Is(err, fs.ErrNotExist) {
			return // by an earlier run
		}
	default:
		return
	}
	x.work <- r
}

// close waits for what is still to be looked into.
func (x *examiner) close() error {
	if x == nil {
		return nil
	}
	close(x.work)
	<-x.done
	return x.linker.Close()
}

func (x *examiner) path(r seeds.Record) string { return filepath.Join(x.sweep.store.Dir(), r.Path) }

func (x *examiner) run(ctx context.Context) {
	defer close(x.done)
	var waiting []seeds.Record // for a layout that passes
	for r := range x.work {
		if ctx.Err() != nil {
			continue
		}
		if r.Kind != qemu.Pass {
			waiting = append(waiting, r)
		} else if err := x.begin(ctx, r); err != nil {
			x.sweep.Say("no autopsy by %s: %v", r.Layout.Name(), err)
			x.mu.Lock()
			x.passed = false // by another one, then
			x.mu.Unlock()
		}
		for x.twin != nil && len(waiting) > 0 && ctx.Err() == nil {
			r := waiting[0]
			waiting = waiting[1:]
			if err := x.examine(ctx, r); err != nil && ctx.Err() == nil {
				x.sweep.Say("no autopsy of %s: %v", r.Layout.Name(), err)
			}
		}
	}
	if len(waiting) > 0 && ctx.Err() == nil {
		x.sweep.Say("no autopsy: no layout has passed that the memory of others could be held against")
	}
}

// begin looks into a layout that passes.
func (x *examiner) begin(ctx context.Context, r seeds.Record) error {
	return x.linked(ctx, r, func(image, vmlinux string) (err error) {
		x.twin, err = x.sweep.Guest.twin(ctx, image, vmlinux)
		x.name = r.Layout.Name()
		return err
	})
}

// examine looks into a layout that fails.
func (x *examiner) examine(ctx context.Context, r seeds.Record) error {
	return x.linked(ctx, r, func(image, vmlinux string) error {
		a, _, err := x.sweep.Guest.autopsy(ctx, image, vmlinux, x.twin, func(string) {})
		if err != nil {
			return err
		}
		return seeds.NewAutopsy(x.name, a.Damage).Write(seeds.AutopsyPath(x.path(r)))
	})
}

// linked has a layout linked for as long as what is done with it takes.
func (x *examiner) linked(ctx context.Context, r seeds.Record, do func(image, vmlinux string) error) error {
	var plan layout.Plan
	if seed, ok := r.Layout.Seed(); ok {
		plan = x.sweep.Strategy.Plan(seed, x.sweep.layout)
	}
	unshare := x.sweep.Guest.Share()
	image, err := x.linker.Link(ctx, plan)
	unshare()
	if err != nil {
		return err
	}
	return errors.Join(do(image.Path, image.VMLinux), image.Remove())
}
