package evidence

import (
	"cmp"
	"context"
	"encoding/binary"
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
	first, n    int    // the range of residues, in units of verdicts.step; it may go round
	bound       int32  // where modulus is 0: how far behind with it is at least, in bytes
	nearer      bool   // or at most
	target      int
	log         float64 // the natural logarithm of its corrected chance; notTold for none
}

// moduli are those of the rules, in bytes, the largest first: all powers of two at
// which functions that move by step differ, up to a page. A set of residues that is no
// range is rare, and one of a smaller modulus where it is not.
func (t *verdicts) moduli() (all []uint64) {
	for modulus := uint64(layout.Modulus); modulus > t.step; modulus /= 2 {
		all = append(all, modulus)
	}
	return all
}

// units is the number of residues of a modulus.
func (t *verdicts) units(modulus uint64) int { return int(modulus / t.step) }

// holds tells whether a layout is at the residues of a rule.
func (t *verdicts) holds(c rule, l int) bool {
	if t.histories[c.group].absent(l) {
		return false
	}
	if c.modulus == 0 {
		d := t.histories[c.group].away[l] - t.histories[c.with].away[l]
		return c.nearer && d <= c.bound || !c.nearer && d >= c.bound
	}
	at := t.histories[c.group].at[l]
	if c.with >= 0 {
		at -= t.histories[c.with].at[l]
	}
	units := t.units(c.modulus)
	return (int(at)-c.first+units)%units < c.n
}

// comparison is one comparison of layouts.
type comparison struct {
	verdicts *verdicts
	alive    []int // layouts
	fails    int   // of them
	targets  []target
	all      [][]uint16 // alive layouts at each residue modulo a page, by history
	logs     []float64  // ln n!
	lengths  []float64  // ln n of a range's n
	costs    []float64  // of each modulus

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

// notTold is the limit of rule.log: what is worse is not told.
const notTold = 10

// Verdicts are dealt anew where a chance is neither beyond doubt nor beyond
// hope, until luck has been as good as often as enoughLuck; of many layouts and
// functions fewer times, but often enough to tell Sure.
const (
	beyondDoubt = 0.001
	minDeals    = 39
	maxDeals    = 999
	dealWork    = 30_000_000 // deals times histories times failures and residues: some ten seconds
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
	r.lengths = make([]float64, r.verdicts.units(layout.Modulus))
	for n := range r.lengths {
		r.lengths[n] = math.Log(float64(n))
	}
	for _, modulus := range r.verdicts.moduli() {
		r.costs = append(r.costs, r.cost(modulus))
	}
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
		r.tooFew = r.failing() + r.unexplained()
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
		r.tooFew = r.failing() + r.unexplained()
	}
}

// pairs is said where no number of layouts may do.
const pairs = "where each failure is another pair of functions, more layouts may never tell: minimize one"

// unexplained says why no function explains the failures, and what would help.
func (r *comparison) unexplained() string {
	n, there, moved := len(r.alive), 0, 0 // of those of another order, and failures among them
	var fails []int
	for _, l := range r.alive {
		failed := r.verdicts.tried[l].Kind != qemu.Pass
		if failed {
			fails = append(fails, l)
		}
		if r.verdicts.order[l] != 0 {
			if there++; failed {
				moved++
			}
		}
	}
	single := max(r.fails, n/r.verdicts.units(256)+1) // layouts that have a function at one residue mod 256
	switch {
	case r.oneOrder(fails):
		return ", all of them in one order: new neighbours decide; " + pairs
	case moved == r.fails && r.log(0, r.fails, there, moved, 0) < math.Log(beyondDoubt):
		return fmt.Sprintf(", all of them among the %d in another order than the baseline's: new neighbours decide; %s", there, pairs)
	case r.log(r.cost(256), r.fails, single, r.fails, notTold) <= math.Log(Sure):
		return ", enough to tell one function at one residue mod 256, and there is none: two functions or more decide, or several bugs; " + pairs
	case len(r.targets) > 0:
		return ", and no function explains that better than luck would: more layouts may tell; " + pairs
	}
	return fmt.Sprintf(": too few to tell a function by; if one decides, about %d layouts are needed at the least; %s", r.needed(), pairs)
}

// oneOrder tells whether several failures have an order in common that is not the
// baseline's, and that luck does not explain: any two neighbours of it may decide, and
// whatever moves with them has one distance in all of them.
func (r *comparison) oneOrder(fails []int) bool {
	order, there := r.verdicts.order, 0
	if len(fails) < 2 || order[fails[0]] == 0 || slices.ContainsFunc(fails, func(l int) bool { return order[l] != order[fails[0]] }) {
		return false
	}
	for _, l := range r.alive {
		if order[l] == order[fails[0]] {
			there++
		}
	}
	return r.log(0, len(fails), there, len(fails), 0) < math.Log(beyondDoubt)
}

// least is the corrected chance, as rule.log, of the best rule that there could
// be for some fails of n layouts.
func (r *comparison) least(n, fails int) float64 {
	return r.share(r.verdicts.moduli()[len(r.verdicts.moduli())-1], 1) - choose(n, fails)
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
	r.all = make([][]uint16, len(r.verdicts.histories))
	for h := range r.all {
		r.all[h] = make([]uint16, r.verdicts.units(layout.Modulus))
		history := r.verdicts.histories[h]
		for _, l := range r.alive {
			if !history.absent(l) {
				r.all[h][history.at[l]]++
			}
		}
	}
}

// harmonic is the sum of 1/n for n below units.
func harmonic(units int) (sum float64) {
	for n := 1; n < units; n++ {
		sum += 1 / float64(n)
	}
	return sum
}

// families is how many kinds of rules there are, each with the same share of the level
// of significance: one of each modulus, residues of distances, and bounds of them.
func (t *verdicts) families() float64 { return float64(len(t.moduli()) + 2) }

// share is ln of the number of rules that one of a single residue is one of, as its
// share of the level has it.
func (r *comparison) share(modulus uint64, targets int) float64 {
	units := r.verdicts.units(modulus)
	return math.Log(r.verdicts.families() * float64(targets*len(r.verdicts.histories)*units) * harmonic(units))
}

// cost is share for the targets that there are.
func (r *comparison) cost(modulus uint64) float64 { return r.share(modulus, max(1, len(r.targets))) }

// distant is the cost of a distance.
func (r *comparison) distant(modulus uint64) float64 {
	groups, moduli := float64(len(r.verdicts.histories)), float64(len(r.verdicts.moduli())-1)
	return math.Log(r.verdicts.families()*float64(len(r.targets))) + math.Log(moduli*float64(r.verdicts.units(modulus))*groups*(groups-1)/2)
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
		found = append(found, r.bounds(n, target)...)
	}
	found = slices.DeleteFunc(found, func(l rule) bool {
		var there []int
		for _, fail := range targets[l.target].fails {
			if r.verdicts.holds(l, fail) {
				there = append(there, fail)
			}
		}
		return r.oneOrder(there)
	})
	slices.SortStableFunc(found, func(a, b rule) int { return cmp.Compare(a.log, b.log) })
	return found, nil
}

// better finds a rule of a history that is better than the best so far.
func (r *comparison) better(h, n int, target target, best rule) rule {
	history := r.verdicts.histories[h]
	units := len(r.all[h])
	fails, all := make([]int, units), make([]int, units)
	for _, l := range target.fails {
		if !history.absent(l) {
			fails[history.at[l]]++
		}
	}
	for i, n := range r.all[h] {
		all[i] = int(n)
	}
	sumFails, sumAll, ends := make([]int, units+1), make([]int, units+1), make([]int, 0, units)
	for m, modulus := range r.verdicts.moduli() {
		units = r.verdicts.units(modulus)
		for i := units; i < len(fails); i++ { // what is left of the modulus before
			fails[i-units] += fails[i]
			all[i-units] += all[i]
		}
		fails, all, ends = fails[:units], all[:units], ends[:0]
		for i, n := range fails {
			if n > 0 {
				ends = append(ends, i)
			}
			sumFails[i+1] = sumFails[i] + n
			sumAll[i+1] = sumAll[i] + all[i]
		}
		if n := len(ends); n > maxEnds {
			for i := range maxEnds {
				ends[i] = ends[i*n/maxEnds]
			}
			ends = ends[:maxEnds]
		}
		for _, first := range ends {
			for _, last := range ends {
				length, k, of := last-first+1, sumFails[last+1]-sumFails[first], sumAll[last+1]-sumAll[first]
				if length <= 0 { // it goes round
					length, k, of = length+units, k+sumFails[units], of+sumAll[units]
				}
				if k*len(r.alive) <= len(target.fails)*of || length == units {
					continue // no more than luck gives
				}
				if log := r.log(r.costs[m]+r.lengths[length], len(target.fails), of, k, best.log); log < best.log {
					best = rule{group: h, with: -1, modulus: modulus, first: first, n: length, target: n, log: log}
				}
			}
		}
	}
	return best
}

// maxEnds is how many residues a range may begin or end at, those of failures: where
// there are more, some of them will do.
const maxEnds = 48

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
	moduli := r.verdicts.moduli()
	for _, modulus := range moduli[:len(moduli)-1] { // of the last there are two distances
		cost := r.distant(modulus)
		if cost-r.logs[len(r.alive)]+r.logs[len(target.fails)]+r.logs[len(r.alive)-len(target.fails)] >= 0 {
			continue // too few for any
		}
		most := len(target.fails) - 1 // layouts at the residue, for luck not to give it any time
		for r.log(cost, len(target.fails), most+1, len(target.fails), 0) < 0 {
			most++
		}
		units := uint16(r.verdicts.units(modulus))
		alike := map[string][]int{} // histories that in all failures move as one
		for h, history := range r.verdicts.histories {
			if history.apart != nil || r.still(h, units) {
				continue // a distance to one that stands still is a residue
			}
			var moves []byte
			for _, l := range target.fails {
				moves = binary.LittleEndian.AppendUint16(moves, (history.at[l]-history.at[target.fails[0]])%units)
			}
			alike[string(moves)] = append(alike[string(moves)], h)
		}
		for _, hs := range alike {
			for i, g := range hs {
				for _, h := range hs[:i] {
					l := rule{group: h, with: g, modulus: modulus, n: 1, target: n}
					l.first = int((r.verdicts.histories[h].at[target.fails[0]] - r.verdicts.histories[g].at[target.fails[0]]) % units)
					of := 0
					for i := 0; i < len(r.alive) && of <= most; i++ {
						if r.verdicts.holds(l, r.alive[i]) {
							of++
						}
					}
					if of <= most {
						l.log = r.log(cost, len(target.fails), of, len(target.fails), 0)
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

// How many functions are taken for the first look at bounds of distances, and how many
// pairs are looked at more closely.
const (
	maxPosts  = 256
	maxCloser = 4
)

// bounds finds two functions that are at least, or at most, so far apart in all failures
// of a target: first among some, evenly over .text, as those between two of them move
// with them mostly, and then among their neighbours. Only layouts of the baseline's order
// count: in another one any two functions are anywhere.
func (r *comparison) bounds(n int, target target) (found []rule) {
	reordered := func(l int) bool { return r.verdicts.order[l] != 0 }
	ordered := *r
	ordered.alive = slices.DeleteFunc(slices.Clone(r.alive), reordered)
	r, target.fails = &ordered, slices.DeleteFunc(slices.Clone(target.fails), reordered)
	if len(target.fails) == 0 {
		return nil
	}
	var plain []int // histories
	for h, history := range r.verdicts.histories {
		if history.apart == nil && history.away != nil {
			plain = append(plain, h)
		}
	}
	fails, groups := len(target.fails), float64(len(plain))
	cost := math.Log(r.verdicts.families()*float64(len(r.targets))) + math.Log(groups*(groups-1)/2*2*float64(len(r.alive)))
	if len(plain) < 2 || cost-r.logs[len(r.alive)]+r.logs[fails]+r.logs[len(r.alive)-fails] >= 0 {
		return nil // too few for any
	}
	type pair struct {
		i, j   int // in plain
		nearer bool
		of     int // layouts that are as far apart as the failures
		bound  int32
	}
	measure := func(p pair, most int) pair {
		a, b := r.verdicts.histories[plain[p.i]].away, r.verdicts.histories[plain[p.j]].away
		p.bound = b[target.fails[0]] - a[target.fails[0]]
		for _, l := range target.fails {
			if d := b[l] - a[l]; p.nearer {
				p.bound = max(p.bound, d)
			} else {
				p.bound = min(p.bound, d)
			}
		}
		p.of = 0
		for _, l := range r.alive {
			if d := b[l] - a[l]; p.nearer && d <= p.bound || !p.nearer && d >= p.bound {
				if p.of++; p.of > most {
					break
				}
			}
		}
		return p
	}
	every := max(1, len(plain)/maxPosts)
	var best []pair
	for j := 0; j < len(plain); j += every {
		for i := 0; i < j; i += every {
			for _, nearer := range []bool{false, true} {
				most := len(r.alive) - 1
				if len(best) == maxCloser {
					most = best[maxCloser-1].of - 1
				}
				if p := measure(pair{i: i, j: j, nearer: nearer}, most); p.of <= most {
					best = append(best, p)
					slices.SortStableFunc(best, func(p, q pair) int { return p.of - q.of })
					best = best[:min(len(best), maxCloser)]
				}
			}
		}
	}
	for _, p := range best {
		for step := every; step > 0; {
			better := p
			for _, q := range []pair{{i: p.i - step, j: p.j}, {i: p.i + step, j: p.j}, {i: p.i, j: p.j - step}, {i: p.i, j: p.j + step}} {
				if q.i < 0 || q.j >= len(plain) || q.i >= q.j {
					continue
				}
				q.nearer = p.nearer
				if q = measure(q, better.of-1); q.of < better.of {
					better = q
				}
			}
			if better == p {
				step /= 2
			}
			p = better
		}
		l := rule{group: plain[p.j], with: plain[p.i], bound: p.bound, nearer: p.nearer, target: n}
		if l.log = r.log(cost, fails, p.of, fails, 0); l.log < 0 && !slices.Contains(found, l) {
			found = append(found, l)
		}
	}
	return found
}

// still tells whether a history has one residue only.
func (r *comparison) still(h int, units uint16) bool {
	at := r.verdicts.histories[h].at
	return !slices.ContainsFunc(r.alive, func(l int) bool { return (at[l]-at[r.alive[0]])%units != 0 })
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
	for range max(minDeals, min(maxDeals, dealWork/((r.fails+r.verdicts.units(layout.Modulus))*len(r.verdicts.histories)))) {
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
