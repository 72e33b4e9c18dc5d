package evidence

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"unlucky/layout"
	"unlucky/qemu"
)

// rule tells failing layouts by the residue of a function, or of the distance between
// two.
type rule struct {
	group, with int    // histories; with is -1 where it is no distance
	modulus     uint64 // bytes
	residues    uint64 // modulo 64: a set of them, in units of layout.Step
	first, n    int    // else a range of them, which may go round
	target      int
	log         float64 // the natural logarithm of its corrected chance; notTold for none
}

// pageUnits is the number of residues modulo a page. One of them is a uint8: a smaller
// step asks for more.
const pageUnits = layout.Modulus / layout.Step

const _ = uint8(pageUnits - 1)

// unitsOf is the number of residues of a modulus.
func unitsOf(modulus uint64) int { return int(modulus / layout.Step) }

// holds tells whether a layout is at the residues of a rule.
func (t *verdicts) holds(c rule, l int) bool {
	if t.histories[c.group].absent(l) {
		return false
	}
	at := t.histories[c.group].at[l]
	if c.with >= 0 {
		at -= t.histories[c.with].at[l]
	}
	units := unitsOf(c.modulus)
	unit := int(at) % units
	if c.residues != 0 {
		return c.residues>>unit&1 == 1
	}
	return (unit-c.first+units)%units < c.n
}

// comparison is one comparison of layouts.
type comparison struct {
	verdicts *verdicts
	alive    []int // layouts
	fails    int   // of them
	targets  []target
	all      [][pageUnits]uint16 // alive layouts at each residue modulo a page, by history
	logs     []float64           // ln n!

	rules  []rule    // that luck does not give any time, the best first; one of each history
	dealt  []float64 // the best of verdicts dealt at random, as rule.log
	early  bool      // dealing has ended early
	tooFew string
}

// target is a set of failures that is to be explained.
type target struct {
	title string // empty for all failures
	fails []int  // layouts
}

// families are the kinds of rules: of a modulus each, and of distances.
const families = 4

// notTold is the limit of rule.log: what is worse is not told.
const notTold = 10

// Verdicts are dealt anew where a chance is neither beyond doubt nor beyond
// hope, until luck has been as good as often as enoughLuck; of many layouts and
// functions fewer times, but often enough to tell Sure.
const (
	beyondDoubt = 0.001
	minDeals    = 39
	maxDeals    = 999
	dealWork    = 30_000_000 // deals times failures times histories: some ten seconds
	enoughLuck  = 20
)

// compare finds the best rules for some layouts.
func (t *verdicts) compare(ctx context.Context, alive []int) (*comparison, error) {
	r := &comparison{verdicts: t, alive: alive, logs: make([]float64, len(alive)+1)}
	for n := 2; n <= len(alive); n++ {
		r.logs[n] = r.logs[n-1] + math.Log(float64(n))
	}
	r.aim()
	if r.tooFew != "" || r.fails == 0 {
		return r, nil
	}
	r.count()
	var err error
	if r.rules, err = r.scan(ctx, r.targets, notTold); err != nil {
		return nil, err
	}
	best := 1.0
	if len(r.rules) > 0 {
		best = r.chance(r.rules[0])
	}
	if best > beyondDoubt && best < 1 {
		if err := r.deal(ctx); err != nil {
			return nil, err
		}
		best = r.chance(r.rules[0])
	}
	if best > Sure {
		r.tooFew = r.failing() + ", and no function explains that better than luck would: more layouts may tell; or it is more than the residue of one function, or flaky"
	}
	return r, nil
}

// failing says how many layouts are to be explained.
func (r *comparison) failing() string {
	if len(r.alive) < len(r.verdicts.tried) {
		return fmt.Sprintf("of the %d layouts that no suspect explains %d fail", len(r.alive), r.fails)
	}
	return fmt.Sprintf("%d of %d layouts fail", r.fails, len(r.alive))
}

// aim chooses the targets: all failures, and each title. One that has too few
// layouts for even the best of rules is none; that depends on how many they are
// alone, so it costs the others nothing (Tarone).
func (r *comparison) aim() {
	titles := map[string][]int{}
	var all []int
	for _, l := range r.alive {
		if tried := r.verdicts.tried[l]; tried.Kind != qemu.Pass {
			titles[tried.Title] = append(titles[tried.Title], l)
			all = append(all, l)
		}
	}
	r.fails = len(all)
	switch {
	case r.fails == 0 && len(r.alive) == len(r.verdicts.tried):
		r.tooFew = fmt.Sprintf("nothing has failed in %d layouts: there is nothing to explain", len(r.alive))
		return
	case r.fails == 0:
		return
	}
	titles[""] = all
	for title, fails := range titles {
		if title != "" && len(fails) == len(all) || r.least(len(r.alive), len(fails)) > math.Log(Sure) {
			continue
		}
		r.targets = append(r.targets, target{title, fails})
	}
	slices.SortFunc(r.targets, func(a, b target) int { return strings.Compare(a.title, b.title) })
	switch {
	case len(r.targets) > 0:
	case r.fails == len(r.alive):
		r.tooFew = r.failing() + ": some must pass, too, to tell a function by"
	default:
		r.tooFew = fmt.Sprintf("%s: too few to tell a function by; if they go on like this, about %d layouts are needed at the least", r.failing(), r.needed())
	}
}

// least is the corrected chance, as rule.log, of the best rule that there could
// be for some fails of n layouts.
func (r *comparison) least(n, fails int) float64 {
	return math.Log(families*subsets*float64(len(r.verdicts.histories))) - choose(n, fails)
}

// needed is how many layouts that fail as often as these could tell one residue
// modulo 256.
func (r *comparison) needed() int {
	for n := len(r.alive); ; n += n/16 + 1 {
		fails := max(1, n*r.fails/len(r.alive))
		passes := max(1, n-fails)
		if r.cost(256)-choose(fails+passes, fails) <= math.Log(Sure) {
			return n
		}
	}
}

// choose is ln of the binomial coefficient.
func choose(n, k int) float64 {
	a, _ := math.Lgamma(float64(n + 1))
	b, _ := math.Lgamma(float64(k + 1))
	c, _ := math.Lgamma(float64(n - k + 1))
	return a - b - c
}

// count fills in where the layouts were.
func (r *comparison) count() {
	r.all = make([][pageUnits]uint16, len(r.verdicts.histories))
	for h := range r.all {
		history := r.verdicts.histories[h]
		for _, l := range r.alive {
			if !history.absent(l) {
				r.all[h][history.at[l]]++
			}
		}
	}
}

// subsets is how many sets of residues modulo 64 say something: all but none and all.
const subsets = 1<<(64/layout.Step) - 2

// harmonic is the sum of 1/n for n below units.
func harmonic(units int) (sum float64) {
	for n := 1; n < units; n++ {
		sum += 1 / float64(n)
	}
	return sum
}

// cost is ln of the number of rules that one of a modulus is one of, as its share
// of the level has it; of ranges, one of a single residue.
func (r *comparison) cost(modulus uint64) float64 {
	n := families * float64(max(1, len(r.targets))*len(r.verdicts.histories))
	if modulus == 64 {
		return math.Log(n * subsets)
	}
	units := unitsOf(modulus)
	return math.Log(n * float64(units) * harmonic(units))
}

// distant is the cost of a distance.
func (r *comparison) distant(modulus uint64) float64 {
	groups := float64(len(r.verdicts.histories))
	return math.Log(families*float64(len(r.targets))) + math.Log(2*float64(unitsOf(modulus))*groups*(groups-1)/2) // two moduli
}

// scan finds the best rule of each history, below a limit of rule.log, and
// distances.
func (r *comparison) scan(ctx context.Context, targets []target, limit float64) ([]rule, error) {
	groups := len(r.verdicts.histories)
	found := make([]rule, groups)
	chunk := (groups + runtime.NumCPU() - 1) / runtime.NumCPU()
	work, ctx := errgroup.WithContext(ctx)
	for begin := 0; begin < groups; begin += chunk {
		work.Go(func() error {
			for h := begin; h < min(begin+chunk, groups); h++ {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				found[h].log = limit
				for n, target := range targets {
					found[h] = r.better(h, n, target, found[h])
				}
			}
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		return nil, err
	}
	found = slices.DeleteFunc(found, func(l rule) bool { return l.log == limit })
	for n, target := range targets {
		found = append(found, r.distances(n, target)...)
	}
	slices.SortStableFunc(found, func(a, b rule) int { return cmp.Compare(a.log, b.log) })
	return found, nil
}

// better finds a rule of a history that is better than the best so far.
func (r *comparison) better(h, n int, target target, best rule) rule {
	var fails, all [pageUnits]int
	history := r.verdicts.histories[h]
	for _, l := range target.fails {
		if !history.absent(l) {
			fails[history.at[l]]++
		}
	}
	for i, n := range r.all[h] {
		all[i] = int(n)
	}
	try := func(l rule, cost float64, k, of int) {
		l.group, l.with, l.target = h, -1, n
		if l.log = r.log(cost, len(target.fails), of, k, best.log); l.log < best.log {
			best = l
		}
	}
	for _, modulus := range []uint64{layout.Modulus, 256, 64} { // the finer first: the next are folded from them
		units := unitsOf(modulus)
		for i := units; i < len(fails) && modulus < layout.Modulus; i++ {
			fails[i%units] += fails[i]
			all[i%units] += all[i]
			fails[i], all[i] = 0, 0
		}
		if modulus == 64 {
			cost := r.cost(64)
			for set := uint64(1); set <= subsets; set++ {
				k, of := 0, 0
				for i := range units {
					if set>>i&1 == 1 {
						k, of = k+fails[i], of+all[i]
					}
				}
				try(rule{modulus: 64, residues: set}, cost, k, of)
			}
			continue
		}
		r.ranges(modulus, fails[:units], all[:units], try)
	}
	return best
}

// ranges tries the ranges of residues that begin and end with a failure. Where
// there are many it is content with every fourth.
func (r *comparison) ranges(modulus uint64, fails, all []int, try func(l rule, cost float64, k, of int)) {
	var ends []int
	for i, n := range fails {
		if n > 0 {
			ends = append(ends, i)
		}
	}
	if len(ends) > pageUnits/4 {
		ends = slices.DeleteFunc(ends, func(i int) bool { return i%4 != 0 })
	}
	single := r.cost(modulus)
	units := len(fails)
	var sumFails, sumAll [pageUnits + 1]int
	for i := range units {
		sumFails[i+1] = sumFails[i] + fails[i]
		sumAll[i+1] = sumAll[i] + all[i]
	}
	for _, first := range ends {
		for _, last := range ends {
			n, k, of := last-first+1, sumFails[last+1]-sumFails[first], sumAll[last+1]-sumAll[first]
			if n <= 0 { // it goes round
				n, k, of = n+units, k+sumFails[units], of+sumAll[units]
			}
			if n < units {
				try(rule{modulus: modulus, first: first, n: n}, single+lengths[n], k, of)
			}
		}
	}
}

// lengths are ln n.
var lengths = func() (logs [pageUnits]float64) {
	for n := 1; n < len(logs); n++ {
		logs[n] = math.Log(float64(n))
	}
	return logs
}()

// log is the corrected chance, as rule.log, of k or more of some failures being
// among of layouts, by Fisher's exact test, or than where that is smaller.
func (r *comparison) log(cost float64, fails, of, k int, than float64) float64 {
	n := len(r.alive)
	if k*n <= fails*of || of == n {
		return than
	}
	if r.logs[fails]-r.logs[fails-k]-r.logs[n]+r.logs[n-k]+cost >= than { // were all of them to fail
		return than
	}
	choose := func(n, k int) float64 { return r.logs[n] - r.logs[k] - r.logs[n-k] }
	p := choose(fails, k) + choose(n-fails, of-k) - choose(n, of) // of just k
	if p+cost >= than {
		return than
	}
	sum, term := 1.0, 1.0
	for i := k; i < min(fails, of) && term > 1e-9; i++ {
		term *= float64(fails-i) * float64(of-i) / (float64(i+1) * float64(n-fails-of+i+1))
		sum += term
	}
	return min(p+math.Log(sum)+cost, than)
}

// distances finds pairs of functions whose distance is at one residue in all
// failures of a target. Others would take as many tests as there are pairs.
func (r *comparison) distances(n int, target target) (found []rule) {
	for _, modulus := range []uint64{64, 256} {
		cost := r.distant(modulus)
		if cost-r.logs[len(r.alive)]+r.logs[len(target.fails)]+r.logs[len(r.alive)-len(target.fails)] >= 0 {
			continue // too few for any
		}
		alike := map[string][]int{} // histories that in all failures move as one
		for h, history := range r.verdicts.histories {
			if history.apart != nil || r.still(h, modulus) {
				continue // a distance to one that stands still is a residue
			}
			moves := make([]byte, len(target.fails))
			for i, l := range target.fails {
				moves[i] = (history.at[l] - history.at[target.fails[0]]) % uint8(unitsOf(modulus))
			}
			alike[string(moves)] = append(alike[string(moves)], h)
		}
		for _, hs := range alike {
			for i, g := range hs {
				for _, h := range hs[:i] {
					l := rule{group: h, with: g, modulus: modulus, n: 1, target: n}
					l.first = int((r.verdicts.histories[h].at[target.fails[0]] - r.verdicts.histories[g].at[target.fails[0]]) % uint8(unitsOf(modulus)))
					of := 0
					for _, a := range r.alive {
						if r.verdicts.holds(l, a) {
							of++
						}
					}
					if l.log = r.log(cost, len(target.fails), of, len(target.fails), 0); l.log < 0 {
						found = append(found, l)
					}
				}
			}
		}
	}
	slices.SortFunc(found, func(a, b rule) int {
		return cmp.Or(cmp.Compare(a.modulus, b.modulus), a.group-b.group, a.with-b.with)
	})
	return found
}

// still tells whether a history has one residue only.
func (r *comparison) still(h int, modulus uint64) bool {
	at := r.verdicts.histories[h].at
	return !slices.ContainsFunc(r.alive, func(l int) bool { return (at[l]-at[r.alive[0]])%uint8(modulus/16) != 0 })
}

// leastChance is what smaller chances are told as: there is no number for some.
const leastChance = 1e-300

// chance is that of luck giving a rule as good.
func (r *comparison) chance(l rule) float64 {
	if r.dealt == nil {
		return max(leastChance, min(1, math.Exp(l.log)))
	}
	n := 0
	for _, d := range r.dealt {
		if d <= l.log {
			n++
		}
	}
	if r.early {
		return float64(n) / float64(len(r.dealt))
	}
	return float64(n+1) / float64(len(r.dealt)+1)
}

// deal deals the verdicts anew, to the same layouts.
func (r *comparison) deal(ctx context.Context) error {
	random := rand.New(rand.NewPCG(1, 2)) // the same data give the same answer
	lucky := 0
	for range max(minDeals, min(maxDeals, dealWork/(r.fails*len(r.verdicts.histories)))) {
		to := make(map[int]int, len(r.alive))
		for i, n := range random.Perm(len(r.alive)) {
			to[r.alive[i]] = r.alive[n]
		}
		targets := slices.Clone(r.targets)
		for i := range targets {
			targets[i].fails = slices.Clone(targets[i].fails)
			for n, l := range targets[i].fails {
				targets[i].fails[n] = to[l]
			}
		}
		rules, err := r.scan(ctx, targets, 0)
		if err != nil {
			return err
		}
		best := 0.0
		if len(rules) > 0 {
			best = rules[0].log
		}
		r.dealt = append(r.dealt, best)
		if best <= r.rules[0].log {
			lucky++
		}
		if lucky == enoughLuck {
			r.early = true
			break
		}
	}
	return nil
}
