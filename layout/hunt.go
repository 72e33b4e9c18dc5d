package layout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Hunt plays planted bugs against a strategy without booting anything: whether
// a layout crashes follows from its addresses, and those from its plan.
type Hunt struct {
	*Hybrids // of the baseline and itself
}

// NewHunt takes the functions of a kernel's baseline.
func NewHunt(layout []Section) (*Hunt, error) {
	h, err := NewHybrids(layout, Plan{}, Plan{})
	return &Hunt{h}, err
}

// Realigned is a baseline as it would be if the functions that can move, and have the
// alignment of most, were aligned to other bytes: closer together, or further apart.
func Realigned(layout []Section, align uint64) ([]Section, error) {
	step, outputs := StepOf(layout), Outputs(layout)
	out := slices.Clone(layout)
	for i, s := range layout {
		if slices.Contains(outputs, s.Output) && Movable(layout, i) && s.Align == step {
			out[i].Align = align
		}
	}
	addresses, err := Place(out, Plan{})
	for i := range addresses {
		out[i].Address = addresses[i]
	}
	return out, err
}

// Bug is one that depends on the addresses of some functions.
type Bug struct {
	Crashes   func(*Placed) bool
	Functions []int // sections of which some decide
	Decide    int   // how many of them do, in one layout
	Far       bool  // by their distance to what stands behind all functions, modulo FarModulus
	// Fails is a plan that shows it, where no seed of any strategy is likely to.
	Fails *Plan
}

// BugKind is a way of depending on the layout.
type BugKind struct {
	Name string
	What string
	draw func(h *Hunt, random func(n int) int) Bug // without functions if the kernel has none for it
}

// BugKinds are those of the planted scenarios and some more.
var BugKinds = []BugKind{
	residueKind("line", "a function at one residue mod 64", 64, 0, 1),
	residueKind("two lines", "a function at one residue mod 128", 128, 0, 1),
	residueKind("canary", "a function at one residue mod 256", 256, 0, 1),
	residueKind("eight lines", "a function at one residue mod 512", 512, 0, 1),
	residueKind("early", "one of the first 16 functions at one residue mod 64", 64, 0, 0),
	residueKind("page, first third", "a function at one residue mod 4096", 4096, 0, 1./3),
	residueKind("page, middle third", "a function at one residue mod 4096", 4096, 1./3, 2./3),
	residueKind("page, last third", "a function at one residue mod 4096", 4096, 2./3, 1),
	{"page-cross", "a function of 256 bytes and more that straddles a page", func(h *Hunt, random func(int) int) Bug {
		return h.bug(func(i []int) func(*Placed) bool {
			return func(p *Placed) bool { return p.Address[i[0]]%Modulus+h.layout[i[0]].Size > Modulus }
		}, h.draw(random, func(i int) bool { s := h.layout[i].Size; return 256 <= s && s <= Modulus }))
	}},
	{"call", "a call of 5 bytes in a function that straddles a line", func(h *Hunt, random func(int) int) Bug {
		i := h.draw(random, func(i int) bool { return h.align[i] <= Step && h.layout[i].Size >= 64 })
		at := Step - uint64(1+random(4)) // in 16 bytes: it is moved by whole ones
		return h.bug(func(i []int) func(*Placed) bool {
			at += Step*uint64(random(3)) - h.layout[i[0]].Address%Step
			return func(p *Placed) bool { return (p.Address[i[0]]+at)%64+5 > 64 }
		}, i)
	}},
	{"unlikely", "a function of .text.unlikely at one residue mod 64", func(h *Hunt, random func(int) int) Bug {
		return h.atResidue(random, 64, h.draw(random, func(i int) bool { return strings.HasPrefix(h.layout[i].Name, ".text.unlikely") && h.align[i] < 64 }))
	}},
	{"three", "three functions, each at one residue mod 64", func(h *Hunt, random func(int) int) Bug {
		var i []int
		for range 3 {
			i = append(i, h.draw(random, func(j int) bool { return h.align[j] == Step && !slices.Contains(i, j) }))
		}
		return h.atResidue(random, 64, i...)
	}},
	{"distance", "two functions further apart than in the baseline by up to 256 bytes for each between them", func(h *Hunt, random func(int) int) Bug {
		i := h.draw(random, func(i int) bool { return h.number[i] < h.Len()-1 })
		j := h.draw(random, func(j int) bool { return i >= 0 && h.number[j] > h.number[i] })
		return h.bug(func(i []int) func(*Placed) bool {
			most := h.layout[i[1]].Address - h.layout[i[0]].Address
			for n := h.number[i[1]] - h.number[i[0]]; n > 0 && random(2) == 0; n /= 2 {
				most += uint64(random(256 * n))
			}
			return func(p *Placed) bool { return p.Address[i[1]] > p.Address[i[0]]+most }
		}, i, j)
	}},
	meetingKind("pair", "two functions at the same residue mod 256", 256),
	meetingKind("alias", "two functions at the same residue mod 4096", 4096),
	touchingKind("adjacent", "two that touch in the baseline, the second at one residue mod 64", 64),
	touchingKind("adjacent, page", "two that touch in the baseline, the second at 4 residues mod 4096", 1024),
	{"neighbours", "one of 20 functions directly behind one of 20 others", func(h *Hunt, random func(int) int) Bug {
		var i []int
		for range 40 {
			i = append(i, h.draw(random, func(int) bool { return true }))
		}
		bug := h.bug(func(i []int) func(*Placed) bool {
			return func(p *Placed) bool {
				return slices.ContainsFunc(i[20:], func(j int) bool { return slices.Contains(i[:20], p.Before(j)) && h.gap(p, j) == 0 })
			}
		}, i...)
		bug.Decide = 2
		return bug
	}},
	{"one pair", "one function directly behind one other, of the same part of .text", (*Hunt).pair},
	{"thunk", "two that touch in the baseline, at 2 of 64 KB by which they are before the return thunks (kcfi-hash)", func(h *Hunt, random func(int) int) Bug {
		i := h.draw(random, func(i int) bool { return h.layout[i-1].Moves && h.Touch(h.number[i]) })
		return h.beforeAll(h.bug(func(i []int) func(*Placed) bool {
			return func(p *Placed) bool { return p.Before(i[1]) == i[0] && h.gap(p, i[1]) == 0 }
		}, i-1, i), uint64(random(FarModulus)))
	}},
	{"thunk, one pair", "one function directly behind one other, at 2 of 64 KB by which they are before the return thunks", func(h *Hunt, random func(int) int) Bug {
		bug := h.pair(random)
		if bug.Fails == nil {
			return bug
		}
		p, err := h.Place(*bug.Fails)
		if err != nil {
			return Bug{}
		}
		return h.beforeAll(bug, h.before(p, bug.Functions[1])-uint64(random(farWindow/Step))*Step)
	}},
}

// pair is a bug of one function directly behind one other, which are apart in the
// baseline.
func (h *Hunt) pair(random func(int) int) Bug {
	i := h.draw(random, func(i int) bool { return h.layout[i].Group > 0 })
	j := h.draw(random, func(j int) bool { return i >= 0 && h.layout[j].Group == h.layout[i].Group && j != i && j != i+1 })
	bug := h.bug(func(i []int) func(*Placed) bool {
		return func(p *Placed) bool { return p.Before(i[1]) == i[0] && h.gap(p, i[1]) == 0 }
	}, i, j)
	if bug.Functions != nil {
		bug.Fails = h.behind(i, j, uint32(random(1<<16)))
	}
	return bug
}

// farWindow is how many bytes of FarModulus are those of a jump whose second lowest byte is
// 0xb8 to 0xbf.
const farWindow = 8 << 8

// beforeAll is a bug that shows only where its functions are a distance before what stands
// behind all functions: from so many bytes on, modulo FarModulus.
func (h *Hunt) beforeAll(b Bug, from uint64) Bug {
	if b.Crashes == nil || h.tail() < 0 {
		return Bug{}
	}
	crashes := b.Crashes
	b.Crashes = func(p *Placed) bool {
		return crashes(p) && (h.before(p, b.Functions[1])-from)%FarModulus < farWindow
	}
	b.Far = true
	return b
}

// before is how far a section is before what stands behind all functions, in bytes.
func (h *Hunt) before(p *Placed, i int) uint64 { return p.Address[h.tail()] - p.Address[i] }

// tail is the section behind all functions; -1 for none.
func (h *Hunt) tail() int {
	last := slices.Max(h.functions)
	if last+1 == len(h.layout) || h.layout[last+1].Output != h.layout[last].Output {
		return -1
	}
	return last + 1
}

// behind is a plan of another order in which one section is behind another; nil if the
// first is the last of its group there.
func (h *Hunt) behind(i, j int, seed uint32) *Plan {
	order := shuffledOrder(seed, h.layout)
	here, there := slices.Index(order, j), slices.Index(order, i)+1
	if there == len(order) || h.layout[order[there]].Group != h.layout[j].Group {
		return nil
	}
	order[here], order[there] = order[there], order[here]
	return &Plan{Order: Displaced(h.layout, order)}
}

// bug is one of some sections, all of which decide; none if one of them is missing.
func (h *Hunt) bug(crashes func(sections []int) func(*Placed) bool, sections ...int) Bug {
	if slices.Contains(sections, -1) {
		return Bug{}
	}
	return Bug{Crashes: crashes(sections), Functions: sections, Decide: len(sections)}
}

// atResidue is a bug of sections each of which is at one residue.
func (h *Hunt) atResidue(random func(int) int, modulus uint64, sections ...int) Bug {
	return h.bug(func(sections []int) func(*Placed) bool {
		at := make([]uint64, len(sections))
		for n, i := range sections {
			at[n] = h.residue(random, i, modulus)
		}
		return func(p *Placed) bool {
			for n, i := range sections {
				if p.Address[i]%modulus != at[n] {
					return false
				}
			}
			return true
		}
	}, sections...)
}

// residueKind are the bugs of a function between two parts of .text, or of one
// of the first 16.
func residueKind(name, what string, modulus uint64, from, to float64) BugKind {
	return BugKind{name, what, func(h *Hunt, random func(int) int) Bug {
		first, last := int(from*float64(h.Len())), max(16, int(to*float64(h.Len())))
		return h.atResidue(random, modulus, h.draw(random, func(i int) bool {
			f := h.number[i]
			return first <= f && f < last && h.align[i] < modulus
		}))
	}}
}

// meetingKind are the bugs of two functions that have the same residue.
func meetingKind(name, what string, modulus uint64) BugKind {
	return BugKind{name, what, func(h *Hunt, random func(int) int) Bug {
		fine := func(i int) bool { return h.align[i] <= h.Step() }
		i := h.draw(random, fine)
		j := h.draw(random, func(j int) bool { return fine(j) && i >= 0 && i != j })
		return h.bug(func(i []int) func(*Placed) bool {
			return func(p *Placed) bool { return (p.Address[i[0]]-p.Address[i[1]])%modulus == 0 }
		}, i, j)
	}}
}

// touchingKind are the bugs of two neighbours that touch, at a residue.
func touchingKind(name, what string, modulus uint64) BugKind {
	return BugKind{name, what, func(h *Hunt, random func(int) int) Bug {
		i := h.draw(random, func(i int) bool { return h.layout[i-1].Moves && h.Touch(h.number[i]) && h.align[i] < modulus })
		return h.bug(func(is []int) func(*Placed) bool {
			r := h.residue(random, i, modulus)
			return func(p *Placed) bool {
				return p.Address[i]%modulus == r && p.Before(i) == i-1 && h.gap(p, i) == 0
			}
		}, i-1, i)
	}}
}

// draw draws a function that will do; -1 if none does.
func (h *Hunt) draw(random func(int) int, will func(i int) bool) int {
	var some []int
	for _, i := range h.functions {
		if will(i) {
			some = append(some, i)
		}
	}
	if some == nil {
		return -1
	}
	return some[random(len(some))]
}

// residue draws one that a function can have and has not in the baseline.
func (h *Hunt) residue(random func(int) int, i int, modulus uint64) uint64 {
	align := max(h.Step(), h.align[i])
	return (h.layout[i].Address + align*uint64(1+random(int(modulus/align)-1))) % modulus
}

// Draw makes bugs of a kind that the baseline does not show; the same number
// always makes the same.
func (h *Hunt) Draw(k BugKind, bugs int) ([]Bug, error) {
	out := make([]Bug, bugs)
	for n := range out {
		state := uint64(n)
		for _, c := range []byte(k.Name) {
			state = mix(state, uint64(c))
		}
		for try := 0; out[n].Crashes == nil || out[n].Crashes(h.pass); try++ {
			out[n] = k.draw(h, func(max int) int {
				state = mix(state, 1)
				return int(state % uint64(max))
			})
			if out[n].Crashes == nil || try == 1000 {
				return nil, fmt.Errorf("this kernel has no function for a bug of the kind %q", k.Name)
			}
		}
	}
	return out, nil
}

// Planted are the built-in scenarios whose crash follows from the addresses.
var Planted = []string{"canary", "early", "pair", "page-cross"}

// PlantedBug is the bug of one of them (scenarios/builtin/planted.patch).
func (h *Hunt) PlantedBug(scenario string) (Bug, error) {
	var missing error
	var functions []int
	at := func(function string) func(*Placed) uint64 {
		i := slices.IndexFunc(h.layout, func(s Section) bool { return s.Function == function })
		if i < 0 {
			missing = fmt.Errorf("this kernel has no %s", function)
			return nil
		}
		functions = append(functions, i)
		return func(p *Placed) uint64 { return p.Address[i] + h.layout[i].Entry }
	}
	var crashes func(*Placed) bool
	switch scenario {
	case "canary":
		victim := at("canary_victim")
		crashes = func(p *Placed) bool { return victim(p)%256 == 0x30 }
	case "early":
		victim := at("early_victim")
		crashes = func(p *Placed) bool { return victim(p)%64 == 0x30 }
	case "pair":
		first, second := at("pair_first"), at("pair_second")
		crashes = func(p *Placed) bool { return (first(p)-second(p))%256 == 0 }
	case "page-cross":
		victim := at("page_cross_victim")
		crashes = func(p *Placed) bool { return victim(p)%Modulus+768 > Modulus }
	default:
		return Bug{}, fmt.Errorf("no crash by addresses is known of scenario %s", scenario)
	}
	return Bug{Crashes: crashes, Functions: functions, Decide: len(functions)}, missing
}

// Crashes returns, for each bug, the seeds 1 to last whose layouts show it, in
// order; only the first of them unless all are asked for.
func (h *Hunt) Crashes(ctx context.Context, s Strategy, last int, all bool, bugs ...Bug) ([][]int, error) {
	crashes := make([][]int, len(bugs))
	for seed := 1; seed <= last && ctx.Err() == nil; seed++ {
		p, err := NewPlaced(h.layout, s.Plan(uint32(seed), h.layout))
		if err != nil {
			return nil, err
		}
		for i, bug := range bugs {
			if (all || crashes[i] == nil) && bug.Crashes(p) {
				crashes[i] = append(crashes[i], seed)
			}
		}
	}
	return crashes, ctx.Err()
}

// Failing are plans of layouts that show bugs: of the first seed of cover that does, of so
// many, or else of shuffle; nil where none does.
func (h *Hunt) Failing(ctx context.Context, last int, bugs ...Bug) ([]*Plan, error) {
	plans := make([]*Plan, len(bugs))
	for i, bug := range bugs {
		plans[i] = bug.Fails
	}
	for _, s := range []Strategy{Cover, Shuffle} {
		var left []int
		for i, p := range plans {
			if p == nil {
				left = append(left, i)
			}
		}
		for seed := 1; seed <= last && len(left) > 0; seed++ {
			plan := s.Plan(uint32(seed), h.layout)
			p, err := h.Place(plan)
			if err = errors.Join(err, ctx.Err()); err != nil {
				return nil, err
			}
			left = slices.DeleteFunc(left, func(i int) bool {
				if bugs[i].Crashes(p) {
					plans[i] = &plan
				}
				return plans[i] != nil
			})
		}
	}
	return plans, nil
}

// Place is a plan's layout.
func (h *Hunt) Place(plan Plan) (*Placed, error) { return NewPlaced(h.layout, plan) }
