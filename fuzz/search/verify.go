package search

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"unlucky/fuzz"
	"unlucky/fuzz/evidence"
	"unlucky/layout"
	"unlucky/qemu"
	"unlucky/seeds"
)

// Verify tells whether a kernel that was mended still has a bug that sweeps of
// another have found. First the baseline and the old culprits, put where they
// failed, are booted; then as many layouts as the bug's rate asks for.
type Verify struct {
	// Sweep is of the mended kernel, with the guest and the rules by which the
	// bug was found. It ends at the first find.
	Sweep      *fuzz.Sweep
	Found      *evidence.Results // of the kernel with the bug
	Minimized  []seeds.File      // what minimizing unlucky layouts of it has shown
	Confidence float64           // with which it is to be told, above 0 and below 1

	// Culprits is told how many layouts of old culprits have been booted; it may
	// be nil.
	Culprits func(done, total int)

	judge *judge
	store *seeds.Store
	mu    sync.Mutex // of the result's Others
}

// Conclusion is what verifying has shown.
type Conclusion string

// The conclusions.
const (
	Fixed      Conclusion = "fixed"
	NotFixed   Conclusion = "not fixed"
	CannotTell Conclusion = "cannot tell"
)

// Verified is what is known of a fix.
type Verified struct {
	Conclusion Conclusion    `json:"conclusion"`
	Why        string        `json:"why"`            // in words
	File       string        `json:"file,omitempty"` // seed file of a layout that still fails
	Before     evidence.Rate `json:"before"`         // of the bug
	Object     string        `json:"object"`         // digest of the mended vmlinux.o
	Culprits   []OldCulprit  `json:"culprits"`
	// Passed are the layouts of the sweep that pass. Chance is that of so many
	// were the bug as frequent as before; with the confidence asked for, no
	// more than Most of all layouts fail.
	Passed     int               `json:"passed"`
	Chance     float64           `json:"chance"`
	Most       float64           `json:"most"`
	Confidence float64           `json:"confidence"`
	Others     map[string]string `json:"others,omitempty"` // titles of other crashes, and a seed file of each
	Sweep      *evidence.Report  `json:"sweep,omitempty"`  // nil where it was not needed
}

// OldCulprit is how a culprit fares in the mended kernel.
type OldCulprit struct {
	Says    string   `json:"says"`    // how it failed
	Layouts int      `json:"layouts"` // that put it there
	Boots   int      `json:"boots"`   // of those
	Failed  bool     `json:"failed"`
	Notes   []string `json:"notes,omitempty"` // what of it cannot be tried, and why
}

// Run verifies. Interrupted by ctx it returns ctx's error, and the same again goes
// on where it stopped.
func (v *Verify) Run(ctx context.Context) (*Verified, error) {
	s := v.Sweep
	out := &Verified{Before: v.Found.Rate(), Object: s.Template.Object, Confidence: v.Confidence, Most: 1, Chance: 1, Others: map[string]string{}}
	if v.Found.Header.Same(fuzz.HeaderOf(s.Template, s.Guest, "")) {
		out.Conclusion, out.Why = NotFixed, "vmlinux.o is the one that fails, byte for byte: the fix changes nothing that is compiled here"
		return out, nil
	}
	var err error
	if v.store, err = seeds.Open(s.Dir, s.Template.Scenario.Name); err != nil {
		return nil, err
	}
	if err := v.old(ctx, out); err != nil {
		return nil, err
	}
	if out.Conclusion == "" {
		s.StopAfter = 1
		if out.Sweep, err = s.Run(ctx); err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, err
		}
	}
	v.conclude(out)
	return out, nil
}

// Known tells whether minimizing has found culprits.
func (v *Verify) Known() bool {
	return slices.ContainsFunc(v.Minimized, func(m seeds.File) bool { return len(m.Minimized.Culprits) > 0 })
}

// conclude says what all layouts together have shown.
func (v *Verify) conclude(out *Verified) {
	links := 0 // that failed
	if r := out.Sweep; r != nil {
		for _, l := range append([]seeds.Record{r.Baseline}, r.Layouts...) {
			switch path := filepath.Join(r.Dir, l.Path); {
			case l.Found && out.Conclusion == "":
				out.Conclusion, out.File = NotFixed, path
				out.Why = fmt.Sprintf("%s still crashes: %s", l.Layout.Name(), l.Title)
			case l.Kind == qemu.Crash || l.Kind == qemu.Hang:
				out.Others[l.Title] = path
			case l.Kind == qemu.LinkFailed:
				links++
			}
		}
		out.Passed = r.Count(qemu.Pass)
		out.Chance, out.Most = out.Before.Chance(out.Passed), evidence.Most(out.Passed, v.Confidence)
	}
	for _, t := range v.Found.All() {
		if path, again := out.Others[t.Title]; t.Found && again && out.Conclusion == "" {
			out.Conclusion, out.File, out.Why = NotFixed, path, "a title that was found before comes again: "+t.Title
		}
	}
	switch {
	case out.Conclusion != "":
	case len(out.Others) > 0:
		out.Conclusion, out.Why = CannotTell, "layouts crash, though not as looked for"
	case out.Chance > 1-v.Confidence:
		out.Conclusion = CannotTell
		out.Why = fmt.Sprintf("%d layouts pass, and %d must where at least %.3g %% failed", out.Passed, evidence.PassesFor(out.Before.Least, 1-v.Confidence), 100*out.Before.Least)
		if links > 0 {
			out.Why += fmt.Sprintf("; %d do not link", links)
		}
	default:
		out.Conclusion, out.Why = Fixed, "all layouts pass"
	}
}

// trial is a layout that is booted because of what failed before.
type trial struct {
	culprit int // -1 for the baseline
	layout  seeds.ID
	plan    layout.Plan
}

// old boots the baseline, and the old culprits where they failed.
func (v *Verify) old(ctx context.Context, out *Verified) (err error) {
	s := v.Sweep
	trials := []trial{{culprit: -1, layout: seeds.Baseline}}
	if len(v.Minimized) > 0 {
		layout, err := s.Kernel.Layout(ctx)
		if err != nil {
			return err
		}
		trials = append(trials, v.culprits(layout, out)...)
	}
	journal, err := seeds.OpenJournal(filepath.Join(v.store.Dir(), seeds.CulpritsJournal), fuzz.HeaderOf(s.Template, s.Guest, s.Strategy))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, journal.Close()) }()
	if text := journal.Mended(); text != "" {
		s.Say("%s", text)
	}
	if _, err := s.Guest.Machine.User(); err != nil {
		s.Say("QEMU runs as root: %v", err)
	}
	v.judge = &judge{
		kernel: s.Kernel, guest: s.Guest, verdict: s.Template.Scenario.Verdict, layout: seeds.Baseline, journal: journal,
		workers: max(1, s.Workers), falsePass: final, before: v.flaky(), step: func(int) {},
		other: func(p layout.Plan, r qemu.Result, image string) error { return v.other(out, trials, p, r, image) },
	}
	if err := v.judge.open(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.judge.close()) }()
	for done := 0; done < len(trials); {
		batch := trials[done:min(len(trials), done+v.judge.workers)]
		if done == 0 {
			batch = trials[:1] // without it nothing else is worth a boot
		}
		var questions []question
		for _, t := range batch {
			questions = append(questions, planned(t.plan, ""))
		}
		answers, err := v.judge.ask(ctx, false, questions...)
		if err != nil {
			return err
		}
		for i, t := range batch {
			known := v.judge.known(t.plan, "")
			if t.culprit >= 0 {
				c := &out.Culprits[t.culprit]
				c.Layouts++
				c.Boots += known.Boots
				c.Failed = c.Failed || answers[i] == Fails
				if known.Kind == qemu.LinkFailed {
					c.Notes = append(c.Notes, "a layout does not link: "+known.Note)
				}
			}
			switch {
			case answers[i] == Fails && out.Conclusion == "":
				if err := v.fails(ctx, out, t); err != nil {
					return err
				}
			case t.culprit < 0 && known.Kind == qemu.LinkFailed:
				return fmt.Errorf("the baseline does not link: %s", known.Note)
			}
		}
		if done += len(batch); v.Culprits != nil {
			v.Culprits(done, len(trials))
		}
		if out.Conclusion != "" {
			return nil
		}
	}
	return nil
}

// flaky are the boots that found the bug, by which the judge tells how many a
// layout needs before it passes.
func (v *Verify) flaky() (n counts) {
	for _, t := range v.Found.All() {
		if t.Found {
			n.boots += t.Boots - 1
			n.crashes += t.Crashes - 1
		}
	}
	if n.crashes == 0 && n.boots > 0 { // never again: the first ones are all that is known
		n = counts{n.boots + 1, 1}
	}
	return n
}

// fails saves a layout that still fails.
func (v *Verify) fails(ctx context.Context, out *Verified, t trial) error {
	f, known := v.file(t), v.judge.known(t.plan, "")
	f.Kind, f.Title = known.Kind, known.Title
	console, err := v.judge.confirm(ctx, t.plan, &f)
	if err != nil {
		return err
	}
	if f.Crashes == 0 { // it is rare, and has been seen
		f.Boots, f.Crashes, f.Titles = f.Boots+known.Boots, known.Crashes, known.Titles
	}
	if out.File, err = v.store.Save(f, console); err != nil {
		return err
	}
	what := "the baseline"
	if t.culprit >= 0 {
		what = "an old culprit, put where it failed,"
	}
	out.Conclusion, out.Why = NotFixed, fmt.Sprintf("%s still crashes: %s (%d of %d boots)", what, f.Title, f.Crashes, f.Boots)
	return nil
}

// other saves a layout that crashes, but not as looked for.
func (v *Verify) other(out *Verified, trials []trial, p layout.Plan, r qemu.Result, image string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if out.Others[r.Title] != "" {
		return nil
	}
	digest := p.Digest()
	f := v.file(trials[slices.IndexFunc(trials, func(t trial) bool { return t.plan.Digest() == digest })])
	f.Kind, f.Title, f.Titles, f.Boots, f.Crashes, f.Digests.Image = r.Kind, r.Title, map[string]int{r.Title: 1}, 1, 1, image
	path, err := v.store.Save(f, r.Console)
	out.Others[r.Title] = path
	return err
}

// file is the saved seed of a trial, without what its boots have shown.
func (v *Verify) file(t trial) seeds.File {
	f := fuzz.SavedSeed(v.Sweep.Template, v.Sweep.Guest, t.layout, v.Sweep.Strategy, t.plan.Digest(), "")
	if t.culprit >= 0 {
		f.Plan = &t.plan
	}
	return f
}

// culprits are the trials of all old culprits, each once.
func (v *Verify) culprits(layout []layout.Section, out *Verified) (trials []trial) {
	seen := map[string]bool{}
	for _, m := range v.Minimized {
		for _, c := range m.Minimized.Culprits {
			if seen[c.String()] {
				continue
			}
			seen[c.String()] = true
			plans, notes := Restore(layout, c)
			for _, p := range plans {
				if d := p.Digest(); !seen[d] {
					seen[d] = true
					trials = append(trials, trial{len(out.Culprits), m.Layout, p})
				}
			}
			out.Culprits = append(out.Culprits, OldCulprit{Says: c.String(), Notes: notes})
		}
	}
	return trials
}

// final is the chance of an answer to be a wrong pass: nothing is asked again.
const final = 0.002

const (
	// surroundings is how many seeds of strategy cover, beside the baseline, a
	// culprit is put into: where a broken jump leads depends on all the rest.
	surroundings = 3
	// maxResidues is how many of the residues at which a culprit fails are
	// tried: some fail at each of 256.
	maxResidues = 16
)

// Restore makes plans of a kernel, given by its baseline's layout, that put the
// functions of a culprit of another kernel where they failed there, modulo
// Modulus, with those touching that had to. All others are as in the baseline
// and, in further plans, as in some layouts of strategy cover, at their residue
// mod Modulus. Notes say what there is no plan for.
func Restore(sections []layout.Section, c seeds.Culprit) (plans []layout.Plan, notes []string) {
	if c.Sampled || c.Bound != nil {
		return nil, []string{"a distance decides, and what it is in another kernel is not known"}
	}
	outputs := layout.Outputs(sections)
	spots := make([]spot, len(c.Functions))
	for n, f := range c.Functions {
		i, err := findFunction(sections, outputs, f)
		if err != nil {
			return nil, []string{err.Error()}
		}
		spots[n] = spot{i, f.Address - sections[i].Entry, f.Touching && n > 0, f.Moved}
	}
	moves := failingMoves(c)
	if len(moves) > maxResidues {
		notes = append(notes, fmt.Sprintf("%d of the %d residues at which it fails are tried", maxResidues, len(moves)))
		for n := range maxResidues {
			moves[n] = moves[n*len(moves)/maxResidues]
		}
		moves = moves[:maxResidues]
	}
	note := func(text string) {
		if !slices.Contains(notes, text) {
			notes = append(notes, text)
		}
	}
	for seed := range uint32(1 + surroundings) {
		var pass layout.Plan
		if seed > 0 {
			pass = layout.Cover.Plan(seed, sections)
		}
		fail, err := failingPlan(sections, pass, spots)
		if err != nil {
			note(err.Error())
			break
		}
		h, err := layout.NewHybrids(sections, fail, pass)
		if err != nil {
			note(err.Error())
			continue
		}
		only := layout.Choice{On: make([]bool, h.Len())}
		for _, s := range spots {
			only.On[h.Number(s.section)] = true
		}
		for _, bytes := range moves {
			move := map[int]uint64{}
			for _, s := range spots {
				if s.moved {
					move[h.Number(s.section)] = bytes
				}
			}
			plan := h.Plan(only, move, 0)
			if text := checkSpots(sections, plan, c, spots, bytes); text != "" {
				note(text)
				continue
			}
			plans = append(plans, plan)
		}
	}
	return plans, notes
}

// failingMoves are how many bytes a culprit is moved by, from where it failed, to
// the residues at which its table says that it fails, sorted.
func failingMoves(c seeds.Culprit) []uint64 {
	moves := []uint64{0}
	for _, r := range c.Residues {
		if r.Verdict() == "fails" {
			moves = append(moves, r.Bytes%layout.Modulus)
		}
	}
	slices.Sort(moves)
	return slices.Compact(moves)
}

// spot is where a function is to be.
type spot struct {
	section  int    // in the layout
	address  uint64 // of the section, modulo Modulus
	touching bool   // the spot before it
	moved    bool   // by the culprit's table
}

// findFunction finds the section of a function of another kernel in a layout.
func findFunction(sections []layout.Section, outputs []string, f seeds.Function) (found int, err error) {
	found = -1
	for i, s := range sections {
		if !slices.Contains(outputs, s.Output) || s.Name == "" || s.FunctionName() != f.Name {
			continue
		}
		if s.Name == f.Section {
			found = i
			break
		}
		if found >= 0 {
			return 0, fmt.Errorf("there are several functions %s, and none in %s", f.Name, f.Section)
		}
		found = i
	}
	switch {
	case found < 0:
		return 0, fmt.Errorf("there is no function %s any more", f.Name)
	case !layout.Movable(sections, found):
		return 0, fmt.Errorf("%s cannot be moved by itself", f.Name)
	}
	return found, nil
}

// failingPlan puts functions into their spots; whatever stands behind is moved
// along.
func failingPlan(sections []layout.Section, pass layout.Plan, spots []spot) (plan layout.Plan, err error) {
	order, place := make([]int, len(sections)), make([]int, len(sections))
	for i := range sections {
		order[i], place[i] = i, i
	}
	for n, s := range spots {
		if !s.touching {
			continue
		}
		before := spots[n-1].section
		here, there := place[s.section], place[before]+1
		if here == there {
			continue
		}
		// It changes places with what stands there now.
		if there == len(order) || sections[s.section].Group == 0 || sections[order[there]].Group != sections[s.section].Group {
			return plan, fmt.Errorf("%s cannot be put behind %s any more", sections[s.section].FunctionName(), sections[before].FunctionName())
		}
		other := order[there]
		order[here], order[there] = other, s.section
		place[other], place[s.section] = here, there
	}
	plan.Order = layout.Displaced(sections, order)
	for _, p := range pass.Paddings {
		if !slices.ContainsFunc(spots, func(s spot) bool { return sections[s.section].Name == p.Section }) {
			plan.Paddings = append(plan.Paddings, p)
		}
	}
	byPlace := slices.SortedFunc(slices.Values(spots), func(a, b spot) int { return cmp.Compare(place[a.section], place[b.section]) })
	for _, s := range byPlace {
		if s.touching {
			continue
		}
		addresses, err := layout.Place(sections, plan)
		if err != nil {
			return plan, err
		}
		gap := (s.address - addresses[s.section]) % layout.Modulus
		if gap < layout.Step {
			gap += layout.Modulus
		}
		plan.Paddings = append(plan.Paddings, layout.Padding{Section: sections[s.section].Name, Bytes: gap})
	}
	return plan, nil
}

// checkSpots holds the addresses of a plan against the spots, moved by some bytes.
// It is empty where they are as they should be.
func checkSpots(sections []layout.Section, plan layout.Plan, c seeds.Culprit, spots []spot, bytes uint64) string {
	p, err := layout.NewPlaced(sections, plan)
	if err != nil {
		return err.Error()
	}
	for n, s := range spots {
		name, at := c.Functions[n].Name, p.Address[s.section]
		if s.touching {
			before := spots[n-1].section
			if end := p.Address[before] + sections[before].Size; p.Before(s.section) != before || at != layout.AlignUp(end, sections[s.section].Alignment()) {
				return fmt.Sprintf("%s cannot be put directly behind %s", name, c.Functions[n-1].Name)
			}
			continue // at its residue, if the one before has kept its size
		}
		want := s.address
		if s.moved {
			want += bytes
		}
		if (at-want)%layout.Modulus != 0 {
			return fmt.Sprintf("%s cannot be put at %#x mod %#x: it is aligned to %d bytes now", name, (want+sections[s.section].Entry)%layout.Modulus, layout.Modulus, sections[s.section].Alignment())
		}
	}
	return ""
}

// String is the conclusion in a sentence.
func (o *Verified) String() string {
	if o.Conclusion != Fixed {
		return fmt.Sprintf("%s: %s", o.Conclusion, o.Why)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %d layouts pass; if the bug were as frequent as before (at least %.3g %% of layouts), that would have a chance of %.2g %%; ",
		o.Conclusion, o.Passed, 100*o.Before.Least, 100*o.Chance)
	fmt.Fprintf(&text, "with %.4g %% confidence at most %.3g %% of layouts still fail", 100*o.Confidence, 100*o.Most)
	return text.String()
}
