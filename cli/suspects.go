package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/dustin/go-humanize"

	"unlucky/fuzz/evidence"
	"unlucky/qemu"
	"unlucky/scenarios"
)

// suspected is what the sweeps of one kernel say of its functions.
type suspected struct {
	Scenario string   `json:"scenario"`
	Object   string   `json:"object"` // digest of vmlinux.o
	Sweeps   []string `json:"sweeps"` // their folders
	*evidence.Suspicion

	file     string // seed file to minimize
	baseline bool   // it is one of the layouts
	moving   string // what can move
}

func suspects(f *flag.FlagSet) *command {
	var (
		n      = f.Int("n", 20, "`N` suspects to list, the best of each bug first")
		asJSON = f.Bool("json", false, "print it as JSON")
	)
	return &command{
		args: "DIR...", min: 1, max: math.MaxInt,
		summary:  "rank the functions whose addresses go with failing",
		examples: []string{"unlucky suspects unlucky.out/kcfi-seal -n 4"},
		run: func(ctx context.Context, c call) error {
			if *n < 1 {
				return usageError{errors.New("-n takes no value below 1")}
			}
			all, failed := evidence.ReadResults(c.args, c.scr.note)
			var told []suspected
			for _, r := range all {
				if r.Layout == nil && r.LayoutErr == nil {
					c.scr.note("%s: left out: under strategy lld only the images tell where the functions are", strings.Join(r.Dirs, ", "))
					continue
				}
				suspicion, err := r.Suspects(ctx, c.scr.later("ranking the functions"))
				c.scr.done()
				if err != nil {
					failed = errors.Join(failed, err)
					continue
				}
				if suspicion.Omitted > 0 {
					c.scr.note("%s: %s layouts are left out: of strategy lld, or more than fit the memory", strings.Join(r.Dirs, ", "), humanize.Comma(int64(suspicion.Omitted)))
				}
				suspicion.Suspects = suspicion.Best(*n)
				s := suspected{Scenario: r.Header.Scenario, Object: r.Header.Object, Sweeps: r.Dirs, Suspicion: suspicion}
				s.file, s.baseline, s.moving = toMinimize(r, suspicion), r.Baseline != nil, scenarios.Moving(r.Header.Sections)
				told = append(told, s)
			}
			return errors.Join(failed, printAll(c.out, *asJSON, told))
		},
	}
}

// toMinimize is the seed file of a layout that the best suspect explains, or of
// any that fails.
func toMinimize(r *evidence.Results, s *evidence.Suspicion) (file string) {
	for _, l := range r.Layouts {
		switch {
		case l.Path == "" || l.Kind == qemu.Pass:
		case len(s.Suspects) > 0 && slices.Contains(s.Suspects[0].Layouts, l.Layout):
			return l.Path
		case file == "":
			file = l.Path
		}
	}
	return file
}

func (s suspected) print(out io.Writer) {
	comma := func(n int) string { return humanize.Comma(int64(n)) }
	fmt.Fprintf(out, "%s: %s layouts%s of vmlinux.o %.12s in %s, %s fail\n", s.Scenario, comma(s.Layouts), withBaseline(s.baseline), s.Object, strings.Join(s.Sweeps, ", "), comma(s.Fails))
	for i := 0; i < len(s.Suspects); {
		first := i
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for ; i < len(s.Suspects) && s.Suspects[i].Bug == s.Suspects[first].Bug; i++ {
			suspect := s.Suspects[i]
			if i == first {
				fmt.Fprintf(out, "\n%s\n", explained(suspect))
				fmt.Fprintln(w, "  rank\tchance\tresidues\tfail there\telsewhere\t"+strings.TrimSuffix(s.moving, "s"))
			}
			fmt.Fprintf(w, "  %d\t%.1g\t%s\t%d/%d\t%d/%d\t%s\n", suspect.Rank, suspect.Chance, where(suspect),
				suspect.There.Fails, suspect.There.Of, suspect.Elsewhere.Fails, suspect.Elsewhere.Of, named(suspect))
		}
		w.Flush()
		if n := slices.IndexFunc(s.Suspects[first:i], func(s evidence.Suspect) bool { return s.Rank > 1 }); n > 1 || n < 0 && i-first > 1 {
			fmt.Fprintln(out, "  those of rank 1 are ties: no layout tells them apart, and the likeliest stands first")
		}
		if best := s.Suspects[first]; best.Chance <= evidence.Sure {
			printTied(out, best.Functions, s.moving)
			printTied(out, best.With, s.moving)
		}
	}
	if s.TooFew != "" {
		fmt.Fprintf(out, "\n%s\n", s.TooFew)
	}
	if s.file != "" {
		fmt.Fprintf(out, "\nnext, for example:\n  unlucky minimize %s\n", s.file)
	}
}

// explained says which failures a suspect stands for.
func explained(s evidence.Suspect) string {
	text := fmt.Sprintf("bug %d", s.Bug)
	if s.Chance > evidence.Sure {
		text = "unsure"
	}
	if len(s.Titles) == 1 {
		return fmt.Sprintf("%s: %s", text, s.Titles[0])
	}
	return fmt.Sprintf("%s: %d titles, such as %s", text, len(s.Titles), s.Titles[0])
}

// spans are residues in a few words.
func spans(residues []evidence.Span) string {
	var out []string
	for _, r := range residues {
		text := fmt.Sprintf("%#x", r.First)
		if r.Last != r.First {
			text += fmt.Sprintf("-%#x", r.Last)
		}
		out = append(out, text)
	}
	return strings.Join(out, ",")
}

// where is where a suspect fails.
func where(s evidence.Suspect) string {
	switch {
	case s.Bound == nil:
		return fmt.Sprintf("%s mod %#x", spans(s.Residues), s.Modulus)
	case s.Bound.Nearer:
		return fmt.Sprintf("at most %#x bytes", s.Bound.Bytes)
	}
	return fmt.Sprintf("at least %#x bytes", s.Bound.Bytes)
}

// named names the first function of a suspect and says how many are tied with
// it.
func named(s evidence.Suspect) string {
	name := func(functions []evidence.SuspectFunction) string {
		text := functions[0].Name
		if functions[0].Next != "" {
			text += ", directly followed by " + functions[0].Next
		}
		if len(functions) > 1 {
			text += fmt.Sprintf(" (1 of %d tied)", len(functions))
		}
		return text
	}
	if s.With == nil {
		return name(s.Functions)
	}
	return fmt.Sprintf("%s less %s", name(s.Functions), name(s.With))
}

// maxTied is how many functions that are tied are listed, and mailWidth how many
// columns a mail has.
const (
	maxTied   = 40
	mailWidth = 96
)

// printTied lists functions that no layout tells apart.
func printTied(out io.Writer, functions []evidence.SuspectFunction, moving string) {
	if len(functions) < 2 {
		return
	}
	likeliest := ""
	switch best := functions[0]; {
	case best.Straddles:
		likeliest = ", first the one that lies across a border where it fails"
	case best.Traced:
		likeliest = ", first the one that a failure's trace names"
	}
	fmt.Fprintf(out, "  rank 1 is a tie of %d %s that have moved as one%s; more seeds or minimize tell them apart:\n", len(functions), moving, likeliest)
	line := "   "
	for i, f := range functions {
		word := " " + f.Name
		if f.Residues != nil {
			word += " " + spans(f.Residues)
		}
		if i+1 < len(functions) {
			word += ","
		}
		if i == maxTied {
			word = " ..."
		}
		if len(line)+len(word) > mailWidth {
			fmt.Fprintln(out, line)
			line = "   "
		}
		if line += word; i == maxTied {
			break
		}
	}
	fmt.Fprintln(out, line)
}
