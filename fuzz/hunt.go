package fuzz

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"unlucky/linker"
)

// Hunt plays planted bugs against a strategy without booting anything: whether
// a layout crashes follows from its addresses, and those from its plan.
type Hunt struct {
	layout    []linker.Section
	output    string
	functions []int // sections that can move, in output order
	Seeds     int   // after which a bug counts as not found
}

// NewHunt takes the functions of a kernel's baseline.
func NewHunt(layout []linker.Section, seeds int) (*Hunt, error) {
	h, err := NewHybrids(layout, linker.Plan{}, linker.Plan{})
	if err != nil {
		return nil, err
	}
	return &Hunt{layout, h.output, h.functions, seeds}, nil
}

// Bug tells from the addresses of a layout's sections whether it crashes.
type Bug func(addresses []uint64) bool

// BugKind is a way of depending on the layout.
type BugKind struct {
	Name string
	What string
	draw func(h *Hunt, random func(n int) int) Bug
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
		i := h.function(random, func(i int) bool { s := h.layout[i].Size; return 256 <= s && s <= Modulus })
		if i < 0 {
			return nil
		}
		return func(a []uint64) bool { return a[i]%Modulus+h.layout[i].Size > Modulus }
	}},
	{"pair", "two functions at the same residue mod 256", func(h *Hunt, random func(int) int) Bug {
		i, j := h.two(random, 256)
		if j < 0 {
			return nil
		}
		return func(a []uint64) bool { return (a[i]-a[j])%256 == 0 }
	}},
	{"alias", "two functions at the same residue mod 4096", func(h *Hunt, random func(int) int) Bug {
		i, j := h.two(random, Modulus)
		if j < 0 {
			return nil
		}
		return func(a []uint64) bool { return (a[i]-a[j])%Modulus == 0 }
	}},
	{"adjacent", "two functions that touch, the second at one residue mod 64", func(h *Hunt, random func(int) int) Bug {
		i := h.function(random, h.follows(64))
		if i < 0 {
			return nil
		}
		r := h.residue(random, i, 64)
		return func(a []uint64) bool { return h.touches(a, i) && a[i]%64 == r }
	}},
	{"adjacent, page", "two functions that touch, the second at 4 residues mod 4096", func(h *Hunt, random func(int) int) Bug {
		i := h.function(random, h.follows(1024))
		if i < 0 {
			return nil
		}
		r := h.residue(random, i, 1024)
		return func(a []uint64) bool { return h.touches(a, i) && a[i]%1024 == r }
	}},
}

func residueKind(name, what string, modulus uint64, from, to float64) BugKind {
	return BugKind{name, what, func(h *Hunt, random func(int) int) Bug {
		first, last := int(from*float64(len(h.functions))), max(16, int(to*float64(len(h.functions))))
		i := h.function(random, func(i int) bool {
			at, _ := slices.BinarySearch(h.functions, i)
			return first <= at && at < last && h.moves(i, modulus)
		})
		if i < 0 {
			return nil
		}
		r := h.residue(random, i, modulus)
		return func(a []uint64) bool { return a[i]%modulus == r }
	}}
}

// function draws one that will do; -1 if none does.
func (h *Hunt) function(random func(int) int, will func(i int) bool) int {
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

// two draws functions that can come to the same residue, or -1.
func (h *Hunt) two(random func(int) int, modulus uint64) (i, j int) {
	fine := func(i int) bool { return h.layout[i].Align == 16 }
	if i = h.function(random, fine); i < 0 {
		return -1, -1
	}
	return i, h.function(random, func(j int) bool {
		return fine(j) && (h.layout[i].Address-h.layout[j].Address)%modulus != 0
	})
}

// residue draws one that a function can have but the baseline does not have,
// which would be found before the first seed.
func (h *Hunt) residue(random func(int) int, i int, modulus uint64) uint64 {
	align := max(16, linker.Alignment(h.layout, i))
	return (h.layout[i].Address + align*uint64(1+random(int(modulus/align)-1))) % modulus
}

// moves tells whether a function has several residues.
func (h *Hunt) moves(i int, modulus uint64) bool { return linker.Alignment(h.layout, i) < modulus }

func (h *Hunt) base() []uint64 {
	a := make([]uint64, len(h.layout))
	for i, s := range h.layout {
		a[i] = s.Address
	}
	return a
}

// follows tells whether a function that has several residues touches the one
// before it in the baseline.
func (h *Hunt) follows(modulus uint64) func(i int) bool {
	base := h.base()
	return func(i int) bool { return h.layout[i-1].Text && h.touches(base, i) && h.moves(i, modulus) }
}

// touches tells whether nothing but alignment is between a section and the one
// before it.
func (h *Hunt) touches(a []uint64, i int) bool {
	align := linker.Alignment(h.layout, i)
	return a[i] == (a[i-1]+h.layout[i-1].Size+align-1)&^(align-1)
}

// Draw makes bugs of a kind; the same number always makes the same.
func (h *Hunt) Draw(k BugKind, bugs int) ([]Bug, error) {
	out := make([]Bug, bugs)
	for n := range out {
		state := mix(uint64(n), uint64(len(k.Name)))
		out[n] = k.draw(h, func(max int) int {
			state = mix(state, 1)
			return int(state % uint64(max))
		})
		if out[n] == nil {
			return nil, fmt.Errorf("this kernel has no function for a bug of the kind %q", k.Name)
		}
	}
	return out, nil
}

// First returns, for each bug, the first seed whose layout shows it; Seeds+1 if
// none does.
func (h *Hunt) First(ctx context.Context, s Strategy, bugs []Bug) ([]int, error) {
	first := make([]int, len(bugs))
	for i := range first {
		first[i] = h.Seeds + 1
	}
	for seed := 1; seed <= h.Seeds && ctx.Err() == nil; seed++ {
		addresses, err := linker.Place(h.layout, h.output, s.Plan(uint32(seed), h.layout))
		if err != nil {
			return nil, err
		}
		for i, bug := range bugs {
			if first[i] > h.Seeds && bug(addresses) {
				first[i] = seed
			}
		}
	}
	return first, ctx.Err()
}

// Median of numbers, which it sorts; the upper one of two.
func Median[T cmp.Ordered](v []T) T {
	slices.Sort(v)
	return v[len(v)/2]
}
