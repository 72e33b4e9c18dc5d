package linker

import (
	"bytes"
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
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
	data     []byte // as lld leaves it
}

// write writes the table of a placement.
func (s *sortedTable) write(p *placement, out []byte) {
	n := uint64(0)
	s.each(p, func(entry int32) {
		for _, part := range s.parts {
			copy(out[part.at+n*part.size:], part.data[uint64(entry)*part.size:][:part.size])
		}
		size := s.parts[0].size
		for i, f := range s.fields {
			b := out[s.parts[0].at+n*size+f.at:]
			v := f.get(b) + p.moved[s.targets[int(entry)*len(s.fields)+i]]
			if f.relative {
				v += (uint64(entry) - n) * size
			}
			f.put(b, v)
		}
		n++
	})
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
	rest := s.parts[len(s.parts)-1] // whose zeros, the end of a section, come first (orc_sort_cmp)
	s.blocks = newBlocks(n, t.count, func(i int) int32 { return s.targets[i*len(s.fields)] },
		func(i int) bool { return says[i] < t.text.Addr }, func(i, j int) int {
			end := func(i int) int {
				return bytes.Compare(rest.data[uint64(i)*rest.size:][:rest.size], make([]byte, rest.size))
			}
			return cmp.Or(cmp.Compare(says[i], says[j]), end(i), -end(j))
		})
}

// blocks are the entries of a table by what moves them, in the order of addresses within
// each block.
type blocks struct {
	entries []int32
	from    []int32 // by target: entries[from[n]:from[n+1]]
	low     int32   // how many of those that stay are below all that moves
}

// newBlocks sorts n entries.
func newBlocks(n, targets int, target func(i int) int32, low func(i int) bool, compare func(a, b int) int) (b blocks) {
	b.from = make([]int32, targets+1)
	for i := range n {
		b.entries = append(b.entries, int32(i))
		b.from[target(i)+1]++
		if target(i) == 0 && low(i) {
			b.low++
		}
	}
	for i := range targets {
		b.from[i+1] += b.from[i]
	}
	slices.SortStableFunc(b.entries, func(i, j int32) int {
		return cmp.Or(cmp.Compare(target(int(i)), target(int(j))), compare(int(i), int(j)))
	})
	return b
}

// each goes through the entries of a layout in order, but for symbols of the linker
// script, which come last.
func (b *blocks) each(p *placement, do func(entry int32)) {
	emit := func(from, to int32) {
		for _, e := range b.entries[from:to] {
			do(e)
		}
	}
	emit(0, b.low)
	for _, n := range p.order {
		emit(b.from[1+n], b.from[2+n])
	}
	emit(b.low, b.from[1])
	emit(b.from[1+len(p.t.moving)], int32(len(b.entries)))
}

// kallsymsBlocks are the entries of kallsyms' table, and where an image has its arrays.
type kallsymsBlocks struct {
	table *kallsyms
	blocks
	symtab  extent
	at      map[string]uint64 // arrays, in the file
	extents []extent
}

// kallsyms prepares the arrays of a layout.
func (t *template) kallsyms(image *linkedObject, k *kallsyms) (*kallsymsBlocks, error) {
	b := &kallsymsBlocks{table: k, symtab: extent{t.symtab.Offset, t.symtab.Offset + t.symtab.FileSize}, at: map[string]uint64{}}
	made, err := k.move(image.symbols, nil)
	if err != nil {
		return nil, err
	}
	for part, data := range made {
		s, at, err := sectionOf(image.File, image.symbols, k.parts[part])
		if err != nil {
			return nil, err
		}
		if s.FileSize-at < uint64(len(data)) {
			return nil, errKallsymsShort
		}
		b.at[part] = s.Offset + at
		b.extents = append(b.extents, extent{b.at[part], b.at[part] + uint64(len(data))})
	}
	target := make([]int32, image.symbols.len())
	for _, v := range t.values {
		target[(v.at-t.symtab.Offset)/symbolSize] = v.target
	}
	address := func(i int) uint64 { return image.symbols.address(k.entries[i].symbol) }
	b.blocks = newBlocks(len(k.entries), t.count, func(i int) int32 { return target[k.entries[i].symbol] },
		func(i int) bool { return address(i) < t.text.Addr }, func(i, j int) int { return cmp.Compare(address(i), address(j)) })
	return b, nil
}

// write writes the arrays of a placement, whose symbols are in the image already.
func (b *kallsymsBlocks) write(p *placement, out []byte) error {
	nearly := make([]int, 0, len(b.entries))
	b.each(p, func(entry int32) { nearly = append(nearly, int(entry)) })
	made, err := b.table.move(symbolTable{raw: out[b.symtab.from:b.symtab.to], names: b.table.table.names}, nearly)
	for part, data := range made {
		copy(out[b.at[part]:], data)
	}
	return err
}
