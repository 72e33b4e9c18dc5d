package fuzz

import (
	"errors"
	"fmt"

	"unlucky/linker"
)

// Modulus is what the addresses of a hybrid's functions are kept modulo, in
// bytes: a page. No rule of a larger modulus is looked for.
const Modulus = 4096

// minSlack is the least that holds two functions apart, in bytes.
const minSlack = 16

// Hybrids are the layouts between a failing and a passing one of the same
// kernel: each function is at its residue modulo Modulus in one of the two.
type Hybrids struct {
	layout     []linker.Section // the baseline
	output     string           // the output section of the functions
	align      []uint64         // of each section
	functions  []int            // sections that can be moved on their own
	fail, pass []uint64         // addresses of each section
}

// NewHybrids are those between two plans that pad text sections of one output
// section, usually .text.
func NewHybrids(layout []linker.Section, fail, pass linker.Plan) (*Hybrids, error) {
	h := &Hybrids{layout: layout, output: mainText(layout), align: make([]uint64, len(layout))}
	for i, s := range layout {
		h.align[i] = linker.Alignment(layout, i)
		if s.Output == h.output && linker.Movable(layout, i) {
			h.functions = append(h.functions, i)
		}
	}
	if h.functions == nil {
		return nil, errors.New("this kernel has no text input section that can be moved")
	}
	for i := h.functions[0]; i <= h.functions[h.Len()-1]; i++ {
		if h.align[i] > Modulus {
			return nil, fmt.Errorf("%s is aligned to %d bytes: only residues up to mod %d can be kept", layout[i].Name, h.align[i], Modulus)
		}
	}
	var err error
	for _, p := range []struct {
		plan linker.Plan
		to   *[]uint64
	}{{fail, &h.fail}, {pass, &h.pass}} {
		if p.plan.Flag != nil {
			return nil, errors.New("lld itself pads this layout")
		}
		if *p.to, err = linker.Place(layout, h.output, p.plan); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// mainText is the output section that most text input sections are in, usually
// .text; empty where there are none.
func mainText(layout []linker.Section) (output string) {
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

// Len is the number of functions.
func (h *Hybrids) Len() int { return len(h.functions) }

// Section is the input section of a function.
func (h *Hybrids) Section(function int) linker.Section { return h.layout[h.functions[function]] }

// Address is that of the function itself, behind its kCFI hash, in the failing
// layout.
func (h *Hybrids) Address(function int) uint64 {
	i := h.functions[function]
	return h.fail[i] + h.layout[i].Entry
}

// Touch tells whether a function touches the one before it in the failing
// layout: whether no padding is between them.
func (h *Hybrids) Touch(function int) bool { return h.gap(h.fail, h.functions[function]) == 0 }

// gap is the slack before a section, in bytes, that its alignment does not
// explain.
func (h *Hybrids) gap(addresses []uint64, i int) uint64 {
	return addresses[i] - h.tight(addresses[i-1]+h.layout[i-1].Size, i)
}

// tight is the lowest address that a section can have behind end.
func (h *Hybrids) tight(end uint64, i int) uint64 {
	return linker.AlignUp(end, h.align[i])
}

// Plan is the plan of a choice. Functions in move that are on are that many
// bytes further on than in the failing layout. Variants of one choice differ
// in what no rule about residues can tell: from the first slack on, and again
// from the last, all is moved by a multiple of Modulus.
func (h *Hybrids) Plan(c Choice, move map[int]uint64, variant int) linker.Plan {
	gaps := make([]uint64, h.Len()) // before each function
	next := 0                       // function
	first, last := 0, 0             // functions with slack before them
	var end uint64
	for i, s := range h.layout {
		if s.Output != h.output {
			continue
		}
		address := s.Address
		if end > 0 {
			address = h.tight(end, i)
		}
		if next < h.Len() && h.functions[next] == i {
			gaps[next] = h.slack(c, move, next, address)
			address += gaps[next]
			if gaps[next] > 0 {
				if last = next; gaps[first] == 0 {
					first = next
				}
			}
			next++
		}
		end = address + s.Size
	}
	gaps[first] += uint64(variant) * Modulus
	if last != first {
		gaps[last] += uint64(variant) * Modulus
	}
	return h.paddings(gaps)
}

// slack is what a choice puts before a function that could begin at tight.
func (h *Hybrids) slack(c Choice, move map[int]uint64, f int, tight uint64) uint64 {
	i := h.functions[f]
	address := func(f int) uint64 {
		if c.On[f] {
			return h.fail[h.functions[f]] + move[f]
		}
		return h.pass[h.functions[f]]
	}
	least := uint64(minSlack)
	switch {
	case f == 0:
		least = 0 // what stands before the first never moves
	case c.On[f] == c.On[f-1] && (!c.On[f] || move[f] == move[f-1]):
		was := h.pass
		if c.On[f] {
			was = h.fail
		}
		gap := h.gap(was, i)
		if gap == 0 && c.On[f] && c.Open[f] {
			gap = Modulus
		}
		return gap
	}
	least += tight
	return least - tight + (address(f)-least)%Modulus
}

// Opened is the failing, or the passing, layout with every two neighbours that
// touch held apart by a cache line: all stay at their residue modulo 64.
func (h *Hybrids) Opened(failing bool) linker.Plan {
	addresses := h.pass
	if failing {
		addresses = h.fail
	}
	gaps := make([]uint64, h.Len())
	for f, i := range h.functions {
		if gaps[f] = h.gap(addresses, i); gaps[f] == 0 && f > 0 {
			gaps[f] = 64
		}
	}
	return h.paddings(gaps)
}

func (h *Hybrids) paddings(gaps []uint64) (p linker.Plan) {
	for f, gap := range gaps {
		if gap > 0 {
			p.Paddings = append(p.Paddings, linker.Padding{Section: h.Section(f).Name, Bytes: gap})
		}
	}
	return p
}
