package evidence

import (
	"errors"
	"io/fs"
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
	Layouts   []seeds.Record   `json:"layouts"`
}

// findings are those of some results, the unlucky ones first, then the most
// frequent. The error names seed files that cannot be read, and comes beside
// what could.
func Summaries(r *Results) (out []Summary, failed error) {
	report := r.Report()
	of := 0
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
		out = append(out, g)
	}
	return out, failed
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
