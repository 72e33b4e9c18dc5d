package search

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
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
	each     bool   // each variant is to pass, not only with certainty
	variants int    // at the least
	shared   int    // boots that passed of others, which would have failed if this one did
}

// planned is the question of one plan, without variants.
func planned(p layout.Plan, switches string) question {
	return question{plan: func(int) layout.Plan { return p }, switches: switches}
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

	failing string // the digest of the failing plan
	before  counts // of its boots in the sweep, which count too
	// falsePass is the chance, for one question, that a layout which fails at the rate is
	// taken for one that passes; a tenth of it for one that is asked with care.
	falsePass float64
	least     int       // boots of a question, at the least, before it passes
	doubts    int       // how often an answer has proved wrong
	maxBoots  int       // 0 for no limit
	reserve   int       // of those, kept for the answer
	deadline  time.Time // zero for none

	linkers chan *loaded
	memory  *memory // nil where no boot is looked into
	resumed bool    // whether an earlier run has left records

	mu     sync.Mutex
	boots  int                     // of all questions, in earlier runs too
	passed int                     // boots that the weakest answer "passes" stands on; 0 for none yet
	tally  map[string]seeds.Record // by plan and switches
	rated  []string                // digests of the plans whose boots give the rate
}

// loaded is a linker with the image that it holds.
type loaded struct {
	fuzz.Linker
	plan   string // its digest
	image  linker.Image
	digest string // of the image
}

// load takes an image of a plan.
func (l *loaded) load(p layout.Plan, image linker.Image) (err error) {
	l.plan, l.image = p.Digest(), image
	l.digest, err = image.Digest()
	return err
}

// counts are boots, and those of them that crashed. The first crash of a layout is
// why it is looked at, and says nothing of how often it does: it is left out.
type counts struct{ boots, crashes int }

// errBudget ends a search at the limit that the user has set.
var errBudget = errors.New("the limit of boots or of time is reached")

// open makes the linkers and takes in what the journal knows.
func (j *judge) open() error {
	j.tally = map[string]seeds.Record{}
	j.resumed = len(j.journal.Records()) > 0
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

// rate is how often the failing layout fails, and those alike. Others say less of it:
// they are booted until they fail.
func (j *judge) rate() (boots, crashes int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	boots, crashes = j.before.boots, j.before.crashes
	for _, digest := range append(j.rated[:len(j.rated):len(j.rated)], j.failing) {
		r := j.tally[digest+" "]
		boots, crashes = boots+r.Boots-r.Others, crashes+r.Crashes
	}
	return boots, crashes
}

// alike counts the boots of a plan for the rate: what decides in the failing one is in it, too.
func (j *judge) alike(p layout.Plan) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if digest := p.Digest(); digest != j.failing && !slices.Contains(j.rated, digest) {
		j.rated = append(j.rated, digest)
	}
}

// missed is the chance of a boot of a layout that fails to pass; 0 for a crash that has
// been there each time.
func (j *judge) missed() float64 {
	n, crashes := j.rate()
	if crashes == 0 || crashes == n {
		return 0
	}
	return float64(n-crashes+1) / float64(n+2)
}

// fewest is how many boots must pass before any question does.
func (j *judge) fewest() int {
	boots := max(1, j.least)
	if n, crashes := j.rate(); 0 < crashes && crashes < n {
		boots = max(boots, evidence.PassesAlike(crashes, n, j.falsePass))
	}
	return boots
}

// need is how many boots must pass before a question does, and how many
// variants share them.
func (j *judge) need(sure bool) (boots, variants int) {
	boots = j.fewest()
	care := j.doubts
	if sure {
		care++
	}
	if n, crashes := j.rate(); 0 < crashes && crashes < n {
		chance := j.falsePass * math.Pow(0.1, float64(care))
		if boots = max(boots, evidence.PassesAlike(crashes, n, chance)); sure { // the first boots may flatter the rate
			boots = max(boots, evidence.PassesFor(0.5, chance))
		}
		return boots, 1 + care
	}
	return boots + care*max(1, boots/2), 1 + care
}

// ask answers questions, as many at once as there are linkers.
func (j *judge) ask(ctx context.Context, sure bool, questions ...question) ([]Answer, error) {
	need, variants := j.need(sure)
	answers, err := j.askFor(ctx, sure, need, variants, questions...)
	if sure && j.memory != nil {
		need = j.fewest()
	}
	if slices.Contains(answers, Passes) {
		j.mu.Lock()
		if j.passed == 0 || need < j.passed {
			j.passed = need
		}
		j.mu.Unlock()
	}
	return answers, err
}

// askFor is ask with as many boots that must pass before a question does, for what is
// no answer by itself.
func (j *judge) askFor(ctx context.Context, sure bool, need, variants int, questions ...question) ([]Answer, error) {
	answers := make([]Answer, len(questions))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(j.workers)
	for i, q := range questions {
		group.Go(func() (err error) {
			answers[i], err = j.answer(ctx, q, need, variants, sure)
			return err
		})
	}
	return answers, group.Wait()
}

// own is how many boots of a layout pass before those of others stand in for more of them.
const own = 2

// answer boots the variants of a question in turn until one fails or enough
// boots have passed. What passes with its code intact is no failure that did not show
// itself: it needs no boots for that.
func (j *judge) answer(ctx context.Context, q question, need, variants int, sure bool) (Answer, error) {
	least := need
	if sure && !q.each {
		least = j.fewest()
	}
	var plans []layout.Plan // that differ
	for v := range max(variants, q.variants) {
		p := q.plan(v)
		if v == 0 || p.Digest() != plans[0].Digest() {
			plans = append(plans, p)
		}
	}
	for {
		passes, others, next, intact := 0, 0, -1, 0
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
			intact += r.Intact
			if r.Boots < fewest {
				next, fewest = v, r.Boots
			}
		}
		switch {
		case passes >= need, passes >= min(need, own) && passes+q.shared >= need, passes >= least && intact == passes:
			return Passes, nil
		case others > need || next < 0:
			return Unknown, nil
		}
		if err := j.boot(ctx, plans[next], q.switches, 1, sure); err != nil {
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

// boot boots a plan some times more. Sure is as in ask.
func (j *judge) boot(ctx context.Context, p layout.Plan, switches string, times int, sure bool) error {
	l := <-j.linkers
	defer func() { j.linkers <- l }()
	r := j.known(p, switches)
	r.Layout, r.Plan, r.Append = j.layout, p.Digest(), switches
	for range times {
		if err := j.spend(); err != nil {
			return err
		}
		begin := time.Now()
		result, err := j.show(ctx, l, p, switches, sure)
		if err != nil {
			return err
		}
		if result.Kind != qemu.LinkFailed {
			r.Boots++
			r.Image = l.digest
		}
		if r.Kind == "" || r.Kind == qemu.Pass { // else that of the first that did not pass
			r.Kind, r.Title = result.Kind, result.Title
		}
		switch {
		case result.Kind == qemu.LinkFailed:
			r.Note = result.Reason
		case result.Kind == qemu.Pass && switches == "" && j.memory != nil && j.memory.looks(sure) && j.memory.intact(p):
			r.Intact++
		case result.Kind == qemu.Pass:
		case evidence.Shows(j.verdict, result):
			r.Crashes++
		default:
			r.Others++
			if switches == "" {
				err = j.other(p, result, l.digest)
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

// look boots a plan until it has been booted least times, and once at the least, for what
// is in memory then. Of what an earlier run has booted the memory is gone: it is booted
// once more for that alone, which is no answer and is not counted, so that a run which was
// interrupted ends as one which was not.
func (j *judge) look(ctx context.Context, p layout.Plan, least int) error {
	known := j.known(p, "").Boots
	if !j.resumed || known < max(least, 1) {
		return j.boot(ctx, p, "", max(1, least-known), true)
	}
	l := <-j.linkers
	defer func() { j.linkers <- l }()
	_, err := j.show(ctx, l, p, "", true)
	return err
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
		r, err := j.show(ctx, l, p, "", false)
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
	f.Digests.Image = l.digest
	return console, nil
}

// show links a plan, unless the linker holds it, and boots it once.
func (j *judge) show(ctx context.Context, l *loaded, p layout.Plan, switches string, sure bool) (r qemu.Result, err error) {
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
		if err := l.load(p, image); err != nil {
			return qemu.Result{}, err
		}
	}
	if switches == "" && j.memory != nil && j.memory.looks(sure) {
		r, err = j.memory.boot(ctx, l.image, p)
	} else {
		r, err = j.guest.BootWith(ctx, l.image.Path, switches)
	}
	if err == nil {
		err = fuzz.CheckInfra(j.layout, r)
	}
	return r, err
}
