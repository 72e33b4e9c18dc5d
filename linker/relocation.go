package linker

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// field is a relocated one: it follows its target, and where it is relative the
// section that it is in, too.
type field struct {
	at       uint64 // in the moving section, or else in the file
	target   int32
	relative bool
	wide     bool // 64 bits, or else 32
	branch   bool // the 26 bits of arm64's b and bl, in words
}

// get is the value of a field.
func (f field) get(b []byte) uint64 {
	switch {
	case f.wide:
		return binary.LittleEndian.Uint64(b)
	case f.branch:
		return uint64(binary.LittleEndian.Uint32(b)&branchMask) << 2
	}
	return uint64(binary.LittleEndian.Uint32(b))
}

func (f field) put(b []byte, v uint64) {
	switch {
	case f.wide:
		binary.LittleEndian.PutUint64(b, v)
	case f.branch:
		binary.LittleEndian.PutUint32(b, binary.LittleEndian.Uint32(b)&^branchMask|uint32(v>>2)&branchMask)
	default:
		binary.LittleEndian.PutUint32(b, uint32(v))
	}
}

// fit is what of a value is in a field.
func (f field) fit(v uint64) uint64 {
	switch {
	case f.wide:
		return v
	case f.branch:
		return v & (branchMask << 2)
	}
	return uint64(uint32(v))
}

const branchMask = 1<<26 - 1

// bytes is the size of a field.
func (f field) bytes() uint64 { return 4 + 4*truth(f.wide) }

// pageField is one of arm64's whose bits follow from addresses, not from how far they move.
type pageField struct {
	at      uint64 // as a field's
	place   uint64 // its address in the template
	address uint64 // of what it looks at, in the template
	target  int32
	form    pageForm
	scale   uint8 // bits that a rest leaves out
}

type pageForm uint8

const (
	_           pageForm = iota
	pageOf               // adrp
	restOf               // the 12 bits of add, ldr, str
	pageAndRest          // adrp and add, which lld makes nop and adr within 1 MiB (AArch64Relaxer::tryRelaxAdrpAdd)
)

const pageMask = 4095

// Of arm64's instructions.
const (
	nop, adr, adrp, addition = 0xd503201f, 0x10000000, 0x90000000, 0x91000000

	adrMask, additionMask = 0x9f000000, 0xffc00000
	register              = 0x1f
	near                  = 1 << 20 // bytes that adr reaches
)

// adrBits are the 21 bits of adr or adrp.
func adrBits(v uint64) uint32 { return uint32(v&3)<<29 | uint32(v>>2)&(1<<19-1)<<5 }

func adrValue(word uint32) uint64 {
	v := uint64(word>>5)&(1<<19-1)<<2 | uint64(word>>29)&3
	return uint64(int64(v<<43) >> 43)
}

// put writes it into b, which begins where the section does that moves by some bytes.
func (f *pageField) put(b []byte, p *placement, moved uint64) {
	little := binary.LittleEndian
	b = b[f.at:]
	place, to := f.place+moved, f.address+p.moved[f.target]
	word := little.Uint32(b)
	pages := adrBits(to>>12 - place>>12)
	switch f.form {
	case pageOf:
		little.PutUint32(b, word&^adrBits(^uint64(0))|pages)
	case restOf:
		little.PutUint32(b, word&^(pageMask<<10)|uint32(to&pageMask>>f.scale)<<10)
	case pageAndRest:
		reg := little.Uint32(b[4:]) & register
		if by := to - place - 4; by+near < 2*near {
			little.PutUint32(b, nop)
			little.PutUint32(b[4:], adr|adrBits(by)|reg)
		} else {
			little.PutUint32(b, adrp|pages|reg)
			little.PutUint32(b[4:], addition|uint32(to&pageMask)<<10|reg<<5|reg)
		}
	}
}

// looksAt is the address that the field says in the template: of a page its beginning, or
// the rest alone.
func (f *pageField) looksAt(b []byte) uint64 {
	word := binary.LittleEndian.Uint32(b)
	rest := func(b []byte) uint64 {
		return uint64(binary.LittleEndian.Uint32(b)>>10) & pageMask << f.scale
	}
	page := (f.place>>12 + adrValue(word)) << 12
	switch {
	case f.form == restOf:
		return rest(b)
	case f.form == pageOf:
		return page
	case word == nop:
		return f.place + 4 + adrValue(binary.LittleEndian.Uint32(b[4:]))
	}
	return page + rest(b[4:])
}

// says tells whether it says an address.
func (f *pageField) says(b []byte, address uint64) bool {
	got := f.looksAt(b)
	switch f.form {
	case pageOf:
		return got == address&^pageMask
	case restOf:
		return got == address&pageMask
	}
	return got == address
}

// pairs tells whether lld may relax two relocations, the first and the next of those that
// are left of a section.
func pairs(o *linkedObject, section int, rela []byte) bool {
	if len(rela) < 2*relaSize {
		return false
	}
	u32, u64 := binary.LittleEndian.Uint32, binary.LittleEndian.Uint64
	next := rela[relaSize:]
	at := o.Sections[section].Offset + u64(rela)
	if elf.R_AARCH64(u32(next[8:])) != elf.R_AARCH64_ADD_ABS_LO12_NC || u64(next) != u64(rela)+4 || u32(next[12:]) != u32(rela[12:]) ||
		u64(rela[16:]) != 0 || u64(next[16:]) != 0 || at+8 > uint64(len(o.data)) {
		return false
	}
	first, second := u32(o.data[at:]), u32(o.data[at+4:])
	reg := first & register
	return first&adrMask == adrp && second&additionMask == addition && second&register == reg && second>>5&register == reg
}

// relocatedField is what a relocation of a type writes.
type relocatedField struct {
	field
	page  pageForm
	scale uint8
	none  bool
}

// fields are the types of relocations that are known, of the processors' ELF
// specifications.
var fields = map[elf.Machine]map[uint32]relocatedField{
	elf.EM_X86_64: {
		uint32(elf.R_X86_64_NONE):  {none: true},
		uint32(elf.R_X86_64_PC32):  {field: field{relative: true}},
		uint32(elf.R_X86_64_PLT32): {field: field{relative: true}},
		uint32(elf.R_X86_64_PC64):  {field: field{relative: true, wide: true}},
		uint32(elf.R_X86_64_64):    {field: field{wide: true}},
		uint32(elf.R_X86_64_32):    {},
		uint32(elf.R_X86_64_32S):   {},
	},
	elf.EM_AARCH64: {
		uint32(elf.R_AARCH64_NONE):                {none: true},
		uint32(elf.R_AARCH64_ABS64):               {field: field{wide: true}},
		uint32(elf.R_AARCH64_ABS32):               {},
		uint32(elf.R_AARCH64_PREL64):              {field: field{relative: true, wide: true}},
		uint32(elf.R_AARCH64_PREL32):              {field: field{relative: true}},
		uint32(elf.R_AARCH64_CALL26):              {field: field{relative: true, branch: true}},
		uint32(elf.R_AARCH64_JUMP26):              {field: field{relative: true, branch: true}},
		uint32(elf.R_AARCH64_ADR_PREL_PG_HI21):    {page: pageOf},
		uint32(elf.R_AARCH64_ADR_PREL_PG_HI21_NC): {page: pageOf},
		uint32(elf.R_AARCH64_ADD_ABS_LO12_NC):     {page: restOf},
		uint32(elf.R_AARCH64_LDST8_ABS_LO12_NC):   {page: restOf},
		uint32(elf.R_AARCH64_LDST16_ABS_LO12_NC):  {page: restOf, scale: 1},
		uint32(elf.R_AARCH64_LDST32_ABS_LO12_NC):  {page: restOf, scale: 2},
		uint32(elf.R_AARCH64_LDST64_ABS_LO12_NC):  {page: restOf, scale: 3},
		uint32(elf.R_AARCH64_LDST128_ABS_LO12_NC): {page: restOf, scale: 4},
	},
}

func relocationName(machine elf.Machine, kind uint32) string {
	if machine == elf.EM_AARCH64 {
		return elf.R_AARCH64(kind).String()
	}
	return elf.R_X86_64(kind).String()
}

// relocations lists the fields that change, and holds what lld has written against what
// they say.
func (t *template) relocations(raw []byte, image *linkedObject, objects []*linkedObject) error {
	for _, o := range objects {
		for _, s := range o.Sections {
			if s.Type != elf.SHT_RELA || int(s.Info) >= len(o.at) || o.at[s.Info] < 0 {
				continue
			}
			e := &t.entries[o.at[s.Info]]
			output, err := t.output(e.out)
			if err != nil {
				return err
			}
			data, err := sectionBytes(s)
			if err != nil {
				return err
			}
			for n := 0; len(data) >= relaSize; data = data[n*relaSize:] {
				if n, err = t.relocation(raw, o, int(s.Info), output, data); err != nil {
					return fmt.Errorf("%s:(%s): %w", o.name, e.name, err)
				}
			}
		}
	}
	for of, k := range t.kept {
		if k.at != k.end {
			return fmt.Errorf("its relocations of %s are more than the objects'", of)
		}
	}
	t.kept = nil
	slices.SortFunc(t.fields, func(a, b field) int { return cmp.Compare(a.at, b.at) })
	t.fields = slices.DeleteFunc(t.fields, func(f field) bool { return t.kall.has(f.at) })
	return nil
}

// relocation takes the first Elf64_Rela of those that are left of a section: place, type
// and symbol, addend. It returns how many it has taken: a pair of arm64's is two.
func (t *template) relocation(raw []byte, o *linkedObject, section int, output elf.SectionHeader, rela []byte) (taken int, err error) {
	u64 := binary.LittleEndian.Uint64
	offset, addend := u64(rela), u64(rela[16:])
	kind, n := binary.LittleEndian.Uint32(rela[8:]), int(binary.LittleEndian.Uint32(rela[12:]))
	if n >= o.symbols.len() {
		return 0, errors.New("a relocation has no symbol")
	}
	entry := o.at[section]
	e, in, mine := &t.entries[entry], o.defined(n), t.mine[entry]
	var s symbol
	known := true // its address
	switch {
	case n >= o.locals || in < 0 && o.symbols.section(n) == 0:
		s, known = t.names[o.symbols.name(n)]
	case in >= 0:
		s = symbol{t.entries[in].address + o.symbols.address(n), int32(1 + t.mine[in])}
	default:
		known = false // merged or discarded
	}
	if k := t.kept[e.out]; k != nil {
		if err := t.keep(raw, k, entry, rela, o.symbols.isSection(n), s, in); err != nil {
			return 0, err
		}
	}
	f, ok := fields[t.arch.ELF][kind]
	switch {
	case !ok && (mine >= 0 || s.target > 0):
		return 0, fmt.Errorf("a relocation %s is not known", relocationName(t.arch.ELF, kind))
	case !ok || f.none:
		return 1, nil
	case offset > e.size || e.size-offset < f.bytes():
		return 0, errors.New("a relocation is outside its section")
	}
	inFile := output.Offset + e.address - output.Addr + offset
	follows := s.target > 0
	if mine >= 0 && (f.relative || f.page != 0) {
		follows = s.target != int32(1+mine) || f.page != 0
	}
	switch {
	case output.Type == elf.SHT_NOBITS || output.Flags&elf.SHF_COMPRESSED != 0:
		if follows {
			return 0, errors.New("what moves is looked at by a section that is compressed or has no contents")
		}
		return 1, nil
	case f.page != 0:
		return t.page(raw[inFile:], o, section, inFile, rela, f, s, known)
	}
	want := s.address + addend
	if f.relative {
		want -= e.address + offset
	}
	if is := f.get(raw[inFile:]); known && is != f.fit(want) {
		return 0, fmt.Errorf("at %#x is %#x, by the relocation %#x", offset, is, want)
	}
	f.target = s.target
	switch {
	case !follows:
	case mine >= 0:
		f.at = offset
		t.moving[mine].fields = append(t.moving[mine].fields, f.field)
	default:
		f.at = inFile
		t.fields = append(t.fields, f.field)
	}
	return 1, nil
}

// page takes a relocation of an instruction that says the page of an address, or the rest.
// is is what lld has written.
func (t *template) page(is []byte, o *linkedObject, section int, inFile uint64, rela []byte, f relocatedField, s symbol, known bool) (taken int, err error) {
	offset, entry := binary.LittleEndian.Uint64(rela), o.at[section]
	mine := t.mine[entry]
	p := pageField{
		at: offset, place: t.entries[entry].address + offset,
		address: s.address + binary.LittleEndian.Uint64(rela[16:]), target: s.target, form: f.page, scale: f.scale,
	}
	if mine < 0 {
		p.at = inFile
	}
	taken = 1
	if p.form == pageOf && pairs(o, section, rela) {
		p.form, taken = pageAndRest, 2
	}
	if !known {
		p.address = p.looksAt(is) // what is not known does not move
	} else if !p.says(is, p.address) {
		return 0, fmt.Errorf("at %#x is %#x, by the relocation %#x", offset, p.looksAt(is), p.address)
	}
	switch {
	case p.target == 0 && (mine < 0 || p.form == restOf):
	case mine >= 0:
		t.moving[mine].pages = append(t.moving[mine].pages, p)
	default:
		t.pages = append(t.pages, p)
	}
	return taken, nil
}

// keptRelocations are those of an output section that an image has for the kernel's relocs
// (ld's --emit-relocs; RELOCATABLE on x86-64): of all objects, each as it is there but that
// its place is an address, and that what is relative to an input section is so to the output
// section. Their order is that of the objects' sections, and the same in all layouts.
type keptRelocations struct{ at, end uint64 } // the next one in the file, the end

// keep takes the next one: that of a relocation of an entry, to a symbol that is in another
// entry, or -1.
func (t *template) keep(raw []byte, k *keptRelocations, entry int, rela []byte, section bool, s symbol, in int) error {
	if k.at+relaSize > k.end {
		return errors.New("its image has fewer relocations than its objects")
	}
	at, u64 := k.at, binary.LittleEndian.Uint64
	k.at += relaSize
	is := raw[at:][:relaSize]
	if u64(is) != t.entries[entry].address+u64(rela) || binary.LittleEndian.Uint32(is[12:]) != 0 && !bytes.Equal(is[8:12], rela[8:12]) {
		return errors.New("the relocations of its image are in another order")
	}
	if mine := t.mine[entry]; mine >= 0 {
		t.fields = append(t.fields, field{at: at, target: int32(1 + mine), wide: true})
	}
	if !section || in < 0 || binary.LittleEndian.Uint32(is[12:]) == 0 {
		return nil
	}
	output, err := t.output(t.entries[in].out)
	if err != nil {
		return err
	}
	if got, want := u64(is[16:]), s.address+u64(rela[16:])-output.Addr; got != want {
		return fmt.Errorf("a relocation of its image has the addend %#x, by the object %#x", got, want)
	}
	if s.target > 0 {
		t.fields = append(t.fields, field{at: at + 16, target: s.target, wide: true})
	}
	return nil
}

// loaded looks through the relocations that the kernel applies to itself, of arm64's RELR:
// they say places alone. It refuses a place that moves.
func (t *template) loaded(image *linkedObject) error {
	const relr elf.SectionType = 19 // SHT_RELR
	for _, s := range image.Sections {
		if s.Type != relr {
			continue
		}
		data, err := sectionBytes(s)
		if err != nil {
			return err
		}
		moves := func(address uint64) bool {
			return slices.ContainsFunc(t.moving, func(m moving) bool { return address-m.address < m.size })
		}
		// An even word is a place; an odd one has a bit for each of the 63 places behind.
		var next uint64
		for ; len(data) >= 8; data = data[8:] {
			word := binary.LittleEndian.Uint64(data)
			places := word >> 1
			if word&1 == 0 {
				next, places = word, 1
			}
			for at := next; places != 0; at, places = at+8, places>>1 {
				if places&1 == 1 && at-t.text.Addr < t.text.Size && moves(at) {
					return fmt.Errorf("a relocation of its image (%s) is in what moves", s.Name)
				}
			}
			next += 63 * 8
			if word&1 == 0 {
				next = word + 8
			}
		}
	}
	return nil
}
