package autopsy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// code is the instructions of a function that are reached, by their addresses.
type code map[uint64]instruction

// walk follows the code of a function from where it is entered. What it reaches is
// bounded by the bytes of the function, whatever they are.
func (r *Run) walk(f *Function) code {
	c := code{}
	for _, at := range r.entries(f) {
		r.follow(f, at, c)
	}
	return c
}

func (r *Run) follow(f *Function, at uint64, c code) {
	todo := []uint64{at}
	for len(todo) > 0 {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for f.holds(at) {
			if _, seen := c[at]; seen {
				break
			}
			in := r.machine.decode(r.code(at, r.machine.longest), at)
			c[at] = in
			if in.flow == bad || in.flow == stop {
				break
			}
			if direct(in) && f.holds(in.to) {
				todo = append(todo, in.to)
			}
			if in.flow == jump {
				break
			}
			at += uint64(len(in.code))
		}
	}
}

// entries are where a function is entered: its first byte, where its tables say, and,
// for indirect jumps, whatever on disk is behind code that is reached and is no padding.
func (i *Image) entries(f *Function) []uint64 {
	i.entering.Lock()
	defer i.entering.Unlock()
	if known, ok := i.entered[f.Address]; ok {
		return known
	}
	disk := i.OnDisk()
	all := []uint64{f.Address}
	for _, at := range i.roots[f.Address] {
		if f.holds(at) {
			all = append(all, at)
		}
	}
	c := code{}
	for _, at := range all {
		disk.follow(f, at, c)
	}
	for at := f.Address; f.holds(at); {
		in, reached := c[at]
		if !reached {
			in = i.machine.decode(disk.code(at, i.machine.longest), at)
			switch {
			case in.flow == bad:
				i.entered[f.Address] = all // data, from here on
				return all
			case in.idle || in.trap:
			default:
				all = append(all, at)
				disk.follow(f, at, c)
			}
		}
		at += uint64(len(in.code))
	}
	i.entered[f.Address] = all
	return all
}

// Where a branch lands.
const (
	inside  = "inside"  // the function that it is in, at an instruction
	entry   = "entry"   // where a function begins, or behind its endbr
	before  = "prefix"  // what stands before a function
	middle  = "middle"  // of another function
	split   = "split"   // in the middle of an instruction of its own function
	between = "between" // functions: padding
	outside = "outside" // of .text
	page    = "page"    // of memory that the kernel has allocated, at its first byte: as trampolines are
)

// pageBytes are those of the smallest page of any x86-64.
const pageBytes = 4096

// landing is where a branch of a function in which c is reached lands.
func (r *Run) landing(f *Function, c code, to uint64) (kind string, at *Function) {
	if f.holds(to) {
		for back := uint64(1); back < uint64(r.machine.longest) && back <= to-f.Address; back++ {
			if in, ok := c[to-back]; ok && uint64(len(in.code)) > back {
				return split, f
			}
		}
		return inside, f
	}
	if !r.text.holds(to) {
		return r.beyond(to), nil
	}
	if g := r.function(to); g != nil {
		skipped := r.code(g.Address, int(min(to-g.Address, 16)))
		if to == g.Address || to-g.Address == 4 && len(skipped) == 4 && r.sealed(skipped) {
			return entry, g
		}
		return middle, g
	}
	if g := r.prefixed(to); g != nil {
		return before, g
	}
	for at := to; at-to < 64; { // nops lead to what they stand before
		in := r.machine.decode(r.code(at, r.machine.longest), at)
		if !in.idle {
			break
		}
		at += uint64(len(in.code))
		if n, found := r.search(at); found {
			return entry, r.functions[n]
		}
	}
	return between, nil
}

// beyond tells of an address outside of .text which it is.
func (i *Image) beyond(to uint64) string {
	if !i.loaded(to) && to%pageBytes == 0 {
		return page
	}
	return outside
}

// sealed tells whether code is an endbr, or what is left of one.
func (r *Run) sealed(code []byte) bool {
	in := r.machine.decode(code, 0)
	return len(in.code) == 4 && (in.idle || strings.HasPrefix(r.machine.form(in), "endbr"))
}

// shape is what an instruction does, without the place: what two rewrites of the same
// kind have in common.
func (r *Run) shape(f *Function, c code, in instruction) (shape, lands string) {
	form := r.machine.form(in)
	if !direct(in) {
		return form, ""
	}
	kind, g := r.landing(f, c, in.to)
	switch {
	case kind == middle, kind == entry && strings.Contains(g.Name, "thunk"):
		return form + " " + kind + " " + g.Name, kind
	case kind == split: // as what runs there
		return form + " " + kind + " " + r.runs(in.to), kind
	}
	return form + " " + kind, kind
}

// meaning is what an instruction does, in the terms of every layout.
func (r *Run) meaning(f *Function, in instruction) string {
	text := r.machine.form(in)
	if direct(in) {
		text += " " + r.place(f, in.to)
	}
	if in.refs != 0 {
		s := r.symbol(in.refs)
		text += fmt.Sprintf(" %s+%#x", s.name, in.refs-s.address)
	}
	return text
}

// place is an address in the terms of every layout.
func (r *Run) place(f *Function, to uint64) string {
	if f.holds(to) {
		return fmt.Sprintf("+%#x", to-f.Address)
	}
	if kind, g := r.landing(f, nil, to); kind == entry {
		return g.key // by way of what stands before its code, too
	}
	if g := r.function(to); g != nil {
		return fmt.Sprintf("%s+%#x", g.key, to-g.Address)
	}
	if g := r.prefixed(to); g != nil {
		return fmt.Sprintf("%s-%#x", g.key, g.Address-to)
	}
	if s := r.holder(to); !r.text.holds(to) && s.data != nil {
		return fmt.Sprintf("%s+%#x", s.name, to-s.address)
	}
	if !r.text.holds(to) {
		return r.beyond(to)
	}
	return fmt.Sprintf("%s %#x", between, to)
}

// sorted are the addresses of the instructions that are reached.
func (c code) sorted() []uint64 { return slices.Sorted(maps.Keys(c)) }
