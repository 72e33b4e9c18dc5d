// Package evidence says what verdicts tell: what sweeps have found, which residues
// they have tried, and which functions' addresses go with failing, with the
// statistics that this takes. It links and boots nothing.
package evidence

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"unlucky/host"
	"unlucky/layout"
	"unlucky/qemu"
	"unlucky/seeds"
)

// Results are what sweeps have found of one kernel, in one guest and by the
// same rules: read from the folders of their results, with no kernel at hand,
// as if one sweep had done it all. They depend neither on the order of the
// folders nor on how the seeds were spread over journals.
type Results struct {
	Header seeds.Header // of all of them; Strategy is empty, as each layout has its own
	Dirs   []string     // the folders, sorted
	// Layout is the baseline's. It is nil where strategy lld alone has
	// swept; then LayoutErr is nil, too. Otherwise that says why it is missing.
	Layout    []layout.Section
	LayoutErr error
	Baseline  *Tried  // nil where no sweep has come so far
	Layouts   []Tried // in the order of seeds, then of strategies; each once
}

// Tried is a layout that a sweep has tried.
type Tried struct {
	seeds.Record // Path is relative to where the program runs
	Strategy     layout.Strategy
	Dir          string // the folder of the sweep
}

// ReadResults reads all sweeps in some folders and below, sorted by scenario, and
// the saved seeds of those whose journals are lost or damaged. note is told what
// is left out of a damaged journal. The error names the sweeps that cannot be
// read, and may come beside others that could.
func ReadResults(dirs []string, note func(format string, a ...any)) (all []*Results, failed error) {
	paths, saved, err := findSweeps(dirs)
	if err != nil {
		return nil, err
	}
	take := func(path string, h seeds.Header, records []seeds.Record) {
		strategy, err := layout.ParseStrategy(h.Strategy)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", path, err))
			return
		}
		dir := filepath.Dir(path)
		layout, err := readLayout(dir, h.Object, strategy)
		h.Strategy = ""
		same := func(r *Results) bool {
			// Another linker script makes another kernel of the same vmlinux.o.
			return r.Header.Same(h) && (r.Layout == nil || layout == nil || slices.Equal(r.Layout, layout))
		}
		i := slices.IndexFunc(all, same)
		if i < 0 {
			i = len(all)
			all = append(all, &Results{Header: h})
		}
		all[i].add(dir, strategy, records, layout, err)
	}
	whole := map[string]bool{} // the folders of sweeps whose journals tell all
	for _, path := range paths {
		h, records, damage, err := seeds.ReadJournal(path)
		if damage != "" {
			note("%s, nor counted", damage)
		}
		dir := filepath.Dir(path)
		switch {
		case err != nil:
			failed = errors.Join(failed, err)
		case h != nil:
			take(path, *h, records)
			if _, known := whole[dir]; !known || damage != "" {
				whole[dir] = damage == ""
			}
		} // else a sweep that has just begun, or lost its journal
	}
	for _, dir := range slices.Sorted(maps.Keys(saved)) {
		if whole[dir] {
			continue
		}
		sweeps, err := readLost(dir, saved[dir])
		failed = errors.Join(failed, err)
		for _, l := range sweeps {
			note("%s: the journal is lost or damaged: its %d saved seeds are read, and layouts that passed are not known", dir, len(l.records))
			take(filepath.Join(dir, seeds.SweepJournal), l.header, l.records)
		}
	}
	if all == nil && failed == nil {
		failed = &host.HintError{
			Err:  fmt.Errorf("no sweep is in %s or below", strings.Join(dirs, ", ")),
			Hint: "give the folder of a sweep's results, such as unlucky.out",
		}
	}
	for _, r := range all {
		r.settle()
	}
	slices.SortStableFunc(all, func(a, b *Results) int {
		return cmp.Or(cmp.Compare(a.Header.Scenario, b.Header.Scenario), slices.Compare(a.Dirs, b.Dirs))
	})
	return all, failed
}

// findSweeps finds the journals of sweeps in some folders and below, each once,
// and the seed files that sweeps have saved, by the sweep's folder.
func findSweeps(dirs []string) (journals []string, saved map[string][]string, err error) {
	saved = map[string][]string{}
	for _, dir := range dirs {
		if dir == "" {
			return nil, nil, errors.New("an empty name is given for a folder")
		}
		switch info, err := os.Stat(dir); {
		case errors.Is(err, fs.ErrNotExist):
			return nil, nil, fmt.Errorf("there is no %s", dir)
		case err == nil && !info.IsDir():
			return nil, nil, fmt.Errorf("%s is no folder: give that of a sweep's results", dir)
		}
		// A link to a folder is followed where it is given, and nowhere else.
		err := filepath.WalkDir(dir+string(filepath.Separator), func(path string, d fs.DirEntry, err error) error {
			path = filepath.Clean(path)
			switch {
			case err != nil || d.IsDir():
			case seeds.JournalNames.MatchString(d.Name()):
				journals = append(journals, path)
			case seedNames.MatchString(d.Name()) && d.Type().IsRegular():
				saved[storeOf(path)] = append(saved[storeOf(path)], path)
			}
			return err
		})
		if err != nil {
			return nil, nil, err
		}
	}
	for dir, paths := range saved {
		slices.Sort(paths)
		saved[dir] = slices.Compact(paths)
		// The journal of one that was given in part is not in what was given, and
		// verify saves seeds of its own.
		for _, e := range dirEntries(dir) {
			if other := e.Name() == seeds.CulpritsJournal || seeds.JournalNames.MatchString(e.Name()) && !slices.Contains(journals, filepath.Join(dir, e.Name())); other {
				delete(saved, dir)
			}
		}
	}
	slices.Sort(journals)
	return slices.Compact(journals), saved, nil
}

// dirEntries are those of a folder, none if it cannot be read.
func dirEntries(dir string) []fs.DirEntry {
	entries, _ := os.ReadDir(dir)
	return entries
}

// readLayout reads the baseline's layout of a sweep.
func readLayout(dir, object string, strategy layout.Strategy) ([]layout.Section, error) {
	sections, err := seeds.ReadBaseline(dir, object)
	if !errors.Is(err, os.ErrNotExist) {
		return sections, err
	}
	if strategy == layout.LLD {
		return nil, nil // which has none
	}
	return nil, &host.HintError{
		Err:  fmt.Errorf("%s is missing: an earlier unlucky made this sweep", seeds.BaselinePath(dir, object)),
		Hint: "run the same sweep again, which writes the file and tries no layout twice",
	}
}

// add takes a journal in.
func (r *Results) add(dir string, strategy layout.Strategy, records []seeds.Record, layout []layout.Section, err error) {
	r.Dirs = append(r.Dirs, dir)
	if r.Layout == nil {
		r.Layout = layout
	}
	r.LayoutErr = errors.Join(r.LayoutErr, err)
	for _, record := range records {
		if record.Path != "" {
			record.Path = filepath.Join(dir, record.Path)
		}
		r.Layouts = append(r.Layouts, Tried{record, strategy, dir})
	}
}

// settle puts the layouts in order, each once.
func (r *Results) settle() {
	slices.Sort(r.Dirs)
	r.Dirs = slices.Compact(r.Dirs)
	if r.Layout != nil {
		r.LayoutErr = nil // the file of another folder says it
	}
	slices.SortStableFunc(r.Layouts, func(a, b Tried) int {
		if order := cmp.Or(a.Layout.Compare(b.Layout), cmp.Compare(a.Strategy, b.Strategy)); order != 0 {
			return order
		}
		return cmp.Or(b.tells(a), cmp.Compare(a.Path, b.Path))
	})
	r.Layouts = slices.CompactFunc(r.Layouts, func(a, b Tried) bool { return a.Plan == b.Plan && a.Layout == b.Layout })
	if len(r.Layouts) > 0 && r.Layouts[0].Layout == seeds.Baseline {
		r.Baseline, r.Layouts = &r.Layouts[0], r.Layouts[1:]
	}
}

// tells compares how much two sweeps tell of one layout: a failure more
// than a pass, which may be luck, and a saved seed more than none, one that is
// minimized the most.
func (t Tried) tells(u Tried) int {
	weight := func(t Tried) int {
		switch {
		case t.Found:
			return 3
		case t.Kind == qemu.Crash || t.Kind == qemu.Hang:
			return 2
		case t.Kind == qemu.Pass:
			return 1
		}
		return 0
	}
	saved := func(t Tried) int {
		if t.Path == "" {
			return 0
		}
		if _, err := os.Lstat(seeds.MinimizedPath(t.Path)); err != nil {
			return 1
		}
		return 2
	}
	return cmp.Or(cmp.Compare(weight(t), weight(u)), cmp.Compare(saved(t), saved(u)), cmp.Compare(t.Boots, u.Boots))
}

// Strategies are those of the layouts, sorted.
func (r *Results) Strategies() (out []layout.Strategy) {
	for _, t := range r.Layouts {
		out = append(out, t.Strategy)
	}
	if out == nil && r.Baseline != nil {
		out = append(out, r.Baseline.Strategy)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Booted tells whether a layout of this kind of verdict counts: it has booted,
// however that ended.
func Booted(k qemu.Kind) bool { return k == qemu.Pass || k == qemu.Crash || k == qemu.Hang }

// All are the baseline, if it has been tried, and the layouts.
func (r *Results) All() []Tried {
	if r.Baseline == nil {
		return r.Layouts
	}
	return append([]Tried{*r.Baseline}, r.Layouts...)
}

// placed tells whether the addresses of a layout follow from its plan.
func (t Tried) placed() bool { return t.Strategy != layout.LLD || t.Layout == seeds.Baseline }

// plan is that of a layout of a kernel whose baseline has this layout.
func (t Tried) plan(layout []layout.Section) (plan layout.Plan, err error) {
	if seed, ok := t.Layout.Seed(); ok {
		plan = t.Strategy.Plan(seed, layout)
	}
	if d := plan.Digest(); d != t.Plan {
		return plan, fmt.Errorf("%s: its plan is not the one that has booted (%.12s, was %.12s): please report this", t.Layout.Name(), d, t.Plan)
	}
	return plan, nil
}

// Place tells each where the sections of a kernel, given by its baseline's
// layout, were in the i-th of some layouts that its sweeps have tried, for
// several of them at the same time. progress is told how many are done; it may
// be nil.
func Place(ctx context.Context, sections []layout.Section, tried []Tried, each func(i int, addresses []uint64), progress func(done, total int)) error {
	var mu sync.Mutex
	done := 0
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	model := layout.NewModel(sections)
	for i, t := range tried {
		group.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			plan, err := t.plan(sections)
			if err != nil {
				return err
			}
			a, err := model.Arrange(plan)
			if err != nil {
				return fmt.Errorf("%s: %w", t.Layout.Name(), err)
			}
			addresses, err := model.Place(a)
			if err != nil {
				return fmt.Errorf("%s: %w", t.Layout.Name(), err)
			}
			each(i, addresses)
			mu.Lock()
			defer mu.Unlock()
			if done++; progress != nil {
				progress(done, len(tried))
			}
			return nil
		})
	}
	return group.Wait()
}

// Report is that of one sweep that has tried all of the layouts. It has no
// coverage.
func (r *Results) Report() *Report {
	report := &Report{Header: r.Header}
	for i, strategy := range r.Strategies() {
		if i > 0 {
			report.Strategy += ", "
		}
		report.Strategy += strategy
	}
	if r.Baseline != nil {
		report.Baseline = r.Baseline.Record
	}
	for _, t := range r.Layouts {
		report.Layouts = append(report.Layouts, t.Record)
	}
	return report
}
