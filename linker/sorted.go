package linker

import (
	"bytes"
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"iter"
	"slices"
)

// sortedTable is one that the kernel's sorttable sorts (scripts/sorttable.c): of stack
// frames, of exceptions, of ftrace's calls. What it says of one section is always in the
// same order, and so a layout's table is in that of the sections.
type sortedTable struct {
	parts   []part
	fields  []field // of an entry, in the first part; without targets
	targets []int32 // of the fields of each entry
	blocks
}

// part is an array in the file.
type part struct {
	at, size uint64 // in the file; of an entry, in bytes
	data     []byte // as lld leaves it, by blocks
}

// write writes the table of a placement.
func (s *sortedTable) write(p *placement, out []byte) {
	size, n := s.parts[0].size, uint64(0)
	for from, to := range s.runs(p) {
		for _, part := range s.parts {
			copy(out[part.at+n*part.size:], part.data[from*part.size:to*part.size])
		}
		b := out[s.parts[0].at+n*size:][:(to-from)*size]
		for i, f := range s.fields {
			var by uint64 // that the entry itself moves
			if f.relative {
				by = (from - n) * size
			}
			for e := range to - from {
				at := b[e*size+f.at:]
				f.put(at, f.get(at)+by+p.moved[s.targets[int(from+e)*len(s.fields)+i]])
			}
		}
		n += to - from
	}
}

// sorted finds the tables, whose fields it takes from those of the template. All others
// are as lld has left them.
func (t *template) sorted(raw []byte, image *linkedObject) error {
	relative := field{relative: true}
	add := func(at, address, bytes uint64, rest []part, size uint64, fields ...field) {
		first := part{at, size, slices.Clone(raw[at : at+bytes])}
		t.tables = append(t.tables, sortedTable{parts: append([]part{first}, rest...), fields: fields})
		t.takeTable(&t.tables[len(t.tables)-1], address, int(bytes/size))
	}
	ip, err := t.output(".orc_unwind_ip")
	orc, missing := t.output(".orc_unwind")
	if err == nil && missing == nil && ip.Size/4 == orc.Size/6 {
		add(ip.Offset, ip.Addr, ip.Size, []part{{orc.Offset, 6, slices.Clone(raw[orc.Offset : orc.Offset+orc.Size])}}, 4, relative)
	}
	if ex, err := t.output("__ex_table"); err == nil {
		add(ex.Offset, ex.Addr, ex.Size, nil, 12, relative, field{at: 4, relative: true})
	}
	start, stop := t.names["__start_mcount_loc"].address, t.names["__stop_mcount_loc"].address
	for _, s := range image.Sections {
		if start < stop && s.Type == elf.SHT_PROGBITS && s.Flags&elf.SHF_ALLOC != 0 && start >= s.Addr && stop <= s.Addr+s.Size {
			add(s.Offset+start-s.Addr, start, stop-start, nil, 8, field{wide: true})
		}
	}
	for i := range t.tables {
		for n := range t.moving {
			if m := &t.moving[n]; m.link >= 0 && t.tables[i].from[1+n] < t.tables[i].from[2+n] {
				return errors.New("a sorted table is of more than functions")
			}
		}
	}
	same := func(from, bytes uint64) bool { return string(raw[from:from+bytes]) == string(t.base[from:from+bytes]) }
	for _, f := range t.fields {
		if !same(f.at, 4+4*truth(f.wide)) {
			return fmt.Errorf("it is not known how its image is finished: %s", t.where(int(f.at)))
		}
	}
	for _, m := range t.moving {
		if !same(m.offset, m.size) {
			return fmt.Errorf("it is not known how its image is finished: %s", t.where(int(m.offset)))
		}
	}
	return nil
}

// takeTable finds what moves the n entries of a table at an address, by their first fields.
func (t *template) takeTable(s *sortedTable, address uint64, n int) {
	first := s.parts[0]
	says := make([]uint64, n) // addresses
	s.targets = make([]int32, n*len(s.fields))
	end := first.at + uint64(n)*first.size
	t.fields = slices.DeleteFunc(t.fields, func(f field) bool {
		i := (f.at - first.at) / first.size
		for k, g := range s.fields {
			if f.at >= first.at && f.at < end && (f.at-first.at)%first.size == g.at && f.wide == g.wide && f.relative == g.relative {
				s.targets[int(i)*len(s.fields)+k] = f.target
				return true
			}
		}
		return false
	})
	for i := range says {
		at := uint64(i) * first.size
		if says[i] = s.fields[0].get(first.data[at:]); s.fields[0].relative {
			says[i] = address + at + uint64(int64(int32(says[i])))
		}
	}
	if !s.fields[0].relative {
		// What is in no function, as in a weak one that another has replaced, was cleared.
		kept := map[uint64]bool{}
		for at := first.at; at < end; at += first.size {
			kept[s.fields[0].get(t.base[at:])] = true
		}
		for i, at := range says {
			if !kept[at] {
				says[i], s.targets[i] = 0, 0
				clear(first.data[uint64(i)*first.size:][:first.size])
			}
		}
	}
	rest := s.parts[len(s.parts)-1] // whose zeros, the end of a section, come first (orc_sort_cmp)
	var entries []int32
	s.blocks, entries = newBlocks(n, t, func(i int) int32 { return s.targets[i*len(s.fields)] },
		func(i int) bool { return says[i] < t.text.Addr }, func(i, j int) int {
			end := func(i int) int {
				return bytes.Compare(rest.data[uint64(i)*rest.size:][:rest.size], make([]byte, rest.size))
			}
			return cmp.Or(cmp.Compare(says[i], says[j]), end(i), -end(j))
		})
	for i := range s.parts {
		part := &s.parts[i]
		part.data = inOrder(part.data, int(part.size), entries)
	}
	s.targets = inOrder(s.targets, len(s.fields), entries)
	for _, f := range s.fields {
		for n, was := range entries {
			if at := s.parts[0].data[uint64(n)*first.size+f.at:]; f.relative { // from its new place
				f.put(at, f.get(at)+uint64(int(was)-n)*first.size)
			}
		}
	}
}

// inOrder are the entries of a list, each of size elements, in an order.
func inOrder[E any](list []E, size int, order []int32) []E {
	out := make([]E, 0, len(list))
	for _, e := range order {
		out = append(out, list[int(e)*size:][:size]...)
	}
	return out
}

// blocks are the entries of a table by what moves them: those of a target are in the
// order of their addresses, one block that moves as it is.
type blocks struct {
	from   []uint64 // by target: its entries are from[n] to from[n+1]
	low    uint64   // how many of those that stay are below all that moves
	behind int32    // the first target that is no moving section
}

// newBlocks sorts n entries, and returns the order that they are in then.
func newBlocks(n int, t *template, target func(i int) int32, low func(i int) bool, compare func(a, b int) int) (b blocks, entries []int32) {
	b = blocks{from: make([]uint64, t.count+1), behind: int32(1 + len(t.moving))}
	for i := range n {
		entries = append(entries, int32(i))
		b.from[target(i)+1]++
		if target(i) == 0 && low(i) {
			b.low++
		}
	}
	for i := range t.count {
		b.from[i+1] += b.from[i]
	}
	slices.SortStableFunc(entries, func(i, j int32) int {
		return cmp.Or(cmp.Compare(target(int(i)), target(int(j))), compare(int(i), int(j)))
	})
	return b, entries
}

// runs are the entries of a layout in order, from one to another, but for those of symbols
// of the linker script, which come last.
func (b *blocks) runs(p *placement) iter.Seq2[uint64, uint64] {
	return func(yield func(from, to uint64) bool) {
		last := b.from[len(b.from)-1]
		ok := b.low == 0 || yield(0, b.low)
		for _, n := range p.order {
			if from, to := b.from[1+n], b.from[2+n]; ok && from < to {
				ok = yield(from, to)
			}
		}
		ok = ok && yield(b.low, b.from[1])
		if ok && b.from[b.behind] < last {
			yield(b.from[b.behind], last)
		}
	}
}
