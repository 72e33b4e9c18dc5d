package layout

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"gonum.org/v1/gonum/mathext/prng"
)

// Strategy is how a seed becomes a plan, with its version: the same strategy,
// seed and vmlinux.o always give the same layout.
type Strategy string

const (
	// LLD has lld pad every output section that it randomizes.
	LLD Strategy = "lld/1"
	// Text pads .text input sections only, by lld's own algorithm.
	Text Strategy = "text/1"
	// Cover pads .text input sections so that each function comes to each of
	// its residues in as few layouts as that takes; later seeds change their
	// order too.
	Cover Strategy = "cover/3"
	// cover2 is the version before, which saved seeds and journals name: a step of
	// 16 bytes for every kernel, and an order that changes with seed 257 first.
	cover2 Strategy = "cover/2"
	// Shuffle changes the order of functions, by lld's own algorithm, and pads
	// nothing.
	Shuffle Strategy = "shuffle/1"
	// Auto is LLD where that can be believed, otherwise Cover.
	Auto Strategy = "auto"
)

// ParseStrategy reads a strategy as a person or a saved seed gives it.
func ParseStrategy(s string) (Strategy, error) {
	if s == string(Auto) {
		return Auto, nil
	}
	name, _, versioned := strings.Cut(s, "/")
	var versions []string
	for _, known := range []Strategy{LLD, Text, Cover, cover2, Shuffle} {
		switch of, version, _ := strings.Cut(string(known), "/"); {
		case name != of:
		case versioned && s != string(known):
			versions = append(versions, version)
		default:
			return known, nil
		}
	}
	if versions != nil {
		return "", fmt.Errorf("strategy %q: this unlucky knows version %s only", s, strings.Join(versions, " and "))
	}
	return "", fmt.Errorf("strategy %q: there are auto, lld, text, cover and shuffle", s)
}

// Plan is the plan of a seed for a kernel whose baseline has this layout. It
// depends on nothing else.
func (s Strategy) Plan(seed uint32, layout []Section) Plan {
	switch s {
	case LLD:
		return Plan{Flag: &seed}
	case Cover:
		return coverPlan(seed, layout)
	case cover2:
		return residuesPlan(seed-1, 16, layout)
	case Shuffle:
		return Plan{Order: Displaced(layout, shuffledOrder(seed, layout))}
	}
	return Plan{Paddings: textPaddings(seed, layout)}
}

// textPaddings are the paddings that lld gives to .text input sections under
// --randomize-section-padding=seed (lld/ELF/Writer.cpp,
// randomizeSectionPadding). Every input section of every output section that
// lld randomizes takes its draw, in order, and so does each segment; the draws
// of what is not padded here are thrown away.
func textPaddings(seed uint32, layout []Section) []Padding {
	var paddings []Padding
	g := prng.NewMT19937()
	g.Seed(uint64(seed))
	output, segment := "", -1
	for i, s := range layout {
		if !randomized(s.Output) {
			continue
		}
		if s.Output != output && s.Segment != segment {
			g.Uint32() // lld moves the first section of a segment by up to a page
			segment = s.Segment
		}
		output = s.Output
		if g.Uint32()%16 == 0 && s.Align > 0 && Paddable(layout, i) {
			paddings = append(paddings, Padding{Section: s.Name, Bytes: s.Align})
		}
	}
	return paddings
}

// shuffledOrder is the order that lld gives functions under
// --shuffle-sections='.text.[!.]*=seed' (lld/ELF/Writer.cpp, maybeShuffle). lld
// deals all of them the places of all of them in the object; in the output
// each input section description has its own sorted by that.
func shuffledOrder(seed uint32, layout []Section) []int {
	var functions []int // and objects, where they move
	for i, s := range layout {
		if s.Index > 0 && (PerFunction(s.Name) || s.Group > 0) {
			functions = append(functions, i)
		}
	}
	slices.SortFunc(functions, func(i, j int) int { return cmp.Compare(layout[i].Index, layout[j].Index) })
	if seed == math.MaxUint32 { // "-1" to lld
		slices.Reverse(functions)
	} else {
		functions = shuffled(seed, functions)
	}
	return regrouped(layout, functions)
}

// shuffled is llvm::shuffle with std::mt19937 (llvm/ADT/STLExtras.h).
func shuffled(seed uint32, v []int) []int {
	v = slices.Clone(v)
	g := prng.NewMT19937()
	g.Seed(uint64(seed))
	for rest := v; len(rest) > 1; rest = rest[1:] {
		i := g.Uint32() % uint32(len(rest))
		rest[0], rest[i] = rest[i], rest[0]
	}
	return v
}

// regrouped is the order of a layout with the sections of each group as they
// stand in functions.
func regrouped(layout []Section, functions []int) []int {
	groups := map[int][]int{}
	for _, i := range functions { // sections of no group, too
		if g := layout[i].Group; g > 0 {
			groups[g] = append(groups[g], i)
		}
	}
	order := make([]int, len(layout))
	for place, s := range layout {
		if order[place] = place; s.Group > 0 {
			order[place] = groups[s.Group][0]
			groups[s.Group] = groups[s.Group][1:]
		}
	}
	return order
}

// Displaced is an order as a plan has it: those that are not where they are in
// the baseline.
func Displaced(layout []Section, order []int) (names []string) {
	for place, i := range order {
		if i != place {
			names = append(names, layout[i].Name)
		}
	}
	return names
}

// randomized are the output sections that lld pads.
func randomized(output string) bool {
	switch output {
	case ".bss", ".data", ".data.rel.ro", ".lbss", ".ldata", ".lrodata", ".ltext", ".rodata":
		return true
	}
	return strings.HasPrefix(output, ".text")
}
