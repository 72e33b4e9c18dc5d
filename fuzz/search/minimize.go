// Package search asks layouts questions, by linking and booting them, until it has
// an answer: minimize names the functions whose addresses make a layout fail, verify
// tells whether a fix holds.
package search

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"unlucky/fuzz"
	"unlucky/fuzz/evidence"
	"unlucky/layout"
	"unlucky/qemu"
	"unlucky/seeds"
)

// Minimize reduces a failing layout to the functions whose addresses decide.
type Minimize struct {
	Kernel fuzz.Kernel
	Guest  *fuzz.Guest
	Failed seeds.File // the failing layout; its crash and rules may be narrowed by Match
	// Template is that of saved seeds of the kernel and the tools that are here.
	Template seeds.Template
	Twins    []seeds.File       // layouts of the same kernel that have passed
	Suspects []evidence.Suspect // where to look first, the best first
	Match    *regexp.Regexp
	Path     string        // of the result; the journal is beside it
	Workers  int           // layouts linked and booted at the same time
	Boots    int           // of each question, at the least; 0 for as many as the failure's rate asks for
	MaxBoots int           // in all, the answer's too; 0 for no limit
	Budget   time.Duration // of this run; 0 for no limit
	Switches []string      // of the kernel command line, each to be tried alone
	Autopsy  bool          // begin with what the guests have in memory of the kernel's code

	Note func(format string, a ...any)
	Step func(Progress)

	judge    *judge
	start    layout.Plan     // fails, and is what is minimized: that of Failed, or one that keeps its residues without its order
	hybrids  *layout.Hybrids // between the failing and the first passing layout
	second   *layout.Hybrids // and another passing one, or nil
	fail     layout.Plan
	passes   layout.Plan // the first passing layout's
	result   seeds.Minimized
	best     layout.Plan // the smallest plan so far that fails
	otherMu  sync.Mutex
	others   map[string]bool // titles of other crashes that are saved
	progress Progress
	residues bool // whether moving everything by whole pages changes nothing
	named    bool // whether the damage in memory that has run fails by itself
}

// Progress is how far minimizing is.
type Progress struct {
	Question string // the current one, in words
	Left     int    // functions, or paddings, that are still in question
	Boots    int
}

// ends is how often the failing layout is booted before anything is made of it, and
// the answer behind all.
const ends = 2

// maxSearch is how many seeds are tried for a layout that passes.
const maxSearch = 32

// maxSecond is how many are tried for another one, with which an answer is checked.
const maxSecond = 6

// Run minimizes and returns the smallest plan found that still fails, saved
// at Path, with what is known of it. At the limit of boots or of time it is
// the best so far. Interrupted by ctx, Run returns ctx's error, and the same
// run again goes on where it stopped.
func (m *Minimize) Run(ctx context.Context) (*seeds.File, error) {
	f, console, err := m.run(ctx)
	if err != nil {
		return nil, err
	}
	return f, f.Write(m.Path, console)
}

// run is Run without the file, of which it returns the console, too.
func (m *Minimize) run(ctx context.Context) (f *seeds.File, console []byte, err error) {
	if m.Failed.Kind == qemu.Pass {
		return nil, nil, fmt.Errorf("%s passes: there is nothing to minimize", m.Failed.Layout.Name())
	}
	if m.fail, err = fuzz.PlanOf(ctx, m.Failed, m.Kernel); err != nil {
		return nil, nil, err
	}
	if m.fail.Flag != nil {
		return nil, nil, fmt.Errorf("lld itself pads %s (strategy lld): only paddings that are listed can be minimized; sweep with -strategy cover or text", m.Failed.Layout.Name())
	}
	if err := m.open(); err != nil {
		return nil, nil, err
	}
	defer m.judge.journal.Close()
	defer m.judge.close()
	m.best = m.fail
	if err = m.openMemory(ctx); err == nil {
		err = m.fails(ctx)
	}
	if err == nil {
		err = m.search(ctx)
	}
	switch {
	case errors.Is(err, errBudget):
		m.result.Notes = append(m.result.Notes, fmt.Sprintf("not minimal: %v", err))
	case err != nil:
		return nil, nil, err
	default:
		m.result.Complete = true
	}
	return m.answer(ctx)
}

func (m *Minimize) open() error {
	verdict := m.Failed.Scenario.Verdict
	if m.Match != nil {
		verdict.Crash.Regexp = m.Match
		m.result.Match = m.Match.String()
	}
	m.Template.Scenario.Verdict = verdict // the answer is replayed by the same rules
	head := fuzz.HeaderOf(m.Template, m.Guest, layout.Strategy(m.Failed.Strategy))
	head.Plan = m.fail.Digest()
	journal, err := seeds.OpenJournal(strings.TrimSuffix(m.Path, ".yaml")+".journal", head)
	if err != nil {
		return err
	}
	if text := journal.Mended(); text != "" {
		m.Note("%s", text)
	}
	if err := seeds.Tidy(m.Path); err != nil {
		return errors.Join(err, journal.Close())
	}
	m.others = map[string]bool{}
	m.judge = &judge{
		kernel: m.Kernel, guest: m.Guest, verdict: verdict, layout: m.Failed.Layout, journal: journal,
		workers: max(1, m.Workers), falsePass: mended, failing: m.fail.Digest(), before: counts{max(0, m.Failed.Boots-1), max(0, m.Failed.Crashes-1)}, least: m.Boots, maxBoots: m.MaxBoots, reserve: min(ends, m.MaxBoots),
		other: m.saveOther,
		step: func(boots int) {
			m.progress.Boots = boots
			m.Step(m.progress)
		},
	}
	if m.Match != nil {
		m.judge.before = counts{} // counted by other rules
	}
	if m.Budget > 0 {
		m.judge.deadline = time.Now().Add(m.Budget)
	}
	if err := m.judge.open(); err != nil {
		return errors.Join(err, journal.Close())
	}
	return nil
}

// asking says in words what the next boots are for.
func (m *Minimize) asking(left int, format string, a ...any) {
	m.judge.mu.Lock()
	defer m.judge.mu.Unlock()
	m.progress.Question, m.progress.Left = fmt.Sprintf(format, a...), left
	m.Step(m.progress)
}

// note is for the reader of the result too.
func (m *Minimize) note(format string, a ...any) {
	text := fmt.Sprintf(format, a...)
	m.result.Notes = append(m.result.Notes, text)
	m.Note("%s", text)
}

// fails boots the failing layout: it must be the image that was saved, and fail.
func (m *Minimize) fails(ctx context.Context) error {
	m.asking(0, "does %s fail", m.Failed.Layout.Name())
	l := <-m.judge.linkers
	image, err := fuzz.Relink(ctx, m.Failed, m.Kernel, l, m.Template.Object, m.Template.Tools)
	if err == nil {
		err = l.load(m.fail, image)
	}
	m.judge.linkers <- l
	if err != nil {
		return err
	}
	least := max(ends, m.Boots)
	if m.judge.memory != nil {
		least-- // what runs is watched in another
	}
	if err := m.judge.boot(ctx, m.fail, "", least-m.judge.known(m.fail, "").Boots, false); err != nil {
		return err
	}
	return m.steady(ctx)
}

// steady tells how often the failing layout fails, which says how many boots an
// answer needs.
func (m *Minimize) steady(ctx context.Context) error {
	known := m.judge.known(m.fail, "")
	if boots, crashes := m.judge.rate(); crashes < boots || known.Crashes < known.Boots {
		if err := m.measure(ctx, m.judge.before.boots); err != nil {
			return err
		}
		known = m.judge.known(m.fail, "")
	}
	if known.Crashes == 0 {
		return fmt.Errorf("the failing end is missing: %s did not show %s in %d boots; boot it more often (-boots), or on the accelerator that it was found with",
			m.Failed.Layout.Name(), m.looked(), known.Boots)
	}
	return nil
}

// mended is the chance of an answer to be a wrong pass where the search mends that on its
// way.
const mended = 0.05

// How many boots of the failing layout show that it is flaky, and tell how often it fails
// where these may flatter the rate or belittle it.
const (
	shows  = 8
	enough = 12
)

// measure boots the failing layout often enough to tell how often it fails, beside so many
// boots that have told already.
func (m *Minimize) measure(ctx context.Context, others int) error {
	m.asking(0, "how often does %s fail", m.Failed.Layout.Name())
	boot := func(times int) error {
		for {
			known := m.judge.known(m.fail, "")
			if known.Boots >= times || known.Crashes > 0 && known.Boots+others >= times {
				return nil
			}
			if err := m.judge.boot(ctx, m.fail, "", 1, false); err != nil {
				return err
			}
		}
	}
	err := boot(shows)
	if boots, crashes := m.judge.rate(); crashes < boots && err == nil {
		if need, _ := m.judge.need(false); need < shows/2 || need > shows || m.judge.known(m.fail, "").Crashes == 0 {
			err = boot(enough)
		}
	}
	if boots, crashes := m.judge.rate(); crashes < boots && err == nil && m.judge.known(m.fail, "").Crashes > 0 {
		need, _ := m.judge.need(false)
		m.Note("flaky: %d of %d boots fail, so %d boots must pass before a layout does", crashes, boots, need)
	}
	return err
}

// looked is the failure looked for, in words.
func (m *Minimize) looked() string {
	if re := m.judge.verdict.Crash.Regexp; re != nil && re.String() != "" {
		return fmt.Sprintf("%q", re)
	}
	return "a failure"
}

// passing finds so many layouts that pass, if it can: the baseline, twins, or the
// first seeds that do.
func (m *Minimize) passing(ctx context.Context, sections []layout.Section, wanted int) (names []string, plans []layout.Plan, err error) {
	type candidate struct {
		name string
		plan layout.Plan
	}
	candidates := []candidate{{seeds.Baseline.Name(), layout.Plan{}}}
	for _, t := range m.Twins {
		plan, err := fuzz.PlanOf(ctx, t, m.Kernel)
		if err != nil {
			m.Note("%s is left out: %v", t.Layout.Name(), err)
			continue
		}
		candidates = append(candidates, candidate{t.Layout.Name(), plan})
	}
	for seed := uint32(1); seed <= maxSearch; seed++ {
		plan := layout.Text.Plan(seed, sections)
		if h, err := layout.NewHybrids(sections, m.start, plan); err == nil && m.named {
			plan = h.Opened(false) // where nothing touches, such a bug is not
		}
		candidates = append(candidates, candidate{seeds.Seed(seed).Name(), plan})
	}
	tried := map[string]bool{m.fail.Digest(): true}
	for second := 0; len(candidates) > 0 && len(plans) < wanted && second < maxSecond; {
		var batch []candidate
		var questions []question
		for len(candidates) > 0 && len(batch) < m.judge.workers {
			c := candidates[0]
			candidates = candidates[1:]
			h, err := layout.NewHybrids(sections, m.start, c.plan)
			if err != nil || tried[c.plan.Digest()] {
				continue
			}
			tried[c.plan.Digest()] = true
			batch = append(batch, c)
			questions = append(questions, m.choice(h, layout.Choice{On: make([]bool, h.Len())}, nil))
		}
		if batch == nil {
			continue
		}
		if plans != nil {
			second += len(batch)
		}
		m.asking(0, "does %s pass", batch[0].name)
		answers, err := m.judge.ask(ctx, false, questions...)
		for i, c := range batch {
			if err == nil && answers[i] == Passes && plans == nil && m.judge.missed() == 0 {
				// One that passes by luck may fail when it is moved as a whole. Where a
				// crash is not there each time the search tells on its way.
				var again []Answer
				if again, err = m.judge.ask(ctx, true, questions[i]); err == nil {
					answers[i] = again[0]
				}
			}
			if err != nil {
				return nil, nil, err
			}
			if answers[i] == Passes && len(plans) < wanted {
				names, plans = append(names, c.name), append(plans, c.plan)
			}
		}
	}
	if plans == nil {
		return nil, nil, fmt.Errorf("the passing end is missing: neither the baseline nor the seeds 1 to %d pass; is this a layout bug", maxSearch)
	}
	return names, plans, nil
}

// search finds what decides, as far as the budget goes.
func (m *Minimize) search(ctx context.Context) error {
	sections, err := m.Kernel.Layout(ctx)
	if err != nil {
		return err
	}
	if err := m.settleOrder(ctx, sections); err != nil {
		return err
	}
	names, plans, err := m.passing(ctx, sections, 1)
	if err != nil {
		return err
	}
	m.passes = plans[0]
	m.result.Passing, m.result.Twin = names[0], &m.passes
	if m.hybrids, err = layout.NewHybrids(sections, m.start, plans[0]); err != nil {
		return err
	}
	if err := m.examine(ctx); err != nil {
		return err
	}
	if _, plans, err = m.passing(ctx, sections, 2); err != nil {
		return err
	}
	if len(plans) > 1 {
		if m.second, err = layout.NewHybrids(sections, m.start, plans[1]); err != nil {
			return err
		}
	}
	if err := m.whole(ctx); err != nil {
		return err
	}
	if !m.residues {
		if err := m.goFar(ctx); err != nil {
			return err
		}
	}
	culprits, err := m.isolate(ctx)
	if at := new(acrossError); errors.As(err, &at) {
		if err = m.distance(ctx, at); err == nil && culprits == nil {
			return m.ablate(ctx)
		}
	}
	if err != nil && !inconclusive(err) && !errors.Is(err, errBudget) {
		return err
	}
	if !m.residues && !errors.Is(err, errBudget) {
		m.note("moved by whole pages the failing layout passes: an address decides, an order or a distance, not a residue alone")
	}
	for _, c := range culprits { // at the limit, what is known of them
		if derr := m.describe(ctx, c); derr != nil && !errors.Is(derr, errBudget) {
			return derr
		} else if derr != nil {
			err = derr
		}
	}
	m.accuse()
	switch {
	case errors.Is(err, errBudget):
		return err
	case err != nil && culprits == nil:
		m.note("no function at its residue and no neighbours that touch were found to decide (%v): an order or a distance might, so paddings are dropped instead", err)
		err = m.shrink(ctx)
	case err != nil:
		m.note("there may be more culprits: with these made harmless, %v", err)
		err = nil
	}
	if culprits != nil && err == nil {
		var near bool
		// The paddings of another layout may hold other culprits back.
		if near, err = m.near(ctx, culprits[0], &m.result.Culprits[0]); err == nil && !near && names[0] == seeds.Baseline.Name() {
			err = m.trim(ctx, &m.result.Culprits[0])
		}
	}
	if err != nil {
		return err
	}
	return m.ablate(ctx)
}

// settleOrder tells whether the order of a failing layout is needed: most bugs
// need the residues only, and fail in the baseline's order as well.
func (m *Minimize) settleOrder(ctx context.Context, sections []layout.Section) error {
	h, err := layout.NewHybrids(sections, m.fail, layout.Plan{})
	if err != nil {
		return err
	}
	m.start = m.fail
	if len(m.fail.Order) == 0 {
		return nil
	}
	m.asking(h.Len(), "does it fail in the baseline's order")
	var questions []question
	for _, modulus := range unorderedModuli {
		questions = append(questions, question{plan: func(v int) layout.Plan { return h.Unordered(modulus, v) }})
	}
	answers, err := m.judge.ask(ctx, false, questions...)
	if err != nil {
		return err
	}
	passed := ""
	for i, modulus := range unorderedModuli {
		switch answers[i] {
		case Passes:
			passed = fmt.Sprintf("%#x", modulus)
		case Fails:
			m.Note("in the baseline's order, with each function at its residue mod %#x, it still fails: the order is not needed", modulus)
			for v := range variants {
				if p := questions[i].plan(v); m.judge.known(p, "").Crashes > 0 {
					m.start, m.best = p, p
				}
			}
			return nil
		}
	}
	if passed == "" {
		m.Note("in the baseline's order, with each function at its residue, it neither passes nor fails: the order is kept")
		return nil
	}
	m.Note("in the baseline's order, with each function at its residue mod %s, it passes: the order is kept", passed)
	return nil
}

// unorderedModuli are those of the residues that functions keep in the baseline's
// order: the smaller makes the smaller image, and only the larger can tell of a residue
// in a page.
var unorderedModuli = []uint64{256, layout.Modulus}

// isolate finds the culprits. Where the answers contradict each other it asks
// again, with more care.
func (m *Minimize) isolate(ctx context.Context) ([]Culprit, error) {
	h := m.hybrids
	var booted []layout.Choice
	search := &Isolation{
		N: h.Len(), Touch: h.Touch,
		Width: max(1, m.judge.workers/2), // each border more saves less than it costs
		Ask: func(ctx context.Context, sure bool, choices ...layout.Choice) ([]Answer, error) {
			questions := make([]question, len(choices))
			doubts := 0
			for i, c := range choices {
				questions[i] = m.choice(h, c, nil)
				if sure && m.judge.missed() > 0 && c.Count() <= maxCulprit && len(c.Open) == 0 {
					// What a culprit needs is seldom more than one function, and mostly booted by the way.
					questions[i].shared, doubts = m.shared(c, booted), 1
				}
			}
			m.judge.doubts += doubts
			answers, err := m.judge.ask(ctx, sure, questions...)
			m.judge.doubts -= doubts
			booted = append(booted, choices...)
			for i, a := range answers {
				if a == Fails && choices[i].Count() < h.Len() && err == nil {
					m.keep(questions[i])
				}
			}
			return answers, err
		},
		Across: m.across, Rate: m.judge.rate,
		Boot: func(ctx context.Context, nth int, c layout.Choice) (Answer, error) {
			q := m.choice(h, c, nil)
			booted = append(booted, c)
			answer, err := m.nth(ctx, nth, q)
			if answer == Fails && err == nil {
				m.keep(q)
			}
			return answer, err
		},
		Alike: func(choices ...layout.Choice) {
			for _, c := range choices {
				// One that passes each time may be another variant that crashed.
				if p := h.Plan(c, nil, 0); m.judge.missed() > 0 || m.judge.known(p, "").Crashes > 0 {
					m.judge.alike(p)
				}
			}
		},
		Left:  func(n int) { m.asking(n, "which function is the last that is needed") },
		First: m.suspected(),
	}
	if m.judge.memory != nil {
		search.Next = m.damaged
	}
	var before []Culprit // of the last search that came to its end
	for {
		culprits, err := search.Culprits(ctx)
		if err != nil && !inconclusive(err) {
			if len(culprits) < len(before) {
				culprits = before
			}
			return culprits, err
		}
		before = culprits
		sound, serr := m.failsElsewhere(ctx, culprits)
		if serr != nil {
			return culprits, serr
		}
		settled := err == nil && sound || err != nil && !m.residues
		if settled && !m.maybeLuck(culprits) {
			return culprits, err
		}
		need, _ := m.judge.need(false)
		boots, _ := m.judge.rate()
		if err := m.measure(ctx, boots-m.judge.known(m.fail, "").Boots); err != nil {
			return culprits, err
		}
		switch now, _ := m.judge.need(false); {
		case now > need: // for being flaky, then
		case settled:
			return culprits, err
		case m.judge.doubts == maxDoubts:
			if !sound && culprits != nil {
				m.note("with everything else changed not every culprit fails: more than these functions may decide")
			}
			return culprits, err
		default:
			m.judge.doubts++
			m.Note("the answers contradict each other: asking again, with more boots and variants of each layout")
			if err := m.whole(ctx); err != nil {
				return culprits, err
			}
		}
	}
}

// shared is how many boots have passed of layouts, of those booted, in which all that a
// choice turns on is on: they would have failed if it did. One with all that has crashed
// elsewhere fails anyway, and its passes tell nothing.
func (m *Minimize) shared(c layout.Choice, booted []layout.Choice) (boots int) {
	var crashed, passed []layout.Choice
	for _, b := range booted {
		if m.judge.known(m.hybrids.Plan(b, nil, 0), "").Crashes > 0 {
			crashed = append(crashed, b)
		} else if b.Has(c) {
			passed = append(passed, b)
		}
	}
	seen := map[string]bool{m.hybrids.Plan(c, nil, 0).Digest(): true}
	for _, b := range passed {
		p := m.hybrids.Plan(b, nil, 0)
		if seen[p.Digest()] || slices.ContainsFunc(crashed, b.Has) {
			continue
		}
		seen[p.Digest()] = true
		r := m.judge.known(p, "")
		boots += r.Boots - r.Others
	}
	return boots
}

// maxFirst is how many suspects a search begins with: all of them are one
// question, and each doubling of what they are costs another.
const maxFirst = 8

// suspected are the functions to begin with, with their neighbours: those of the
// best suspect that has a residue where it fails, and those of several.
func (m *Minimize) suspected() (first [][]int) {
	h := m.hybrids
	number := map[string]int{}
	for f := range h.Len() {
		number[h.Section(f).Name] = f
	}
	var several []int
	n := 0
	for _, s := range m.Suspects {
		address := func(functions []evidence.SuspectFunction) uint64 {
			if f, ok := number[functions[0].Section]; ok {
				return h.Address(f)
			}
			return 0 // the linker script places it
		}
		at := address(s.Functions)
		if s.With != nil {
			at -= address(s.With)
		}
		if !slices.ContainsFunc(s.Residues, func(r evidence.Span) bool { return (at-r.First)%s.Modulus <= (r.Last-r.First)%s.Modulus }) {
			continue
		}
		for _, function := range slices.Concat(s.Functions, s.With) {
			if f, ok := number[function.Section]; ok {
				several = append(several, max(f-1, 0), f, min(f+1, h.Len()-1))
			}
		}
		slices.Sort(several)
		several = slices.Compact(several)
		if n++; n == 1 {
			first = append(first, slices.Clone(several))
		}
		if n == maxFirst {
			break
		}
	}
	if n > 1 {
		first = append(first, several)
	}
	if n > 0 {
		m.Note("beginning with %d functions that the verdicts of the sweep suspect", len(several))
	}
	return first
}

// whole asks what the failing layout as a whole depends on.
func (m *Minimize) whole(ctx context.Context) error {
	h := m.hybrids
	m.asking(h.Len(), "is it residues")
	all := layout.Choice{On: slices.Repeat([]bool{true}, h.Len())}
	moved := question{plan: func(v int) layout.Plan { return h.Plan(all, nil, v+1) }, each: true}
	answers, err := m.judge.ask(ctx, true, moved)
	if err != nil {
		return err
	}
	m.residues = answers[0] != Passes
	return nil
}

// goFar looks for a distance, where a residue mod Modulus alone does not decide: it
// makes the hybrids those of a larger modulus, if one of them has both ends.
func (m *Minimize) goFar(ctx context.Context) error {
	all := layout.Choice{On: slices.Repeat([]bool{true}, m.hybrids.Len())}
	none := layout.Choice{On: make([]bool, m.hybrids.Len())}
	far := m.hybrids.Far()
	fails := question{plan: func(v int) layout.Plan { return far.Plan(all, nil, v+1) }, each: true}
	questions := []question{m.choice(far, none, nil)}
	var second *layout.Hybrids
	if m.second != nil {
		second = m.second.Far()
		questions = append(questions, m.choice(second, none, nil))
	}
	m.asking(far.Len(), "is it a distance")
	answers, err := m.judge.ask(ctx, true, fails)
	if err != nil || answers[0] != Fails {
		return err
	}
	switch answers, err = m.judge.ask(ctx, m.judge.missed() == 0, questions...); {
	case err != nil:
		return err
	case answers[0] == Passes && (second == nil || answers[1] == Passes):
		m.second = second
	case answers[0] == Passes:
		m.second = nil
	case second != nil && answers[1] == Passes:
		far, m.second = second, nil
	default:
		return nil
	}
	m.hybrids, m.residues = far, true
	m.note("moved by whole pages it passes, and by multiples of %#x bytes it fails: residues mod %#x are looked at, with what the linker script places behind the functions", layout.FarModulus, layout.FarModulus)
	return nil
}

// maybeLuck tells whether an answer is one that passes by luck would give too: that
// is no rare thing while a flaky crash has not shown that it is one. A culprit
// of one function is not: it has failed alone. One whose damage has run has a cause.
func (m *Minimize) maybeLuck(culprits []Culprit) bool {
	return !m.residues || slices.ContainsFunc(culprits, func(c Culprit) bool { return len(c.Functions) > 1 && !m.caused(c) })
}

// inconclusive tells whether a search has come to its end without an answer.
func inconclusive(err error) bool {
	return errors.Is(err, errNoCulprit) || errors.Is(err, errUndecided) || errors.Is(err, errMany)
}

// maxCare bounds how often a search is begun again.
const maxDoubts = 2

// variants bounds how many variants of a layout there can be: a careful answer
// takes one more than there are doubts, and a doubtful one two.
const variants = maxDoubts + 3

// choice is the question of a choice, with functions moved.
func (m *Minimize) choice(h *layout.Hybrids, c layout.Choice, move map[int]uint64) question {
	return question{plan: func(v int) layout.Plan { return h.Plan(c, move, v) }}
}

// keep notes a plan that fails as the best so far if it is the smallest.
func (m *Minimize) keep(q question) {
	for v := range variants {
		if p := q.plan(v); m.judge.known(p, "").Crashes > 0 && size(p) <= size(m.best) {
			m.best = p
			return
		}
	}
}

// size is how much a plan changes.
func size(p layout.Plan) int { return len(p.Order) + len(p.Paddings) }

// failsElsewhere asks again for each culprit: with everything else changed.
func (m *Minimize) failsElsewhere(ctx context.Context, culprits []Culprit) (bool, error) {
	if m.second == nil || len(culprits) == 0 {
		return len(culprits) > 0, nil
	}
	m.asking(len(culprits), "does it fail with everything else changed")
	var questions []question
	for _, c := range culprits {
		questions = append(questions, m.choice(m.second, m.only(c), nil))
	}
	answers, err := m.judge.ask(ctx, true, questions...)
	return !slices.Contains(answers, Passes) && !slices.Contains(answers, Unknown), err
}

// only is the choice of one culprit.
func (m *Minimize) only(c Culprit) layout.Choice {
	return layout.Choice{On: make([]bool, m.hybrids.Len())}.With(c.Functions...)
}

// boots adds up what is known of a question.
func (m *Minimize) boots(q question) (b seeds.Boots) {
	seen := map[string]bool{}
	for v := range variants {
		p := q.plan(v)
		if d := p.Digest(); !seen[d] {
			seen[d] = true
			r := m.judge.known(p, q.switches)
			b.Boots += r.Boots
			b.Crashes += r.Crashes
			b.Others += r.Others
		}
	}
	return b
}

// ablate boots the failing image with one switch at a time.
func (m *Minimize) ablate(ctx context.Context) error {
	if len(m.Switches) == 0 {
		return nil
	}
	m.asking(len(m.Switches), "which switches of the command line make it pass")
	var questions []question
	for _, s := range m.Switches {
		questions = append(questions, planned(m.fail, s))
	}
	_, err := m.judge.ask(ctx, false, questions...)
	for _, q := range questions {
		m.result.Switches = append(m.result.Switches, seeds.Switch{Append: q.switches, Boots: m.boots(q)})
	}
	return err
}

// answer links and boots the answer once more. The console is that of a boot.
func (m *Minimize) answer(ctx context.Context) (file *seeds.File, console []byte, err error) {
	m.asking(0, "does the answer fail again")
	j := m.judge
	j.reserve, j.deadline = 0, time.Time{} // the answer is confirmed, however late
	f := fuzz.SavedSeed(m.Template, m.Guest, m.Failed.Layout, layout.Strategy(m.Failed.Strategy), m.best.Digest(), "")
	f.Kind, f.Title = m.Failed.Kind, m.Failed.Title // should it not show itself again
	if console, err = j.confirm(ctx, m.best, &f); err != nil {
		return nil, nil, err
	}
	if f.Crashes == 0 {
		m.note("the plan has failed before, but not again in %d boots", f.Boots)
	}
	f.Plan = &m.best
	m.result.Boots = j.boots
	m.result.Needed = j.passed
	m.result.Failing.Boots, m.result.Failing.Crashes = j.rate()
	m.result.Faces = map[string]int{}
	for _, r := range j.tally {
		if r.Append == "" {
			for t, n := range r.Titles {
				m.result.Faces[t] += n
			}
		}
	}
	f.Minimized = &m.result
	return &f, console, nil
}

// saveOther saves a crash that is not the one looked for, once for each title.
func (m *Minimize) saveOther(p layout.Plan, r qemu.Result, image string) error {
	m.otherMu.Lock()
	defer m.otherMu.Unlock()
	if m.others[r.Title] {
		return nil
	}
	m.others[r.Title] = true
	f := fuzz.SavedSeed(m.Template, m.Guest, m.Failed.Layout, layout.Strategy(m.Failed.Strategy), p.Digest(), image)
	f.Plan = &p
	f.Kind, f.Title, f.Titles, f.Boots, f.Crashes = r.Kind, r.Title, map[string]int{r.Title: 1}, 1, 1
	path := strings.TrimSuffix(m.Path, ".yaml") + "." + seeds.Slug(r.Title) + ".yaml"
	m.Note("another crash, saved as %s: %s", filepath.Base(path), r.Title)
	return f.Write(path, r.Console)
}
