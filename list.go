package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"strings"
	"text/tabwriter"

	"unlucky/fuzz/evidence"
	"unlucky/seeds"
)

// finding is one title of a sweep and the layouts that showed it, as list and
// report tell of it.
type finding struct {
	Scenario  string           `json:"scenario"`
	Object    string           `json:"object"` // digest of vmlinux.o
	Title     string           `json:"title"`
	Found     bool             `json:"found"`   // it is the crash looked for
	Of        int              `json:"of"`      // layouts that have booted to a verdict, the baseline too
	Boots     int              `json:"boots"`   // of its layouts
	Crashes   int              `json:"crashes"` // boots of those that failed
	File      string           `json:"file"`    // seed file of the layout to begin with
	Minimized *seeds.Minimized `json:"minimized,omitempty"`
	Layouts   []seeds.Record   `json:"layouts"`
}

// findings are those of some results, the unlucky ones first, then the most
// frequent. The error names seed files that cannot be read, and comes beside
// what could.
func findings(r *evidence.Results) (out []finding, failed error) {
	report := r.Report()
	of := 0
	for _, t := range r.All() {
		if evidence.Booted(t.Kind) {
			of++
		}
	}
	for _, f := range append(report.Unlucky(), report.Others()...) {
		g := finding{Scenario: r.Header.Scenario, Object: r.Header.Object, Title: f.Title, Found: f.Layouts[0].Found, Of: of, Layouts: f.Layouts}
		best := f.Layouts[0]
		for _, l := range f.Layouts {
			g.Boots += l.Boots
			g.Crashes += l.Crashes
			if l.Path == "" {
				continue
			}
			// A seed rather than the baseline, and one that fails each time.
			if best.Path == "" || best.Layout == seeds.Baseline || l.Crashes*best.Boots > best.Crashes*l.Boots {
				best = l
			}
			m, err := seeds.Read(seeds.MinimizedPath(l.Path))
			switch {
			case errors.Is(err, fs.ErrNotExist):
			case err != nil:
				failed = errors.Join(failed, err)
			case g.Minimized == nil || len(g.Minimized.Culprits) == 0:
				g.Minimized, g.File = m.Minimized, l.Path
			}
		}
		if g.File == "" {
			g.File = best.Path
		}
		out = append(out, g)
	}
	return out, failed
}

// withBaseline says that a number of layouts has the baseline in it, where that was
// tried: a sweep's own report counts seeds.
func withBaseline(tried bool) string {
	if tried {
		return " with the baseline"
	}
	return ""
}

// answer is what minimizing has shown of a finding, in a few words.
func (f finding) answer() string {
	switch {
	case f.Minimized == nil:
		return ""
	case len(f.Minimized.Culprits) == 0:
		return "minimized: no few functions decide"
	}
	var culprits []string
	for _, c := range f.Minimized.Culprits {
		var names []string
		for _, f := range c.Functions {
			names = append(names, f.Name)
		}
		culprits = append(culprits, strings.Join(names, " + "))
	}
	return "minimized: " + strings.Join(culprits, "; ")
}

func list(ctx context.Context, args []string, _ io.Reader, out io.Writer) error {
	f := flag.NewFlagSet("list", flag.ContinueOnError)
	asJSON := f.Bool("json", false, "print them as JSON, one object a line")
	dirs, err := parse(f, args, out, "list DIR... [flags]", 1, math.MaxInt)
	if err != nil {
		return err
	}
	all, failed := evidence.ReadResults(dirs, newScreen(os.Stderr).note)
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "scenario\tlayouts, baseline too\tboots\ttitle\tseed file\t")
	n := 0
	for _, r := range all {
		found, err := findings(r)
		failed = errors.Join(failed, err)
		for _, f := range found {
			n++
			if *asJSON {
				if err := json.NewEncoder(out).Encode(f); err != nil {
					return err
				}
				continue
			}
			fmt.Fprintf(w, "%s\t%d/%d\t%d/%d\t%s\t%s\t%s\n", f.Scenario, len(f.Layouts), f.Of, f.Crashes, f.Boots, f.Title, f.File, f.answer())
		}
	}
	switch {
	case *asJSON:
	case n > 0:
		w.Flush()
		for line := range strings.Lines(b.String()) {
			io.WriteString(out, printable(strings.TrimRight(line, " \n")+"\n"))
		}
	case failed == nil:
		io.WriteString(out, "nothing has been found\n")
	}
	return failed
}
