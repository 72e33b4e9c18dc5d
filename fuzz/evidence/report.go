package evidence

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"unlucky/layout"
	"unlucky/linker"
	"unlucky/qemu"
	"unlucky/scenarios"
	"unlucky/seeds"
)

// Report is what a sweep has found.
type Report struct {
	seeds.Header
	Strategy layout.Strategy `json:"strategy"`
	Shard    seeds.Shard     `json:"shard,omitzero"` // whose layouts these are
	Dir      string          `json:"dir"`            // Record.Path is relative to it
	Baseline seeds.Record    `json:"baseline"`
	Layouts  []seeds.Record  `json:"layouts"`  // in the order of seeds
	Beyond   int             `json:"beyond"`   // layouts tried behind the seed at which -stop-after stopped
	Left     int             `json:"left"`     // layouts of the range that were not tried: the sweep has ended early
	Tried    int             `json:"tried"`    // layouts of this run
	OnePass  int             `json:"one_pass"` // links of this run, the baseline's too, without the whole script
	Delta    int             `json:"delta"`    // of these, without lld
	Elapsed  time.Duration   `json:"elapsed"`  // of this run, without the baseline
	Steps    Steps           `json:"steps"`    // of the layouts of this run
	// Doubts are the reasons why this may say nothing of layouts; Idle tells that it
	// does say nothing.
	Doubts []string `json:"doubts,omitempty"`
	Idle   bool     `json:"idle,omitempty"`
	// Bugs are what the memories of layouts have told, where the sweep has looked into
	// them.
	Bugs []Bug `json:"bugs,omitempty"`
	// Coverage is by all layouts of the journal, whatever their seeds. It is nil
	// for a kernel that has none.
	Coverage *Totals `json:"coverage,omitempty"`
}

// Steps are the parts of trying layouts, in wall-clock time summed over those
// that go on at the same time.
type Steps struct {
	linker.Steps
	Start   time.Duration `json:"start"`   // of QEMU, until the guest's first byte
	Boot    time.Duration `json:"boot"`    // until QEMU's end; confirming boots too
	Verdict time.Duration `json:"verdict"` // saved seeds, journal
}

// Add sums up.
func (s *Steps) Add(t Steps) {
	s.Pad += t.Pad
	s.Link += t.Link
	s.Kallsyms += t.Kallsyms
	s.Image += t.Image
	s.Start += t.Start
	s.Boot += t.Boot
	s.Verdict += t.Verdict
}

// Shows tells whether a boot shows the crash that a scenario looks for.
func Shows(v scenarios.Verdict, r qemu.Result) bool {
	if r.Kind == qemu.Pass || r.Kind == qemu.Infra {
		return false
	}
	return v.Crash.Regexp == nil || v.Crash.MatchString(r.Title) || v.Crash.Match(r.Console)
}

// Unlucky are the finds of a sweep by title, the most frequent title first.
func (r *Report) Unlucky() []Finding { return r.findings(true) }

// Others are the layouts that failed, but not as looked for.
func (r *Report) Others() []Finding { return r.findings(false) }

// Finding is one title and the layouts that showed it at their first boot.
type Finding struct {
	Title   string
	Layouts []seeds.Record
}

func (r *Report) findings(found bool) []Finding {
	var out []Finding
	for _, l := range append([]seeds.Record{r.Baseline}, r.Layouts...) {
		if l.Found != found || l.Kind != qemu.Crash && l.Kind != qemu.Hang {
			continue
		}
		if l.Path == "" { // the baseline, which another shard saves
			continue
		}
		i := slices.IndexFunc(out, func(f Finding) bool { return f.Title == l.Title })
		if i < 0 {
			out = append(out, Finding{Title: l.Title})
			i = len(out) - 1
		}
		out[i].Layouts = append(out[i].Layouts, l)
	}
	slices.SortStableFunc(out, func(a, b Finding) int { return cmp.Compare(len(b.Layouts), len(a.Layouts)) })
	return out
}

// Count is the number of layouts, without the baseline, of a kind.
func (r *Report) Count(k qemu.Kind) int {
	n := 0
	for _, l := range r.Layouts {
		if l.Kind == k {
			n++
		}
	}
	return n
}

// Finds is the number of unlucky layouts, without the baseline.
func (r *Report) Finds() int {
	n := 0
	for _, l := range r.Layouts {
		if l.Found {
			n++
		}
	}
	return n
}

// PerHour is how many layouts an hour this run has tried.
func (r *Report) PerHour() float64 {
	if r.Elapsed <= 0 {
		return 0
	}
	return float64(r.Tried) / r.Elapsed.Hours()
}

// doubts are the reasons why what a sweep has seen so far may say nothing of
// layouts, each with the line of the scenario to look at; idle tells that it has
// shown nothing: no layout had a verdict of its own.
func (r *Report) Weigh(s scenarios.Scenario) (doubts []string, idle bool) {
	var booted []seeds.Record
	for _, l := range append([]seeds.Record{r.Baseline}, r.Layouts...) {
		if Booted(l.Kind) {
			booted = append(booted, l)
		}
	}
	doubt := func(format string, a ...any) { doubts = append(doubts, fmt.Sprintf(format, a...)) }
	if n := len(r.Layouts); n > 0 && r.Count(qemu.LinkFailed) == n {
		doubt("none of %d layouts links, so nothing was shown: another -strategy may (text pads what a linker script takes)", n)
		return doubts, true
	}
	count := func(which func(seeds.Record) bool) (n int) {
		for _, l := range booted {
			if which(l) {
				n++
			}
		}
		return n
	}
	passed := count(func(l seeds.Record) bool { return l.Kind == qemu.Pass })
	hung := count(func(l seeds.Record) bool { return l.Kind == qemu.Hang })
	alike := count(func(l seeds.Record) bool { return l.Title == booted[0].Title })
	switch n := len(booted); {
	case n == 0 || passed > 0:
	case hung == n:
		doubt("every boot has hung: is guest.limit, %s, too short, or does no good boot print verdict.pass, %q", s.Guest.Limit, s.Verdict.Pass)
		idle = true
	case alike == n && n > 1:
		doubt("all layouts fail alike, so nothing was shown of layouts: probably not a layout bug, or no good boot prints verdict.pass, %q", s.Verdict.Pass)
		idle = true
	case len(r.Layouts) > 0 || !r.Baseline.Found || booted[0].Title == qemu.UnexpectedExit:
		doubt("no boot has passed: does a good one print verdict.pass, %q", s.Verdict.Pass)
	}
	if others, unlucky := r.Others(), r.Unlucky(); s.Verdict.Crash.Regexp != nil && len(others) > 0 &&
		(len(unlucky) == 0 || len(others[0].Layouts) > len(unlucky[0].Layouts)) {
		doubt("the crash seen most, %q, is not the one looked for: is verdict.crash, %q, meant so", others[0].Title, s.Verdict.Crash)
	}
	return doubts, idle
}
