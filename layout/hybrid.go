package layout

import (
	"errors"
	"fmt"
	"slices"
)

// Modulus is what the addresses of a hybrid's functions are kept modulo, in
// bytes: a page. A rule of a larger modulus is looked for only where the failing
// layout, moved by whole pages, passes.
const Modulus = 4096

// FarModulus is that larger one, in bytes. A distance has 4 bytes in a jump; one
// that the kernel reads for another thing is the second lowest (kcfi-hash).
const FarModulus = 1 << 16

// Step is the most frequent step of functions, in bytes, and what two are held
// apart by at the least. StepOf tells that of a kernel.
const Step = 16

// Hybrids are the layouts between a failing and a passing one of the same
// kernel: each function is at its residue modulo Modulus in one of the two. The
// passing one has the baseline's order. Where the failing one has another, it
// is taken only for functions that are to touch.
type Hybrids struct {
	layout     []Section   // the baseline
	align      []uint64    // of each section
	functions  []int       // sections that can be moved on their own, in the failing layout's order
	number     map[int]int // of each of them, in functions
	fail, pass *Placed
	modulus    uint64 // bytes: Modulus or farModulus
	// far keeps the last function, and so what the linker script places behind it,
	// at its failing residue in all of them: how far away that is may decide.
	far bool
}

// Placed is a layout with its addresses.
type Placed struct {
	order   []int    // sections
	place   []int    // of each section, in order
	Address []uint64 // of each section
}

func NewPlaced(layout []Section, plan Plan) (p *Placed, err error) {
	m := NewModel(layout)
	a, err := m.Arrange(plan)
	if err != nil {
		return nil, err
	}
	p = &Placed{order: a.Order, place: make([]int, len(layout))}
	for place, i := range p.order {
		p.place[i] = place
	}
	p.Address, err = m.Place(a)
	return p, err
}

// Before is the section that stands before another.
func (p *Placed) Before(i int) int { return p.order[p.place[i]-1] }

// NewHybrids are those between two plans.
func NewHybrids(layout []Section, fail, pass Plan) (*Hybrids, error) {
	switch {
	case fail.Flag != nil || pass.Flag != nil:
		return nil, errors.New("lld itself pads this layout")
	case len(pass.Order) > 0:
		return nil, errors.New("the passing layout has another order than the baseline")
	}
	h := &Hybrids{layout: layout, align: make([]uint64, len(layout)), number: map[int]int{}, modulus: Modulus}
	var err1, err2 error
	h.fail, err1 = NewPlaced(layout, fail)
	h.pass, err2 = NewPlaced(layout, pass)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	outputs := Outputs(layout)
	for place, i := range h.fail.order {
		h.align[i] = layout[i].Alignment()
		if Movable(layout, place) && slices.Contains(outputs, layout[i].Output) {
			h.number[i] = len(h.functions)
			h.functions = append(h.functions, i)
		}
	}
	if h.functions == nil {
		return nil, errors.New("this kernel has no text input section that can be moved")
	}
	for _, i := range h.functions { // what the linker script aligns to more keeps its residue
		if h.align[i] > Modulus {
			return nil, fmt.Errorf("%s is aligned to %d bytes: only residues up to mod %d can be kept", layout[i].Name, h.align[i], Modulus)
		}
	}
	return h, nil
}

// Far are the same layouts with residues modulo farModulus, and what follows the
// functions always at its failing one.
func (h *Hybrids) Far() *Hybrids {
	far := *h
	far.modulus, far.far = FarModulus, true
	return &far
}

// Len is the number of functions.
func (h *Hybrids) Len() int { return len(h.functions) }

// Section is the input section of a function.
func (h *Hybrids) Section(function int) Section { return h.layout[h.functions[function]] }

// Address is that of the function itself, behind its kCFI hash, in the failing
// layout.
func (h *Hybrids) Address(function int) uint64 {
	i := h.functions[function]
	return h.fail.Address[i] + h.layout[i].Entry
}

// Alignment is that of a function's section, in bytes: the step by which it moves.
func (h *Hybrids) Alignment(function int) uint64 { return h.align[h.functions[function]] }

// Step is that of the kernel's functions, in bytes.
func (h *Hybrids) Step() uint64 { return StepOf(h.layout) }

// Modulus is that of the residues that are kept, in bytes.
func (h *Hybrids) Modulus() uint64 { return h.modulus }

// Moved is how far behind its place in the failing layout a function is in the
// passing one, in bytes modulo a page.
func (h *Hybrids) Moved(function int) uint64 {
	i := h.functions[function]
	return (h.pass.Address[i] - h.fail.Address[i]) % Modulus
}

// Number is the function of a section, by the section's number in the layout.
func (h *Hybrids) Number(section int) int { return h.number[section] }

// Touch tells whether a function touches the one before it in the failing
// layout: whether no padding is between them.
func (h *Hybrids) Touch(function int) bool { return h.gap(h.fail, h.functions[function]) == 0 }

// gap is the slack before a section, in bytes, that its alignment does not
// explain.
func (h *Hybrids) gap(p *Placed, i int) uint64 {
	b := p.Before(i)
	return p.Address[i] - h.tight(p.Address[b]+h.layout[b].Size, i)
}

// tight is the lowest address that a section can have behind end.
func (h *Hybrids) tight(end uint64, i int) uint64 { return AlignUp(end, h.align[i]) }

// Plan is the plan of a choice. Functions in move that are on are that many
// bytes further on than in the failing layout. Variants of one choice differ
// in what no rule about residues can tell: from the first slack on, and again
// from the last, all is moved by a multiple of the modulus.
func (h *Hybrids) Plan(c Choice, move map[int]uint64, variant int) Plan {
	if h.far {
		c = c.With(h.Len() - 1)
	}
	order := h.ordered(c)
	gaps := make([]uint64, len(order)) // before each place
	first, last := 0, 0                // places with slack before them
	before, behind := -1, 0            // the function before, and its place
	placer := NewPlacer(h.layout)
	for place, i := range order {
		if !placer.Has(i) {
			continue
		}
		if Movable(h.layout, place) {
			f := h.number[i]
			gaps[place] = h.slack(c, move, before, f, place-behind, placer.Next(i))
			before, behind = f, place
			if gaps[place] > 0 {
				if last = place; first == 0 {
					first = place
				}
			}
		}
		placer.Put(i, gaps[place])
	}
	if first == 0 {
		first = h.fail.place[h.functions[0]]
	}
	if last <= first { // all would move as one: two of the last are held apart, others in each variant
		last = h.fail.place[h.functions[max(0, h.Len()-variant)%h.Len()]]
	}
	gaps[first] += uint64(variant) * h.modulus
	if last > first {
		gaps[last] += uint64(variant) * h.modulus
	}
	return h.plan(order, gaps)
}

// Shifted is the plan of a choice with all that stands behind its first slack
// moved by some bytes.
func (h *Hybrids) Shifted(c Choice, variant int, bytes uint64) Plan {
	p := h.Plan(c, nil, variant)
	if p.Paddings == nil {
		p.Paddings = []Padding{{Section: h.Section(0).Name}}
	}
	p.Paddings[0].Bytes += bytes
	return p
}

// ordered is the baseline's order, but that neighbours of the failing layout
// which are both on have the places that they have there, and so has the last of all
// where what stands behind it is to be as there.
func (h *Hybrids) ordered(c Choice) []int {
	at := append([]int(nil), h.pass.place...)
	order := append([]int(nil), h.pass.order...)
	for f, i := range h.functions {
		switch last := f+1 == h.Len(); {
		case c.On[f] && (h.kept(c, f) || last && h.far || !last && h.kept(c, f+1)):
		default:
			continue
		}
		there := h.fail.place[i]
		here, other := at[i], order[there]
		order[here], order[there] = other, i
		at[i], at[other] = there, here
	}
	return order
}

// kept tells whether a function and the one before it, which are neighbours in
// the failing layout, are both on.
func (h *Hybrids) kept(c Choice, f int) bool {
	return f > 0 && c.On[f] && c.On[f-1] && h.fail.Before(h.functions[f]) == h.functions[f-1]
}

// slack is what a choice puts before a function that could begin at tight.
// Before is the function that many places before it, -1 if it is the first.
func (h *Hybrids) slack(c Choice, move map[int]uint64, before, f, places int, tight uint64) uint64 {
	i := h.functions[f]
	p, address := h.pass, h.pass.Address[i]
	if c.On[f] {
		p, address = h.fail, h.fail.Address[i]+move[f]
	}
	least := uint64(Step)
	switch {
	case before < 0:
		least = 0 // what stands before the first never moves
	case c.On[f] == c.On[before] && (!c.On[f] || move[f] == move[before]) &&
		p.place[i]-p.place[h.functions[before]] == places:
		gap := h.gap(p, i)
		if gap == 0 && c.On[f] && c.Open[f] {
			gap = h.modulus
		}
		return gap
	}
	least += tight
	modulus := h.modulus
	if !c.On[f] && !h.Ordered() {
		modulus = min(modulus, Modulus) // many are out of place, and .text is not to grow beyond all bounds
	}
	return least - tight + (address-least)%modulus
}

// Unordered is a layout in the baseline's order, held apart, with each function
// at its failing residue of a modulus, in bytes: Modulus makes .text of every kernel
// ten times as large. Variants are moved as a whole.
func (h *Hybrids) Unordered(modulus uint64, variant int) Plan {
	gaps := make([]uint64, len(h.pass.order))
	placer, first := NewPlacer(h.layout), true
	for place, i := range h.pass.order {
		if !placer.Has(i) {
			continue
		}
		if Movable(h.layout, place) {
			least := placer.Next(i) + Step
			gaps[place] = Step + (h.fail.Address[i]-least)%max(modulus, h.align[i])
			if first {
				gaps[place] += uint64(variant) * Modulus
				first = false
			}
		}
		placer.Put(i, gaps[place])
	}
	return h.plan(h.pass.order, gaps)
}

// Opened is the failing, or the passing, layout with every two neighbours that
// touch held apart by a cache line: all stay at their residue modulo 64.
func (h *Hybrids) Opened(failing bool) Plan {
	p := h.pass
	if failing {
		p = h.fail
	}
	gaps := make([]uint64, len(p.order))
	for n, i := range h.functions {
		place := p.place[i]
		if gaps[place] = h.gap(p, i); gaps[place] == 0 && n > 0 {
			gaps[place] = 64
		}
	}
	return h.plan(p.order, gaps)
}

// plan is that of an order with gaps before its places.
func (h *Hybrids) plan(order []int, gaps []uint64) (p Plan) {
	p.Order = Displaced(h.layout, order)
	for place, gap := range gaps {
		if gap > 0 {
			p.Paddings = append(p.Paddings, Padding{Section: h.layout[order[place]].Name, Bytes: gap})
		}
	}
	return p
}
