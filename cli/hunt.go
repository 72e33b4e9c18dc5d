package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"

	"golang.org/x/sync/errgroup"
	"gonum.org/v1/gonum/stat"

	"unlucky/fuzz/search"
	"unlucky/host"
	"unlucky/layout"
	"unlucky/linker"
	"unlucky/linker/kbuild"
)

// hunted is what hunt prints.
type hunted struct {
	Kernel string      `json:"kernel"`
	Bugs   int         `json:"bugs"`  // of each kind
	Seeds  int         `json:"seeds"` // after which a bug counts as not found
	Kinds  []kindHunt  `json:"kinds"`
	Mean   perStrategy `json:"mean"` // geometric, of the kinds' ratios to text; what was not found counts as Seeds+1
	Booted []bootHunt  `json:"booted,omitempty"`
	// Minimized is how minimize fares, by addresses alone.
	Minimized []minimizeHunt `json:"minimized,omitempty"`
}

// minimizeHunt is minimize on layouts of bugs of a kind.
type minimizeHunt struct {
	Kind  string         `json:"kind"`
	Sure  minimizedBoots `json:"sure"`  // bugs that crash in every boot
	Flaky minimizedBoots `json:"flaky"` // in one of two
}

// minimizedBoots are those of some bugs, sorted, and how many of the answers name all
// functions that decide and no other.
type minimizedBoots struct {
	Boots []int `json:"boots"`
	Right int   `json:"right"`
}

// perStrategy is a figure of each strategy.
type perStrategy map[layout.Strategy]float64

// kindHunt is the median number of layouts to the first crash of a kind of bug.
type kindHunt struct {
	Kind   string      `json:"kind"`
	What   string      `json:"what"`
	Median perStrategy `json:"median"`
}

// bootHunt is a sweep that was booted beside what the addresses say.
type bootHunt struct {
	Scenario string          `json:"scenario"`
	Strategy layout.Strategy `json:"strategy"`
	Computed []int           `json:"computed"` // the seeds that crash
	Booted   []int           `json:"booted"`
}

// compared are the strategies that are compared, with the first.
var compared = []layout.Strategy{layout.Text, layout.Cover, layout.Shuffle}

func hunt(f *flag.FlagSet) *command {
	o := newSetup(f)
	var (
		bugs   = f.Int("bugs", 200, "`N` bugs to draw of each kind")
		seeds  = f.Int("seeds", 2048, "`N` seeds after which a bug counts as not found")
		boot   = f.Int("boot", 0, "boot the first `N` seeds of each planted scenario too, by each strategy, and compare with the addresses")
		played = f.Int("minimize", 0, "minimize a layout of each of the first `N` bugs of each kind too, by its addresses alone, and count the boots")
		align  = f.Uint64("align", 0, "play the kernel as if its functions were aligned to `bytes`: 1, 4, 16 or 64 (GCC -Os: 1, arm64: 4)")
		asJSON = f.Bool("json", false, "print the table as JSON")
	)
	return &command{
		args: "[SCENARIO]", min: 0, max: 1, long: true,
		summary:  "compare strategies: layouts to the first crash of bugs of many kinds",
		examples: []string{"unlucky hunt -bugs 1000 -minimize 8 -boot 32", "unlucky hunt -align 1"},
		run: func(ctx context.Context, c call) error {
			if *bugs < 1 || *seeds < 1 || *boot < 0 || *played < 0 || *played > *bugs {
				return usageError{errors.New("-bugs and -seeds are at least 1, -boot and -minimize are not negative, and -minimize is not above -bugs")}
			}
			if !slices.Contains([]uint64{0, 1, 4, 16, 64}, *align) || *align > 0 && *boot > 0 {
				return usageError{errors.New("-align is 1, 4, 16 or 64, and no kernel that -boot could boot")}
			}
			scenario, err := o.load(c.args, "canary")
			if err != nil {
				return err
			}
			defer c.scr.done()
			kernel, err := linker.Prepare(ctx, kbuild.CacheDir(), scenario.Kernel, c.scr.progress)
			if err != nil {
				return err
			}
			defer kernel.Close()
			sections, err := kernel.Layout(ctx)
			if err != nil {
				return err
			}
			result := hunted{Kernel: fmt.Sprintf("%s, vmlinux.o %.12s", scenario.Name, kernel.Digest), Bugs: *bugs, Seeds: *seeds}
			if *align > 0 {
				if sections, err = layout.Realigned(sections, *align); err != nil {
					return err
				}
				result.Kernel += fmt.Sprintf(", as if aligned to %d", *align)
			}
			h, err := layout.NewHunt(sections)
			if err != nil {
				return err
			}
			c.scr.progress(fmt.Sprintf("playing %d bugs of each kind against %d seeds of each strategy", *bugs, *seeds), 0, 0)
			first, err := result.play(ctx, h, sections)
			if err != nil {
				return err
			}
			if *played > 0 {
				dir, err := os.MkdirTemp(host.MemoryDir, "unlucky-hunt-") // each boot is synced to a journal
				if err != nil {
					dir, err = os.MkdirTemp("", "unlucky-hunt-")
				}
				if err != nil {
					return err
				}
				defer os.RemoveAll(dir)
				for n, k := range layout.BugKinds {
					c.scr.progress("minimizing layouts of each kind", int64(n), int64(len(layout.BugKinds)))
					if err := result.minimize(ctx, dir, h, sections, k, first[n*(*bugs):][:*played]); err != nil {
						return err
					}
				}
			}
			wrong := 0
			if *boot > 0 {
				for n, name := range layout.Planted {
					c.scr.progress("booting what was computed", int64(n), int64(len(layout.Planted)))
					if err := result.boot(ctx, name, o, *boot, c.scr); err != nil {
						return err
					}
				}
				for _, b := range result.Booted {
					if !slices.Equal(b.Computed, b.Booted) {
						wrong++
					}
				}
			}
			c.scr.done()
			if *asJSON {
				err = json.NewEncoder(c.out).Encode(result)
			} else {
				result.print(c.out)
			}
			if err == nil && wrong > 0 {
				err = fmt.Errorf("%d of %d sweeps crash otherwise than their addresses say", wrong, len(result.Booted))
			}
			return err
		},
	}
}

// play finds the first crash of each bug by addresses alone. It returns the plan of a
// layout that shows it, by the strategies but text; nil for none.
func (r *hunted) play(ctx context.Context, h *layout.Hunt, sections []layout.Section) ([]*layout.Plan, error) {
	var drawn []layout.Bug // of all kinds, one behind the other
	for _, k := range layout.BugKinds {
		bugs, err := h.Draw(k, r.Bugs)
		if err != nil {
			return nil, err
		}
		drawn = append(drawn, bugs...)
	}
	crashes := make([][][]int, len(compared))
	group, ctx := errgroup.WithContext(ctx)
	for i, s := range compared {
		group.Go(func() (err error) {
			crashes[i], err = h.Crashes(ctx, s, r.Seeds, false, drawn...)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	plans := make([]*layout.Plan, len(drawn))
	for b := range drawn {
		plans[b] = drawn[b].Fails
		for i, s := range compared[1:] {
			if c := crashes[i+1][b]; c != nil && plans[b] == nil {
				plan := s.Plan(uint32(c[0]), sections)
				plans[b] = &plan
			}
		}
	}
	ratios := map[layout.Strategy][]float64{}
	for n, k := range layout.BugKinds {
		row := kindHunt{k.Name, k.What, perStrategy{}}
		for i, s := range compared {
			first := make([]float64, r.Bugs)
			for b := range first {
				first[b] = float64(r.Seeds + 1)
				if c := crashes[i][n*r.Bugs+b]; c != nil {
					first[b] = float64(c[0])
				}
			}
			slices.Sort(first)
			row.Median[s] = stat.Quantile(0.5, stat.Empirical, first, nil)
			ratios[s] = append(ratios[s], row.Median[s]/row.Median[compared[0]])
		}
		r.Kinds = append(r.Kinds, row)
	}
	r.Mean = perStrategy{}
	for s, v := range ratios {
		r.Mean[s] = stat.GeometricMean(v, nil)
	}
	return plans, nil
}

// minimize plays minimizing layouts of the first bugs of a kind, one of each where there is
// any, with journals in a folder.
func (r *hunted) minimize(ctx context.Context, dir string, h *layout.Hunt, sections []layout.Section, k layout.BugKind, plans []*layout.Plan) error {
	bugs, err := h.Draw(k, len(plans))
	if err != nil {
		return err
	}
	row := minimizeHunt{Kind: k.Name}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	for n, bug := range bugs {
		if plans[n] == nil {
			continue
		}
		group.Go(func() error {
			for _, to := range []*minimizedBoots{&row.Sure, &row.Flaky} {
				answer, right, err := search.Play(ctx, dir, h, sections, bug, *plans[n], to == &row.Flaky, func(string, ...any) {})
				if err != nil {
					return fmt.Errorf("minimizing a bug of the kind %q: %w", k.Name, err)
				}
				mu.Lock()
				to.Boots = append(to.Boots, answer.Minimized.Boots)
				if right {
					to.Right++
				}
				mu.Unlock()
			}
			return nil
		})
	}
	err = group.Wait()
	slices.Sort(row.Sure.Boots)
	slices.Sort(row.Flaky.Boots)
	r.Minimized = append(r.Minimized, row)
	return err
}

// boot sweeps a planted scenario by each strategy.
func (r *hunted) boot(ctx context.Context, name string, o *setup, seeds int, scr *screen) error {
	s, err := o.load([]string{name})
	if err != nil {
		return err
	}
	b, err := openSession(ctx, s, scr)
	if err != nil {
		return err
	}
	defer b.Close()
	sections, err := b.Layout(ctx)
	if err != nil {
		return err
	}
	h, err := layout.NewHunt(sections)
	if err != nil {
		return err
	}
	bug, err := h.PlantedBug(name)
	if err != nil {
		return err
	}
	workers, err := b.workers(scr)
	if err != nil {
		return err
	}
	for _, strategy := range compared {
		computed, err := h.Crashes(ctx, strategy, seeds, true, bug)
		if err != nil {
			return err
		}
		report, err := b.sweepFor(ctx, strategy, seeds, workers, func(string, ...any) {})
		if err != nil {
			return b.advise(err)
		}
		row := bootHunt{Scenario: name, Strategy: strategy, Computed: computed[0]}
		for _, l := range report.Layouts {
			if seed, ok := l.Layout.Seed(); ok && l.Found {
				row.Booted = append(row.Booted, int(seed))
			}
		}
		r.Booted = append(r.Booted, row)
	}
	return nil
}

// String is right, median and most.
func (m minimizedBoots) String() string {
	n := len(m.Boots)
	if n == 0 {
		return "\t\t\t"
	}
	return fmt.Sprintf("%d\t%d\t%d\t", m.Right, m.Boots[(n-1)/2], m.Boots[n-1])
}

func (r hunted) print(out io.Writer) {
	fmt.Fprintf(out, "%s: layouts to the first crash, median of %d bugs of each kind\n\n", r.Kernel, r.Bugs)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	name := func(s layout.Strategy) string { n, _, _ := strings.Cut(string(s), "/"); return n }
	fmt.Fprint(w, "kind\t")
	for _, s := range compared {
		fmt.Fprintf(w, "%s\t", name(s))
	}
	for _, s := range compared[1:] {
		fmt.Fprintf(w, "%s/%s\t", name(s), name(compared[0]))
	}
	fmt.Fprintln(w)
	for _, row := range r.Kinds {
		fmt.Fprintf(w, "%s\t", row.Kind)
		for _, s := range compared {
			text := strconv.Itoa(int(row.Median[s]))
			if row.Median[s] > float64(r.Seeds) {
				text = fmt.Sprint(">", r.Seeds)
			}
			fmt.Fprintf(w, "%s\t", text)
		}
		for _, s := range compared[1:] {
			bound := ""
			switch a, b := row.Median[s] > float64(r.Seeds), row.Median[compared[0]] > float64(r.Seeds); {
			case a && b:
				fmt.Fprint(w, "-\t")
				continue
			case a:
				bound = ">"
			case b:
				bound = "<"
			}
			fmt.Fprintf(w, "%s%.2f\t", bound, row.Median[s]/row.Median[compared[0]])
		}
		fmt.Fprintln(w)
	}
	fmt.Fprint(w, "geometric mean\t\t\t\t")
	for _, s := range compared[1:] {
		fmt.Fprintf(w, "%.2f\t", r.Mean[s])
	}
	fmt.Fprintln(w)
	w.Flush()
	fmt.Fprintln(out)
	for _, row := range r.Kinds {
		fmt.Fprintf(out, "  %-20s %s\n", row.Kind, row.What)
	}
	if r.Minimized != nil {
		fmt.Fprintf(out, "\nboots of minimize, of a layout of each of some bugs, by addresses alone:\n\n")
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(w, "kind\tlayouts\tright\tmedian\tmost\tflaky: right\tmedian\tmost\t")
		for _, m := range r.Minimized {
			fmt.Fprintf(w, "%s\t%d\t%s%s\n", m.Kind, len(m.Sure.Boots), m.Sure, m.Flaky)
		}
		w.Flush()
	}
	if r.Booted == nil {
		return
	}
	fmt.Fprintf(out, "\nbooted, and what the addresses say:\n")
	for _, b := range r.Booted {
		agree := "as computed"
		if !slices.Equal(b.Computed, b.Booted) {
			agree = fmt.Sprintf("COMPUTED %v", b.Computed)
		}
		fmt.Fprintf(out, "  %-11s %-8s %2d crash: %v, %s\n", b.Scenario, name(b.Strategy), len(b.Booted), b.Booted, agree)
	}
}
