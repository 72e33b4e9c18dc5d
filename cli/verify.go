package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"unlucky/fuzz"
	"unlucky/fuzz/evidence"
	"unlucky/fuzz/search"
	"unlucky/host"
	"unlucky/layout"
	"unlucky/qemu"
	"unlucky/report"
	"unlucky/scenarios"
	"unlucky/seeds"
)

// verify tells whether a fix is one.
func verify(f *flag.FlagSet) *command {
	o := newSetup(f)
	o.trusting(f)
	var patches []scenarios.Patch
	f.Func("patch", "`file` of a patch that mends the kernel; give it once for each", func(path string) error {
		p, err := scenarios.ReadPatch(path)
		patches = append(patches, p)
		return err
	})
	var (
		confidence = f.Float64("confidence", 99, "`percent` of confidence with which it is to be told")
		rangeFlag  = f.String("seeds", "", "first and last `seed` (default: as many as the bug's rate asks for, at least 64)")
		limit      = f.Duration("for", 0, "begin no seed after this `time`")
		workers    = f.Int("j", 0, "`layouts` booted at the same time (default: as many as there are CPUs for, and memory)")
		dir        = f.String("o", "unlucky.verify", "`folder` of the results, where those of each mended kernel are in one named by its vmlinux.o")
		asJSON     = f.Bool("json", false, "print the result as JSON")
	)
	return &command{
		args: "DIR", min: 1, max: 1, long: true,
		summary: "say whether a fix mends what a sweep has found",
		examples: []string{
			"unlucky verify unlucky.out/kcfi-seal -patch fix.patch",
			"unlucky verify unlucky.out/foo -linux ~/src/linux-fixed -confidence 99.9",
		},
		run: func(ctx context.Context, c call) (err error) {
			v := &search.Verify{Sweep: &fuzz.Sweep{Workers: *workers, For: *limit}, Confidence: *confidence / 100}
			s := v.Sweep
			switch {
			case o.linux == "" && o.build == "" && patches == nil:
				return usageError{errors.New("which fix? give -patch FILE, or a tree that has it with -linux or -build")}
			case o.build != "" && patches != nil:
				return usageError{errors.New("-build and -patch exclude each other: a finished build is taken as it is")}
			case !(v.Confidence > 0 && v.Confidence < 1):
				return usageError{errors.New("-confidence is above 0 and below 100")}
			case *workers < 0 || *limit < 0:
				return usageError{errors.New("-j and -for take no negative value")}
			case within(*dir, c.args[0]):
				return usageError{fmt.Errorf("-o %s is in %s, and would be taken for sweeps of the same kernel: give another -o", *dir, c.args[0])}
			}
			if *rangeFlag != "" {
				if s.First, s.Last, err = parseSeeds(*rangeFlag); err != nil {
					return usageError{err}
				}
			}
			defer c.scr.done()
			if v.Found, err = foundIn(c.args[0], c.scr); err != nil {
				return err
			}
			path, saved, err := savedOf(v, c.scr)
			if err != nil {
				return err
			}
			mended, err := savedScenario(ctx, path, saved, o)
			if err != nil {
				return err
			}
			var kept []scenarios.Patch
			for _, p := range mended.Kernel.Patches {
				if o.linux != "" && p.Want == scenarios.Absent {
					c.scr.note("%s, which %s wants absent, is left in %s", p.File, saved.Scenario.Name, o.linux)
					continue
				}
				kept = append(kept, p)
			}
			mended.Kernel.Patches = append(kept, patches...)
			b, err := savedSession(ctx, mended, o, c.scr)
			if err != nil {
				return err
			}
			defer b.Close()
			if err := b.sweeps(s, c.scr); err != nil {
				return err
			}
			s.Dir = filepath.Join(*dir, b.Digest[:12])
			if s.Strategy = layout.Cover; len(v.Found.Strategies()) == 1 {
				s.Strategy = v.Found.Strategies()[0]
			}
			rate := v.Found.Rate()
			if *rangeFlag == "" {
				s.First, s.Last = 1, uint32(min(rate.Layouts(v.Confidence), math.MaxUint32))
			}
			step := "booting the baseline"
			if v.Known() {
				step = "booting the old culprits where they failed"
			}
			v.Culprits = c.scr.later(step)
			c.scr.note("verifying seeds %d to %d, as %d of %d layouts%s were unlucky; ^C stops, and the same command goes on", s.First, s.Last, rate.Unlucky, rate.Of, withBaseline(v.Found.Baseline != nil))
			result, err := v.Run(ctx)
			c.scr.done()
			if ctx.Err() != nil {
				c.scr.note("interrupted; the same command continues here")
				return exit(ExitInterrupted)
			}
			if err != nil {
				return b.advise(err)
			}
			if *asJSON {
				err = json.NewEncoder(c.out).Encode(result)
			} else {
				printVerified(c.out, result, v, b)
			}
			switch {
			case err != nil:
				return err
			case result.Conclusion == search.NotFixed:
				return exit(ExitNo)
			case result.Conclusion == search.CannotTell:
				return exit(ExitFailed)
			}
			return nil
		},
	}
}

// within tells whether a path is that of a folder, or below it.
func within(path, dir string) bool {
	a, err1 := filepath.Abs(path)
	b, err2 := filepath.Abs(dir)
	rel, err3 := filepath.Rel(b, a)
	return errors.Join(err1, err2, err3) == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// foundIn are the results of the one sweep in a folder that has found something.
func foundIn(dir string, scr *screen) (*evidence.Results, error) {
	all, err := evidence.ReadResults([]string{dir}, scr.note)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(r *evidence.Results) bool { return r.Rate().Unlucky == 0 })
	switch len(all) {
	case 0:
		return nil, &host.HintError{
			Err:  fmt.Errorf("nothing has been found in %s: there is nothing to verify", dir),
			Hint: "give the folder of a sweep that has found the bug",
		}
	case 1:
		return all[0], nil
	}
	var which []string
	for _, r := range all {
		which = append(which, fmt.Sprintf("\n\t%s of vmlinux.o %.12s, in %s", r.Header.Scenario, r.Header.Object, strings.Join(r.Dirs, ", ")))
	}
	return nil, &host.HintError{
		Err:  fmt.Errorf("%s has sweeps of several kernels or guests that have found something:%s", dir, strings.Join(which, "")),
		Hint: "give the folder of one of them",
	}
}

// savedOf is a saved seed of what was found, and gives v what minimizing has
// shown of any.
func savedOf(v *search.Verify, scr *screen) (path string, saved seeds.File, err error) {
	all := slices.Clone(v.Found.Layouts) // a seed rather than the baseline, which nothing passing may be near
	if v.Found.Baseline != nil {
		all = append(all, *v.Found.Baseline)
	}
	for _, t := range all {
		if !t.Found || t.Path == "" {
			continue
		}
		if path == "" {
			if saved, err = seeds.Read(t.Path); err != nil {
				return "", saved, err
			}
			path = t.Path
		}
		switch m, err := seeds.Read(seeds.MinimizedPath(t.Path)); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return "", saved, err
		case m.Minimized == nil || m.Digests.Object != v.Found.Header.Object:
			scr.note("%s is left out: it is not about this kernel", seeds.MinimizedPath(t.Path))
		default:
			v.Minimized = append(v.Minimized, m)
		}
	}
	if path == "" {
		return "", saved, fmt.Errorf("%s: what was found has no saved seed", strings.Join(v.Found.Dirs, ", "))
	}
	if saved.Digests.Object != v.Found.Header.Object {
		return "", saved, fmt.Errorf("%s is not of the kernel that was swept", path)
	}
	switch {
	case v.Known():
	case saved.Layout == seeds.Baseline:
		scr.note("no culprits are known, to be put where they failed: of what fails only the baseline is saved")
	default:
		scr.note("no culprits are known, to be put where they failed; `unlucky minimize %s%s` finds some", path, report.TrustFlag(saved.Scenario))
	}
	return path, saved, nil
}

// printVerified prints whether a fix is one, and why.
func printVerified(out io.Writer, r *search.Verified, v *search.Verify, b *session) {
	var text bytes.Buffer
	scenario := b.template.Scenario
	fmt.Fprintf(&text, "%s, mended: vmlinux.o %.12s, was %.12s\n", scenario.Name, r.Object, v.Found.Header.Object)
	fmt.Fprintf(&text, "\n  %-10s %d of %d layouts%s were unlucky: with 90 %% confidence at least %.3g %%\n", "before", r.Before.Unlucky, r.Before.Of, withBaseline(v.Found.Baseline != nil), 100*r.Before.Least)
	for i, c := range r.Culprits {
		what := "fails"
		switch {
		case c.Layouts == 0 && len(c.Notes) > 0:
			what = "cannot be put where it failed"
		case c.Layouts == 0:
			what = "not tried"
		case !c.Failed:
			what = "passes"
		}
		name := ""
		if i == 0 {
			name = "culprits"
		}
		fmt.Fprintf(&text, "  %-10s %s", name, what)
		if c.Layouts > 0 {
			fmt.Fprintf(&text, " in %d layouts, %d boots", c.Layouts, c.Boots)
		}
		fmt.Fprintf(&text, ": %s\n", c.Says)
		for _, note := range c.Notes {
			fmt.Fprintf(&text, "  %-10s   %s\n", "", note)
		}
	}
	if s := r.Sweep; s != nil {
		baseline := s.Baseline.Title
		if s.Baseline.Kind == qemu.Pass {
			baseline = "passes"
		}
		fmt.Fprintf(&text, "  %-10s %s\n", "baseline", baseline)
		fmt.Fprintf(&text, "  %-10s %d of %d pass, strategy %s (%s)\n", "layouts", r.Passed, len(s.Layouts), s.Strategy, s.Accel)
	}
	for _, title := range slices.Sorted(maps.Keys(r.Others)) {
		fmt.Fprintf(&text, "  %-10s %s: %s\n", "other", title, r.Others[title])
	}
	fmt.Fprintf(&text, "\n%s\n", r)
	trust := report.TrustFlag(scenario)
	switch {
	case r.File != "":
		fmt.Fprintf(&text, "next, for example:\n  unlucky replay %s%s\n", r.File, trust)
		if r.Sweep != nil && r.Sweep.Strategy != layout.LLD {
			fmt.Fprintf(&text, "  unlucky minimize %s%s\n", r.File, trust)
		}
	case r.Conclusion == search.CannotTell && len(r.Others) > 0:
		fmt.Fprintf(&text, "next, for example:\n  unlucky replay %s%s\n", slices.Min(slices.Collect(maps.Values(r.Others))), trust)
	case r.Conclusion == search.CannotTell:
		fmt.Fprintf(&text, "next, for example, the same with:\n  -seeds %d:%d\n", v.Sweep.First, int(v.Sweep.First)-1+r.Before.Layouts(v.Confidence))
	case r.Conclusion == search.Fixed:
		fmt.Fprintf(&text, "next, for example, to bound the rest further, the same with:\n  -seeds %d:%d\n", v.Sweep.First, int(v.Sweep.First)-1+10*r.Passed)
	}
	io.WriteString(out, report.Printable(text.String()))
}
