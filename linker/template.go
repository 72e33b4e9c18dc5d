package linker

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"unlucky/arch"
	"unlucky/layout"
)

// template is an image from which that of another plan follows without a linker, byte
// for byte what lld and the kernel's own tools make. A plan moves input sections of one
// output section; where all behind it stays, what is left to do is to copy these, and
// to correct what says where they are: relocated fields, symbols, the sizes of
// sections, and the tables that are in the order of addresses. Each field is corrected
// by how much it moves, on the bytes that lld has written, so that what lld made of a
// relocation need not be known.
//
// Plans after which something behind the output section stands elsewhere have
// another template.
type template struct {
	base     []byte           // the finished image
	plan     layout.Plan      // that it was linked by, which pads only
	sections []layout.Section // of the baseline
	entries  []mapEntry
	inputs   []int      // input sections, by number: in entries
	asserts  []mapEntry // of the linker script, that look at what moves

	text        elf.SectionHeader // the output section in which sections move
	first, last int               // its entries
	room        uint64            // bytes of it in the file, with the gap behind it
	fill        [4]byte           // of gaps in it, from where they begin
	headers     uint64            // file offset of the section headers
	outputs     map[string]int    // section headers by name
	segments    []elf.ProgHeader

	moving []moving
	mine   []int             // of an entry: in moving, or -1
	runs   [][]int32         // moving sections that are in the order of the ones that they belong to
	names  map[string]symbol // that expressions look at
	count  int               // of targets
	fields []field           // in what stays, by file offset
	values []value           // of symbols
	symtab elf.SectionHeader
	kept   map[string]*keptRelocations // by output section
	tables []sortedTable
	kall   *kallsymsTable // nil in a kernel without
}

// A target is what a field says the place of: 0 is all that stays, 1 and up the moving
// sections, behind them symbols of the linker script.

// moving is an input section that layouts move.
type moving struct {
	address, size, align uint64
	offset               uint64 // in the file
	fields               []field
	link                 int // entry by whose address it is ordered, or -1
}

// field is a relocated one: it follows its target, and where it is relative the
// section that it is in, too.
type field struct {
	at       uint64 // in the moving section, or else in the file
	target   int32
	relative bool
	wide     bool // 64 bits, or else 32
}

// value is that of an image's symbol.
type value struct {
	at, address uint64 // in the file; in the template
	target      int32
}

// symbol is one that expressions of the linker script look at.
type symbol struct {
	address uint64 // in the template
	target  int32
}

// linkedObject is an object of the template's link.
type linkedObject struct {
	*wholeELF
	name    string // in the link map
	data    []byte
	symbols symbolTable
	long    []byte // SHT_SYMTAB_SHNDX
	locals  int    // symbols
	at      []int  // of a section: its entry, or -1
}

func newLinkedObject(name string, data []byte) (o *linkedObject, err error) {
	o = &linkedObject{name: name, data: data}
	if o.wholeELF, err = newELF(bytes.NewReader(data), int64(len(data))); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	o.at = make([]int, len(o.Sections))
	for i, s := range o.Sections {
		o.at[i] = -1
		switch s.Type {
		case elf.SHT_SYMTAB:
			o.locals = int(s.Info)
			if o.symbols, err = readSymbolTable(o.File); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		case elf.SHT_SYMTAB_SHNDX:
			if o.long, err = sectionBytes(s); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return o, nil
}

// defined is the entry of the section that a symbol is in; -1 for none.
func (o *linkedObject) defined(n int) int {
	i := o.symbols.section(n)
	if i == int(elf.SHN_XINDEX) && 4*n+4 <= len(o.long) {
		i = int(binary.LittleEndian.Uint32(o.long[4*n:]))
	} else if i >= int(elf.SHN_LORESERVE) {
		return -1
	}
	if i >= len(o.at) {
		return -1
	}
	return o.at[i]
}

// linkedImage is an image that lld has linked of the objects of a kernel.
type linkedImage struct {
	plan     layout.Plan // that pads only
	raw      []byte      // as lld has left it
	finished []byte      // by the kernel's own tools
	linkMap  []byte
}

// newTemplate makes one of an image, of the linker script, and of the objects that it is
// linked of; sections are the baseline's. The error says why layouts of this kernel do not
// follow so.
func newTemplate(i linkedImage, script string, objects []*linkedObject, sections []layout.Section, k *kallsyms) (*template, error) {
	image, err := newLinkedObject("the image", i.finished)
	if err != nil {
		return nil, err
	}
	if len(i.raw) != len(i.finished) || image.Machine != elf.EM_X86_64 {
		return nil, errors.New("it is not known how its images are finished")
	}
	t := &template{base: i.finished, plan: i.plan, sections: sections, names: map[string]symbol{}, outputs: map[string]int{}, kept: map[string]*keptRelocations{}, headers: uint64(image.headers)}
	if t.entries, err = readLinkMap(i.linkMap); err != nil {
		return nil, err
	}
	for _, step := range []func() error{
		func() error { return t.find(image) },
		func() error { return t.match(objects) },
		func() error { return t.move(objects) },
		func() error { return t.watch(image, objects) },
		func() error { return t.assert(script) },
		func() error { return t.symbols(image, objects) },
		func() error { return t.kallsyms(image, k) },
		func() error { return t.relocations(i.raw, image, objects) },
		func() error { return t.sorted(i.raw, image) },
		t.findFill,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	for i := range t.entries { // the text of the map need not stay
		t.entries[i].file, t.entries[i].name, t.entries[i].depend = "", "", nil
		t.entries[i].out = strings.Clone(t.entries[i].out)
	}
	return t, t.checkItself()
}

const relr elf.SectionType = 19 // SHT_RELR

// find finds the output section, and holds the map against the baseline's layout.
func (t *template) find(image *linkedObject) error {
	outputs, n := layout.Outputs(t.sections), -1
	for i, s := range image.Sections {
		t.outputs[s.Name] = i
		switch {
		case s.Type == elf.SHT_SYMTAB:
			t.symtab = s.SectionHeader
		case s.Type == elf.SHT_RELA && s.Flags&elf.SHF_ALLOC == 0 && int(s.Info) < len(image.Sections):
			t.kept[image.Sections[s.Info].Name] = &keptRelocations{s.Offset, s.Offset + s.FileSize}
		case s.Type == elf.SHT_RELA || s.Type == elf.SHT_REL || s.Type == relr:
			return fmt.Errorf("its image has relocations (%s)", s.Name)
		case slices.Contains(outputs, s.Name):
			t.text, n = s.SectionHeader, i
		}
	}
	if n < 0 {
		return errors.New("its image has no text")
	}
	next := uint64(len(t.base))
	for _, s := range image.Sections[n+1:] {
		if s.Type != elf.SHT_NOBITS {
			next = min(next, s.Offset)
		}
	}
	if t.headers > t.text.Offset {
		next = min(next, t.headers)
	}
	if t.room = next - t.text.Offset; next < t.text.Offset+t.text.Size {
		return errors.New("the sections of its image are not in order")
	}
	for _, p := range image.Progs {
		t.segments = append(t.segments, p.ProgHeader)
	}
	if err := t.grows(t.text); err != nil {
		return err
	}
	for i := range t.entries {
		e := &t.entries[i]
		if e.begins && e.out == t.text.Name {
			t.first = i + 1
		}
		if e.out == t.text.Name {
			t.last = i + 1
		}
		if !e.input() {
			continue
		}
		n := e.number
		if t.inputs = append(t.inputs, i); n >= len(t.sections) || t.sections[n].Output != e.out || t.sections[n].Align != e.align && t.sections[n].Align != 0 {
			return fmt.Errorf("%s:(%s) is not where the baseline has it", e.file, e.name)
		}
	}
	if t.first == 0 || len(t.inputs) != len(t.sections) || t.entries[t.first-1].address != t.text.Addr {
		return errors.New("its link map is not that of the baseline")
	}
	return nil
}

// grows refuses an output section with whose size that of a segment changes.
func (t *template) grows(s elf.SectionHeader) error {
	for _, p := range t.segments {
		if p.Vaddr <= s.Addr && p.Vaddr+p.Memsz == s.Addr+s.Size {
			return fmt.Errorf("%s, which grows, is the last section of a segment", s.Name)
		}
	}
	return nil
}

// match finds the entry of each section of the objects. Sections of one name stand in the
// order of the object; those with SHF_LINK_ORDER in that of the ones that they belong to.
func (t *template) match(objects []*linkedObject) error {
	type key struct{ file, name string }
	in := map[key][]int{}
	for _, i := range t.inputs {
		e := &t.entries[i]
		in[key{e.file, e.name}] = append(in[key{e.file, e.name}], i)
	}
	known := map[string]bool{internalFile: true}
	for _, o := range objects {
		known[o.name] = true
		for _, ordered := range []bool{false, true} {
			here := map[string][]int{}
			for i, s := range o.Sections {
				if in[key{o.name, s.Name}] != nil && s.Type != elf.SHT_RELA && s.Flags&elf.SHF_LINK_ORDER != 0 == ordered {
					here[s.Name] = append(here[s.Name], i)
				}
			}
			for name, list := range here {
				if ordered {
					slices.SortStableFunc(list, func(a, b int) int { return cmp.Compare(o.linked(a), o.linked(b)) })
				}
				entries := in[key{o.name, name}]
				if len(entries) != len(list) {
					return fmt.Errorf("%s has %d sections %s, its link map %d", o.name, len(list), name, len(entries))
				}
				for n, i := range list {
					e, size := &t.entries[entries[n]], o.Sections[i].Size
					if e.size != size && (e.out != t.text.Name || e.size < size) { // or the template's padding
						return fmt.Errorf("%s:(%s) has %d bytes in the link map, %d in the object", o.name, name, e.size, size)
					}
					e.size = size
					o.at[i] = entries[n]
				}
			}
		}
	}
	for k := range in {
		if !known[k.file] {
			return fmt.Errorf("it is linked of %s, which can't be read", k.file)
		}
	}
	return nil
}

// linked is the entry of the section that a section belongs to.
func (o *linkedObject) linked(i int) int {
	if link := int(o.Sections[i].Link); link < len(o.at) {
		return o.at[link]
	}
	return -1
}

// move lists what layouts move.
func (t *template) move(objects []*linkedObject) error {
	t.mine = slices.Repeat([]int{-1}, len(t.entries))
	add := func(i int, output elf.SectionHeader, link int) {
		e := &t.entries[i]
		t.mine[i] = len(t.moving)
		t.moving = append(t.moving, moving{address: e.address, size: e.size, align: e.align, offset: output.Offset + e.address - output.Addr, link: link})
	}
	for i := t.first; i < t.last; i++ {
		if t.entries[i].input() {
			add(i, t.text, -1)
		}
	}
	var ordered [][2]int // entries: a section, and the one that it belongs to
	for _, o := range objects {
		for i, s := range o.Sections {
			if link := o.linked(i); s.Flags&elf.SHF_LINK_ORDER != 0 && o.at[i] >= 0 && t.mine[o.at[i]] < 0 && link >= 0 {
				ordered = append(ordered, [2]int{o.at[i], link})
			}
		}
	}
	slices.SortFunc(ordered, func(a, b [2]int) int { return cmp.Compare(a[0], b[0]) })
	for n, s := range ordered {
		output, err := t.output(t.entries[s[0]].out)
		if err != nil {
			return err
		}
		if n == 0 || ordered[n-1][0]+1 != s[0] {
			t.runs = append(t.runs, nil)
		}
		run := &t.runs[len(t.runs)-1]
		*run = append(*run, int32(len(t.moving)))
		add(s[0], output, s[1])
	}
	t.count = 1 + len(t.moving)
	return nil
}

// output is a section of the image.
func (t *template) output(name string) (elf.SectionHeader, error) {
	i, ok := t.outputs[name]
	if !ok {
		return elf.SectionHeader{}, fmt.Errorf("its image has no section %s", name)
	}
	h := t.headersAt(i)
	u64 := binary.LittleEndian.Uint64
	return elf.SectionHeader{
		Name: name, Type: elf.SectionType(binary.LittleEndian.Uint32(h[4:])), Flags: elf.SectionFlag(u64(h[8:])),
		Addr: u64(h[16:]), Offset: u64(h[24:]), Size: u64(h[32:]),
	}, nil
}

// headersAt is the header of a section in the file (Elf64_Shdr).
func (t *template) headersAt(i int) []byte {
	return t.base[t.headers+uint64(i)*elfSectionHeader64:][:elfSectionHeader64]
}

// watch finds the symbols that expressions look at, and the assignments whose value is
// not the same in all layouts: those among the moving sections and behind them up to
// the next section, and all that look at what moves.
func (t *template) watch(image *linkedObject, objects []*linkedObject) error {
	has := map[place]bool{}
	for i := range image.symbols.len() { // global ones last, and before them hidden ones of the script
		name, address := image.symbols.name(i), image.symbols.address(i)
		t.names[name] = symbol{address: address}
		has[place{name, address}] = true
	}
	for _, o := range objects {
		for i := o.locals; i < o.symbols.len(); i++ {
			name, e := o.symbols.name(i), o.defined(i)
			if e < 0 || t.mine[e] < 0 {
				continue
			}
			if address := t.entries[e].address + o.symbols.address(i); has[place{name, address}] {
				t.names[name] = symbol{address, int32(1 + t.mine[e])}
			}
		}
	}
	t.names[""] = symbol{} // of a relocation without one
	for again := true; again; {
		again = false
		near := true
		for n := range t.entries {
			i := (t.first + n) % len(t.entries) // what stands before the text looks at it last
			e := &t.entries[i]
			if i == 0 || e.symbol == "" && i >= t.last {
				near = false
			}
			watch := near
			for _, name := range e.depend {
				watch = watch || name == t.text.Name || name != "." && name != e.symbol && t.names[name].target > 0
			}
			switch {
			case e.symbol == "" || !watch:
				continue
			case e.to == nil:
				return fmt.Errorf("what its linker script says of %s is not understood", e.symbol)
			case e.symbol == ".":
				e.watch = true
				near = near || i >= t.last
				continue
			case e.watch:
				continue
			}
			again, e.watch, e.target = true, true, int32(t.count)
			t.names[e.symbol] = symbol{t.names[e.symbol].address, e.target}
			t.count++
		}
	}
	return nil
}

// assert finds the assertions that look at what moves.
func (t *template) assert(script string) error {
	for _, e := range readAsserts(script) {
		if !slices.ContainsFunc(e.depend, func(name string) bool { return name == t.text.Name || t.names[name].target > 0 }) {
			continue
		}
		if t.asserts = append(t.asserts, e); e.to == nil {
			return fmt.Errorf("an assertion of its linker script on %s is not understood", e.depend)
		}
	}
	return nil
}

// symbols finds what the symbols of the image are in.
func (t *template) symbols(image *linkedObject, objects []*linkedObject) error {
	in := map[place]int32{} // targets; -1 for several
	add := func(at place, target int32) {
		if found, ok := in[at]; ok && found != target {
			target = -1
		}
		in[at] = target
	}
	for _, o := range objects {
		for i := range o.symbols.len() {
			if e := o.defined(i); e >= 0 && t.mine[e] >= 0 {
				add(place{o.symbols.name(i), t.entries[e].address + o.symbols.address(i)}, int32(1+t.mine[e]))
			}
		}
	}
	for i := range t.entries {
		if e := &t.entries[i]; e.target > 0 {
			in[place{e.symbol, t.names[e.symbol].address}] = e.target
		}
	}
	text := t.outputs[t.text.Name]
	for i := range image.symbols.len() {
		if image.symbols.isSection(i) { // an output section's
			continue
		}
		name, address := image.symbols.name(i), image.symbols.address(i)
		target, ok := in[place{name, address}]
		if target < 0 || !ok && image.symbols.section(i) == text && name != "" {
			return fmt.Errorf("its symbol %s can't be told from others", name)
		}
		if target > 0 {
			t.values = append(t.values, value{t.symtab.Offset + uint64(i)*symbolSize + 8, address, target})
		}
	}
	return nil
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
			for ; len(data) >= relaSize; data = data[relaSize:] {
				if err := t.relocation(raw, o, o.at[s.Info], output, data); err != nil {
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

// relocation takes one Elf64_Rela of a section: place, type and symbol, addend.
func (t *template) relocation(raw []byte, o *linkedObject, entry int, output elf.SectionHeader, rela []byte) error {
	u64 := binary.LittleEndian.Uint64
	offset, addend := u64(rela), u64(rela[16:])
	kind, n := elf.R_X86_64(binary.LittleEndian.Uint32(rela[8:])), int(binary.LittleEndian.Uint32(rela[12:]))
	if n >= o.symbols.len() {
		return errors.New("a relocation has no symbol")
	}
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
			return err
		}
	}
	f := field{target: s.target}
	switch kind {
	case elf.R_X86_64_NONE:
		return nil
	case elf.R_X86_64_PC32, elf.R_X86_64_PLT32:
		f.relative = true
	case elf.R_X86_64_PC64:
		f.relative, f.wide = true, true
	case elf.R_X86_64_64:
		f.wide = true
	case elf.R_X86_64_32, elf.R_X86_64_32S:
	default:
		if mine >= 0 || s.target > 0 {
			return fmt.Errorf("a relocation %v is not known", kind)
		}
		return nil
	}
	if width := uint64(4 + 4*truth(f.wide)); offset > e.size || e.size-offset < width {
		return errors.New("a relocation is outside its section")
	}
	inFile := output.Offset + e.address - output.Addr + offset
	follows := s.target > 0
	if mine >= 0 && f.relative {
		follows = s.target != int32(1+mine)
	}
	if output.Type == elf.SHT_NOBITS || output.Flags&elf.SHF_COMPRESSED != 0 {
		if follows {
			return errors.New("what moves is looked at by a section that is compressed or has no contents")
		}
		return nil
	}
	want := s.address + addend
	if f.relative {
		want -= e.address + offset
	}
	if is := f.get(raw[inFile:]); known && is != want && (f.wide || is != uint64(uint32(want))) {
		return fmt.Errorf("at %#x is %#x, by the relocation %#x", offset, is, want)
	}
	switch {
	case !follows:
	case mine >= 0:
		f.at = offset
		t.moving[mine].fields = append(t.moving[mine].fields, f)
	default:
		f.at = inFile
		t.fields = append(t.fields, f)
	}
	return nil
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

// get is the value of a field.
func (f field) get(b []byte) uint64 {
	if f.wide {
		return binary.LittleEndian.Uint64(b)
	}
	return uint64(binary.LittleEndian.Uint32(b))
}

func (f field) put(b []byte, v uint64) {
	if f.wide {
		binary.LittleEndian.PutUint64(b, v)
	} else {
		binary.LittleEndian.PutUint32(b, uint32(v))
	}
}

// findFill reads what lld fills gaps with, which a linker script says in four bytes. That
// all are filled so is seen where the template makes itself.
func (t *template) findFill() error {
	t.fill = [4]byte(bytes.Repeat([]byte{arch.X86_64.Fill}, 4))
	end := t.text.Offset
	for i := t.first; i < t.last; i++ {
		if t.mine[i] < 0 {
			continue
		}
		m := &t.moving[t.mine[i]]
		if m.offset-end >= 4 {
			t.fill = [4]byte(t.base[end:])
			return nil
		}
		end = m.offset + m.size
	}
	return nil
}

// link writes the image of a placement over that of another plan, or over the template's,
// in which the output section ended at an address.
func (t *template) link(p *placement, out []byte, was uint64) error {
	end := t.text.Offset
	for i, n := range p.order {
		m := &t.moving[n]
		moved := p.moved[1+n]
		at := m.offset + moved
		if m.link < 0 {
			t.pad(out[end:at])
			end = at + m.size
			if padding := p.padding[i]; padding > 0 {
				t.padding(out[end : end+padding])
				end += padding
			}
		}
		b := out[at : at+m.size]
		copy(b, t.base[m.offset:])
		for _, f := range m.fields {
			by := p.moved[f.target]
			if f.relative {
				by -= moved
			}
			f.put(b[f.at:], f.get(b[f.at:])+by)
		}
	}
	text := out[t.text.Offset : t.text.Offset+t.room]
	t.pad(text[end-t.text.Offset : p.end-t.text.Addr])
	clear(text[p.end-t.text.Addr : max(was, p.end)-t.text.Addr])
	for _, f := range t.fields {
		f.put(out[f.at:], f.get(t.base[f.at:])+p.moved[f.target])
	}
	for _, v := range t.values {
		binary.LittleEndian.PutUint64(out[v.at:], v.address+p.moved[v.target])
	}
	for name, i := range t.outputs { // sh_size
		at := t.headers + uint64(i)*elfSectionHeader64 + 32
		size, ok := p.sizes[name]
		if !ok {
			size = binary.LittleEndian.Uint64(t.base[at:])
		}
		binary.LittleEndian.PutUint64(out[at:], size)
	}
	for _, table := range t.tables {
		table.write(p, out)
	}
	if t.kall != nil {
		return t.kall.write(p, out)
	}
	return nil
}

// pad fills a gap as lld does.
func (t *template) pad(b []byte) {
	for n := copy(b, t.fill[:]); n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
}

// padding fills what a plan pads, which is the end of a section.
func (t *template) padding(b []byte) {
	for i := range b {
		b[i] = arch.X86_64.Fill
	}
}

// checkItself makes the template by itself.
func (t *template) checkItself() error {
	a, err := layout.NewModel(t.sections).Arrange(t.plan)
	if err != nil {
		return err
	}
	p, err := t.place(a)
	if err != nil {
		return err
	}
	out := bytes.Clone(t.base)
	if err := t.link(p, out, t.text.Addr+t.text.Size); err != nil {
		return err
	}
	if at := differ(out, t.base); at >= 0 {
		return fmt.Errorf("its own image does not follow from it: %s", t.where(at))
	}
	return nil
}

// differ is the first byte that is not the same; -1 for none.
func differ(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// where says what a byte of the image is in.
func (t *template) where(at int) string {
	for name := range t.outputs {
		o, err := t.output(name)
		if off := uint64(at) - o.Offset; err == nil && o.Type != elf.SHT_NOBITS && off < o.Size {
			return fmt.Sprintf("byte %d of %s, %#x", off, name, o.Addr+off)
		}
	}
	return fmt.Sprintf("byte %d of the file", at)
}
