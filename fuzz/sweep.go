// Package fuzz is the engine: it turns seeds into plans, has each linked and
// booted, and keeps the unlucky ones. It knows nothing of ELF, of linker
// scripts or of QEMU's command line.
package fuzz

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"unlucky/linker"
	"unlucky/qemu"
	"unlucky/scenarios"
	"unlucky/seeds"
)

// Sweep tries the layouts of a range of seeds, the baseline first.
type Sweep struct {
	Kernel   Kernel
	Guest    *Guest
	Strategy Strategy // may be Auto
	// Saved is what every saved seed of this sweep has in common: the
	// scenario, the digests of vmlinux.o and initrd, the tools' versions.
	Saved       seeds.File
	Dir         string        // the folder of all results; this sweep's are in one named by the scenario
	First, Last uint32        // seeds, both included
	Shard       Shard         // which of them are this process's; those of the others count for nothing here
	Workers     int           // layouts booted at the same time; as many are linked
	StopAfter   int           // finds, in the order of seeds, after which to stop; 0 for never
	For         time.Duration // after which no further layout is begun; 0 for never

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
	layout   []linker.Section // of the baseline; nil for a kernel that strategy lld alone can sweep
	coverage *Coverage        // nil for a kernel that has none

	noting sync.Mutex

	mu     sync.Mutex
	steps  Steps
	passes int                     // links in one pass
	images map[string]seeds.Layout // image digest -> the layout that had it first
	idle   int                     // layouts that are the baseline's
	twins  int
	found  bool
	told   sync.WaitGroup // Found, which may take its time
}

// Tally is how far a sweep is.
type Tally struct {
	Done, Total int // layouts of the shard, without the baseline
	Unlucky     int
	Tried       int     // layouts of this run, without those of an earlier one that it continues
	Coverage    *Totals // by all layouts of the journal; nil for a kernel that has none
}

// Report is what a sweep has found.
type Report struct {
	seeds.Header
	Strategy Strategy       `json:"strategy"`
	Shard    Shard          `json:"shard,omitzero"` // whose layouts these are
	Dir      string         `json:"dir"`            // Record.Path is relative to it
	Baseline seeds.Record   `json:"baseline"`
	Layouts  []seeds.Record `json:"layouts"`  // in the order of seeds
	Beyond   int            `json:"beyond"`   // layouts tried behind the seed at which -stop-after stopped
	Left     int            `json:"left"`     // layouts of the range that were not tried: the sweep has ended early
	Tried    int            `json:"tried"`    // layouts of this run
	OnePass  int            `json:"one_pass"` // links of this run, the baseline's too, that were one pass of the linker
	Elapsed  time.Duration  `json:"elapsed"`  // of this run, without the baseline
	Steps    Steps          `json:"steps"`    // of the layouts of this run
	// Doubts are the reasons why this may say nothing of layouts; Idle tells that it
	// does say nothing.
	Doubts []string `json:"doubts,omitempty"`
	Idle   bool     `json:"idle,omitempty"`
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

// maxTwins is how many passing layouts a whole sweep saves: one is enough to
// compare with, and minimizing likes a choice. A shard saves one: there are more.
const maxTwins = 3

// alike is how many layouts must agree before the sweep doubts that the crash
// depends on the layout at all.
const alike = 16

// Run sweeps. Interrupted by ctx it returns the report of what was done, and
// no error; the same sweep run again continues there. Whatever was found has
// been saved when Run returns, with or without an error.
func (s *Sweep) Run(ctx context.Context) (*Report, error) {
	var err error
	if s.store, err = seeds.Open(s.Dir, s.Saved.Scenario.Name); err != nil {
		return nil, err
	}
	report := &Report{Dir: s.store.Dir(), Shard: s.Shard}
	baseline, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer s.journal.Close()
	report.Header, report.Strategy, report.Baseline = header(s.Saved, s.Guest, s.Strategy), s.Strategy, baseline

	doubts, _ := report.doubts(s.Saved.Scenario)
	for _, doubt := range doubts {
		s.note("warning: %s", doubt)
	}
	done := map[seeds.Layout]seeds.Record{}
	for _, r := range s.journal.Records() {
		done[r.Layout] = r
		if r.Kind != qemu.Duplicate {
			s.images[r.Image] = r.Layout
		}
		if r.Kind == qemu.Pass && r.Path != "" {
			s.twins++
		}
		s.found = s.found || r.Found && r.Layout != seeds.Baseline
	}
	begin := time.Now()
	s.steps = Steps{} // without the baseline's
	end, err := s.sweep(ctx, done, report)
	s.told.Wait()
	report.Elapsed, report.Steps, report.OnePass, report.Coverage = time.Since(begin), s.steps, s.passes, s.covered()
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
	report.Doubts, report.Idle = report.doubts(s.Saved.Scenario)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = nil
	}
	return report, err
}

// owns tells whether a layout is that of one of the sweep's own seeds.
func (s *Sweep) owns(l seeds.Layout) bool {
	seed, ok := l.Seed()
	return ok && s.First <= seed && seed <= s.Last && s.Shard.owns(seed, s.First)
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
func (s *Sweep) sweep(ctx context.Context, done map[seeds.Layout]seeds.Record, report *Report) (uint32, error) {
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
	fresh := map[seeds.Layout]seeds.Record{}
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
			if Booted(r.Kind) {
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
		s.note("continuing: %d of %d layouts were tried before", tally.Done, tally.Total)
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
	images := make(chan image)
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
				r, err := s.judge(ctx, i, s.Guest.Boot)
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
		s.note("%d of %d layouts fail alike: probably not a layout bug", alike, alike)
	case fails == 0 && baseline.Kind == qemu.Pass:
		s.note("nothing found so far: %d of %d layouts pass", alike, alike)
	}
}

// begin decides the strategy and the accelerator, opens the journal, and
// tries the baseline unless the journal has it.
func (s *Sweep) begin(ctx context.Context) (baseline seeds.Record, err error) {
	path := filepath.Join(s.store.Dir(), s.Shard.journal())
	s.images = map[string]seeds.Layout{}
	// An earlier run has decided what auto stands for.
	earlier, _, _, err := seeds.ReadJournal(path)
	if err != nil {
		return baseline, err
	}
	if earlier != nil && s.Strategy == Auto {
		s.Strategy = Strategy(earlier.Strategy)
	}
	if earlier != nil && s.Guest.Machine.Accel == "auto" {
		s.Guest.Accelerate(earlier.Accel, s.note)
	}
	if s.Strategy, err = s.Strategy.resolve(ctx, s.Kernel, s.First, s.note); err != nil {
		return baseline, err
	}
	switch s.layout, err = s.Kernel.Layout(ctx); {
	case err == nil:
		if s.coverage, err = NewCoverage(s.layout); err != nil {
			s.note("coverage is not counted: %v", err)
		}
	case s.Strategy != LLD || ctx.Err() != nil: // refuses a kernel with nothing to pad, before anything is booted
		return baseline, err
	default:
		s.note("coverage is not counted: %v", err)
	}
	l, err := s.Kernel.Linker()
	if err != nil {
		return baseline, err
	}
	defer l.Close()

	var linked image
	link := func() (err error) {
		if linked, err = s.link(ctx, l, seeds.Baseline, linker.Plan{}); err == nil && linked.record.Kind == qemu.LinkFailed {
			err = fmt.Errorf("the baseline does not link: %s", linked.record.Note)
		}
		return err
	}
	boot := s.Guest.Boot
	if s.Guest.Machine.Accel == "auto" {
		// Its verdict is needed before the journal can be opened.
		if err := link(); err != nil {
			return baseline, err
		}
		first, err := s.Guest.Settle(ctx, linked.Path, s.note)
		if err != nil {
			return baseline, err
		}
		boot = func(ctx context.Context, image string) (qemu.Result, error) { return first, nil }
	}
	if _, err := s.Guest.Machine.User(); err != nil {
		s.note("QEMU runs as root: %v", err)
	}
	if s.journal, err = seeds.OpenJournal(path, header(s.Saved, s.Guest, s.Strategy)); err != nil {
		return baseline, err
	}
	defer func() {
		if err != nil {
			s.journal.Close()
		}
	}()
	if text := s.journal.Mended(); text != "" {
		s.note("%s", text)
	}
	if text := s.journal.Unlocked(); text != "" {
		s.note("%s", text)
	}
	switch text, err := s.Shard.otherwise(s.store.Dir()); {
	case err != nil:
		return baseline, err
	case text != "":
		s.note("warning: %s", text)
	}
	if err := s.store.Tidy(s.Shard.journal(), func(l seeds.Layout) bool {
		seed, ok := l.Seed()
		return ok && s.Shard.owns(seed, s.First) || !ok && s.Shard.first()
	}); err != nil {
		return baseline, err
	}
	if err := s.recall(ctx); err != nil {
		return baseline, err
	}
	for _, r := range s.journal.Records() {
		if r.Layout == seeds.Baseline {
			return r, nil
		}
	}
	if linked.Path == "" {
		if err := link(); err != nil {
			return baseline, err
		}
	}
	return s.judge(ctx, linked, boot)
}

// recall counts the layouts that earlier runs have booted. The journal is all
// that there is of them: a run that dies loses no coverage.
func (s *Sweep) recall(ctx context.Context) error {
	if s.coverage == nil {
		return nil
	}
	if s.Strategy != LLD {
		if err := s.store.SaveBaseline(s.Saved.Digests.Object, s.layout); err != nil {
			return err
		}
	}
	var tried []Tried
	for _, r := range s.journal.Records() {
		tried = append(tried, Tried{Record: r, Strategy: s.Strategy})
	}
	untold, err := s.coverage.Recall(ctx, tried, s.Recall)
	if untold > 0 {
		s.note("coverage: %d layouts of earlier runs are not counted: under strategy lld only their images told where the functions were", untold)
	}
	return err
}

// covered is the coverage so far, nil for a kernel that has none.
func (s *Sweep) covered() *Totals {
	if s.coverage == nil {
		return nil
	}
	t := s.coverage.Totals()
	return &t
}

// header identifies a sweep: what must be the same for its verdicts to stand
// in one journal.
func header(saved seeds.File, g *Guest, strategy Strategy) seeds.Header {
	m := machine(saved, g)
	h := seeds.Header{
		Scenario: saved.Scenario.Name,
		Strategy: string(strategy),
		Accel:    m.Accel,
		QEMU:     saved.Tools.QEMU,
		LLD:      saved.Tools.LLD,
		Object:   saved.Digests.Object,
		Initrd:   saved.Digests.Initrd,
		Argv:     digest(m.Argv()...),
		Command:  qemu.Quote(m.Argv()),
	}
	h.Rules, h.Verdict = rules(saved.Scenario.Verdict, g.Expect)
	return h
}

// rules are those of a verdict, as a digest and in words.
func rules(v scenarios.Verdict, e qemu.Expect) (sum, words string) {
	parts := []string{v.Pass.String(), v.Crash.String(), fmt.Sprint(v.Warnings, v.Confirm), e.Limit.String()}
	named := []string{"pass=" + v.Pass.String(), "crash=" + v.Crash.String(), fmt.Sprint("warnings=", v.Warnings),
		fmt.Sprint("confirm=", v.Confirm), "limit=" + e.Limit.String()}
	if e.Infra != nil {
		parts, named = append(parts, e.Infra.String()), append(named, "infra="+e.Infra.String())
	}
	return digest(parts...), qemu.Quote(named)
}

// machine is the guest with the names of its files, without where they are.
func machine(saved seeds.File, g *Guest) qemu.Machine {
	m := g.Machine
	m.Kernel, m.Initrd = saved.Scenario.Kernel.Image, "initrd"
	if m.Program != nil {
		m.Slot = "{slot}"
	}
	return m
}

// file is a saved seed without what its boots have shown.
func file(saved seeds.File, g *Guest, layout seeds.Layout, strategy Strategy, plan, image string) seeds.File {
	m := machine(saved, g)
	f := saved
	f.Version = seeds.Version
	f.Layout, f.Strategy = layout, string(strategy)
	f.Accel = m.Accel
	f.Digests.Plan, f.Digests.Image = plan, image
	f.Command = qemu.Quote(m.Argv())
	f.Found = time.Now().UTC().Truncate(time.Second)
	return f
}

func digest(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%q\n", p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// image is a layout that is linked, with its record so far.
type image struct {
	linker.Image
	record seeds.Record
}

// link links one layout. One that does not link, or is that of another seed, has
// its verdict, and is in the journal. An error is one of the machine, not of the layout.
func (s *Sweep) link(ctx context.Context, l Linker, layout seeds.Layout, plan linker.Plan) (i image, err error) {
	i.record = seeds.Record{Layout: layout, Plan: plan.Digest()}
	defer s.Guest.share()() // a boot that must be alone is not disturbed by links
	begin := time.Now()
	i.Image, err = l.Link(ctx, plan)
	i.record.Millis = time.Since(begin).Milliseconds()
	var failed *linker.LinkError
	switch {
	case errors.As(err, &failed):
		i.record.Kind, i.record.Note = qemu.LinkFailed, failed.Reason
		if layout == seeds.Baseline {
			return i, nil // there is no journal yet
		}
		return i, s.tell(&i.record)
	case err != nil:
		return i, fmt.Errorf("linking %s: %w", layout.Name(), err)
	}
	i.record.Image = i.Digest
	s.took(Steps{Steps: i.Steps})
	if i.SystemMap == "" {
		s.mu.Lock()
		s.passes++
		s.mu.Unlock()
	}
	same, err := s.first(layout, i.Digest)
	if err != nil || same == layout {
		return i, err
	}
	i.record.Kind, i.record.Note = qemu.Duplicate, "the layout of "+same.Name()
	s.note("%s: the layout of %s: counted once", layout.Name(), same.Name())
	return i, errors.Join(i.Remove(), s.tell(&i.record))
}

// judge boots an image, saves it if it is unlucky, confirms that, writes it
// into the journal, and removes the image.
func (s *Sweep) judge(ctx context.Context, i image, boot func(context.Context, string) (qemu.Result, error)) (seeds.Record, error) {
	begin := time.Now()
	r := i.record
	first, err := s.boot(ctx, &r, i.Path, boot)
	if err != nil {
		return r, errors.Join(err, i.Remove())
	}
	r.Kind, r.Title, r.Boots = first.Kind, first.Title, 1
	if r.Layout == seeds.Baseline && first.Early {
		s.note("warning: verdict.pass, %q, is printed before the guest's first program runs: what ends silently behind that line passes", s.Saved.Scenario.Verdict.Pass)
	}
	if r.Kind == qemu.Pass {
		err = s.keepTwin(&r, first)
	} else {
		r.Found = Shows(s.Saved.Scenario.Verdict, first)
		if r.Kind == qemu.Hang {
			r.Boots = 2 // it took two boots to be believed
		}
		r.Crashes, r.Titles = r.Boots, map[string]int{r.Title: r.Boots}
		err = s.keep(ctx, &r, i.Path, first)
	}
	if err = errors.Join(err, i.Remove()); err != nil {
		return r, err
	}
	took := time.Since(begin)
	r.Millis += took.Milliseconds()
	err = s.tell(&r)
	if err == nil && s.coverage != nil {
		s.coverage.Add(i.Addresses)
	}
	s.took(Steps{Verdict: time.Since(begin)})
	return r, err
}

// tell writes a verdict into the journal.
func (s *Sweep) tell(r *seeds.Record) error {
	r.At = time.Now().UTC().Truncate(time.Second)
	return s.journal.Append(*r)
}

// boot is one boot of a layout that teaches something.
func (s *Sweep) boot(ctx context.Context, r *seeds.Record, image string, boot func(context.Context, string) (qemu.Result, error)) (qemu.Result, error) {
	begin := time.Now()
	result, err := boot(ctx, image)
	if err == nil {
		err = infra(r.Layout, result)
	}
	took := time.Since(begin)
	s.took(Steps{Start: result.Started, Boot: took - result.Started, Verdict: -took})
	return result, err
}

// note is called where several layouts are judged at once.
func (s *Sweep) note(format string, a ...any) {
	s.noting.Lock()
	defer s.noting.Unlock()
	s.Note(format, a...)
}

func (s *Sweep) took(t Steps) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps.Add(t)
}

// keep saves a layout that failed, as soon as it has, and again with the rate
// that its confirming boots show.
func (s *Sweep) keep(ctx context.Context, r *seeds.Record, image string, first qemu.Result) error {
	if err := s.save(r, first); err != nil {
		return err
	}
	path := filepath.Join(s.store.Dir(), r.Path)
	s.mu.Lock()
	tell := r.Found && !s.found && r.Layout != seeds.Baseline
	s.found = s.found || tell
	s.mu.Unlock()
	if tell && s.Found != nil {
		s.told.Go(func() { s.Found(path) })
	}
	for r.Boots < 1+s.Saved.Scenario.Verdict.Confirm {
		again := s.Guest.Boot // which may still prove slow
		if r.Kind == qemu.Hang {
			again = s.Guest.Again
		}
		next, err := s.boot(ctx, r, image, again)
		if err != nil {
			return err
		}
		r.Boots++
		if next.Kind == qemu.Pass || r.Found && !Shows(s.Saved.Scenario.Verdict, next) {
			continue
		}
		r.Crashes++
		r.Titles[next.Title]++
	}
	what := "unlucky"
	if !r.Found {
		what = "another crash"
	}
	s.note("%s: %s: %s (%d of %d boots)", r.Layout.Name(), what, r.Title, r.Crashes, r.Boots)
	return s.save(r, first)
}

// keepTwin saves the first few layouts that pass.
func (s *Sweep) keepTwin(r *seeds.Record, first qemu.Result) error {
	if r.Layout == seeds.Baseline {
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
	return s.save(r, first)
}

// save writes the record as a saved seed, with the console of its first boot.
// The baseline, which all shards try, is saved by the first.
func (s *Sweep) save(r *seeds.Record, first qemu.Result) error {
	if r.Layout == seeds.Baseline && !s.Shard.first() {
		return nil
	}
	f := file(s.Saved, s.Guest, r.Layout, s.Strategy, r.Plan, r.Image)
	f.Kind, f.Title, f.Titles = r.Kind, r.Title, r.Titles
	f.Boots, f.Crashes = r.Boots, r.Crashes
	path, err := s.store.Save(f, first.Console)
	if err != nil {
		return err
	}
	r.Path, err = filepath.Rel(s.store.Dir(), path)
	return err
}

// first is the layout that had an image first. Paddings that the linker script
// takes up, or that come to the same, give two seeds one layout. Where most
// layouts are the baseline's the padding does nothing, and a sweep of a thousand
// seeds would be a test of one: that is the error.
func (s *Sweep) first(layout seeds.Layout, image string) (seeds.Layout, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	same, ok := s.images[image]
	if !ok || same == layout {
		s.images[image] = layout
		return layout, nil
	}
	if same == seeds.Baseline {
		if s.idle++; s.idle >= idleLayouts && s.idle >= len(s.images) {
			return same, fmt.Errorf("layout of %s equals %s, as those of %d other seeds: the padding does nothing", layout.Name(), same.Name(), s.idle-1)
		}
	}
	return same, nil
}

// idleLayouts is how many layouts must be the baseline's before the sweep doubts
// its padding.
const idleLayouts = 4

// infra turns a boot from which nothing was learnt into an error.
func infra(layout seeds.Layout, r qemu.Result) error {
	if r.Kind != qemu.Infra {
		return nil
	}
	return &InfraError{layout, cmp.Or(r.By, "QEMU"), r.Reason}
}

// InfraError is QEMU, KVM or a program in their place failing again and again: no
// verdict.
type InfraError struct {
	Layout seeds.Layout
	By     string // qemu.Result.By
	Reason string
}

// KVM tells whether it was KVM that failed.
func (e *InfraError) KVM() bool { return qemu.KVMFailed(e.Reason) }

func (e *InfraError) Error() string {
	return fmt.Sprintf("booting %s: %s failed %d times: %s", e.Layout.Name(), e.By, 1+retries, e.Reason)
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
