package layout

import (
	"fmt"
	"strings"
)

// Model is a baseline's layout, with what is asked of it for every plan.
type Model struct {
	Sections []Section
	Outputs  []string // see Outputs
	Others   bool     // sections of other output sections can take each other's places, too

	moves   []bool         // of a section: plans change its output section
	named   map[string]int // the first section of a name
	twins   map[string]bool
	ordered map[string]int // sections that can take each other's places
	groups  int            // of these
}

// NewModel is that of a layout, which stays as it is from then on.
func NewModel(layout []Section) *Model {
	m := &Model{
		Sections: layout, Outputs: Outputs(layout), moves: make([]bool, len(layout)),
		named: make(map[string]int, len(layout)), ordered: make(map[string]int, len(layout)), twins: map[string]bool{},
	}
	for i := range layout {
		s := &layout[i]
		for _, output := range m.Outputs {
			m.moves[i] = m.moves[i] || s.Output == output
		}
		if _, ok := m.named[s.Name]; ok {
			m.twins[s.Name] = true
		} else {
			m.named[s.Name] = i
		}
		if s.Group > 0 {
			m.ordered[s.Name], m.groups = i, max(m.groups, s.Group)
			m.Others = m.Others || !m.moves[i]
		}
	}
	return m
}

// Arrangement is a plan in numbers: the sections, as indices, in their order, and the
// padding before each section in bytes.
type Arrangement struct {
	Order   []int
	Padding []uint64
}

// Arrange finds the sections of a plan.
func (m *Model) Arrange(plan Plan) (a Arrangement, err error) {
	if a.Order, err = m.order(plan.Order); err != nil {
		return a, err
	}
	a.Padding = make([]uint64, len(m.Sections))
	padded := make([]bool, len(m.Sections))
	var total uint64
	for _, p := range plan.Paddings {
		i, ok := m.named[p.Section]
		if m.twins[p.Section] { // the first in the plan's order is meant
			for _, i = range a.Order {
				if m.moves[i] && m.Sections[i].Name == p.Section {
					break
				}
			}
		}
		switch {
		case p.Bytes > MaxPadding-total:
			return a, fmt.Errorf("padding before %s: %d bytes are too many", p.Section, p.Bytes)
		case !ok || !m.moves[i] || p.Section == "":
			return a, fmt.Errorf("padding before %s: %s has no such input section", p.Section, strings.Join(m.Outputs, ", "))
		case padded[i]:
			return a, fmt.Errorf("padding before %s: it is in the plan twice", p.Section)
		}
		total += p.Bytes
		a.Padding[i], padded[i] = p.Bytes, true
	}
	return a, nil
}

// Place returns the address of each section, which is the baseline's, once those output
// sections that plans change are arranged. Each of these begins where it does in the
// baseline: by how many pages the ones before it move it is the linker script's to say.
// Sections of other output sections keep their addresses. inserted is what the linker has
// added to that image; before there is one, nothing is known of it.
func (m *Model) Place(a Arrangement, inserted ...Inserted) ([]uint64, error) {
	p := &Placer{Address: addresses(m.Sections), layout: m.Sections, outputs: m.Outputs, inserted: inserted}
	for _, i := range a.Order {
		if m.moves[i] && !p.Put(i, a.Padding[i]) {
			return nil, fmt.Errorf("padding before %s: it would lie behind the last address, or behind the place that the linker script fixes", m.Sections[i].Name)
		}
	}
	return p.Address, nil
}

// addresses are those of the baseline.
func addresses(layout []Section) []uint64 {
	out := make([]uint64, len(layout))
	for i := range layout {
		out[i] = layout[i].Address
	}
	return out
}
