package autopsy

import (
	"bytes"
	"cmp"
	"encoding/hex"
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

// translated matches the instructions in the log of QEMU's -d in_asm, with their bytes.
var translated = regexp.MustCompile(`(?m)^0x([0-9a-f]{8,16}):(?:  ((?:[0-9a-f]{2} )*[0-9a-f]{2}))?`)

// ran is an instruction of a log.
type ran struct {
	order int    // as the how manyth one it ran for the first time, from 1 on
	code  []byte // nil where the log does not have it
}

// firstRun reads a log, by the addresses. What is patched is translated anew.
func firstRun(log []byte) map[uint64][]ran {
	all, n := map[uint64][]ran{}, 0
	for _, m := range translated.FindAllSubmatch(log, -1) {
		at, err := strconv.ParseUint(string(m[1]), 16, 64)
		code, codeErr := hex.DecodeString(string(bytes.ReplaceAll(m[2], []byte(" "), nil)))
		if err != nil || codeErr != nil || slices.ContainsFunc(all[at], func(r ran) bool { return bytes.Equal(r.code, code) }) {
			continue
		}
		n++
		all[at] = append(all[at], ran{n, code})
	}
	return all
}

// as tells whether an instruction was run as some code says, of which the beginning may
// be all that is known.
func (r ran) as(code []byte) bool {
	n := min(len(r.code), len(code))
	return bytes.Equal(r.code[:n], code[:n])
}

// Mark notes which damage has run, by the log of what QEMU has translated of its
// functions, and which the twin has run in its place; a log is nil where it is not
// known. TCG translates what it is about to run. Code that ran while it was as on disk
// has not run as it is in memory.
func Mark(all []*Damage, log, twin []byte) {
	here, there := firstRun(log), firstRun(twin)
	for _, d := range all {
		if log != nil {
			memory, _ := hex.DecodeString(d.Memory.Bytes)
			yes := false
			for _, at := range d.starts {
				for _, r := range here[at] {
					if r.as(memory[min(at-d.Address, uint64(len(memory))):]) && (!yes || r.order < d.Order) {
						yes, d.Order = true, r.order
					}
				}
			}
			d.Ran = &yes
		}
		if twin != nil && d.twin != 0 {
			yes := slices.ContainsFunc(d.starts, func(at uint64) bool { return there[at-d.Address+d.twin] != nil })
			d.TwinRan = &yes
		}
	}
}

// trapBytes is how far behind where a branch leads a trap may say that it was: an
// int3 is behind itself, and before it may have stood some that did no harm.
const trapBytes = 16

// MarkTrap notes the damage that a console names, and that whose branch leads to where
// it says that the kernel trapped.
func (r *Run) MarkTrap(all []*Damage, console []byte) {
	for _, m := range r.machine.places.FindAllSubmatch(console, maxPlaces) {
		offset, err := strconv.ParseUint(string(m[3]), 16, 64)
		if err != nil {
			continue
		}
		for _, d := range all {
			if d.Function == string(m[2]) && offset >= d.Offset && offset-d.Offset < uint64(len(d.Memory.Bytes)/2) {
				d.Named = true
			}
		}
		if m[1] == nil {
			continue
		}
		for _, f := range r.functions {
			if f.Name != string(m[2]) {
				continue
			}
			for _, d := range all {
				if at := f.Address + offset; d.to != 0 && at >= d.to && at-d.to < trapBytes {
					d.Crashed = true
				}
			}
		}
	}
}

// maxPlaces bounds how many places that a console names are looked at.
const maxPlaces = 1000

// Sort puts the most important first: where the kernel trapped, or what it has named, then what has run, in the
// order in which it did, then what has not.
func Sort(all []*Damage) {
	rank := func(d *Damage) int {
		switch {
		case d.Crashed, d.Named:
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
