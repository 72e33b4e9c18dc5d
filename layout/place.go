package layout

import "fmt"

// MainText is the output section that most text input sections are in, usually
// .text; empty where there are none.
func MainText(layout []Section) (output string) {
	text := map[string]int{} // functions of each output section
	for _, s := range layout {
		if s.Text {
			if text[s.Output]++; text[s.Output] > text[output] {
				output = s.Output
			}
		}
	}
	return output
}

// Place returns the address of each section of a layout, which is the
// baseline's, once its output section output is as in a plan. Sections of
// other output sections keep theirs.
func Place(layout []Section, output string, plan Plan) ([]uint64, error) {
	order, err := Order(layout, plan.Order)
	if err != nil {
		return nil, err
	}
	before, err := plan.PaddingBefore()
	if err != nil {
		return nil, err
	}
	p := NewPlacer(layout)
	for _, i := range order {
		s := layout[i]
		if s.Output != output {
			continue
		}
		if padding := before[s.Name]; !p.Put(i, padding) {
			return nil, fmt.Errorf("padding before %s: it would lie behind the last address, or behind the place that the linker script fixes", s.Name)
		}
		delete(before, s.Name)
	}
	delete(before, "")
	for name := range before {
		return nil, fmt.Errorf("padding before %s: %s has no such input section", name, output)
	}
	return p.Address, nil
}

// Placer places the sections of one output section one after the other, in any
// order that a plan may have, as the linker does.
type Placer struct {
	Address []uint64 // of each section; the baseline's for one that is not placed yet
	layout  []Section
	end     uint64 // of the section placed last; 0 before the first, which stays
}

// NewPlacer is one for a baseline's layout.
func NewPlacer(layout []Section) *Placer {
	p := &Placer{Address: make([]uint64, len(layout)), layout: layout}
	for i, s := range layout {
		p.Address[i] = s.Address
	}
	return p
}

// Next is the address that a section gets without padding before it.
func (p *Placer) Next(i int) uint64 { return p.next(i, 0) }

func (p *Placer) next(i int, padding uint64) uint64 {
	s := p.layout[i]
	switch {
	case s.Pin > 0:
		to := s.Pin - 1
		return s.Address + p.Address[to] - p.layout[to].Address
	case p.end == 0:
		return s.Address
	}
	return AlignUp(p.end+padding, s.Alignment())
}

// Put places the next section, with padding before it in bytes, and tells
// whether it can be there.
func (p *Placer) Put(i int, padding uint64) bool {
	at, size := p.next(i, padding), p.layout[i].Size
	if end := p.end + padding; end < p.end || at+size < at || p.end > 0 && at < end {
		return false
	}
	p.Address[i], p.end = at, at+size
	return true
}

// Alignment is that of a section in a layout: its own, or the linker script's
// where that is larger.
func (s Section) Alignment() uint64 { return max(s.Align, s.ScriptAlign, 1) }

// Movable tells whether a section of a layout moves where it is padded before: it
// is an ordinary one of text, and the linker script does not fix its place.
func Movable(layout []Section, i int) bool {
	return Paddable(layout, i) && layout[i].Pin == 0 && layout[i].ScriptAlign < page
}

// Paddable tells whether a section can be padded before: one of the object stands
// before it to be lengthened.
func Paddable(layout []Section, i int) bool {
	return layout[i].Text && i > 0 && layout[i-1].Output == layout[i].Output && layout[i-1].Name != ""
}

// AlignUp is the lowest multiple of align, a power of two, that is not below n.
func AlignUp(n, align uint64) uint64 { return (n + align - 1) &^ (align - 1) }
