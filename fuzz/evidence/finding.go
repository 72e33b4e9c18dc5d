package evidence

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"unlucky/seeds"
)

// finding is one title of a sweep and the layouts that showed it, as list and
// report tell of it.
type Summary struct {
	Scenario  string           `json:"scenario"`
	Object    string           `json:"object"` // digest of vmlinux.o
	Title     string           `json:"title"`
	Found     bool             `json:"found"`   // it is the crash looked for
	Of        int              `json:"of"`      // layouts that have booted to a verdict, the baseline too
	Boots     int              `json:"boots"`   // of its layouts
	Crashes   int              `json:"crashes"` // boots of those that failed
	File      string           `json:"file"`    // seed file of the layout to begin with
	Minimized *seeds.Minimized `json:"minimized,omitempty"`
	// Autopsy is what the memory of one of its layouts has told, nil where none was
	// looked into; Bug is the number, from 1 on, of those of the kernel with the same
	// damage that has run, and 0 where there is none.
	Autopsy *seeds.Autopsy `json:"autopsy,omitempty"`
	Bug     int            `json:"bug,omitempty"`
	Layouts []seeds.Record `json:"layouts"`
}

// findings are those of some results, the unlucky ones first, then the most
// frequent. The error names seed files that cannot be read, and comes beside
// what could.
func Summaries(r *Results) (out []Summary, failed error) {
	report := r.Report()
	of, causes := 0, []string{}
	for _, t := range r.All() {
		if Booted(t.Kind) {
			of++
		}
	}
	for _, f := range append(report.Unlucky(), report.Others()...) {
		g := Summary{Scenario: r.Header.Scenario, Object: r.Header.Object, Title: f.Title, Found: f.Layouts[0].Found, Of: of, Layouts: f.Layouts}
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
		a, err := autopsyOf("", f.Layouts)
		if failed = errors.Join(failed, err); a == nil && g.Minimized != nil {
			a = g.Minimized.Autopsy
		}
		if g.Autopsy = a; a.Cause() != "" {
			i := slices.Index(causes, a.Cause())
			if i < 0 {
				i = len(causes)
				causes = append(causes, a.Cause())
			}
			g.Bug = i + 1
		}
		out = append(out, g)
	}
	return out, failed
}

// Memory is what memory has told of a finding, in a few words; empty for nothing.
func (f Summary) Memory() string {
	switch {
	case f.Autopsy == nil:
		return ""
	case f.Bug > 0:
		return fmt.Sprintf("bug %d: %s", f.Bug, f.Autopsy.Cause())
	case len(f.Autopsy.Damage) > 0:
		return "no damage has run"
	}
	return "code intact"
}

// Answer is what minimizing has shown of a finding, in a few words.
func (f Summary) Answer() string {
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
