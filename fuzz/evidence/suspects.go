package evidence

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math"
	"math/bits"
	"os"
	"regexp"
	"slices"

	"unlucky/layout"
	"unlucky/qemu"
	"unlucky/seeds"
)

// Suspicion is what the verdicts of sweeps say of the functions: whose residue
// goes with failing. No boot shows that a suspect is to blame: Minimize does.
type Suspicion struct {
	Layouts int `json:"layouts"`           // that have booted to a verdict and whose addresses are known
	Fails   int `json:"fails"`             // of them
	Omitted int `json:"omitted,omitempty"` // others that have booted: of strategy lld, or more than fit the memory
	// Suspects are in the order of the bugs that they explain, and for each bug
	// the best first.
	Suspects []Suspect `json:"suspects"`
	// TooFew says in words why failures, or all that the bugs before leave of
	// them, are explained by no function; empty where all are explained.
	TooFew string `json:"too_few,omitempty"`
	// Scores are -log10 of the chance of the best rule of each section of
	// Results.Layout, corrected as in Suspect; 0 where luck gives one as good.
	Scores []float64 `json:"-"`
}

// Suspect is a rule that tells failing layouts by the residue of a function.
type Suspect struct {
	// Bug is the number, from 1 on, of the failures that it explains. Those at
	// the residues of the first suspect of each bug are left out when the
	// next is looked for.
	Bug int `json:"bug"`
	// Rank is the place of it among those of the bug, from 1 on. Those of one rank are
	// ties: the same layouts are at their residues, so no verdict tells them apart. The
	// likeliest of them stands first: see SuspectFunction.Traced and Straddles.
	Rank int `json:"rank"`
	// Functions are those that no layout tells apart, as they have always moved
	// by the same number of bytes, the likeliest first: those that straddle a border
	// where it fails, those in a failure's trace, then those next to them. Otherwise
	// their order says nothing.
	Functions []SuspectFunction `json:"functions"`
	// With are, where the rule is about a distance, the functions to which it
	// is: then Residues are those of the address of Functions[0] less that of
	// With[0].
	With     []SuspectFunction `json:"with,omitempty"`
	Modulus  uint64            `json:"modulus"`  // bytes: a power of two, of a page at the most
	Residues []Span            `json:"residues"` // of the first function, where it fails
	// Bound is set where the rule is how far behind With[0] the other one is, at least or
	// at most: Modulus is 0 then, and there are no Residues.
	Bound *seeds.Bound `json:"bound,omitempty"`
	// There are the layouts that have it at these residues, Elsewhere all others
	// that were compared: those with another title, too.
	There     Share `json:"there"`
	Elsewhere Share `json:"elsewhere"`
	// Chance is that of verdicts dealt at random to the same layouts giving any
	// function, modulus, residues and title a rule as good.
	Chance  float64    `json:"chance"`
	Titles  []string   `json:"titles"`  // of the failures explained, the most frequent first
	Layouts []seeds.ID `json:"layouts"` // that fail there
}

// SuspectFunction is a function that a suspect may be.
type SuspectFunction struct {
	Name     string `json:"name"`
	Section  string `json:"section"`            // as in linker.Padding
	Address  uint64 `json:"address"`            // in the baseline
	Residues []Span `json:"residues,omitempty"` // where it fails; none where the rule is about a distance
	Next     string `json:"next,omitempty"`     // the function that must stand right behind it, but for its alignment; empty where none must
	Traced   bool   `json:"traced,omitempty"`   // a failure's console names it with an offset
	// Straddles tells that the residues are those at which it lies across a border, such
	// as that of two pages: its size says so, and luck seldom does.
	Straddles bool `json:"straddles,omitempty"`
}

// Span are the residues from First to Last, in bytes; where Last is below First it goes
// round.
type Span struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// Share is how many of some layouts fail.
type Share struct {
	Fails int `json:"fails"`
	Of    int `json:"of"`
}

// Best are n suspects at the most, as many of each bug, and the first of each
// whatever n is.
func (s *Suspicion) Best(n int) (best []Suspect) {
	for each := len(s.Suspects); ; each-- {
		best = []Suspect{}
		rank := 0
		for i, u := range s.Suspects {
			if i == 0 || u.Bug != s.Suspects[i-1].Bug {
				rank = 0
			}
			if rank++; rank <= each {
				best = append(best, u)
			}
		}
		if len(best) <= n || each <= 1 {
			return best
		}
	}
}

// Sure is the largest chance with which a rule is taken for one.
const Sure = 0.05

// Suspects ranks the functions by how well their residues modulo each power of two, up
// to a page, explain which layouts fail. progress tells how many layouts have been
// placed; it may be nil.
//
// A rule is a function, a modulus and a range of residues, with the next one touching
// it or wherever that is; or two functions and a residue of their distance. How well it explains a
// title, or all failures, is Fisher's exact test, one-sided: the chance that of
// as many layouts drawn at random as are at its residues as many fail. Each
// modulus, and distances, have the same share of the level of significance, and
// each function the same of that; within, short ranges have more of it than long
// ones (Bonferroni's correction with weights). Rules depend on each other, so
// that is more caution than is due: a chance that matters is counted instead
// among verdicts dealt anew (Westfall and Young's minimum of the corrected
// chances, with Besag and Clifford's early end).
func (r *Results) Suspects(ctx context.Context, progress func(done, total int)) (*Suspicion, error) {
	if r.Layout == nil {
		return nil, cmp.Or(r.LayoutErr, errors.New("under strategy lld only the images tell where the functions are"))
	}
	t := &verdicts{layout: r.Layout, step: layout.StepOf(r.Layout)}
	for uint64(len(r.Layout))*(layout.Modulus/t.step) > maxCells {
		t.step *= 4
	}
	out := &Suspicion{Scores: make([]float64, len(r.Layout))}
	for _, l := range r.All() {
		switch {
		case !Booted(l.Kind):
		case !l.placed():
			out.Omitted++
		default:
			t.tried = append(t.tried, l)
		}
	}
	thinned := thin(t.tried, min(maxLayouts, maxCells/len(r.Layout)))
	out.Omitted += len(t.tried) - len(thinned)
	t.tried = thinned
	if err := t.place(ctx, progress); err != nil {
		return nil, err
	}
	out.Layouts = len(t.tried)
	var alive []int // layouts that no suspect explains
	for l, tried := range t.tried {
		alive = append(alive, l)
		if tried.Kind != qemu.Pass {
			out.Fails++
		}
	}
	first := map[int]int{} // bug by the history of its first suspect
	var histories []int    // of each suspect
	for bug := 1; ; bug++ {
		round, err := t.compare(ctx, alive)
		if err != nil {
			return nil, err
		}
		found := t.suspects(bug, round)
		for i, c := range round.rules {
			chance := round.chance(c)
			for _, section := range t.sections(c) {
				out.Scores[section] = max(out.Scores[section], -math.Log10(chance))
			}
			if i >= len(found) || chance > Sure && (i >= maxUnsure || round.tooFew == "") {
				continue
			}
			out.Suspects = append(out.Suspects, found[i])
			histories = append(histories, c.group)
		}
		if out.TooFew = round.tooFew; out.TooFew != "" || round.fails == 0 {
			break
		}
		best := round.rules[0]
		first[best.group] = bug
		alive = slices.DeleteFunc(alive, func(l int) bool { return t.holds(best, l) })
	}
	// The best of one bug may go with the failures of another that many layouts
	// have in common.
	all := out.Suspects
	out.Suspects = []Suspect{}
	for i, s := range all {
		if bug, ok := first[histories[i]]; !ok || bug == s.Bug {
			out.Suspects = append(out.Suspects, s)
		}
	}
	return out, nil
}

// suspects are the best rules of a comparison, and puts its rules into the same order:
// of ties the likeliest first.
func (t *verdicts) suspects(bug int, r *comparison) (out []Suspect) {
	for first := 0; first < min(len(r.rules), maxSuspects); {
		var tied []Suspect
		last := first
		for ; last < len(r.rules) && (last == first || len(tied) < maxSuspects && r.rules[last].log-r.rules[first].log < 1e-9); last++ {
			s := t.suspect(bug, r, r.rules[last])
			s.Rank = first + 1
			tied = append(tied, s)
		}
		order := make([]int, len(tied))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(tied[j].likely(), tied[i].likely()) })
		rules := slices.Clone(r.rules[first:last])
		for i, n := range order {
			r.rules[first+i] = rules[n]
			out = append(out, tied[n])
		}
		first = last
	}
	return out[:min(len(out), maxSuspects)]
}

// likely weighs what the verdicts do not tell: a function that straddles a border where
// it fails, a distance of nothing, a function that a failure's trace names, and one that
// need touch no other.
func (s Suspect) likely() (weight int) {
	for n, is := range []bool{
		s.Functions[0].Next == "",
		s.Functions[0].Traced || s.With != nil && s.With[0].Traced,
		s.With != nil && s.Bound == nil && s.Residues[0] == Span{} || s.Functions[0].Straddles,
	} {
		if is {
			weight += 1 << n
		}
	}
	return weight
}

// maxCells bounds the memory: three bytes for each layout and section.
const maxCells = 1 << 27

// maxAway is of how many layouts distances are looked at that are no residues: four bytes
// more for each layout and section.
const maxAway = 2048

// maxLayouts is what comparison.all can count.
const maxLayouts = 1<<16 - 1

// How many rules are told of each bug, and of the last failures if none explains
// them.
const (
	maxSuspects = 64
	maxUnsure   = 8
)

// thin takes some of the layouts, evenly, if there are more than n.
func thin(tried []Tried, n int) []Tried {
	if len(tried) <= n {
		return tried
	}
	out := make([]Tried, n)
	for i := range out {
		out[i] = tried[i*len(tried)/n]
	}
	return out
}

// verdicts are what suspects are told by: verdicts and residues.
type verdicts struct {
	layout    []layout.Section
	step      uint64 // of residues, in bytes
	tried     []Tried
	histories []history
	order     []uint64 // by layout: a number for the order of its functions; 0 for the baseline's
}

// history is where functions that have always moved as one were.
type history struct {
	sections []int    // indices into the layout
	at       []uint16 // residue modulo a page of the first one's function, in units of step, by layout
	// apart tells in which layouts the next section was not right behind, as it
	// is in the baseline: those count as being at no residue. It is nil for
	// functions wherever the next one is.
	apart []bool
	// away is the address of the first one's function, in bytes behind the layout's first
	// section, by layout; nil where that is not looked at.
	away []int32
}

// absent tells whether a layout is at no residue of the history.
func (h history) absent(l int) bool { return h.apart != nil && h.apart[l] }

func fold(key, more uint64) uint64 { return bits.RotateLeft64((key^more)*0x9e3779b97f4a7c15, 29) }

// place fills in the histories.
func (t *verdicts) place(ctx context.Context, progress func(done, total int)) error {
	var sections []int
	outputs := layout.Outputs(t.layout)
	for i, s := range t.layout {
		if (s.Moves || s.Function != "") && slices.Contains(outputs, s.Output) {
			sections = append(sections, i)
		}
	}
	unit := func(i int, address uint64) uint16 {
		return uint16((address + t.layout[i].Entry) % layout.Modulus / t.step)
	}
	end := func(i int, addresses []uint64) uint64 { // where the next one begins if it touches
		return layout.AlignUp(addresses[i]+t.layout[i].Size, t.layout[i+1].Alignment())
	}
	baseline := make([]uint64, len(t.layout))
	for i, s := range t.layout {
		baseline[i] = s.Address
	}
	at, apart, away := make([][]uint16, len(sections)), make([][]bool, len(sections)), make([][]int32, len(sections))
	for n := range sections {
		at[n], apart[n] = make([]uint16, len(t.tried)), make([]bool, len(t.tried))
		if len(t.tried) <= maxAway {
			away[n] = make([]int32, len(t.tried))
		}
	}
	t.order = make([]uint64, len(t.tried))
	err := Place(ctx, t.layout, t.tried, func(l int, addresses []uint64) {
		for n, i := range sections {
			at[n][l] = unit(i, addresses[i])
			if away[n] != nil {
				away[n][l] = int32(addresses[i] + t.layout[i].Entry - t.layout[0].Address)
			}
			apart[n][l] = n+1 < len(sections) && sections[n+1] == i+1 && end(i, addresses) != addresses[i+1]
		}
		byAddress := func(i, j int) int { return cmp.Compare(addresses[i], addresses[j]) }
		if !slices.IsSortedFunc(sections, byAddress) {
			for _, i := range slices.SortedFunc(slices.Values(sections), byAddress) {
				t.order[l] = fold(t.order[l], uint64(i))
			}
		}
	}, progress)
	if err != nil {
		return err
	}
	number := map[uint64]int{} // of a history
	join := func(n int, key uint64) (h int, fresh bool) {
		h, ok := number[key]
		if !ok {
			h = len(t.histories)
			number[key] = h
			t.histories = append(t.histories, history{at: at[n], away: away[n]})
		}
		t.histories[h].sections = append(t.histories[h].sections, sections[n])
		return h, !ok
	}
	units := uint16(t.units(layout.Modulus))
	moves := make([]uint64, len(sections)) // all of a section, as one number
	for n, i := range sections {
		base := unit(i, t.layout[i].Address)
		for _, here := range at[n] {
			moves[n] = fold(moves[n], uint64((here-base)%units+1))
		}
		join(n, moves[n])
	}
	for n, i := range sections {
		touch, key := 0, fold(moves[n], 1)
		for l, held := range apart[n] {
			if held {
				key = fold(key, uint64(l))
			} else {
				touch++
			}
		}
		never := touch == 0 || n+1 == len(sections) || sections[n+1] != i+1 || end(i, baseline) != baseline[i+1]
		if never || touch == len(t.tried) {
			continue // a rule of the function itself
		}
		if h, fresh := join(n, key); fresh {
			t.histories[h].apart = apart[n]
		}
	}
	return nil
}

// sections are those of a clue's histories.
func (t *verdicts) sections(c rule) []int {
	if c.with < 0 {
		sections := slices.Clone(t.histories[c.group].sections)
		if t.histories[c.group].apart != nil {
			for _, i := range t.histories[c.group].sections {
				sections = append(sections, i+1)
			}
		}
		return sections
	}
	return slices.Concat(t.histories[c.group].sections, t.histories[c.with].sections)
}

// suspect is what a clue says of the layouts.
func (t *verdicts) suspect(bug int, r *comparison, c rule) Suspect {
	fails := r.targets[c.target].fails
	s := Suspect{Bug: bug, Modulus: c.modulus, Chance: r.chance(c), Elsewhere: Share{len(fails), len(r.alive)}}
	for _, l := range r.alive {
		if t.holds(c, l) {
			s.There.Of++
			s.Elsewhere.Of--
		}
	}
	titles := map[string]int{}
	var traced map[string]bool
	for _, l := range fails {
		if tried := t.tried[l]; t.holds(c, l) {
			s.There.Fails++
			s.Elsewhere.Fails--
			titles[tried.Title]++
			s.Layouts = append(s.Layouts, tried.Layout)
			if traced == nil && tried.Path != "" {
				traced = tracedBy(tried.Path)
			}
		}
	}
	s.Titles = slices.SortedFunc(maps.Keys(titles), func(a, b string) int {
		return cmp.Or(titles[b]-titles[a], cmp.Compare(a, b))
	})
	s.Functions = t.functions(c, c.group, traced)
	switch s.Residues = s.Functions[0].Residues; {
	case c.modulus == 0:
		s.With, s.Residues = t.functions(c, c.with, traced), []Span{}
		s.Bound = &seeds.Bound{Bytes: uint64(c.bound), Nearer: c.nearer}
	case c.with >= 0:
		s.With = t.functions(c, c.with, traced)
		s.Residues = t.spans(c, s.Functions[0].Address-s.With[0].Address)
	}
	return s
}

// functions are those of one of the histories of a clue.
func (t *verdicts) functions(c rule, history int, traced map[string]bool) (out []SuspectFunction) {
	h := t.histories[history]
	away := map[string]int{} // of a section, from what is in the trace
	for _, i := range h.sections {
		s := t.layout[i]
		f := SuspectFunction{Name: s.FunctionName(), Section: s.Name, Address: s.Address + s.Entry, Traced: traced[s.Function]}
		if c.with < 0 {
			f.Residues = t.spans(c, f.Address)
			f.Straddles = t.straddles(c, s, f.Residues[0])
		}
		if h.apart != nil {
			f.Next = t.layout[i+1].FunctionName()
		}
		out = append(out, f)
		away[s.Name] = len(t.layout)
		for _, j := range h.sections {
			if traced[t.layout[j].Function] {
				away[s.Name] = min(away[s.Name], max(i-j, j-i))
			}
		}
	}
	slices.SortStableFunc(out, func(f, g SuspectFunction) int {
		if f.Straddles != g.Straddles {
			return map[bool]int{true: -1, false: 1}[f.Straddles]
		}
		return away[f.Section] - away[g.Section]
	})
	return out
}

// straddles tells whether a section at these residues, and at no others, lies across a
// multiple of the modulus. A range of one or two is so by luck too often.
func (t *verdicts) straddles(c rule, s layout.Section, at Span) bool {
	size, last := s.Size-s.Entry, c.modulus-at.Last
	return c.n > 2 && s.Size > s.Entry && last <= t.step && size <= uint64(c.n)*t.step+last && size > uint64(c.n-1)*t.step+last
}

// tracedBy are the functions that the console of a saved seed names with an
// offset: "kernel_restart+0xd/0x80". A console that is gone names none.
func tracedBy(path string) map[string]bool {
	names := map[string]bool{}
	console, _ := os.ReadFile(seeds.ConsolePath(path))
	for _, m := range offsets.FindAllSubmatch(console, -1) {
		names[string(m[1])] = true
	}
	return names
}

var offsets = regexp.MustCompile(`([A-Za-z_][A-Za-z0-9_.]*)\+0x[0-9a-f]+/0x[0-9a-f]+`)

// spans are the residues of a clue, in bytes, for what has this address, or
// distance, in the baseline.
func (t *verdicts) spans(c rule, address uint64) []Span {
	first := func(history int) uint64 {
		s := t.layout[t.histories[history].sections[0]]
		return s.Address + s.Entry
	}
	base := first(c.group)
	offset := address - base&^(t.step-1) // from what the units are counted by
	if c.with >= 0 {
		offset = address - (base&^(t.step-1) - first(c.with)&^(t.step-1))
	}
	at := func(unit int) uint64 { return (t.step*uint64(unit) + offset) % c.modulus }
	return []Span{{at(c.first), at(c.first + c.n - 1)}}
}
