package search

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"unlucky/fuzz"
	"unlucky/fuzz/evidence"
	"unlucky/layout"
	"unlucky/linker"
	"unlucky/qemu"
	"unlucky/scenarios"
	"unlucky/seeds"
)

// question is a layout to be judged by as many boots as that needs.
type question struct {
	plan     func(variant int) layout.Plan
	switches string // to add to the kernel command line
}

// planned is the question of one plan, without variants.
func planned(p layout.Plan, switches string) question {
	return question{func(int) layout.Plan { return p }, switches}
}

// judge links and boots plans and keeps the boots of each.
type judge struct {
	kernel  fuzz.Kernel
	guest   *fuzz.Guest
	verdict scenarios.Verdict
	layout  seeds.ID // for the journal
	journal *seeds.Journal
	workers int
	// other is told of a crash that is not the one looked for.
	other func(plan layout.Plan, r qemu.Result, image string) error
	step  func(boots int)

	failing  string    // the digest of the failing plan, whose boots give the rate
	before   counts    // of its boots in the sweep, which count too
	least    int       // boots of a question, at the least, before it passes
	doubts   int       // how often an answer has proved wrong
	maxBoots int       // 0 for no limit
	reserve  int       // of those, kept for the answer
	deadline time.Time // zero for none

	linkers chan *loaded

	mu     sync.Mutex
	boots  int                     // of all questions, in earlier runs too
	passed int                     // boots that the weakest answer "passes" stands on; 0 for none yet
	tally  map[string]seeds.Record // by plan and switches
}

// loaded is a linker with the image that it holds.
type loaded struct {
	fuzz.Linker
	plan  string // its digest
	image linker.Image
}

// counts are boots, and those of them that crashed. The first crash of a layout is
// why it is looked at, and says nothing of how often it does: it is left out.
type counts struct{ boots, crashes int }

// errBudget ends a search at the limit that the user has set.
var errBudget = errors.New("the limit of boots or of time is reached")

// open makes the linkers and takes in what the journal knows.
func (j *judge) open() error {
	j.tally = map[string]seeds.Record{}
	for _, r := range j.journal.Records() {
		j.tally[r.Plan+" "+r.Append] = r
		j.boots += r.Boots
	}
	j.linkers = make(chan *loaded, j.workers)
	for range j.workers {
		l, err := j.kernel.Linker()
		if err != nil {
			return errors.Join(err, j.close())
		}
		j.linkers <- &loaded{Linker: l}
	}
	return nil
}

func (j *judge) close() (err error) {
	for len(j.linkers) > 0 {
		err = errors.Join(err, (<-j.linkers).Close())
	}
	return err
}

// rate is how often the failing layout fails. Other layouts that fail say less
// of it: they are booted until they do.
func (j *judge) rate() (boots, crashes int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r := j.tally[j.failing+" "]
	return j.before.boots + r.Boots - r.Others, j.before.crashes + r.Crashes
}

const (
	// falsePass is the chance, for one question, that a layout which fails at
	// the rate is taken for one that passes.
	falsePass = 0.002
)

// need is how many boots must pass before a question does, and how many
// variants share them.
func (j *judge) need(sure bool) (boots, variants int) {
	boots, variants = max(1, j.least), 1
	if n, crashes := j.rate(); 0 < crashes && crashes < n {
		boots = max(boots, evidence.PassesFor(evidence.AtLeast(crashes, n), falsePass))
	}
	care := j.doubts
	if sure {
		care++
	}
	return boots + care*max(1, boots/2), 1 + care
}

// ask answers questions, as many at once as there are linkers.
func (j *judge) ask(ctx context.Context, sure bool, questions ...question) ([]Answer, error) {
	answers := make([]Answer, len(questions))
	need, variants := j.need(sure)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(j.workers)
	for i, q := range questions {
		group.Go(func() (err error) {
			answers[i], err = j.answer(ctx, q, need, variants)
			return err
		})
	}
	return answers, group.Wait()
}

// answer boots the variants of a question in turn until one fails or enough
// boots have passed.
func (j *judge) answer(ctx context.Context, q question, need, variants int) (Answer, error) {
	var plans []layout.Plan // that differ
	for v := range variants {
		p := q.plan(v)
		if v == 0 || p.Digest() != plans[0].Digest() {
			plans = append(plans, p)
		}
	}
	for {
		passes, others, next := 0, 0, -1
		fewest := math.MaxInt
		for v, p := range plans {
			r := j.known(p, q.switches)
			if r.Crashes > 0 {
				return Fails, nil
			}
			if r.Kind == qemu.LinkFailed {
				others++
				continue
			}
			passes += r.Boots - r.Others
			others += r.Others
			if r.Boots < fewest {
				next, fewest = v, r.Boots
			}
		}
		switch {
		case passes >= need:
			j.mu.Lock()
			if j.passed == 0 || passes < j.passed {
				j.passed = passes
			}
			j.mu.Unlock()
			return Passes, nil
		case others > need || next < 0:
			return Unknown, nil
		}
		if err := j.boot(ctx, plans[next], q.switches, 1); err != nil {
			return Unknown, err
		}
	}
}

// known is what the boots of a plan have shown so far.
func (j *judge) known(p layout.Plan, switches string) seeds.Record {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.tally[p.Digest()+" "+switches]
}

// boot boots a plan some times more.
func (j *judge) boot(ctx context.Context, p layout.Plan, switches string, times int) error {
	l := <-j.linkers
	defer func() { j.linkers <- l }()
	r := j.known(p, switches)
	r.Layout, r.Plan, r.Append = j.layout, p.Digest(), switches
	for range times {
		if err := j.spend(); err != nil {
			return err
		}
		begin := time.Now()
		result, err := j.show(ctx, l, p, switches)
		if err != nil {
			return err
		}
		if result.Kind != qemu.LinkFailed {
			r.Boots++
			r.Image = l.image.Digest
		}
		if r.Kind == "" || r.Kind == qemu.Pass { // else that of the first that did not pass
			r.Kind, r.Title = result.Kind, result.Title
		}
		switch {
		case result.Kind == qemu.LinkFailed:
			r.Note = result.Reason
		case result.Kind == qemu.Pass:
		case evidence.Shows(j.verdict, result):
			r.Crashes++
		default:
			r.Others++
			if switches == "" {
				err = j.other(p, result, l.image.Digest)
			}
			if err != nil {
				return err
			}
		}
		if result.Title != "" {
			titles := map[string]int{result.Title: 1}
			for t, n := range r.Titles {
				titles[t] += n
			}
			r.Titles = titles
		}
		r.Millis += time.Since(begin).Milliseconds()
		if err := j.journal.Append(r); err != nil {
			return err
		}
		j.mu.Lock()
		j.tally[r.Plan+" "+switches] = r
		j.step(j.boots)
		j.mu.Unlock()
		if result.Kind == qemu.LinkFailed {
			return nil
		}
	}
	return nil
}

// spend takes one boot from what the user allows.
func (j *judge) spend() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.maxBoots > 0 && j.boots >= j.maxBoots-j.reserve || !j.deadline.IsZero() && time.Now().After(j.deadline) {
		return errBudget
	}
	j.boots++
	return nil
}

// confirm links and boots a plan that has failed until it does again, for a while,
// and completes its saved seed. Should it not fail again, f stays what it was. Where
// no boot is left, its earlier ones are what is saved, without a console.
func (j *judge) confirm(ctx context.Context, p layout.Plan, f *seeds.File) (console []byte, err error) {
	l := <-j.linkers
	defer func() { j.linkers <- l }()
	f.Boots, f.Crashes, f.Titles = 0, 0, map[string]int{}
	need, _ := j.need(true)
	for f.Boots < 2 || f.Crashes == 0 && f.Boots < max(need, 3) {
		if err := j.spend(); err != nil && f.Boots == 0 {
			r := j.known(p, "")
			f.Boots, f.Crashes, f.Titles, f.Digests.Image = r.Boots, r.Crashes, r.Titles, r.Image
			return nil, nil
		} else if err != nil {
			break
		}
		r, err := j.show(ctx, l, p, "")
		if err == nil && r.Kind == qemu.LinkFailed {
			err = errors.New(r.Reason)
		}
		if err != nil {
			return nil, err
		}
		if f.Boots++; console == nil {
			console = r.Console
		}
		if evidence.Shows(j.verdict, r) {
			if f.Crashes++; f.Crashes == 1 {
				f.Kind, f.Title, console = r.Kind, r.Title, r.Console
			}
			f.Titles[r.Title]++
		}
	}
	f.Digests.Image = l.image.Digest
	return console, nil
}

// show links a plan, unless the linker holds it, and boots it once.
func (j *judge) show(ctx context.Context, l *loaded, p layout.Plan, switches string) (qemu.Result, error) {
	if digest := p.Digest(); l.plan != digest {
		if l.plan != "" {
			l.plan = ""
			if err := l.image.Remove(); err != nil {
				return qemu.Result{}, err
			}
		}
		done := j.guest.Share()
		image, err := l.Link(ctx, p)
		done()
		if failed := new(linker.LinkError); errors.As(err, &failed) {
			return qemu.Result{Kind: qemu.LinkFailed, Reason: failed.Reason}, nil
		}
		if err != nil {
			return qemu.Result{}, fmt.Errorf("linking a layout of %s: %w", j.layout.Name(), err)
		}
		l.plan, l.image = digest, image
	}
	r, err := j.guest.BootWith(ctx, l.image.Path, switches)
	if err == nil {
		err = fuzz.CheckInfra(j.layout, r)
	}
	return r, err
}
