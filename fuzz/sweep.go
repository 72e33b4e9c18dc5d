// Package fuzz turns seeds into verdicts: it has the plan of each seed linked and
// booted, confirms what crashes, and keeps the unlucky ones; and it boots again what
// was saved. It knows nothing of ELF or of linker scripts.
package fuzz

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"unlucky/fuzz/evidence"
	"unlucky/layout"
	"unlucky/linker"
	"unlucky/qemu"
	"unlucky/seeds"
)

// Sweep tries the layouts of a range of seeds, the baseline first.
type Sweep struct {
	Kernel      Kernel
	Guest       *Guest
	Strategy    layout.Strategy // may be Auto
	Template    seeds.Template  // of its saved seeds
	Dir         string          // the folder of all results; this sweep's are in one named by the scenario
	First, Last uint32          // seeds, both included
	Shard       seeds.Shard     // which of them are this process's; those of the others count for nothing here
	Workers     int             // layouts booted at the same time; as many are linked
	StopAfter   int             // finds, in the order of seeds, after which to stop; 0 for never
	For         time.Duration   // after which no further layout is begun; 0 for never
	Autopsy     bool            // look into the memory of the first find of each title, beside the sweep

	// Note is told what a person would want to know, in lines, one at a time.
	Note func(format string, a ...any)
	// Step is told how far the sweep is, after the baseline and each layout.
	Step func(Tally)
	// Found is called once, with the saved seed of the first find, and may
	// take its time; Run waits for it.
	Found func(path string)
	// Recall is told how many layouts of earlier runs have been counted, before
	// the first one is tried; it may be nil.
	Recall func(done, total int)

	store    *seeds.Store
	journal  *seeds.Journal
	layout   []layout.Section   // of the baseline; nil for a kernel that strategy lld alone can sweep
	coverage *evidence.Coverage // nil for a kernel that has none

	noting sync.Mutex

	mu      sync.Mutex
	steps   evidence.Steps
	passes  int                 // links without the script
	deltas  int                 // of these, without lld
	layouts map[string]seeds.ID // by the digests of addresses and of images: the layout that had it first
	differ  int                 // layouts that do
	byImage bool                // the images' digests tell, too, which are the same
	idle    int                 // layouts that are the baseline's
	twins   int
	found   bool
	finding sync.WaitGroup // Found, which may take its time
	memory  *examiner      // nil without Autopsy
}

// Tally is how far a sweep is.
type Tally struct {
	Done, Total int // layouts of the shard, without the baseline
	Unlucky     int
	Tried       int              // layouts of this run, without those of an earlier one that it continues
	Coverage    *evidence.Totals // by all layouts of the journal; nil for a kernel that has none
}

// maxTwins is how many passing layouts a whole sweep saves: one is enough to
// compare with, and minimizing likes a choice. A shard saves one: there are more.
const maxTwins = 3

// alike is how many layouts must agree before the sweep doubts that the crash
// depends on the layout at all.
const alike = 16

// Run sweeps. Interrupted by ctx it returns the report of what was done, and
// no error; the same sweep run again continues there. Whatever was found has
// been saved when Run returns, with or without an error.
func (s *Sweep) Run(ctx context.Context) (*evidence.Report, error) {
	var err error
	if s.store, err = seeds.Open(s.Dir, s.Template.Scenario.Name); err != nil {
		return nil, err
	}
	report := &evidence.Report{Dir: s.store.Dir(), Shard: s.Shard}
	s.layouts = map[string]seeds.ID{}
	if report.Baseline, err = s.start(ctx); err != nil {
		return nil, err
	}
	defer s.journal.Close()
	report.Header, report.Strategy = HeaderOf(s.Template, s.Guest, s.Strategy), s.Strategy

	doubts, _ := report.Weigh(s.Template.Scenario)
	for _, doubt := range doubts {
		s.Say("warning: %s", doubt)
	}
	done := map[seeds.ID]seeds.Record{}
	for _, r := range s.journal.Records() {
		done[r.Layout] = r
		if r.Kind != qemu.Duplicate {
			s.first(r)
		}
		if r.Kind == qemu.Pass && r.Path != "" {
			s.twins++
		}
		s.found = s.found || r.Found && r.Layout != seeds.Baseline
	}
	begin := time.Now()
	s.steps = evidence.Steps{} // without the baseline's
	if s.Autopsy {
		if s.memory, err = s.newExaminer(ctx); err != nil {
			return nil, err
		}
		for _, r := range s.journal.Records() { // of earlier runs, and the baseline
			s.memory.take(r)
		}
	}
	end, err := s.sweep(ctx, done, report)
	s.finding.Wait()
	report.Elapsed = time.Since(begin)
	err = errors.Join(err, s.memory.close())
	report.Steps, report.OnePass, report.Delta, report.Coverage = s.steps, s.passes, s.deltas, s.covered()
	for _, r := range done {
		seed, _ := r.Layout.Seed()
		switch {
		case !s.owns(r.Layout):
		case seed > end:
			report.Beyond++
		default:
			report.Layouts = append(report.Layouts, r)
		}
	}
	report.Left = s.total() - len(report.Layouts) - report.Beyond
	slices.SortFunc(report.Layouts, func(a, b seeds.Record) int { return a.Layout.Compare(b.Layout) })
	report.Doubts, report.Idle = report.Weigh(s.Template.Scenario)
	if s.Autopsy {
		var bugsErr error
		report.Bugs, bugsErr = evidence.Bugs(report.Dir, append(report.Unlucky(), report.Others()...))
		err = errors.Join(err, bugsErr)
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = nil
	}
	return report, err
}

// owns tells whether a layout is that of one of the sweep's own seeds.
func (s *Sweep) owns(l seeds.ID) bool {
	seed, ok := l.Seed()
	return ok && s.First <= seed && seed <= s.Last && s.Shard.Owns(seed, s.First)
}

// total is how many seeds are the sweep's own.
func (s *Sweep) total() int {
	first := uint64(s.First) + uint64(max(1, s.Shard.Index)-1)
	if first > uint64(s.Last) { // there are more shards than seeds
		return 0
	}
	return int((uint64(s.Last)-first)/uint64(max(1, s.Shard.Count))) + 1
}

// sweep tries the seeds that are not in done and adds them to it. It returns
// the last seed that counts.
func (s *Sweep) sweep(ctx context.Context, done map[seeds.ID]seeds.Record, report *evidence.Report) (uint32, error) {
	type outcome struct {
		record seeds.Record
		err    error
	}
	todo, outcomes := make(chan uint32), make(chan outcome)
	feed, stop := context.WithCancel(ctx) // done when no further seed is to be tried
	defer stop()
	if s.For > 0 {
		defer time.AfterFunc(s.For, stop).Stop()
	}

	// The feeder reads done; what comes in is kept apart until it has ended.
	fresh := map[seeds.ID]seeds.Record{}
	first, step := uint64(s.First)+uint64(max(1, s.Shard.Index)-1), uint64(max(1, s.Shard.Count))
	tally := Tally{Total: s.total()}
	next, finds, end := first, 0, s.Last
	fails, links := 0, 0
	commit := func() { // in the order of seeds, as far as they are known
		for ; next <= uint64(s.Last); next += step {
			r, ok := fresh[seeds.Seed(uint32(next))]
			if !ok {
				if r, ok = done[seeds.Seed(uint32(next))]; !ok {
					return
				}
			}
			if evidence.Booted(r.Kind) {
				if links++; r.Kind != qemu.Pass {
					fails++
				}
				if links == alike {
					s.compare(report.Baseline, fails)
				}
			}
			if r.Found {
				if finds++; finds == s.StopAfter && end == s.Last {
					end = uint32(next)
					stop()
				}
			}
		}
	}
	for _, r := range done {
		if s.owns(r.Layout) {
			tally.Done++
			if r.Found {
				tally.Unlucky++
			}
		}
	}
	if tally.Done > 0 {
		s.Say("continuing: %d of %d layouts were tried before", tally.Done, tally.Total)
	}
	tally.Coverage = s.covered()
	s.Step(tally)
	commit()

	fed := make(chan struct{})
	go func() {
		defer close(fed)
		defer close(todo)
		for seed := first; seed <= uint64(s.Last); seed += step {
			if _, ok := done[seeds.Seed(uint32(seed))]; ok {
				continue
			}
			if feed.Err() != nil {
				return
			}
			select {
			case todo <- uint32(seed):
			case <-feed.Done():
				return
			}
		}
	}()
	// Each linker links the next layout while its last one is booted.
	var linkers []Linker
	defer func() {
		for _, l := range linkers {
			l.Close()
		}
	}()
	images := make(chan linked)
	var linking, booting sync.WaitGroup
	for range max(1, s.Workers) {
		l, err := s.Kernel.Linker()
		if err != nil {
			stop()
			<-fed
			return end, err
		}
		linkers = append(linkers, l)
	}
	for _, l := range linkers {
		linking.Go(func() {
			for seed := range todo {
				i, err := s.link(ctx, l, seeds.Seed(seed), s.Strategy.Plan(seed, s.layout))
				if err != nil {
					outcomes <- outcome{err: err}
					return
				}
				if i.record.Kind != "" {
					outcomes <- outcome{record: i.record}
					continue
				}
				select {
				case images <- i:
				case <-feed.Done(): // a layout that has not been booted has not been tried
					return
				}
			}
		})
		booting.Go(func() {
			for i := range images {
				r, err := s.judge(ctx, i)
				outcomes <- outcome{r, err}
			}
		})
	}
	go func() {
		linking.Wait()
		close(images)
		booting.Wait()
		close(outcomes)
	}()

	var failed error
	for o := range outcomes {
		if o.err != nil {
			stop()
			if failed == nil || errors.Is(failed, context.Canceled) {
				failed = o.err
			}
			continue
		}
		fresh[o.record.Layout] = o.record
		tally.Done++
		tally.Tried++
		if o.record.Found {
			tally.Unlucky++
		}
		tally.Coverage = s.covered()
		s.Step(tally)
		commit()
	}
	stop()
	<-fed
	report.Tried = tally.Tried
	for l, r := range fresh {
		done[l] = r
	}
	return end, failed
}

// compare says whether the first layouts give reason to believe in a layout bug.
func (s *Sweep) compare(baseline seeds.Record, fails int) {
	switch {
	case fails == alike && baseline.Kind != qemu.Pass:
		s.Say("%d of %d layouts fail alike: probably not a layout bug", alike, alike)
	case fails == 0 && baseline.Kind == qemu.Pass:
		s.Say("nothing found so far: %d of %d layouts pass", alike, alike)
	}
}

// start is all that comes before the first seed.
func (s *Sweep) start(ctx context.Context) (baseline seeds.Record, err error) {
	l, err := s.Kernel.Linker()
	if err != nil {
		return baseline, err
	}
	defer l.Close()
	i, err := s.decide(ctx, l)
	if err != nil {
		return baseline, err
	}
	if err := s.open(ctx); err != nil {
		return baseline, err
	}
	if baseline, err = s.baseline(ctx, l, i); err != nil {
		s.journal.Close()
	}
	return baseline, err
}

// decide settles what auto stands for: the strategy, by linking a seed, and the
// accelerator, by booting the baseline. An earlier run has decided for this one. The
// baseline that was booted for it keeps what that has shown.
func (s *Sweep) decide(ctx context.Context, l Linker) (baseline linked, err error) {
	earlier, _, _, err := seeds.ReadJournal(s.journalPath())
	if err != nil {
		return baseline, err
	}
	if earlier != nil && s.Strategy == layout.Auto {
		s.Strategy = layout.Strategy(earlier.Strategy)
	}
	if earlier != nil && s.Guest.Machine.Accel == "auto" {
		s.Guest.Accelerate(earlier.Accel, s.Say)
	}
	if s.Strategy, err = resolve(ctx, s.Strategy, s.Kernel, s.First, s.Say); err != nil {
		return baseline, err
	}
	s.byImage = s.Strategy == layout.LLD // where nothing else tells
	switch s.layout, err = s.Kernel.Layout(ctx); {
	case err == nil:
		if s.coverage, err = evidence.NewCoverage(s.layout); err != nil {
			s.Say("coverage is not counted: %v", err)
		}
	case s.Strategy != layout.LLD || ctx.Err() != nil: // refuses a kernel with nothing to pad, before anything is booted
		return baseline, err
	default:
		s.Say("coverage is not counted: %v", err)
	}
	if s.Guest.Machine.Accel != "auto" {
		return baseline, nil
	}
	if baseline, err = s.linkBaseline(ctx, l); err != nil {
		return baseline, err
	}
	shown, err := s.Guest.Settle(ctx, baseline.Path, s.Say)
	baseline.shown = &shown
	return baseline, err
}

// linkBaseline links it; that it must is no verdict.
func (s *Sweep) linkBaseline(ctx context.Context, l Linker) (linked, error) {
	i, err := s.link(ctx, l, seeds.Baseline, layout.Plan{})
	if err == nil && i.record.Kind == qemu.LinkFailed {
		err = fmt.Errorf("the baseline does not link: %s", i.record.Note)
	}
	return i, err
}

func (s *Sweep) journalPath() string { return filepath.Join(s.store.Dir(), s.Shard.Journal()) }

// open opens the journal, and takes in what it has.
func (s *Sweep) open(ctx context.Context) (err error) {
	if _, err := s.Guest.Machine.User(); err != nil {
		s.Say("QEMU runs as root: %v", err)
	}
	if s.journal, err = seeds.OpenJournal(s.journalPath(), HeaderOf(s.Template, s.Guest, s.Strategy)); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.journal.Close()
		}
	}()
	for _, r := range s.journal.Records() { // an earlier unlucky's tell no more
		s.byImage = s.byImage || r.Image != "" && r.Addresses == ""
	}
	if text := s.journal.Mended(); text != "" {
		s.Say("%s", text)
	}
	if text := s.journal.Unlocked(); text != "" {
		s.Say("%s", text)
	}
	switch text, err := s.Shard.SharedOtherwise(s.store.Dir()); {
	case err != nil:
		return err
	case text != "":
		s.Say("warning: %s", text)
	}
	if err := s.store.Tidy(s.Shard.Journal(), func(l seeds.ID) bool {
		seed, ok := l.Seed()
		return ok && s.Shard.Owns(seed, s.First) || !ok && s.Shard.First()
	}); err != nil {
		return err
	}
	return s.recall(ctx)
}

// baseline is the record of the baseline: the journal's, or else it is tried, like
// any layout. It may be linked already.
func (s *Sweep) baseline(ctx context.Context, l Linker, i linked) (seeds.Record, error) {
	for _, r := range s.journal.Records() {
		if r.Layout == seeds.Baseline {
			return r, nil
		}
	}
	if i.Path == "" {
		var err error
		if i, err = s.linkBaseline(ctx, l); err != nil {
			return seeds.Record{}, err
		}
	}
	return s.judge(ctx, i)
}

// recall counts the layouts that earlier runs have booted. The journal is all
// that there is of them: a run that dies loses no coverage.
func (s *Sweep) recall(ctx context.Context) error {
	if s.coverage == nil {
		return nil
	}
	if s.Strategy != layout.LLD {
		if err := s.store.SaveBaseline(s.Template.Object, s.layout); err != nil {
			return err
		}
	}
	var tried []evidence.Tried
	for _, r := range s.journal.Records() {
		tried = append(tried, evidence.Tried{Record: r, Strategy: s.Strategy})
	}
	untold, err := s.coverage.Recall(ctx, tried, s.Recall)
	if untold > 0 {
		s.Say("coverage: %d layouts of earlier runs are not counted: under strategy lld only their images told where the functions were", untold)
	}
	return err
}

// covered is the coverage so far, nil for a kernel that has none.
func (s *Sweep) covered() *evidence.Totals {
	if s.coverage == nil {
		return nil
	}
	t := s.coverage.Totals()
	return &t
}

// HeaderOf identifies a sweep: what must be the same for its verdicts to stand
// in one journal.
func HeaderOf(t seeds.Template, g *Guest, strategy layout.Strategy) seeds.Header {
	m := machine(t, g)
	h := seeds.Header{
		Scenario: t.Scenario.Name,
		Strategy: string(strategy),
		Accel:    m.Accel,
		QEMU:     t.Tools.QEMU,
		LLD:      t.Tools.LLD,
		Object:   t.Object,
		Initrd:   t.Initrd,
		Argv:     seeds.Digest(m.Argv()...),
		Command:  qemu.Quote(m.Argv()),
		Sections: t.Scenario.Kernel.Sections,
	}
	h.Rules, h.Verdict = seeds.Rules(t.Scenario.Verdict, g.Expect.Limit, g.Expect.Infra)
	return h
}

// machine is the guest with the names of its files, without where they are.
func machine(t seeds.Template, g *Guest) qemu.Machine {
	m := g.Machine
	m.Kernel, m.Initrd = t.Scenario.Kernel.Image, "initrd"
	if m.Program != nil {
		m.Slot = "{slot}"
	}
	return m
}

// SavedSeed is a saved seed without what its boots have shown.
func SavedSeed(t seeds.Template, g *Guest, id seeds.ID, strategy layout.Strategy, plan, image string) seeds.File {
	m := machine(t, g)
	return seeds.File{
		Version: seeds.Version, Layout: id, Strategy: string(strategy), Accel: m.Accel,
		Digests: seeds.Digests{Object: t.Object, Plan: plan, Image: image, Initrd: t.Initrd},
		Tools:   t.Tools, Command: qemu.Quote(m.Argv()), At: time.Now().UTC().Truncate(time.Second), Scenario: t.Scenario,
	}
}

// linked is a layout that is linked.
type linked struct {
	linker.Image
	record seeds.Record  // so far
	shown  *qemu.Result  // by a first boot that it has had already, to settle the accelerator
	booted time.Duration // that its boots have taken
}

// link links one layout. One that does not link, or is that of another seed, has
// its verdict, and is in the journal. An error is one of the machine, not of the layout.
func (s *Sweep) link(ctx context.Context, l Linker, id seeds.ID, plan layout.Plan) (i linked, err error) {
	i.record = seeds.Record{Layout: id, Plan: plan.Digest()}
	defer s.Guest.Share()() // a boot that must be alone is not disturbed by links
	begin := time.Now()
	i.Image, err = l.Link(ctx, plan)
	i.record.Millis = time.Since(begin).Milliseconds()
	var failed *linker.LinkError
	switch {
	case errors.As(err, &failed):
		i.record.Kind, i.record.Note = qemu.LinkFailed, failed.Reason
		if id == seeds.Baseline {
			return i, nil // there is no journal yet
		}
		return i, s.tell(&i.record)
	case err != nil:
		return i, fmt.Errorf("linking %s: %w", id.Name(), err)
	}
	i.record.Addresses, i.record.Inserted = i.Layout, len(i.Inserted)
	s.took(evidence.Steps{Steps: i.Steps})
	if i.SystemMap == "" {
		s.mu.Lock()
		if s.passes++; i.By == linker.Delta {
			s.deltas++
		}
		s.mu.Unlock()
	}
	if s.byImage || i.Layout == "" || id == seeds.Baseline { // which all shards have
		if i.record.Image, err = i.Digest(); err != nil {
			return i, err
		}
	}
	same, err := s.first(i.record)
	if err != nil || same == id {
		return i, err
	}
	i.record.Kind, i.record.Note = qemu.Duplicate, "the layout of "+same.Name()
	s.Say("%s: the layout of %s: counted once", id.Name(), same.Name())
	return i, errors.Join(i.Remove(), s.tell(&i.record))
}

// judge boots an image, saves it if it is unlucky, confirms that, writes it
// into the journal, and removes the image.
func (s *Sweep) judge(ctx context.Context, i linked) (seeds.Record, error) {
	begin := time.Now()
	r := &i.record
	first, err := s.firstBoot(ctx, &i)
	if err != nil {
		return *r, errors.Join(err, i.Remove())
	}
	r.Kind, r.Title, r.Boots = first.Kind, first.Title, 1
	if r.Layout == seeds.Baseline && first.Early {
		s.Say("warning: verdict.pass, %q, is printed before the guest's first program runs: what ends silently behind that line passes", s.Template.Scenario.Verdict.Pass)
	}
	if r.Kind == qemu.Pass {
		err = s.keepTwin(&i, first)
	} else {
		r.Found = evidence.Shows(s.Template.Scenario.Verdict, first)
		if r.Kind == qemu.Hang {
			r.Boots = 2 // it took two boots to be believed
		}
		r.Crashes, r.Titles = r.Boots, map[string]int{r.Title: r.Boots}
		err = s.keep(ctx, &i, first)
	}
	if err = errors.Join(err, i.Remove()); err != nil {
		return *r, err
	}
	r.Millis += time.Since(begin).Milliseconds()
	if err = s.tell(r); err == nil {
		s.memory.take(*r)
	}
	if err == nil && s.coverage != nil {
		s.coverage.Add(i.Addresses)
	}
	s.took(evidence.Steps{Verdict: time.Since(begin) - i.booted})
	return *r, err
}

// tell writes a verdict into the journal.
func (s *Sweep) tell(r *seeds.Record) error {
	r.At = time.Now().UTC().Truncate(time.Second)
	return s.journal.Append(*r)
}

// firstBoot is the boot that gives a layout its verdict, unless it has had it.
func (s *Sweep) firstBoot(ctx context.Context, i *linked) (qemu.Result, error) {
	if i.shown == nil {
		return s.boot(ctx, i, s.Guest.Boot)
	}
	return *i.shown, CheckInfra(i.record.Layout, *i.shown)
}

// boot is one boot of a layout that teaches something.
func (s *Sweep) boot(ctx context.Context, i *linked, boot func(context.Context, string) (qemu.Result, error)) (qemu.Result, error) {
	begin := time.Now()
	result, err := boot(ctx, i.Path)
	if err == nil {
		err = CheckInfra(i.record.Layout, result)
	}
	took := time.Since(begin)
	i.booted += took
	s.took(evidence.Steps{Start: result.Started, Boot: took - result.Started})
	return result, err
}

// Say is Note, called where several layouts are judged at once.
func (s *Sweep) Say(format string, a ...any) {
	s.noting.Lock()
	defer s.noting.Unlock()
	s.Note(format, a...)
}

func (s *Sweep) took(t evidence.Steps) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps.Add(t)
}

// keep saves a layout that failed, as soon as it has, and again with the rate
// that its confirming boots show.
func (s *Sweep) keep(ctx context.Context, i *linked, first qemu.Result) error {
	r := &i.record
	if err := s.save(i, first); err != nil {
		return err
	}
	path := filepath.Join(s.store.Dir(), r.Path)
	s.mu.Lock()
	tell := r.Found && !s.found && r.Layout != seeds.Baseline
	s.found = s.found || tell
	s.mu.Unlock()
	if tell && s.Found != nil {
		s.finding.Go(func() { s.Found(path) })
	}
	for r.Boots < 1+s.Template.Scenario.Verdict.Confirm {
		again := s.Guest.Boot // which may still prove slow
		if r.Kind == qemu.Hang {
			again = s.Guest.Again
		}
		next, err := s.boot(ctx, i, again)
		if err != nil {
			return err
		}
		r.Boots++
		if next.Kind == qemu.Pass || r.Found && !evidence.Shows(s.Template.Scenario.Verdict, next) {
			continue
		}
		r.Crashes++
		r.Titles[next.Title]++
	}
	what := "unlucky"
	if !r.Found {
		what = "another crash"
	}
	s.Say("%s: %s: %s (%d of %d boots)", r.Layout.Name(), what, r.Title, r.Crashes, r.Boots)
	return s.save(i, first)
}

// keepTwin saves the first few layouts that pass.
func (s *Sweep) keepTwin(i *linked, first qemu.Result) error {
	if i.record.Layout == seeds.Baseline {
		return nil
	}
	most := maxTwins
	if !s.Shard.Whole() {
		most = 1
	}
	s.mu.Lock()
	keep := s.twins < most
	if keep {
		s.twins++
	}
	s.mu.Unlock()
	if !keep {
		return nil
	}
	return s.save(i, first)
}

// save writes the record as a saved seed, with the console of its first boot.
// The baseline, which all shards try, is saved by the first.
func (s *Sweep) save(i *linked, first qemu.Result) (err error) {
	r := &i.record
	if r.Layout == seeds.Baseline && !s.Shard.First() {
		return nil
	}
	if r.Image == "" {
		if r.Image, err = i.Digest(); err != nil {
			return err
		}
	}
	f := SavedSeed(s.Template, s.Guest, r.Layout, s.Strategy, r.Plan, r.Image)
	f.Verdict = r.Verdict
	path, err := s.store.Save(f, first.Console)
	if err != nil {
		return err
	}
	r.Path, err = filepath.Rel(s.store.Dir(), path)
	return err
}

// first is the layout that was the first with the addresses, or with the image, of a
// record. Paddings that the linker script takes up, or that come to the same, give two
// seeds one layout. Where most layouts are the baseline's the padding does nothing, and a
// sweep of a thousand seeds would be a test of one: that is the error.
func (s *Sweep) first(r seeds.Record) (seeds.ID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fresh := false
	identities := slices.DeleteFunc([]string{r.Addresses, r.Image}, func(digest string) bool { return digest == "" })
	for _, digest := range identities {
		same, ok := s.layouts[digest]
		switch {
		case !ok:
			fresh = true
		case same == seeds.Baseline && r.Layout != same:
			if s.idle++; s.idle >= idleLayouts && s.idle >= s.differ {
				return same, fmt.Errorf("layout of %s equals %s, as those of %d other seeds: the padding does nothing", r.Layout.Name(), same.Name(), s.idle-1)
			}
			return same, nil
		case r.Layout != same:
			return same, nil
		}
	}
	for _, digest := range identities {
		s.layouts[digest] = r.Layout
	}
	if fresh {
		s.differ++
	}
	return r.Layout, nil
}

// idleLayouts is how many layouts must be the baseline's before the sweep doubts
// its padding.
const idleLayouts = 4

// CheckInfra turns a boot from which nothing was learnt into an error.
func CheckInfra(id seeds.ID, r qemu.Result) error {
	if r.Kind != qemu.Infra {
		return nil
	}
	return &InfraError{id, cmp.Or(r.By, "QEMU"), r.Reason}
}

// InfraError is QEMU, KVM or a program in their place failing again and again: no
// verdict.
type InfraError struct {
	Layout seeds.ID
	By     string // qemu.Result.By
	Reason string
}

// KVM tells whether it was KVM that failed.
func (e *InfraError) KVM() bool { return qemu.KVMFailed(e.Reason) }

func (e *InfraError) Error() string {
	return fmt.Sprintf("booting %s: %s failed %d times: %s", e.Layout.Name(), e.By, 1+retries, e.Reason)
}
