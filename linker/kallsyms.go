package linker

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
)

// kallsyms is the table of symbols that a kernel image holds for its own
// traces, and where its addresses come from: the baseline's, from which those
// of every padded layout follow (scripts/kallsyms.c, kernel/kallsyms.c).
type kallsyms struct {
	table   symbolTable
	offsets int    // the symbol kallsyms_offsets, an index into table
	edges   []int  // symbols at which scripts/kallsyms.c stops taking symbols in
	entries []ksym // of kallsyms_offsets, in order
}

// ksym is one entry of kallsyms_offsets.
type ksym struct {
	symbol int    // index into the image's symbol table
	offset uint32 // as the baseline has it
	down   bool   // counted down from the base: relative_base - 1 - address
	base   bool   // it is the base that others are relative to
}

// readKallsyms reads the table of the baseline's image, and finds the symbol
// that each of its entries is of. It returns nil for an image without one.
func readKallsyms(f *elf.File) (*kallsyms, error) {
	table, err := readSymbolTable(f)
	if err != nil {
		return nil, err
	}
	k := &kallsyms{table: table}
	parts := map[string]int{} // the table's own symbols
	at := places{}
	for i := range table.len() {
		name := table.name(i)
		switch name {
		case "_stext", "_etext", "_sinittext", "_einittext":
			if k.edges = append(k.edges, i); len(k.edges) > maxEdges {
				return nil, fmt.Errorf("it has too many symbols %s", name)
			}
		}
		if rest, ok := strings.CutPrefix(name, "kallsyms_"); ok {
			parts[rest] = i
		}
		at.add(table, name, i)
		// Up to 6.10 the table leaves out what ThinLTO appends.
		if short, _, ok := strings.Cut(name, ".llvm."); ok {
			at.add(table, short, i)
		}
	}
	if _, ok := parts["names"]; !ok {
		return nil, nil
	}
	bytesOf := func(part string) ([]byte, error) {
		i, ok := parts[part]
		if !ok {
			return nil, fmt.Errorf("its kallsyms has no kallsyms_%s", part)
		}
		return bytesAt(f, table, i)
	}
	var count, offsets, base, names, tokens, index []byte
	for part, to := range map[string]*[]byte{"num_syms": &count, "offsets": &offsets, "relative_base": &base,
		"names": &names, "token_table": &tokens, "token_index": &index} {
		if *to, err = bytesOf(part); err != nil {
			return nil, err
		}
	}
	k.offsets = parts["offsets"]
	if len(count) < 4 || len(base) < 8 || len(index) < 512 {
		return nil, errors.New("its kallsyms is cut short")
	}
	n := int(binary.LittleEndian.Uint32(count))
	if len(offsets)/4 < n {
		return nil, errors.New("its kallsyms is cut short")
	}
	relative := binary.LittleEndian.Uint64(base)
	list, err := decodeNames(names, tokens, index, n)
	if err != nil {
		return nil, err
	}
	// Two forms are known: all offsets count up from the base (6.15 on, or
	// without per-CPU symbols), or those of the per-CPU ones are addresses
	// and the others count down.
	for _, down := range []bool{true, false} {
		k.entries = k.entries[:0]
		for i, name := range list {
			e := ksym{offset: binary.LittleEndian.Uint32(offsets[4*i:])}
			address := relative + uint64(e.offset)
			if down && int32(e.offset) >= 0 {
				address = uint64(e.offset)
			} else if down {
				e.down, address = true, relative-1-uint64(int64(int32(e.offset)))
			}
			e.base = address == relative
			var ok bool
			if e.symbol, ok = at[place{name, address}]; !ok || e.symbol < 0 {
				break
			}
			k.entries = append(k.entries, e)
		}
		if len(k.entries) == n {
			return k, nil
		}
	}
	return nil, errors.New("its kallsyms is of a form that is not known")
}

// maxEdges is how many symbols of the names of edges are taken: a kernel has one
// of each.
const maxEdges = 16

// places are the symbols by name and address; -1 where there are several that
// need not move together.
type places map[place]int

type place struct {
	name    string
	address uint64
}

func (p places) add(t symbolTable, name string, symbol int) {
	at := place{name, t.address(symbol)}
	if found, ok := p[at]; ok && (found < 0 || t.section(found) != t.section(symbol)) {
		symbol = -1
	}
	p[at] = symbol
}

// decodeNames expands kallsyms_names: for each symbol a length, in one or two
// bytes, and as many indices of tokens; the first character is nm's type.
func decodeNames(names, tokens, index []byte, n int) ([]string, error) {
	list := make([]string, 0, n)
	short := errors.New("its kallsyms is cut short")
	for range n {
		if len(names) < 2 {
			return nil, short
		}
		length := int(names[0])
		names = names[1:]
		if length&0x80 != 0 {
			length = length&0x7f | int(names[0])<<7
			names = names[1:]
		}
		if len(names) < length {
			return nil, short
		}
		var name []byte
		for _, token := range names[:length] {
			at := int(binary.LittleEndian.Uint16(index[2*int(token):]))
			if at >= len(tokens) {
				return nil, short
			}
			text, _, _ := bytes.Cut(tokens[at:min(at+maxName, len(tokens))], []byte{0})
			if name = append(name, text...); len(name) > maxName {
				return nil, errors.New("its kallsyms has a name without an end")
			}
		}
		names = names[length:]
		if len(name) == 0 {
			return nil, short
		}
		list = append(list, string(name[1:]))
	}
	return list, nil
}

// bytesAt is what a symbol is the beginning of, to the end of its section.
func bytesAt(f *elf.File, t symbolTable, symbol int) ([]byte, error) {
	s, at, err := sectionOf(f, t, symbol)
	if err != nil {
		return nil, err
	}
	data, err := sectionBytes(s)
	if err != nil {
		return nil, err
	}
	return data[at:], nil
}

// sectionOf is the section with contents that a symbol is in, and where in it.
func sectionOf(f *elf.File, t symbolTable, symbol int) (s *elf.Section, at uint64, err error) {
	i := t.section(symbol)
	if i == 0 || i >= len(f.Sections) || f.Sections[i].Type != elf.SHT_PROGBITS {
		return nil, 0, fmt.Errorf("%s is in no section with contents", t.name(symbol))
	}
	s = f.Sections[i]
	if at = t.address(symbol) - s.Addr; t.address(symbol) < s.Addr || at > s.FileSize {
		return nil, 0, fmt.Errorf("%s is outside its section", t.name(symbol))
	}
	return s, at, nil
}

// errOrder means that padding has changed more than addresses.
var errOrder = errors.New("the order of the symbols is another than the baseline's")

// patch writes the addresses of an image's symbols into its table. The error
// tells that the layout is not one for the shortcut.
func (k *kallsyms) patch(path string) error {
	f, err := openELF(path)
	if err != nil {
		return err
	}
	defer f.Close()
	now, err := readSymbolTable(f.File)
	if err != nil {
		return err
	}
	offsets, err := k.move(now)
	if err != nil {
		return err
	}
	s, at, err := sectionOf(f.File, now, k.offsets)
	if err != nil {
		return err
	}
	if s.FileSize-at < uint64(len(offsets)) {
		return errors.New("its kallsyms is cut short")
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(offsets, int64(s.Offset+at))
	return errors.Join(err, file.Close())
}

// move returns kallsyms_offsets for symbols that have moved. The order in the
// table is that of addresses, and which of several symbols at one address comes
// first does not depend on the address: so the order stays as long as what was
// at one address is so still, and nothing has passed anything else.
func (k *kallsyms) move(now symbolTable) ([]byte, error) {
	if !k.table.same(now) {
		return nil, errors.New("the symbols are others than the baseline's")
	}
	for _, edge := range k.edges {
		for i := range now.len() {
			if (k.table.address(i) == k.table.address(edge)) != (now.address(i) == now.address(edge)) {
				return nil, errOrder
			}
		}
	}
	out := make([]byte, 0, 4*len(k.entries))
	var before, was uint64
	for i, e := range k.entries {
		old, address := k.table.address(e.symbol), now.address(e.symbol)
		if i > 0 && (address < before || (address == before) != (old == was)) || e.base && address != old {
			return nil, errOrder
		}
		before, was = address, old
		shift := uint32(address - old)
		if e.down {
			shift = -shift
		}
		out = binary.LittleEndian.AppendUint32(out, e.offset+shift)
	}
	return out, nil
}
