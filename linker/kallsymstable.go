package linker

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
)

// kallsymsTable is kallsyms' table of a template: its entries by blocks, and where an image
// has its arrays. It makes what kallsyms.move makes, without a search or a sort of all.
type kallsymsTable struct {
	blocks
	k     *kallsyms
	at    map[string]uint64 // arrays, in the file
	table uint64            // address of the offsets

	// The relocations of the offsets, where an image keeps them, by their addends' places
	// in the file: each says how far the entry of its offset is behind a symbol.
	relocated []value
	addends   map[uint64]bool

	// Of each entry:
	address []uint64 // in the template
	target  []int32
	fixed   []bool   // its offset is its address (ksym.absolute)
	tie     []int32  // its rank among entries at one address
	names   []byte   // packed
	ends    []uint32 // of its name

	byName []int32    // entries
	alike  [][2]int32 // those in byName that have one name: from, to
	edges  []edge
}

// edge is a symbol on whose other side no symbol may come to stand.
type edge struct {
	address uint64
	target  int32
	sides   []sides
}

// sides is how near to an edge the symbols of a target are in the template: the highest
// below it, the lowest above it, and whether one is at it.
type sides struct {
	target       int32
	below, above uint64 // 0 and the highest address for none
	at           bool
}

// kallsyms prepares the arrays of a layout, where a kernel has them.
func (t *template) kallsyms(image *linkedObject, k *kallsyms) error {
	if k == nil {
		return nil
	}
	b := &kallsymsTable{k: k, at: map[string]uint64{}}
	made, err := k.move(t.listed)
	if err != nil {
		return err
	}
	for part, data := range made {
		s, at, err := sectionOf(image.File, t.listed, k.parts[part])
		if err != nil {
			return err
		}
		if s.FileSize-at < uint64(len(data)) {
			return errKallsymsShort
		}
		b.at[part] = s.Offset + at
	}
	b.table = k.offsetPlace(t.listed, 0)
	all := make([]int32, image.symbols.len()) // with which target, of a symbol
	for _, v := range t.values {
		all[(v.at-t.symtab.Offset)/symbolSize] = v.target
	}
	moves := make([]int32, t.listed.len())
	for i := range moves {
		moves[i] = all[t.listed.place(i)]
	}
	if moves[k.parts["offsets"]] != 0 {
		return errors.New("its kallsyms moves")
	}
	if k.form == ownPlace {
		if err := b.findRelocated(image, t.listed, all); err != nil {
			return err
		}
	}

	ties := make([]int32, len(k.entries))
	byTie := make([]int32, len(k.entries))
	for i := range byTie {
		byTie[i] = int32(i)
	}
	slices.SortStableFunc(byTie, func(i, j int32) int {
		d, e := &k.entries[i], &k.entries[j]
		return cmp.Or(cmp.Compare(d.rank, e.rank), strings.Compare(t.listed.name(d.symbol), t.listed.name(e.symbol)),
			cmp.Compare(t.listed.size(d.symbol), t.listed.size(e.symbol)))
	})
	for n, i := range byTie {
		ties[i] = int32(n)
	}
	address := func(i int) uint64 { return t.listed.address(k.entries[i].symbol) }
	var entries []int32
	b.blocks, entries = newBlocks(len(k.entries), t, func(i int) int32 { return moves[k.entries[i].symbol] },
		func(i int) bool { return address(i) < t.text.Addr }, func(i, j int) int {
			return cmp.Or(cmp.Compare(address(i), address(j)), cmp.Compare(ties[i], ties[j]))
		})
	place := make([]int32, len(entries))
	for n, i := range entries {
		e := &k.entries[i]
		place[i] = int32(n)
		b.address = append(b.address, address(int(i)))
		b.target = append(b.target, moves[e.symbol])
		b.fixed = append(b.fixed, e.absolute)
		b.tie = append(b.tie, ties[i])
		b.names = append(b.names, e.packed...)
		b.ends = append(b.ends, uint32(len(b.names)))
	}
	for _, i := range k.byName {
		b.byName = append(b.byName, place[i])
	}
	for from := 0; from < len(b.byName); {
		to := from + 1
		for to < len(b.byName) && k.entries[k.byName[to]].name == k.entries[k.byName[from]].name {
			to++
		}
		if to-from > 1 {
			b.alike = append(b.alike, [2]int32{int32(from), int32(to)})
		}
		from = to
	}
	for _, symbol := range k.edges {
		b.edges = append(b.edges, newEdge(t.listed, symbol, moves, t.count))
	}
	t.kall = b
	return nil
}

// findRelocated finds the relocations of the offsets (kallsyms.relocate). moves are the
// targets of the image's symbols.
func (b *kallsymsTable) findRelocated(image *linkedObject, listed symbolTable, moves []int32) error {
	table, _, err := sectionOf(image.File, listed, b.k.parts["offsets"])
	if err != nil {
		return err
	}
	b.addends = map[uint64]bool{}
	for _, s := range image.Sections {
		if s.Type != elf.SHT_RELA || int(s.Info) >= len(image.Sections) || image.Sections[s.Info] != table {
			continue
		}
		data, err := sectionBytes(s)
		if err != nil {
			return err
		}
		for at := 0; at+relaSize <= len(data); at += relaSize {
			n := (binary.LittleEndian.Uint64(data[at:]) - b.table) / 4
			symbol := int(binary.LittleEndian.Uint32(data[at+12:]))
			if n >= uint64(len(b.k.entries)) || symbol >= image.symbols.len() {
				continue
			}
			if n != uint64(len(b.relocated)) {
				return errors.New("the relocations of its kallsyms are in another order")
			}
			b.relocated = append(b.relocated, value{s.Offset + uint64(at) + 16, image.symbols.address(symbol), moves[symbol]})
			b.addends[s.Offset+uint64(at)+16] = true
		}
	}
	return nil
}

// has tells whether a place in the file is in kallsyms' offsets, which from 7.1 on are
// relocated fields, in the order that the baseline's has, or an addend of their relocations.
func (b *kallsymsTable) has(at uint64) bool {
	return b != nil && (b.addends[at] || at >= b.at["offsets"] && at-b.at["offsets"] < 4*uint64(len(b.address)))
}

func newEdge(symbols symbolTable, symbol int, moves []int32, targets int) edge {
	e := edge{address: symbols.address(symbol), target: moves[symbol]}
	all := make([]sides, targets)
	for i := range all {
		all[i] = sides{target: int32(i), above: ^uint64(0)}
	}
	for i := range symbols.len() {
		s, a := &all[moves[i]], symbols.address(i)
		switch {
		case a < e.address:
			s.below = max(s.below, a)
		case a > e.address:
			s.above = min(s.above, a)
		default:
			s.at = true
		}
	}
	for _, s := range all {
		if s.target != e.target && (s.at || s.below > 0 || s.above < ^uint64(0)) {
			e.sides = append(e.sides, s)
		}
	}
	return e
}

// holds tells whether each symbol is on its side of the edge.
func (e *edge) holds(p *placement) bool {
	at := e.address + p.moved[e.target]
	for _, s := range e.sides {
		by := p.moved[s.target]
		if s.below > 0 && s.below+by >= at || s.above < ^uint64(0) && s.above+by <= at || s.at && e.address+by != at {
			return false
		}
	}
	return true
}

// write writes the arrays of a placement.
func (b *kallsymsTable) write(p *placement, out []byte) error {
	for i := range b.edges {
		if !b.edges[i].holds(p) {
			return errEdge
		}
	}
	little := binary.LittleEndian
	order, addresses := b.order(p)
	names, offsets := out[b.at["names"]:], out[b.at["offsets"]:]
	markers := out[b.at["markers"]:]
	place := make([]uint32, len(order)) // of an entry
	written, based := uint32(0), b.k.form == ownPlace
	for n, i := range order {
		place[i] = uint32(n)
		if n%256 == 0 {
			little.PutUint32(markers[n/256*4:], written)
		}
		begin := uint32(0)
		if i > 0 {
			begin = b.ends[i-1]
		}
		written += uint32(copy(names[written:], b.names[begin:b.ends[i]]))
		offset := addresses[n]
		if !b.fixed[i] {
			if !based && offset != b.k.base {
				return errFirst
			}
			based = true
			switch b.k.form {
			case ownPlace:
				offset -= b.table + 4*uint64(n)
			case down:
				offset = b.k.base - 1 - offset
			default:
				offset -= b.k.base
			}
		}
		little.PutUint32(offsets[4*n:], uint32(offset))
		if n < len(b.relocated) {
			r := b.relocated[n]
			little.PutUint64(out[r.at:], addresses[n]-r.address-p.moved[r.target])
		}
	}
	at, ok := b.at["seqs_of_names"]
	if !ok {
		return nil
	}
	seqs := out[at:][:3*len(b.byName)]
	put := func(n int, place uint32) {
		s := seqs[3*n : 3*n+3]
		s[0], s[1], s[2] = byte(place>>16), byte(place>>8), byte(place)
	}
	for n, i := range b.byName {
		put(n, place[i])
	}
	var places []uint32
	for _, a := range b.alike {
		places = places[:0]
		for _, i := range b.byName[a[0]:a[1]] {
			places = append(places, place[i])
		}
		slices.Sort(places)
		for n, at := range places {
			put(int(a[0])+n, at)
		}
	}
	return nil
}

// order is that of a placement's table, with the addresses: by address, and by what
// kallsyms.order has for those at one. Only what is at a block's end can be in doubt.
func (b *kallsymsTable) order(p *placement) (order []int32, addresses []uint64) {
	order, addresses = make([]int32, 0, len(b.address)), make([]uint64, 0, len(b.address))
	for from, to := range b.runs(p) {
		for i := from; i < to; i++ {
			address := b.address[i] + p.moved[b.target[i]]
			n := len(order)
			before := func(n int) bool {
				return addresses[n] < address || addresses[n] == address && b.tie[order[n]] <= b.tie[i]
			}
			if n == 0 || before(n-1) {
				order, addresses = append(order, int32(i)), append(addresses, address)
				continue
			}
			low, high := 0, n-1 // its place
			for low < high {
				if middle := (low + high) / 2; before(middle) {
					low = middle + 1
				} else {
					high = middle
				}
			}
			order, addresses = slices.Insert(order, low, int32(i)), slices.Insert(addresses, low, address)
		}
	}
	return order, addresses
}
