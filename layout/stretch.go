package layout

import "slices"

// Stretched is the failing, or the passing, layout with some bytes more before a
// function: all from there on is that much further away from all before. Behind the last
// function it is the layout itself. Both have the same order.
func (h *Hybrids) Stretched(failing bool, function int, bytes uint64) Plan {
	p := h.end(failing)
	gaps := make([]uint64, len(p.order))
	for f, i := range h.functions {
		if gaps[p.place[i]] = h.gap(p, i); f == function {
			gaps[p.place[i]] += bytes
		}
	}
	return h.plan(p.order, gaps)
}

func (h *Hybrids) end(failing bool) *Placed {
	if failing {
		return h.fail
	}
	return h.pass
}

// Ordered tells whether both layouts have the baseline's order.
func (h *Hybrids) Ordered() bool {
	for place, i := range h.fail.order {
		if i != place {
			return false
		}
	}
	return true
}

// Wide is more than what any two functions are further apart in one of the layouts than
// in the other, in bytes: a multiple of FarModulus, as no residue is to change by it.
func (h *Hybrids) Wide() uint64 {
	last := h.functions[len(h.functions)-1]
	base := h.layout[last].Address
	return AlignUp(max(h.fail.Address[last]-base, h.pass.Address[last]-base)+1, FarModulus)
}

// Apart is how far behind a function another begins, in bytes, in the failing or the
// passing layout.
func (h *Hybrids) Apart(failing bool, function, other int) uint64 {
	p, i, j := h.end(failing), h.functions[function], h.functions[other]
	return p.Address[j] + h.layout[j].Entry - p.Address[i] - h.layout[i].Entry
}

// EndAddress is that of a function in the failing or the passing layout.
func (h *Hybrids) EndAddress(failing bool, function int) uint64 {
	i := h.functions[function]
	return h.end(failing).Address[i] + h.layout[i].Entry
}

// Nearest is the passing layout with some functions at their failing residues of a
// modulus, each by as little as that takes: all behind them move along. Together tells
// that only their distances count, so the first stays; touching, which touch the one
// before them. Both layouts have the same order.
func (h *Hybrids) Nearest(functions, touching []int, modulus uint64, together bool) Plan {
	p := h.pass
	gaps := make([]uint64, len(p.order))
	placer := NewPlacer(h.layout)
	var off uint64 // of the first from where it fails
	for place, i := range p.order {
		if !placer.Has(i) {
			continue
		}
		f, movable := h.number[i]
		if movable {
			gaps[place] = h.gap(p, i)
		}
		switch on := movable && slices.Contains(functions, f); {
		case on && slices.Contains(touching, f):
			gaps[place] = 0
		case on && together && f == functions[0]:
			off = placer.Next(i) + gaps[place] - h.fail.Address[i]
		case on:
			gaps[place] += (h.fail.Address[i] + off - placer.Next(i) - gaps[place]) % modulus
		}
		placer.Put(i, gaps[place])
	}
	return h.plan(p.order, gaps)
}
