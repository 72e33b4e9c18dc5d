package layout

import (
	"context"
	"fmt"
	"slices"
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

// Bug tells of a layout whether it crashes.
type Bug func(*Placed) bool

// BugKind is a way of depending on the layout.
type BugKind struct {
	Name string
	What string
	draw func(h *Hunt, random func(n int) int) Bug // nil if the kernel has no function for it
}

// BugKinds are those of the planted scenarios and some more.
var BugKinds = []BugKind{
	residueKind("line", "a function at one residue mod 64", 64, 0, 1),
	residueKind("canary", "a function at one residue mod 256", 256, 0, 1),
	residueKind("early", "one of the first 16 functions at one residue mod 64", 64, 0, 0),
	residueKind("page, first third", "a function at one residue mod 4096", 4096, 0, 1./3),
	residueKind("page, middle third", "a function at one residue mod 4096", 4096, 1./3, 2./3),
	residueKind("page, last third", "a function at one residue mod 4096", 4096, 2./3, 1),
	{"page-cross", "a function of 256 bytes and more that straddles a page", func(h *Hunt, random func(int) int) Bug {
		i := h.draw(random, func(i int) bool { s := h.layout[i].Size; return 256 <= s && s <= Modulus })
		if i < 0 {
			return nil
		}
		return func(p *Placed) bool { return p.Address[i]%Modulus+h.layout[i].Size > Modulus }
	}},
	meetingKind("pair", "two functions at the same residue mod 256", 256),
	meetingKind("alias", "two functions at the same residue mod 4096", 4096),
	touchingKind("adjacent", "two that touch in the baseline, the second at one residue mod 64", 64),
	touchingKind("adjacent, page", "two that touch in the baseline, the second at 4 residues mod 4096", 1024),
	{"neighbours", "one of 20 functions directly behind one of 20 others", func(h *Hunt, random func(int) int) Bug {
		var first, second []int
		for range 20 {
			first = append(first, h.draw(random, func(int) bool { return true }))
		}
		for range 20 {
			second = append(second, h.draw(random, func(i int) bool { return true }))
		}
		return func(p *Placed) bool {
			for _, i := range second {
				if slices.Contains(first, p.Before(i)) && h.gap(p, i) == 0 {
					return true
				}
			}
			return false
		}
	}},
}

// residueKind are the bugs of a function between two parts of .text, or of one
// of the first 16.
func residueKind(name, what string, modulus uint64, from, to float64) BugKind {
	return BugKind{name, what, func(h *Hunt, random func(int) int) Bug {
		first, last := int(from*float64(h.Len())), max(16, int(to*float64(h.Len())))
		i := h.draw(random, func(i int) bool {
			f := h.number[i]
			return first <= f && f < last && h.align[i] < modulus
		})
		if i < 0 {
			return nil
		}
		r := h.residue(random, i, modulus)
		return func(p *Placed) bool { return p.Address[i]%modulus == r }
	}}
}

// meetingKind are the bugs of two functions that have the same residue.
func meetingKind(name, what string, modulus uint64) BugKind {
	return BugKind{name, what, func(h *Hunt, random func(int) int) Bug {
		fine := func(i int) bool { return h.align[i] == Step }
		i := h.draw(random, fine)
		j := h.draw(random, func(j int) bool { return fine(j) && i >= 0 && i != j })
		if j < 0 {
			return nil
		}
		return func(p *Placed) bool { return (p.Address[i]-p.Address[j])%modulus == 0 }
	}}
}

// touchingKind are the bugs of two neighbours that touch, at a residue.
func touchingKind(name, what string, modulus uint64) BugKind {
	return BugKind{name, what, func(h *Hunt, random func(int) int) Bug {
		i := h.draw(random, func(i int) bool { return h.layout[i-1].Text && h.Touch(h.number[i]) && h.align[i] < modulus })
		if i < 0 {
			return nil
		}
		r := h.residue(random, i, modulus)
		return func(p *Placed) bool {
			return p.Address[i]%modulus == r && p.Before(i) == i-1 && h.gap(p, i) == 0
		}
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
	align := max(Step, h.align[i])
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
		for try := 0; out[n] == nil || out[n](h.pass); try++ {
			out[n] = k.draw(h, func(max int) int {
				state = mix(state, 1)
				return int(state % uint64(max))
			})
			if out[n] == nil || try == 1000 {
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
	at := func(function string) func(*Placed) uint64 {
		i := slices.IndexFunc(h.layout, func(s Section) bool { return s.Function == function })
		if i < 0 {
			missing = fmt.Errorf("this kernel has no %s", function)
			return nil
		}
		return func(p *Placed) uint64 { return p.Address[i] + h.layout[i].Entry }
	}
	var bug Bug
	switch scenario {
	case "canary":
		victim := at("canary_victim")
		bug = func(p *Placed) bool { return victim(p)%256 == 0x30 }
	case "early":
		victim := at("early_victim")
		bug = func(p *Placed) bool { return victim(p)%64 == 0x30 }
	case "pair":
		first, second := at("pair_first"), at("pair_second")
		bug = func(p *Placed) bool { return (first(p)-second(p))%256 == 0 }
	case "page-cross":
		victim := at("page_cross_victim")
		bug = func(p *Placed) bool { return victim(p)%Modulus+768 > Modulus }
	default:
		return nil, fmt.Errorf("no crash by addresses is known of scenario %s", scenario)
	}
	return bug, missing
}

// Crashes returns, for each bug, the seeds 1 to last whose layouts show it, in
// order; only the first of them unless all are asked for.
func (h *Hunt) Crashes(ctx context.Context, s Strategy, last int, all bool, bugs ...Bug) ([][]int, error) {
	crashes := make([][]int, len(bugs))
	for seed := 1; seed <= last && ctx.Err() == nil; seed++ {
		p, err := NewPlaced(h.layout, h.output, s.Plan(uint32(seed), h.layout))
		if err != nil {
			return nil, err
		}
		for i, bug := range bugs {
			if (all || crashes[i] == nil) && bug(p) {
				crashes[i] = append(crashes[i], seed)
			}
		}
	}
	return crashes, ctx.Err()
}
