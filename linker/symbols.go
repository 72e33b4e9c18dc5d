package linker

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"strings"

	"unlucky/layout"
)

// symbolTable is an ELF file's .symtab, raw, and its names. Of arm64's it has no
// mapping symbols, and none of what the linker has inserted.
type symbolTable struct {
	raw      []byte // of Elf64_Sym
	names    string // .strtab
	inserted []layout.Inserted
	places   []int32 // of its symbols in the file's table; nil where it has all
}

// place is where the file's table has a symbol.
func (t symbolTable) place(i int) int {
	if t.places == nil {
		return i
	}
	return int(t.places[i])
}

const symbolSize = 24 // sizeof(Elf64_Sym): st_name 0, st_info 4, st_other 5, st_shndx 6, st_value 8, st_size 16

func readSymbolTable(f *elf.File) (symbolTable, error) {
	t, err := readAllSymbols(f)
	if err == nil && f.Machine == elf.EM_AARCH64 {
		t = t.withoutInserted()
	}
	return t, err
}

// readAllSymbols is readSymbolTable with those, too.
func readAllSymbols(f *elf.File) (t symbolTable, err error) {
	s := f.SectionByType(elf.SHT_SYMTAB)
	if s == nil || int(s.Link) >= len(f.Sections) {
		return t, errors.New("the image has no symbol table")
	}
	if t.raw, err = sectionBytes(s); err != nil {
		return t, err
	}
	names, err := sectionBytes(f.Sections[s.Link])
	t.names = string(names) // shared by all that name returns
	t.raw = t.raw[:len(t.raw)/symbolSize*symbolSize]
	return t, err
}

func (t symbolTable) len() int { return len(t.raw) / symbolSize }

func (t symbolTable) address(i int) uint64 {
	return binary.LittleEndian.Uint64(t.raw[i*symbolSize+8:])
}

func (t symbolTable) size(i int) uint64 {
	return binary.LittleEndian.Uint64(t.raw[i*symbolSize+16:])
}

func (t symbolTable) isSection(i int) bool {
	return elf.ST_TYPE(t.raw[i*symbolSize+4]) == elf.STT_SECTION
}

func (t symbolTable) section(i int) int {
	return int(binary.LittleEndian.Uint16(t.raw[i*symbolSize+6:]))
}

func (t symbolTable) name(i int) string {
	at := binary.LittleEndian.Uint32(t.raw[i*symbolSize:])
	if int(at) >= len(t.names) {
		return ""
	}
	name, _, _ := strings.Cut(t.names[at:min(int(at)+maxName, len(t.names))], "\x00")
	return name
}

// compare is the order in which llvm-nm -n prints symbols (llvm-nm.cpp, NMSymbol).
func (t symbolTable) compare(a, b int) int {
	if c := cmp.Compare(t.address(a), t.address(b)); c != 0 {
		return c
	}
	return cmp.Or(strings.Compare(t.name(a), t.name(b)), cmp.Compare(t.size(a), t.size(b)))
}

// same tells whether two tables differ in addresses only.
func (t symbolTable) same(u symbolTable) bool {
	if len(t.raw) != len(u.raw) || t.names != u.names {
		return false
	}
	for i := 0; i < len(t.raw); i += symbolSize {
		if !bytes.Equal(t.raw[i:i+8], u.raw[i:i+8]) {
			return false
		}
	}
	return true
}

// functions are the symbols of a layout's sections, by which every image of
// the kernel says where they are.
type functions struct {
	table   symbolTable // of the baseline
	model   *layout.Model
	symbols []int // of each section's Function, an index into table; -1 for none
}

func findFunctions(image *elf.File, sections []layout.Section) (*functions, error) {
	table, err := readSymbolTable(image)
	if err != nil {
		return nil, err
	}
	type key struct {
		name    string
		address uint64
	}
	at := make(map[key]int, table.len())
	for i := range table.len() {
		at[key{table.name(i), table.address(i)}] = i
	}
	f := &functions{table: table, model: layout.NewModel(sections)}
	for _, s := range sections {
		i, ok := at[key{s.Function, s.Address + s.Entry}]
		if !ok || s.Function == "" {
			i = -1
		}
		f.symbols = append(f.symbols, i)
	}
	return f, nil
}

// addresses are those of the sections in an image, by its own symbols; 0 for a
// section without a function. They are nil for an image that has other symbols
// than the baseline. With them comes what the linker has inserted.
func (f *functions) addresses(path string) ([]uint64, []layout.Inserted, error) {
	image, err := openELF(path)
	if err != nil {
		return nil, nil, err
	}
	defer image.Close()
	now, err := readSymbolTable(image.File)
	if err != nil {
		return nil, nil, err
	}
	return f.addressesIn(now), now.inserted, nil
}

// addressesIn is addresses of a symbol table.
func (f *functions) addressesIn(now symbolTable) []uint64 {
	if !f.table.same(now) {
		return nil
	}
	return f.read(now.address)
}

// read is addressesIn of symbols of the baseline's table.
func (f *functions) read(address func(symbol int) uint64) []uint64 {
	out := make([]uint64, len(f.symbols))
	for i, symbol := range f.symbols {
		if symbol >= 0 {
			out[i] = address(symbol) - f.model.Sections[i].Entry
		}
	}
	return out
}
