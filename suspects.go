package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/dustin/go-humanize"

	"unlucky/fuzz"
)

// suspected is what the sweeps of one kernel say of its functions.
type suspected struct {
	Scenario string   `json:"scenario"`
	Object   string   `json:"object"` // digest of vmlinux.o
	Sweeps   []string `json:"sweeps"` // their folders
	*fuzz.Suspicion

	file string // seed file to minimize
}

func suspects(ctx context.Context, args []string, _ io.Reader, out io.Writer) error {
	f := flag.NewFlagSet("suspects", flag.ContinueOnError)
	var (
		n      = f.Int("n", 20, "`N` suspects to list, the best first")
		asJSON = f.Bool("json", false, "print it as JSON")
	)
	dirs, err := parse(f, args, out, "suspects DIR... [flags]", 1, math.MaxInt)
	if err != nil {
		return err
	}
	if *n < 1 {
		return usageError{errors.New("-n takes no value below 1")}
	}
	scr := newScreen(os.Stderr)
	all, failed := fuzz.ReadResults(dirs, scr.note)
	var told []suspected
	for _, r := range all {
		if r.Layout == nil && r.LayoutErr == nil {
			scr.note("%s: left out: under strategy lld only the images tell where the functions are", strings.Join(r.Dirs, ", "))
			continue
		}
		suspicion, err := r.Suspects(ctx, scr.later("placing the functions"))
		scr.done()
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		if suspicion.Omitted > 0 {
			scr.note("%s: %s layouts are left out: of strategy lld, or more than fit the memory", strings.Join(r.Dirs, ", "), humanize.Comma(int64(suspicion.Omitted)))
		}
		suspicion.Suspects = suspicion.Suspects[:min(*n, len(suspicion.Suspects))]
		s := suspected{Scenario: r.Header.Scenario, Object: r.Header.Object, Sweeps: r.Dirs, Suspicion: suspicion}
		s.file = toMinimize(r, suspicion)
		told = append(told, s)
		if *asJSON {
			continue
		}
		if len(told) > 1 {
			fmt.Fprintln(out)
		}
		var b strings.Builder
		s.print(&b)
		io.WriteString(out, printable(b.String())) // it has names out of objects
	}
	if *asJSON && len(told) > 0 {
		failed = errors.Join(failed, json.NewEncoder(out).Encode(told))
	}
	return failed
}

// toMinimize is the seed file of a layout that the best suspect explains, or of
// any that fails.
func toMinimize(r *fuzz.Results, s *fuzz.Suspicion) (file string) {
	for _, l := range r.Layouts {
		switch {
		case l.Path == "":
		case len(s.Suspects) > 0 && slices.Contains(s.Suspects[0].Layouts, l.Layout):
			return l.Path
		case file == "":
			file = l.Path
		}
	}
	return file
}

// maxTied is how many functions of a suspect are listed.
const maxTied = 12

func (s suspected) print(out io.Writer) {
	fmt.Fprintf(out, "%s: %s layouts of vmlinux.o %.12s in %s, of which %s fail\n", s.Scenario, humanize.Comma(int64(s.Layouts)), s.Object,
		strings.Join(s.Sweeps, ", "), humanize.Comma(int64(s.Fails)))
	bug := 0
	var w *tabwriter.Writer
	for i, suspect := range s.Suspects {
		if suspect.Bug != bug {
			if w != nil {
				w.Flush()
			}
			bug = suspect.Bug
			fmt.Fprintf(out, "\n%s\n", heading(suspect))
			w = tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "  rank\tchance\tresidues\tfail there\telsewhere\tfunction")
		}
		fmt.Fprintf(w, "  %d\t%s\t%s\t%d/%d\t%d/%d\t%s\n", i+1, percent(suspect.Chance), residues(suspect),
			suspect.There.Fails, suspect.There.Of, suspect.Elsewhere.Fails, suspect.Elsewhere.Of, named(suspect))
	}
	if w != nil {
		w.Flush()
	}
	if s.TooFew != "" {
		fmt.Fprintf(out, "\n%s\n", s.TooFew)
	}
	if s.file != "" {
		fmt.Fprintf(out, "\nnext, for example:\n  unlucky minimize %s\n", s.file)
	}
}

func heading(s fuzz.Suspect) string { return strings.Join(s.Titles, ", ") }

func percent(p float64) string { return fmt.Sprintf("%.2g", p) }

func residues(s fuzz.Suspect) string {
	var spans []string
	for _, r := range s.Residues {
		text := fmt.Sprintf("%#x", r.First)
		if r.Last != r.First {
			text += fmt.Sprintf("-%#x", r.Last)
		}
		spans = append(spans, text)
	}
	return fmt.Sprintf("%s mod %#x", strings.Join(spans, ","), s.Modulus)
}

func named(s fuzz.Suspect) string {
	list := func(functions []fuzz.SuspectFunction) string {
		var names []string
		for _, f := range functions {
			names = append(names, f.Name)
		}
		return strings.Join(names[:min(len(names), maxTied)], " ")
	}
	text := list(s.Functions)
	if s.With != nil {
		text += " less " + list(s.With)
	}
	return text
}
