package autopsy

import (
	"bytes"
	"cmp"
	"regexp"
	"slices"
	"strconv"
)

// Extent is where some code is.
type Extent struct{ Address, Bytes uint64 }

// Extents are the functions with damage, of any layout of the kernel: what has to be
// watched to know which of it runs.
func (i *Image) Extents(all []*Damage) (extents []Extent) {
	for _, d := range all {
		if f := i.index[d.key]; f != nil {
			if e := (Extent{f.Address, f.Size}); !slices.Contains(extents, e) {
				extents = append(extents, e)
			}
		}
	}
	return extents
}

// translated matches the instructions in the log of QEMU's -d in_asm.
var translated = regexp.MustCompile(`(?m)^0x([0-9a-f]{8,16}):`)

// firstRun tells as the how manyth each instruction of a log ran for the first time,
// from 1 on.
func firstRun(log []byte) map[uint64]int {
	order := map[uint64]int{}
	for _, m := range translated.FindAllSubmatch(log, -1) {
		if at, err := strconv.ParseUint(string(m[1]), 16, 64); err == nil && order[at] == 0 {
			order[at] = len(order) + 1
		}
	}
	return order
}

// Mark notes which damage has run, by the log of what QEMU has translated of its
// functions, and which the twin has run in its place; a log is nil where it is not
// known. TCG translates what it is about to run.
func Mark(all []*Damage, log, twin []byte) {
	here, there := firstRun(log), firstRun(twin)
	for _, d := range all {
		if log != nil {
			ran := false
			for _, at := range d.starts {
				if n := here[at]; n > 0 && (!ran || n < d.Order) {
					ran, d.Order = true, n
				}
			}
			d.Ran = &ran
		}
		if twin != nil && d.twin != 0 {
			ran := slices.ContainsFunc(d.starts, func(at uint64) bool { return there[at-d.Address+d.twin] > 0 })
			d.TwinRan = &ran
		}
	}
}

// trapBytes is how far behind where a branch leads a trap may say that it was: an
// int3 is behind itself, and before it may have stood some that did no harm.
const trapBytes = 16

// MarkTrap notes the damage whose branch leads to where a console says that the kernel
// trapped.
func (r *Run) MarkTrap(all []*Damage, console []byte) {
	m := r.machine.counter.FindSubmatch(console)
	if m == nil {
		return
	}
	offset, err := strconv.ParseUint(string(m[2]), 16, 64)
	if err != nil {
		return
	}
	for _, f := range r.functions {
		if name := []byte(f.Name); !bytes.Equal(name, m[1]) {
			continue
		}
		for _, d := range all {
			if at := f.Address + offset; d.to != 0 && at >= d.to && at-d.to < trapBytes {
				d.Crashed = true
			}
		}
	}
}

// Sort puts the most important first: where the kernel trapped, then what has run, in the
// order in which it did, then what has not.
func Sort(all []*Damage) {
	rank := func(d *Damage) int {
		switch {
		case d.Crashed:
			return 0
		case d.Executed():
			return 1
		}
		return 2
	}
	slices.SortStableFunc(all, func(a, b *Damage) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Order, b.Order), cmp.Compare(a.Address, b.Address))
	})
}
