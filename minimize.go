package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"unlucky/fuzz/evidence"
	"unlucky/fuzz/search"
	"unlucky/layout"
	"unlucky/seeds"
)

// switches of the kernel command line that name a subsystem in one boot each.
var switches = []string{"cfi=off", "mitigations=off", "indirect_target_selection=off", "spectre_v2=off",
	"spec_rstack_overflow=off", "nokaslr", "nosmp"}

func minimize(ctx context.Context, args []string, _ io.Reader, out io.Writer) error {
	f := flag.NewFlagSet("minimize", flag.ContinueOnError)
	o := overrides(f)
	o.packed(f)
	o.trusting(f)
	var (
		boots    = f.Int("boots", 0, "least `N` boots of a layout before it passes (default: as many as the failure's rate asks for)")
		budget   = f.Duration("budget", 30*time.Minute, "`time` after which to stop with the best so far; 0 for no limit")
		maxBoots = f.Int("max-boots", 0, "`N` boots in all, the last two for the answer, after which to stop with the best so far (one that hangs takes two); 0 for no limit")
		workers  = f.Int("j", 0, "`layouts` linked and booted at the same time (default: as many as there are CPUs for, and memory)")
		match    = f.String("match", "", "`regexp` over title and console of the failure to follow; other crashes are saved and decide nothing")
		ablate   = f.Bool("ablate", true, "try which switches of the kernel command line make it pass")
		path     = f.String("o", "", "`file` of the result (default: SEED.min.yaml beside the seed file)")
		asJSON   = f.Bool("json", false, "print the result as JSON")
	)
	rest, err := parse(f, args, out, "minimize SEEDFILE [flags]", 1, 1)
	if err != nil {
		return err
	}
	if *boots == 0 && given(f, "boots") {
		return usageError{errors.New("-boots 0: at least 1, or leave it out")}
	}
	if *boots < 0 || *maxBoots < 0 || *workers < 0 || *budget < 0 {
		return usageError{errors.New("-boots, -max-boots, -j and -budget take no negative value")}
	}
	m := &search.Minimize{Boots: *boots, MaxBoots: *maxBoots, Budget: *budget, Workers: *workers, Path: *path}
	if *match != "" {
		if m.Match, err = regexp.Compile(*match); err != nil {
			return usageError{fmt.Errorf("-match: %w", err)}
		}
	}
	if err := notFolder(rest[0]); err != nil {
		return err
	}
	if m.Failed, err = seeds.Read(rest[0]); err != nil {
		return err
	}
	if m.Path == "" {
		m.Path = seeds.MinimizedPath(rest[0])
	}
	if filepath.Ext(m.Path) != ".yaml" || sameFile(m.Path, rest[0]) {
		return usageError{fmt.Errorf("-o %s: want a file that ends in .yaml and is not the seed file", m.Path)}
	}
	scr := newScreen(os.Stderr)
	b, err := prepareSaved(ctx, rest[0], m.Failed, o, scr)
	if err != nil {
		return err
	}
	defer b.Close()
	scenario := b.saved.Scenario
	m.Kernel, m.Guest, m.Now = b, b.guest, b.saved
	if m.Workers == 0 {
		if m.Workers, err = b.workers(scr); err != nil {
			return err
		}
	}
	if *ablate {
		m.Switches = slices.Concat(switches, scenario.Guest.Ablate)
	}
	m.Twins = twinsOf(rest[0], b.Digest)
	m.Suspects = suspectsOf(ctx, rest[0], b.Digest, scr)
	m.Note = scr.note
	m.Step = func(p search.Progress) {
		text := fmt.Sprintf("%d boots; %s?", p.Boots, p.Question)
		if p.Left > 1 {
			text = fmt.Sprintf("%d boots; of %d in question, %s?", p.Boots, p.Left, p.Question)
		}
		scr.doing("minimizing", text)
	}
	scr.note("minimizing %s of %s; ^C stops, and the same command goes on", m.Failed.Layout.Name(), scenario.Name)
	result, err := m.Run(ctx)
	scr.done()
	if ctx.Err() != nil {
		scr.note("interrupted; the same command continues here")
		return exit(exitInterrupted)
	}
	if err != nil {
		return b.advise(err)
	}
	if *asJSON {
		err = json.NewEncoder(out).Encode(struct {
			Path string           `json:"path"`
			Seed seeds.ID         `json:"seed"`
			Plan *layout.Plan     `json:"plan"`
			Min  *seeds.Minimized `json:"minimized"`
		}{m.Path, result.Layout, result.Plan, result.Minimized})
	} else {
		share := m.Path
		if share == seeds.MinimizedPath(rest[0]) { // so the answer is in its bundle
			share = rest[0]
		}
		printMinimized(out, result, m.Path, share, o.again())
	}
	if err == nil && !result.Minimized.Complete {
		return exit(exitFailed)
	}
	return err
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

// maxListed is how many paddings a report lists; the file has them all.
const maxListed = 8

// printMinimized prints what decides, and what can be done with it. share is the
// seed file to bundle.
func printMinimized(out io.Writer, f *seeds.File, path, share, again string) {
	again = trustFlag(f.Scenario) + again
	text := fmt.Sprintf("%s\nthe answer failed again in %d of %d boots; saved as %s\nnext, for example:\n  unlucky replay %s%s\n  unlucky bundle %s%s\n",
		answer(f), f.Crashes, f.Boots, path, path, again, share, again)
	io.WriteString(out, printable(text))
}

// answer says what decides, as one would put it into a mail.
func answer(f *seeds.File) string {
	var b bytes.Buffer
	m := f.Minimized
	fmt.Fprintf(&b, "%s of %s, minimized in %d boots\n\n", f.Layout.Name(), f.Scenario.Name, m.Boots)
	switch len(m.Culprits) {
	case 0:
		what := "no few functions decide"
		if !m.Complete {
			what = "not decided within the limit"
		}
		fmt.Fprintf(&b, "%s; the smallest plan so far that fails has %s\n", what, changes(*f.Plan))
	case 1:
		fmt.Fprintf(&b, "%s\n", m.Culprits[0])
	default:
		fmt.Fprintf(&b, "%d culprits, each of which is enough:\n", len(m.Culprits))
		for i, c := range m.Culprits {
			fmt.Fprintf(&b, "%2d. %s\n", i+1, c)
		}
	}
	for i, c := range m.Culprits {
		fmt.Fprintln(&b)
		if len(m.Culprits) > 1 {
			fmt.Fprintf(&b, "%d. ", i+1)
		}
		printTable(&b, c, m.Passing)
	}
	if m.Twin != nil {
		printPlan(&b, f, m)
	}
	if len(m.Switches) > 0 {
		fmt.Fprintf(&b, "\nwith one switch more on the kernel command line:\n")
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, s := range m.Switches {
			fmt.Fprintf(w, "  %s\t%s\t%s\n", s.Append, s.Verdict(), ofBoots(s.Boots))
		}
		w.Flush()
	}
	fmt.Fprintf(&b, "\nfaces met, in boots:\n")
	titles := slices.Sorted(maps.Keys(m.Faces))
	slices.SortStableFunc(titles, func(x, y string) int { return m.Faces[y] - m.Faces[x] })
	for _, t := range titles {
		fmt.Fprintf(&b, "  %4d  %s\n", m.Faces[t], t)
	}
	if m.Failing.Crashes < m.Failing.Boots {
		passes := 1 - float64(m.Failing.Crashes)/float64(m.Failing.Boots)
		fmt.Fprintf(&b, "\nflaky: the layouts that fail do so in %d of %d boots; a pass stands on %d boots or more, and is wrong with a chance of %.2g %% or less\n",
			m.Failing.Crashes, m.Failing.Boots, m.Needed, 100*math.Pow(passes, float64(m.Needed)))
	}
	for _, note := range m.Notes {
		fmt.Fprintf(&b, "\n%s\n", note)
	}
	return spaces.ReplaceAllString(b.String(), "")
}

// spaces are those that tables leave at the ends of lines.
var spaces = regexp.MustCompile(`(?m) +$`)

// changes is how much a plan changes, in words.
func changes(p layout.Plan) string {
	text := fmt.Sprintf("%d paddings", len(p.Paddings))
	if len(p.Paddings) == 1 {
		text = "1 padding"
	}
	if len(p.Order) > 0 {
		text += fmt.Sprintf(" and %d functions out of place", len(p.Order))
	}
	return text
}

func ofBoots(b seeds.Boots) string {
	return fmt.Sprintf("%d of %d boots fail", b.Crashes, b.Boots)
}

// printTable prints how a culprit fares at each residue.
func printTable(out io.Writer, c seeds.Culprit, passing string) {
	fmt.Fprintf(out, "alone, all else as in %s: %s", passing, ofBoots(c.Alone))
	if c.Elsewhere.Boots > 0 {
		fmt.Fprintf(out, "; with all else changed: %s", ofBoots(c.Elsewhere))
	}
	fmt.Fprintln(out)
	if c.Modulus == 0 {
		return
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "  moved by")
	for _, f := range c.Functions {
		if f.Moved {
			fmt.Fprintf(w, "\t%s mod %#x", f.Name, c.Modulus)
		}
	}
	fmt.Fprintln(w, "\t\t")
	for i := 0; i < len(c.Residues); i++ {
		// A long table shows where it changes.
		first := i
		for len(c.Residues) > 32 && i+1 < len(c.Residues) && c.Residues[i+1].Verdict() == c.Residues[first].Verdict() {
			i++
		}
		var sum seeds.Boots
		for _, r := range c.Residues[first : i+1] {
			sum.Boots, sum.Crashes, sum.Others = sum.Boots+r.Boots.Boots, sum.Crashes+r.Crashes, sum.Others+r.Others
		}
		span := func(at func(uint64) string) string {
			text := at(c.Residues[first].Bytes)
			if i > first {
				text += " to " + at(c.Residues[i].Bytes)
			}
			return text
		}
		fmt.Fprintf(w, "  %s", span(func(n uint64) string { return fmt.Sprint(n) }))
		for _, f := range c.Functions {
			if f.Moved {
				fmt.Fprintf(w, "\t%s", span(func(n uint64) string { return fmt.Sprintf("%#x", (f.Address+n)%c.Modulus) }))
			}
		}
		fmt.Fprintf(w, "\t%s\t%s\n", c.Residues[first].Verdict(), ofBoots(sum))
	}
	w.Flush()
}

// printPlan prints the smallest failing plan beside its passing twin.
func printPlan(out io.Writer, f *seeds.File, m *seeds.Minimized) {
	twin := map[string]uint64{}
	for _, p := range m.Twin.Paddings {
		twin[p.Section] = p.Bytes
	}
	var differ []layout.Padding
	for _, p := range f.Plan.Paddings {
		if twin[p.Section] != p.Bytes {
			differ = append(differ, p)
		}
		delete(twin, p.Section)
	}
	for _, p := range m.Twin.Paddings {
		if _, ok := twin[p.Section]; ok {
			differ = append(differ, layout.Padding{Section: p.Section})
		}
	}
	for _, p := range m.Twin.Paddings {
		twin[p.Section] = p.Bytes
	}
	var moved []string
	if !slices.Equal(f.Plan.Order, m.Twin.Order) {
		moved = f.Plan.Order
	}
	what := "the smallest failing plan found"
	if m.Passing != seeds.Baseline.Name() && len(m.Culprits) > 0 {
		what = "the first culprit alone, all else as in " + m.Passing + ": a plan that" // not the smallest: the baseline fails
	}
	fmt.Fprintf(out, "\n%s has %s; its passing twin differs in %s:\n", what, changes(*f.Plan), changes(layout.Plan{Paddings: differ, Order: moved}))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	for i, p := range differ {
		if i == maxListed {
			fmt.Fprintf(w, "  ...\t\t\t\n")
			break
		}
		if i == 0 {
			fmt.Fprintf(w, "  fails\tpasses\t\n")
		}
		fmt.Fprintf(w, "  %d\t%d\t", p.Bytes, twin[p.Section])
		fmt.Fprintf(w, "  bytes before %s\n", p.Section)
	}
	w.Flush()
	if moved != nil {
		more := ""
		if len(moved) > maxListed {
			moved, more = moved[:maxListed], " ..."
		}
		fmt.Fprintf(out, "  these take each other's places, in this order:\n    %s%s\n", strings.Join(moved, " "), more)
	}
}
