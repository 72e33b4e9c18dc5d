package fuzz

import (
	"context"
	"fmt"
	"strings"

	"unlucky/fuzz/evidence"
	"unlucky/host"
	"unlucky/layout"
	"unlucky/linker"
	"unlucky/qemu"
	"unlucky/seeds"
)

// PlanOf is the plan of a saved seed: the explicit one of a minimized layout,
// otherwise what the strategy makes of the seed.
func PlanOf(ctx context.Context, f seeds.File, k Kernel) (layout.Plan, error) {
	if f.Plan != nil {
		return *f.Plan, nil
	}
	n, ok := f.Layout.Seed()
	if !ok {
		return layout.Plan{}, nil
	}
	strategy, err := layout.ParseStrategy(f.Strategy)
	if err != nil {
		return layout.Plan{}, err
	}
	if strategy == layout.LLD {
		return strategy.Plan(n, nil), nil
	}
	sections, err := k.Layout(ctx)
	if err != nil {
		return layout.Plan{}, err
	}
	return strategy.Plan(n, sections), nil
}

// Relink links the image of a saved seed again. object and tools are what
// there is now; an error tells which of them is the reason that the image, or
// the object that it is made of, is another one than was saved.
func Relink(ctx context.Context, f seeds.File, k Kernel, l Linker, object string, tools seeds.Tools) (linker.Image, error) {
	if object != f.Digests.Object {
		return linker.Image{}, &host.HintError{
			Err: fmt.Errorf("vmlinux.o is not the one of the saved seed (%.12s, was %.12s), so its layouts are others%s",
				object, f.Digests.Object, changed(f.Tools, tools, "the source, its version or its configuration differ, or this host's "+tools.Compiler()+
					" is another build than the one that compiled it (Debian 12's and 13's differ)")),
			Hint: "compile nothing here: where it was found, `unlucky bundle SEEDFILE` writes a file that replays as it is, and `unlucky prepare SCENARIO` one for -kernel, which minimizes and sweeps, too",
		}
	}
	plan, err := PlanOf(ctx, f, k)
	if err != nil {
		return linker.Image{}, err
	}
	if d := plan.Digest(); d != f.Digests.Plan {
		return linker.Image{}, fmt.Errorf("the plan of %s is not the one that was saved (%.12s, was %.12s)%s",
			f.Layout.Name(), d, f.Digests.Plan, changed(f.Tools, tools, "the saved seed was edited"))
	}
	image, err := l.Link(ctx, plan)
	if err != nil {
		return image, fmt.Errorf("linking %s: %w", f.Layout.Name(), err)
	}
	digest, err := image.Digest()
	if err != nil {
		return image, err
	}
	if digest != f.Digests.Image {
		return image, fmt.Errorf("%s links to another image than was saved (%.12s, was %.12s)%s",
			f.Layout.Name(), digest, f.Digests.Image, changed(f.Tools, tools, "the same tools gave it: please report this"))
	}
	return image, nil
}

// changed explains a difference by the tools that changed, or else by other.
func changed(was, is seeds.Tools, other string) string {
	var out []string
	for _, t := range []struct{ name, was, is string }{{"clang", was.Clang, is.Clang}, {"gcc", was.GCC, is.GCC}, {"lld", was.LLD, is.LLD}} {
		if t.was != t.is {
			out = append(out, fmt.Sprintf("%s was %s and is %s", t.name, t.was, t.is))
		}
	}
	if out == nil {
		return ": " + other
	}
	return ": " + strings.Join(out, ", ")
}

// Replayed is what booting one saved seed again has shown.
type Replayed struct {
	Boots  int            `json:"boots"`
	Shown  int            `json:"shown"`  // boots that showed what was saved
	Titles map[string]int `json:"titles"` // "pass" for a boot that passed
}

// Replay boots an image n times and counts the boots that show what f says:
// its title or the crash looked for, or, for a twin, a pass. each is told the
// result of every boot.
func Replay(ctx context.Context, f seeds.File, g *Guest, image string, n int, each func(qemu.Result)) (Replayed, error) {
	r := Replayed{Titles: map[string]int{}}
	for range n {
		b, err := g.Boot(ctx, image)
		if err == nil {
			err = CheckInfra(f.Layout, b)
		}
		if err != nil {
			return r, err
		}
		title := b.Title
		if b.Kind == qemu.Pass {
			title = string(qemu.Pass)
		}
		r.Boots++
		r.Titles[title]++
		if b.Kind == qemu.Pass && f.Kind == qemu.Pass || f.Kind != qemu.Pass && b.Kind != qemu.Pass && (b.Title == f.Title || evidence.Shows(f.Scenario.Verdict, b)) {
			r.Shown++
		}
		each(b)
	}
	return r, nil
}
