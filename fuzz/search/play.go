package search

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"unlucky/fuzz"
	"unlucky/layout"
	"unlucky/linker"
	"unlucky/qemu"
	"unlucky/scenarios"
	"unlucky/seeds"
)

// played is a kernel, and a guest, of addresses alone: nothing is linked or booted, as
// whether a layout crashes follows from where its plan puts the functions.
type played struct {
	dir      string
	hunt     *layout.Hunt
	sections []layout.Section
	bug      layout.Bug
	flaky    bool // a layout that fails does so in every second boot

	mu      sync.Mutex
	crashes map[string]bool // by the path of an image
	random  *rand.Rand
}

// Play minimizes a failing layout of a bug as if it were linked and booted: it tells how
// many boots an answer takes. right tells whether the answer names all functions that
// decide and no other, and a distance where that is it. Each boot is written to a journal in
// a new folder of dir.
func Play(ctx context.Context, dir string, h *layout.Hunt, sections []layout.Section, bug layout.Bug, failing layout.Plan, flaky bool, note func(string, ...any)) (answer *seeds.File, right bool, err error) {
	if dir, err = os.MkdirTemp(dir, "unlucky-play-"); err != nil {
		return nil, false, err
	}
	defer os.RemoveAll(dir)
	m, err := newPlay(ctx, dir, h, sections, bug, failing, flaky)
	if err != nil {
		return nil, false, err
	}
	m.Note = note
	if answer, _, err = m.run(ctx); err != nil || len(answer.Minimized.Culprits) == 0 {
		return answer, false, err
	}
	var named []string
	for _, f := range answer.Minimized.Culprits[0].Functions {
		named = append(named, f.Section)
	}
	right = len(named) == bug.Decide && answer.Minimized.Culprits[0].Distance == bug.Far
	for _, name := range named {
		right = right && slices.ContainsFunc(bug.Functions, func(i int) bool { return sections[i].Name == name })
	}
	return answer, right, nil
}

// newPlay is what minimizes a layout that is played, with its journal in dir.
func newPlay(ctx context.Context, dir string, h *layout.Hunt, sections []layout.Section, bug layout.Bug, failing layout.Plan, flaky bool) (*Minimize, error) {
	luck, err := strconv.ParseUint(failing.Digest()[:16], 16, 64) // another one for each layout, and always the same
	if err != nil {
		return nil, err
	}
	k := &played{dir: dir, hunt: h, sections: sections, bug: bug, flaky: flaky, crashes: map[string]bool{}, random: rand.New(rand.NewPCG(1, luck))}
	image, err := k.Link(ctx, failing)
	if err != nil {
		return nil, err
	}
	digest, err := image.Digest()
	if err = errors.Join(err, image.Remove()); err != nil {
		return nil, err
	}
	template := seeds.Template{Scenario: scenarios.Scenario{Name: "played"}}
	guest := fuzz.NewGuest(template.Scenario, "")
	guest.Run = k.boot
	f := fuzz.SavedSeed(template, guest, seeds.Seed(1), layout.Cover, failing.Digest(), digest)
	f.Plan, f.Kind, f.Title, f.Boots, f.Crashes = &failing, qemu.Crash, "played", 3, 3
	if flaky {
		f.Crashes = 2
	}
	return &Minimize{
		Kernel: k, Guest: guest, Failed: f, Template: template, Path: filepath.Join(dir, "played.min.yaml"),
		Workers: 1, Note: func(string, ...any) {}, Step: func(Progress) {},
	}, nil
}

// Layout, Randomizes, Tables and Linker are a fuzz.Kernel, Link and Close its linker.
func (p *played) Layout(context.Context) ([]layout.Section, error) { return p.sections, nil }
func (p *played) Randomizes() bool                                 { return false }
func (p *played) Tables() (int, error)                             { return 0, nil }
func (p *played) Linker() (fuzz.Linker, error)                     { return p, nil }
func (p *played) Close() error                                     { return nil }

func (p *played) Link(_ context.Context, plan layout.Plan) (linker.Image, error) {
	placed, err := p.hunt.Place(plan)
	if err != nil {
		return linker.Image{}, fmt.Errorf("linking: %w", err)
	}
	file, err := os.CreateTemp(p.dir, "image-") // for Image.Remove
	if err != nil {
		return linker.Image{}, err
	}
	p.mu.Lock()
	p.crashes[file.Name()] = p.bug.Crashes(placed)
	p.mu.Unlock()
	_, err = file.WriteString(plan.Digest())
	return linker.Image{Path: file.Name(), VMLinux: file.Name()}, errors.Join(err, file.Close())
}

// boot is a fuzz.Guest's Run.
func (p *played) boot(m qemu.Machine, _ context.Context, _ qemu.Expect) (qemu.Result, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.crashes[m.Kernel] && (!p.flaky || p.random.IntN(2) == 0) {
		return qemu.Result{Kind: qemu.Crash, Title: "played"}, nil
	}
	return qemu.Result{Kind: qemu.Pass, Title: string(qemu.Pass)}, nil
}
