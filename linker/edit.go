package linker

import (
	"context"
	"fmt"
	"slices"

	"unlucky/host"
	"unlucky/layout"
)

// MisplacedError is an image in which a function is not where the plan puts it:
// a fault of this program, which says nothing of the layout.
type MisplacedError struct {
	Function    string
	At, Planned uint64 // addresses
}

func (e *MisplacedError) Error() string {
	return fmt.Sprintf("%s is at %#x, planned at %#x", e.Function, e.At, e.Planned)
}

// checkPlaces holds the addresses that an image has by its own symbols against
// those of its plan, which it returns the identity of. Where lld itself pads no plan says
// where, and an image with other symbols says nothing: it has nil, and no identity.
func checkPlaces(m *layout.Model, plan layout.Plan, addresses []uint64, inserted ...layout.Inserted) (identity string, err error) {
	if plan.Flag != nil || addresses == nil {
		return "", nil
	}
	a, err := m.Arrange(plan)
	if err != nil {
		return "", err
	}
	return checkArranged(m, a, addresses, inserted...)
}

// checkArranged is checkPlaces of what a plan arranges.
func checkArranged(m *layout.Model, a layout.Arrangement, addresses []uint64, inserted ...layout.Inserted) (identity string, err error) {
	planned, err := m.Place(a, inserted...)
	moved := make([]uint64, len(m.Outputs)) // output sections behind the first, by pages
	known := make([]bool, len(m.Outputs))
	for i := range m.Sections {
		s := &m.Sections[i]
		n := slices.Index(m.Outputs, s.Output)
		if err != nil || addresses[i] == 0 || n < 0 {
			continue
		}
		by := addresses[i] - planned[i]
		if !known[n] && n > 0 && by%layout.Modulus == 0 {
			moved[n], known[n] = by, true
		}
		if by != moved[n] {
			err = &MisplacedError{s.Function, addresses[i] + s.Entry, planned[i] + moved[n] + s.Entry}
		}
	}
	if err != nil {
		return "", host.Hint(err, "this is a fault of unlucky, and no verdict: please report it with these lines, the linker script (arch/*/kernel/vmlinux.lds) and the seed")
	}
	if m.Others && !slices.IsSorted(a.Order) {
		return "", nil // others than these may be in another order
	}
	return layout.Identity(planned), nil
}

// edit is what a plan changes in the object.
func (p *Kernel) edit(ctx context.Context, plan layout.Plan) (e edit, err error) {
	if len(plan.Paddings) == 0 && len(plan.Order) == 0 {
		return e, nil
	}
	sections, err := p.baseline(ctx)
	if err != nil {
		return e, err
	}
	order, err := layout.Order(sections, plan.Order)
	if err != nil {
		return e, err
	}
	e.slots = slots(sections, order)
	e.padding, err = endings(sections, order, plan)
	return e, err
}

// endings turns paddings, each before a section, into bytes to append to the
// end of the section that stands before it in the output. The padding then
// comes first and the section is aligned behind it, as in lld.
func endings(sections []layout.Section, order []int, plan layout.Plan) (map[int]uint64, error) {
	if _, err := plan.PaddingBefore(); err != nil {
		return nil, err
	}
	position := make(map[string]int, len(sections))
	for place, i := range order {
		if name := sections[i].Name; name != "" {
			position[name] = place
		}
	}
	padding := make(map[int]uint64, len(plan.Paddings))
	for _, p := range plan.Paddings {
		place, ok := position[p.Section]
		if !ok {
			return nil, fmt.Errorf("padding before %s: the kernel has no such input section", p.Section)
		}
		if !sections[order[place]].Moves {
			return nil, fmt.Errorf("padding before %s: the linker script places that section by hand, or kernel.sections names others; it can't be moved on its own", p.Section)
		}
		if !layout.Paddable(sections, place) { // places keep what is before them, or a group stands there
			return nil, fmt.Errorf("padding before %s: nothing of the object stands before it in %s to be lengthened", p.Section, sections[place].Output)
		}
		padding[sections[order[place-1]].Index] += p.Bytes
	}
	return padding, nil
}

// slots are the section indices of the object that make lld put its sections
// in an order: section -> the index that it takes. It is nil for the object's
// own order.
func slots(layout []layout.Section, order []int) map[int]int {
	var out map[int]int
	for place, i := range order {
		if place == i {
			continue
		}
		if out == nil {
			out = map[int]int{}
		}
		// Within a group the indices rise.
		out[layout[i].Index] = layout[place].Index
	}
	return out
}
