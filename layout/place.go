package layout

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"
)

// Outputs are the output sections that plans change: of functions the one that most
// of them are in, usually .text; of data all that have some. There are none where
// nothing moves.
func Outputs(layout []Section) (outputs []string) {
	moving := map[string]int{} // sections of each output section
	main := ""
	for i := range layout {
		if s := &layout[i]; s.Moves {
			if moving[s.Output]++; moving[s.Output] == 1 {
				outputs = append(outputs, s.Output)
			}
			if moving[s.Output] > moving[main] {
				main = s.Output
			}
		}
	}
	if strings.Contains(main, "text") {
		return []string{main}
	}
	return outputs
}

// Place is Model.Place of a plan, for who has one plan of a layout.
func Place(layout []Section, plan Plan, inserted ...Inserted) ([]uint64, error) {
	m := NewModel(layout)
	a, err := m.Arrange(plan)
	if err != nil {
		return nil, err
	}
	return m.Place(a, inserted...)
}

// Identity is the SHA-256, in hex, of the addresses of all sections. Two layouts of a
// kernel that have the same are one.
func Identity(addresses []uint64) string {
	text := make([]byte, 0, 8*len(addresses))
	for _, a := range addresses {
		text = binary.LittleEndian.AppendUint64(text, a)
	}
	digest := sha256.Sum256(text)
	return hex.EncodeToString(digest[:])
}

// Inserted is code that the linker adds between sections, where addresses ask for it:
// patches of Cortex-A53's erratum 843419, and veneers of branches that go too far.
type Inserted struct{ Address, Size uint64 }

// insertedAlign is the alignment of such code at most, in bytes: veneers have addresses
// in them.
const insertedAlign = 8

// Placer places the sections of the output sections that plans change one after the
// other, in any order that a plan may have, as the linker does.
type Placer struct {
	Address []uint64 // of each section; the baseline's for one that is not placed yet
	layout  []Section
	outputs []string
	output  string // that is being placed
	end     uint64 // of the section placed last; 0 before the first of an output section, which stays

	inserted []Inserted // in the order of addresses
}

// NewPlacer is one for a baseline's layout.
func NewPlacer(layout []Section) *Placer {
	return &Placer{Address: addresses(layout), layout: layout, outputs: Outputs(layout)}
}

// Has tells whether plans change the output section of a section.
func (p *Placer) Has(i int) bool { return slices.Contains(p.outputs, p.layout[i].Output) }

// Next is the address that a section gets without padding before it.
func (p *Placer) Next(i int) uint64 { return p.next(i, 0) }

func (p *Placer) next(i int, padding uint64) uint64 {
	s := &p.layout[i]
	switch {
	case s.Pin > 0:
		to := s.Pin - 1
		return s.Address + p.Address[to] - p.layout[to].Address
	case p.end == 0 || s.Output != p.output:
		return s.Address
	}
	return AlignUp(p.behind(p.end+padding), s.Alignment())
}

// behind is the end of what the linker has inserted at an address; the address itself
// where that is nothing.
func (p *Placer) behind(end uint64) uint64 {
	n, _ := slices.BinarySearchFunc(p.inserted, end, func(in Inserted, end uint64) int { return cmp.Compare(in.Address, end) })
	for _, in := range p.inserted[n:] {
		if in.Address-end >= insertedAlign {
			break
		}
		end = in.Address + in.Size
	}
	return end
}

// Put places the next section, with padding before it in bytes, and tells
// whether it can be there.
func (p *Placer) Put(i int, padding uint64) bool {
	if output := p.layout[i].Output; output != p.output {
		p.output, p.end = output, 0
	}
	at, size := p.next(i, padding), p.layout[i].Size
	if end := p.end + padding; end < p.end || at+size < at || p.end > 0 && at < end {
		return false
	}
	p.Address[i], p.end = at, at+size
	return true
}

// Alignment is that of a section in a layout: its own, or the linker script's
// where that is larger.
func (s *Section) Alignment() uint64 { return max(s.Align, s.ScriptAlign, 1) }

// Movable tells whether a section of a layout moves where it is padded before: it
// is an ordinary one of text, and the linker script does not fix its place.
func Movable(layout []Section, i int) bool {
	return Paddable(layout, i) && layout[i].Pin == 0 && layout[i].ScriptAlign < page
}

// Paddable tells whether a section can be padded before: one of the object stands
// before it to be lengthened.
func Paddable(layout []Section, i int) bool {
	return layout[i].Moves && i > 0 && layout[i-1].Output == layout[i].Output && layout[i-1].Name != ""
}

// AlignUp is the lowest multiple of align, a power of two, that is not below n.
func AlignUp(n, align uint64) uint64 { return (n + align - 1) &^ (align - 1) }
