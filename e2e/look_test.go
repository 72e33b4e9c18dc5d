package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"unlucky/arch"
	"unlucky/autopsy"
	"unlucky/fuzz"
	"unlucky/layout"
	"unlucky/linker"
	"unlucky/qemu"
	"unlucky/scenarios"
)

// looked is what the memory of one layout has told.
type looked struct {
	seed int
	qemu.Result
	damage []*autopsy.Damage
	want   []string // the functions with damage, by the image
}

func (l looked) passed() bool { return l.Kind == qemu.Pass }

// names are the functions with damage, and those of them that have run.
func (l looked) names() (all, ran []string) {
	for _, d := range l.damage {
		all = append(all, d.Function)
		if d.Executed() {
			ran = append(ran, d.Function)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), slices.Compact(ran)
}

func (l looked) String() string {
	title := l.Title
	if l.passed() {
		title = "passes"
	}
	all, ran := l.names()
	return fmt.Sprintf("seed %d: %s; damaged %v, of which ran %v; by the image %v", l.seed, title, all, ran, l.want)
}

// lookInto boots the layouts of some seeds of cover, two at a time, and holds the memory
// of each against that of the first that passes, as `unlucky autopsy` does: a boot, and
// another one where there is damage, beside the twin's. predict tells of an image the
// functions that are to be damaged.
func lookInto(t testing.TB, s scenarios.Scenario, first, last int, predict func(vmlinux string) ([]string, error)) []looked {
	t.Helper()
	k, sections, worker := openKernel(t, s.Kernel, linker.Delta)
	g := guestOf(t, s)
	linked := func(w *linker.Worker, seed int, do func(image linker.Image) error) error {
		unshare := g.Share()
		image, err := w.Link(t.Context(), layout.Cover.Plan(uint32(seed), sections))
		unshare()
		if err != nil {
			return err
		}
		return errors.Join(do(image), image.Remove())
	}
	type twin struct {
		seed int
		*fuzz.Body
	}
	var twins []twin // of the first one, too
	for seed := first; seed <= last && len(twins) < 2; seed++ {
		err := linked(worker, seed, func(image linker.Image) error {
			b, err := g.Look(t.Context(), image.Path, image.VMLinux, nil)
			if err == nil && b.Kind == qemu.Pass {
				twins = append(twins, twin{seed, b})
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(twins) < 2 {
		t.Fatalf("%d layouts pass: there is no twin", len(twins))
	}
	look := func(image linker.Image, l *looked) error {
		with := twins[0]
		if with.seed == l.seed {
			with = twins[1]
		}
		b, err := g.Look(t.Context(), image.Path, image.VMLinux, nil)
		if err != nil || b.Err != nil {
			return errors.Join(err, b.Err)
		}
		l.Result = b.Result
		if predict != nil {
			if l.want, err = predict(image.VMLinux); err != nil {
				return err
			}
		}
		if l.damage = b.Damage(with.Body); len(l.damage) == 0 {
			return nil
		}
		again, err := g.Look(t.Context(), image.Path, image.VMLinux, l.damage)
		if err != nil || again.Err != nil {
			return errors.Join(err, again.Err)
		}
		l.damage = again.Still(with.Body, b)
		return nil
	}
	all := make([]looked, last-first+1)
	var next atomic.Int64
	var done sync.WaitGroup
	for range 2 {
		w, err := k.NewWorker()
		if err != nil {
			t.Fatal(err)
		}
		done.Go(func() {
			defer w.Close()
			for n := next.Add(1) - 1; n < int64(len(all)) && !t.Failed(); n = next.Add(1) - 1 {
				l := &all[n]
				l.seed = first + int(n)
				if err := linked(w, l.seed, func(image linker.Image) error { return look(image, l) }); err != nil {
					t.Errorf("seed %d: %v", l.seed, err)
				}
			}
		})
	}
	if done.Wait(); t.Failed() {
		t.FailNow()
	}
	return all
}

// guestOf is the guest of a scenario, under TCG.
func guestOf(t testing.TB, s scenarios.Scenario) *fuzz.Guest {
	t.Helper()
	busybox, err := qemu.FindBusybox(arch.X86_64.ELF)
	if err != nil {
		t.Fatal(err)
	}
	initrd, err := qemu.Initrd(busybox, s.Guest.Init)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(path, initrd, 0o644); err != nil {
		t.Fatal(err)
	}
	g := fuzz.NewGuest(s, path)
	g.Accelerate("tcg", t.Logf)
	return g
}
