package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"unlucky/arch"
	"unlucky/fuzz/evidence"
	"unlucky/fuzz/search"
	"unlucky/layout"
	"unlucky/report"
	"unlucky/scenarios"
	"unlucky/seeds"
)

func minimize(f *flag.FlagSet) *command {
	o := newSetup(f)
	o.packed(f)
	o.trusting(f)
	var (
		boots    = f.Int("boots", 0, "least `N` boots of a layout before it passes (default: as many as the failure's rate asks for)")
		budget   = f.Duration("budget", 30*time.Minute, "`time` after which to stop with the best so far; 0 for no limit")
		maxBoots = f.Int("max-boots", 0, "`N` boots in all, the last two for the answer, after which to stop with the best so far (one that hangs takes two); 0 for no limit")
		workers  = f.Int("j", 0, "`layouts` linked and booted at the same time (default: as many as there are CPUs for, and memory)")
		match    = f.String("match", "", "`regexp` over title and console of the failure to follow; other crashes are saved and decide nothing")
		ablate   = f.Bool("ablate", true, "try which switches of the kernel command line make it pass")
		memory   = f.Bool("autopsy", true, "begin with the code that is damaged in the guest's memory (x86-64 under TCG)")
		path     = f.String("o", "", "`file` of the result (default: SEED.min.yaml beside the seed file)")
		asJSON   = f.Bool("json", false, "print the result as JSON")
	)
	return &command{
		args: "SEEDFILE", min: 1, max: 1, long: true,
		summary: "find the functions whose addresses make a saved layout fail",
		examples: []string{
			"unlucky minimize unlucky.out/kcfi-seal/unexpected-exit/7.yaml -budget 10m",
			"unlucky minimize 7.yaml -match 'int3 in kernel_power_off'",
		},
		run: func(ctx context.Context, c call) (err error) {
			if *boots == 0 && given(f, "boots") {
				return usageError{errors.New("-boots 0: at least 1, or leave it out")}
			}
			if *boots < 0 || *maxBoots < 0 || *workers < 0 || *budget < 0 {
				return usageError{errors.New("-boots, -max-boots, -j and -budget take no negative value")}
			}
			m := &search.Minimize{Boots: *boots, MaxBoots: *maxBoots, Budget: *budget, Workers: *workers, Path: *path, Autopsy: *memory}
			if *match != "" {
				if m.Match, err = regexp.Compile(*match); err != nil {
					return usageError{fmt.Errorf("-match: %w", err)}
				}
			}
			if err := notFolder(c.args[0]); err != nil {
				return err
			}
			if m.Failed, err = seeds.Read(c.args[0]); err != nil {
				return err
			}
			if m.Path == "" {
				m.Path = seeds.MinimizedPath(c.args[0])
			}
			if filepath.Ext(m.Path) != ".yaml" || sameFile(m.Path, c.args[0]) {
				return usageError{fmt.Errorf("-o %s: want a file that ends in .yaml and is not the seed file", m.Path)}
			}
			scenario, err := savedScenario(ctx, c.args[0], m.Failed, o)
			if err != nil {
				return err
			}
			b, err := savedSession(ctx, scenario, o, c.scr)
			if err != nil {
				return err
			}
			defer b.Close()
			scenario = b.template.Scenario
			m.Autopsy = m.Autopsy && scenario.Kernel.Sections != scenarios.Data // it tells of code
			m.Kernel, m.Guest, m.Template = b, b.guest, b.template
			if m.Workers == 0 {
				if m.Workers, err = b.workers(c.scr); err != nil {
					return err
				}
			}
			if *ablate {
				a, err := arch.Of(scenario.Kernel.Arch)
				if err != nil {
					return err
				}
				m.Switches = slices.Concat(a.Switches, scenario.Guest.Ablate)
			}
			m.Twins = twinsOf(c.args[0], b.Digest)
			m.Suspects = suspectsOf(ctx, c.args[0], b.Digest, c.scr)
			m.Note = c.scr.note
			m.Step = func(p search.Progress) {
				text := fmt.Sprintf("%d boots; %s?", p.Boots, p.Question)
				if p.Left > 1 {
					text = fmt.Sprintf("%d boots; of %d in question, %s?", p.Boots, p.Left, p.Question)
				}
				c.scr.doing("minimizing", text)
			}
			c.scr.note("minimizing %s of %s; ^C stops, and the same command goes on", m.Failed.Layout.Name(), scenario.Name)
			result, err := m.Run(ctx)
			c.scr.done()
			if ctx.Err() != nil {
				c.scr.note("interrupted; the same command continues here")
				return exit(ExitInterrupted)
			}
			if err != nil {
				return b.advise(err)
			}
			if *asJSON {
				err = json.NewEncoder(c.out).Encode(struct {
					Path string           `json:"path"`
					Seed seeds.ID         `json:"seed"`
					Plan *layout.Plan     `json:"plan"`
					Min  *seeds.Minimized `json:"minimized"`
				}{m.Path, result.Layout, result.Plan, result.Minimized})
			} else {
				share := m.Path
				if share == seeds.MinimizedPath(c.args[0]) { // so the answer is in its bundle
					share = c.args[0]
				}
				printMinimized(c.out, result, m.Path, share, o.again())
			}
			if err == nil && !result.Minimized.Complete {
				return exit(ExitFailed)
			}
			return err
		},
	}
}

func sameFile(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// twinsOf are the passing layouts of the same kernel that a sweep has saved
// near a seed file.
func twinsOf(path, object string) (twins []seeds.File) {
	dir := filepath.Dir(path)
	for _, pattern := range []string{"../twin-*.yaml", "twin-*.yaml"} {
		files, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, file := range files {
			if f, err := seeds.Read(file); err == nil && f.Digests.Object == object {
				twins = append(twins, f)
			}
		}
	}
	return twins
}

// suspectsOf are what the sweep that has saved a seed file suspects. They only
// make minimizing shorter: results that cannot be read tell of none.
func suspectsOf(ctx context.Context, path, object string, scr *screen) []evidence.Suspect {
	for _, dir := range []string{filepath.Join(filepath.Dir(path), ".."), filepath.Dir(path)} {
		// Only where a sweep has been: what is below any other folder may be much.
		if journals, _ := filepath.Glob(filepath.Join(dir, "sweep*.journal")); journals == nil {
			continue
		}
		all, _ := evidence.ReadResults([]string{dir}, scr.note)
		for _, r := range all {
			if r.Header.Object != object || r.Layout == nil {
				continue
			}
			if s, err := r.Suspects(ctx, scr.later("ranking the functions")); err == nil {
				return s.Suspects
			}
		}
	}
	return nil
}

// printMinimized prints what decides, and what can be done with it. share is the
// seed file to bundle.
func printMinimized(out io.Writer, f *seeds.File, path, share, again string) {
	again = report.TrustFlag(f.Scenario) + again
	text := fmt.Sprintf("%s\nthe answer failed again in %d of %d boots; saved as %s\nnext, for example:\n  unlucky replay %s%s\n  unlucky bundle %s%s\n",
		report.Answer(f), f.Crashes, f.Boots, path, path, again, share, again)
	io.WriteString(out, report.Printable(text))
}
