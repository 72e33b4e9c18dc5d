// Package autopsy tells what became of a kernel's code: it holds the text of a guest's
// memory against the ELF image that it was loaded from, and against the memory of
// another layout of the same kernel that has passed. Live patching makes thousands of
// rewrites; what it calls damage is a rewrite that the passing guest has neither at
// the same place of the same function nor elsewhere.
//
// It boots and links nothing. A memory is somebody else's bytes, and so is the image that
// came in a bundle: both are read in time and space that the bytes of .text bound.
package autopsy

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"unlucky/arch"
)

// Image is a linked kernel as it is on disk.
type Image struct {
	machine   machine
	text      section   // .text: what is only run while the kernel starts is freed, and another's then
	allocated []section // all that have bytes and an address
	physical  uint64    // where .text is loaded, of an image that KASLR does not move
	symbols   []symbol  // by address, of all that is at an address
	functions []*Function
	index     map[string]*Function // by key
	prefixes  []prefix             // by address
	named     map[string]uint64    // the first symbol of each name
	sites     []Site               // by address
	longest   int                  // bytes of the longest site
	roots     map[uint64][]uint64  // where a function is entered beside its first byte, by its address
	entering  sync.Mutex
	entered   map[uint64][]uint64 // where a function is entered, by its address, once it is known
}

// section is a part of an image that is loaded.
type section struct {
	name    string
	address uint64
	data    []byte
}

func (s section) holds(address uint64) bool {
	return address >= s.address && address-s.address < uint64(len(s.data))
}

type symbol struct {
	name    string
	address uint64
}

// Function is one of .text.
type Function struct {
	Name    string // as the source has it
	Address uint64
	Size    uint64 // bytes
	key     string // equal in all layouts of a kernel
}

func (f *Function) holds(address uint64) bool {
	return address >= f.Address && address-f.Address < f.Size
}

// prefix is what the compiler and objtool put before a function: a kCFI hash, room
// for a thunk.
type prefix struct{ from, to uint64 }

// What is read of an image, whoever made it. An x86-64 kernel with all drivers has some
// 100 MiB of text, 1 MiB in a table, a million symbols, and functions of 100 KiB.
const (
	maxText     = 256 << 20 // bytes, and of all allocated sections
	maxFunction = 1 << 20   // bytes
	maxSymbols  = 4 << 20
	maxTable    = 8 << 20 // bytes
	maxSites    = 4 << 20 // of all tables
)

// Open reads a vmlinux with its symbols.
func Open(path string) (*Image, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	if _, err := machineOf(f); err != nil {
		return nil, err
	}
	i, err := newImage(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return i, nil
}

// machineOf is what knows the machine code of an image.
func machineOf(f *elf.File) (m machine, err error) {
	a := arch.OfELF(f.Machine)
	if a == nil {
		return m, fmt.Errorf("the kernels of %v are not known", f.Machine)
	}
	m, ok := machines[a.Name]
	if !ok {
		return m, fmt.Errorf("so far autopsies are of kernels of %s, and this is one of %s", arch.X86_64.Name, a.Name)
	}
	return m, nil
}

func newImage(f *elf.File) (*Image, error) {
	m, err := machineOf(f)
	if err != nil {
		return nil, err
	}
	i := &Image{machine: m, index: map[string]*Function{}, named: map[string]uint64{}, roots: map[uint64][]uint64{}, entered: map[uint64][]uint64{}}
	var total uint64
	for _, s := range f.Sections {
		if s.Type != elf.SHT_PROGBITS || s.Flags&elf.SHF_ALLOC == 0 || s.Flags&elf.SHF_COMPRESSED != 0 || s.Addr == 0 || s.Size == 0 {
			continue
		}
		if total += s.FileSize; s.FileSize > maxText || total > maxText {
			return nil, fmt.Errorf("its sections have more than %d bytes", maxText)
		}
		data, err := s.Data()
		if err != nil {
			return nil, fmt.Errorf("section %s: %w", s.Name, err)
		}
		i.allocated = append(i.allocated, section{s.Name, s.Addr, data})
		if s.Name == ".text" {
			i.text = i.allocated[len(i.allocated)-1]
		}
	}
	if i.text.data == nil {
		return nil, errors.New("it has no .text")
	}
	slices.SortFunc(i.allocated, func(a, b section) int { return cmp.Compare(a.address, b.address) })
	p := slices.IndexFunc(f.Progs, func(p *elf.Prog) bool {
		return p.Type == elf.PT_LOAD && i.text.address >= p.Vaddr && i.text.address-p.Vaddr < p.Filesz
	})
	if p < 0 {
		return nil, errors.New("no segment has .text")
	}
	i.physical = f.Progs[p].Paddr + i.text.address - f.Progs[p].Vaddr
	for _, s := range f.Sections {
		if s.Type == elf.SHT_SYMTAB && (s.Size > maxSymbols*elf.Sym64Size || s.Flags&elf.SHF_COMPRESSED != 0) {
			return nil, fmt.Errorf("it has more than %d symbols, or they are compressed", maxSymbols)
		}
	}
	symbols, err := f.Symbols()
	if err != nil {
		return nil, err
	}
	i.takeSymbols(symbols)
	i.takeSites()
	return i, nil
}

// takeSymbols finds the functions. The layouts of a kernel have the same symbols in
// the same order, so the n-th of a name is the same function in each.
func (i *Image) takeSymbols(symbols []elf.Symbol) {
	seen := map[string]int{}
	for _, s := range symbols {
		if _, ok := i.named[s.Name]; !ok {
			i.named[s.Name] = s.Value
		}
		kind := elf.ST_TYPE(s.Info)
		if s.Section == elf.SHN_UNDEF || s.Section >= elf.SHN_LORESERVE || s.Name == "" || s.Value == 0 || kind == elf.STT_SECTION || kind == elf.STT_FILE {
			continue
		}
		before := strings.HasPrefix(s.Name, "__cfi_") || strings.HasPrefix(s.Name, "__pfx_")
		if !before {
			i.symbols = append(i.symbols, symbol{s.Name, s.Value})
		}
		if !i.text.holds(s.Value) || s.Size == 0 || s.Size > uint64(len(i.text.data)) || !i.text.holds(s.Value+s.Size-1) || kind != elf.STT_FUNC && kind != elf.STT_NOTYPE {
			continue
		}
		if before {
			i.prefixes = append(i.prefixes, prefix{s.Value, s.Value + s.Size})
			continue
		}
		seen[s.Name]++
		name, _, _ := strings.Cut(s.Name, ".llvm.")
		f := &Function{Name: name, Address: s.Value, Size: s.Size, key: fmt.Sprintf("%s#%d", s.Name, seen[s.Name])}
		i.functions = append(i.functions, f)
	}
	slices.SortStableFunc(i.symbols, func(a, b symbol) int { return cmp.Compare(a.address, b.address) })
	i.symbols = slices.CompactFunc(i.symbols, func(a, b symbol) bool { return a.address == b.address })
	slices.SortFunc(i.prefixes, func(a, b prefix) int { return cmp.Compare(a.from, b.from) })
	// Of two names for the same bytes, the first by its name.
	slices.SortStableFunc(i.functions, func(a, b *Function) int {
		return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(b.Size, a.Size), cmp.Compare(a.key, b.key))
	})
	i.functions = slices.CompactFunc(i.functions, func(a, b *Function) bool { return a.Address == b.Address })
	for n, f := range i.functions {
		if f.Size = min(f.Size, maxFunction); n+maxNested+1 < len(i.functions) {
			f.Size = min(f.Size, i.functions[n+maxNested+1].Address-f.Address)
		}
		i.index[f.key] = f
	}
	for n := range i.prefixes { // clang's have the size of the function, too
		p := &i.prefixes[n]
		if at, found := i.search(p.from); !found && at < len(i.functions) {
			p.to = min(p.to, i.functions[at].Address)
		}
	}
}

// search is the first function that begins at or behind an address.
func (i *Image) search(address uint64) (n int, found bool) {
	return slices.BinarySearchFunc(i.functions, address, func(f *Function, a uint64) int { return cmp.Compare(f.Address, a) })
}

// maxNested bounds how many functions lie within another, of assembly.
const maxNested = 4

// function is the one that an address is in, nil for none.
func (i *Image) function(address uint64) *Function {
	n, found := i.search(address)
	if found {
		return i.functions[n]
	}
	for m := n - 1; m >= max(0, n-maxNested); m-- {
		if i.functions[m].holds(address) {
			return i.functions[m]
		}
	}
	return nil
}

// prefixed is the function that an address is a part of the prefix of, nil for none.
func (i *Image) prefixed(address uint64) *Function {
	n, found := slices.BinarySearchFunc(i.prefixes, address, func(p prefix, a uint64) int { return cmp.Compare(p.from, a) })
	if !found {
		n--
	}
	if n < 0 || address >= i.prefixes[n].to {
		return nil
	}
	if at, _ := i.search(i.prefixes[n].to); at < len(i.functions) && i.functions[at].Address == i.prefixes[n].to {
		return i.functions[at]
	}
	return nil
}

// Where names an address of .text: "d_alloc+0x79", or, between functions,
// "__d_alloc-0x10".
func (i *Image) Where(address uint64) string {
	if f := i.function(address); f != nil {
		if f.Address == address {
			return f.Name
		}
		return fmt.Sprintf("%s+%#x", f.Name, address-f.Address)
	}
	if n, _ := i.search(address); i.text.holds(address) && n < len(i.functions) {
		return fmt.Sprintf("%s-%#x", i.functions[n].Name, i.functions[n].Address-address)
	}
	if s := i.symbol(address); s.name != "" && i.loaded(address) {
		return fmt.Sprintf("%s+%#x", s.name, address-s.address)
	}
	return fmt.Sprintf("%#x", address)
}

// symbol is the last one that is not behind an address.
func (i *Image) symbol(address uint64) symbol {
	n, found := slices.BinarySearchFunc(i.symbols, address, func(s symbol, a uint64) int { return cmp.Compare(s.address, a) })
	if !found {
		n--
	}
	if n < 0 {
		return symbol{}
	}
	return i.symbols[n]
}

// loaded tells whether an address is one of the image.
func (i *Image) loaded(address uint64) bool {
	first, last := i.allocated[0], i.allocated[len(i.allocated)-1]
	return address >= first.address && address < last.address+uint64(len(last.data))
}

// holder is the section that an address is in; none has no bytes.
func (i *Image) holder(address uint64) section {
	at, found := slices.BinarySearchFunc(i.allocated, address, func(s section, a uint64) int { return cmp.Compare(s.address, a) })
	if !found {
		at--
	}
	if at < 0 || !i.allocated[at].holds(address) {
		return section{}
	}
	return i.allocated[at]
}

// at is n bytes of the image at an address; fewer where it ends.
func (i *Image) at(address uint64, n int) []byte {
	s := i.holder(address)
	if s.data == nil {
		return nil
	}
	data := s.data[address-s.address:]
	return data[:min(n, len(data))]
}

// Physical is where an address of the image is in the guest's memory.
func (i *Image) Physical(address uint64) uint64 { return address - i.text.address + i.physical }

// Run is an image as it was in a guest's memory.
type Run struct {
	*Image
	memory []byte // of .text
	once   sync.Once
	known  learnt

	rehashing sync.Once
	hashes    hashes
	reading   sync.Once
	values    values
}

// bannerSymbol names what every kernel says of itself, "Linux version ...".
const bannerSymbol = "linux_banner"

// Load reads the text of an image out of a guest's memory, byte 0 of which is at
// physical address 0. The error is that the memory does not hold it.
func (i *Image) Load(memory io.ReaderAt) (*Run, error) {
	if at, ok := i.named[bannerSymbol]; ok {
		want := i.at(at, 64)
		have := make([]byte, len(want))
		if _, err := memory.ReadAt(have, int64(i.Physical(at))); err != nil || string(have) != string(want) {
			return nil, errors.New("the guest's memory does not hold the kernel where its image says (KASLR, or it never started)")
		}
	}
	r := &Run{Image: i, memory: make([]byte, len(i.text.data))}
	if _, err := memory.ReadAt(r.memory, int64(i.physical)); err != nil {
		return nil, fmt.Errorf("reading the guest's memory: %w", err)
	}
	return r, nil
}

// OnDisk is an image as if it had never run.
func (i *Image) OnDisk() *Run { return &Run{Image: i, memory: i.text.data} }

// code is n bytes of the text in memory at an address; fewer at its end.
func (r *Run) code(address uint64, n int) []byte {
	if !r.text.holds(address) {
		return nil
	}
	data := r.memory[address-r.text.address:]
	return data[:min(n, len(data))]
}

func s32(b []byte) uint64 { return uint64(int64(int32(binary.LittleEndian.Uint32(b)))) }
