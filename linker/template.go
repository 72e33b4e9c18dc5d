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
	arch     *arch.Arch
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
	programs    uint64 // file offset of their headers
	grown       int    // the segment whose last section that is; -1 for none

	moving []moving
	mine   []int             // of an entry: in moving, or -1
	runs   [][]int32         // moving sections that are in the order of the ones that they belong to
	names  map[string]symbol // that expressions look at
	count  int               // of targets
	fields []field           // in what stays, by file offset
	pages  []pageField       // in what stays
	values []value           // of symbols
	symtab elf.SectionHeader
	listed symbolTable                 // the symbols that kallsyms and the baseline's table have
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
	pages                []pageField
	spoiled              []uint32 // see findSpoiled
	link                 int      // entry by whose address it is ordered, or -1
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
	symbols symbolTable // with all that relocations count
	long    []byte      // SHT_SYMTAB_SHNDX
	locals  int         // symbols
	at      []int       // of a section: its entry, or -1
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
			if o.symbols, err = readAllSymbols(o.File); err != nil {
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
	t := &template{arch: arch.OfELF(image.Machine), base: i.finished, plan: i.plan, sections: sections, names: map[string]symbol{}, outputs: map[string]int{}, kept: map[string]*keptRelocations{}, headers: uint64(image.headers), programs: binary.LittleEndian.Uint64(i.finished[32:])}
	if len(i.raw) != len(i.finished) || t.arch == nil {
		return nil, errors.New("it is not known how its images are finished")
	}
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
		func() error { return t.loaded(image) },
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

// find finds the output section, and holds the map against the baseline's layout.
func (t *template) find(image *linkedObject) error {
	outputs, n := layout.Outputs(t.sections), -1
	for i, s := range image.Sections {
		t.outputs[s.Name] = i
		switch {
		case s.Type == elf.SHT_SYMTAB:
			t.symtab = s.SectionHeader
			var err error
			if t.listed, err = readSymbolTable(image.File); err != nil {
				return err
			}
		case s.Type == elf.SHT_RELA && s.Flags&elf.SHF_ALLOC == 0 && int(s.Info) < len(image.Sections):
			t.kept[image.Sections[s.Info].Name] = &keptRelocations{s.Offset, s.Offset + s.FileSize}
		case (s.Type == elf.SHT_RELA || s.Type == elf.SHT_REL) && s.FileSize > 0:
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
	t.grown = slices.IndexFunc(t.segments, func(p elf.ProgHeader) bool {
		return p.Vaddr <= t.text.Addr && p.Vaddr+p.Memsz == t.text.Addr+t.text.Size
	})
	for i := range t.entries {
		e := &t.entries[i]
		if e.file == internalFile && slices.Contains(insertedSections, e.name) {
			return errMended
		}
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
	each := func(yield func(at place, target int32)) {
		for _, o := range objects {
			for i := range o.symbols.len() {
				if e := o.defined(i); e >= 0 && (t.mine[e] >= 0 || strings.HasPrefix(o.symbols.name(i), mappingSymbol)) {
					yield(place{o.symbols.name(i), t.entries[e].address + o.symbols.address(i)}, int32(1+t.mine[e]))
				}
			}
		}
	}
	each(func(at place, target int32) {
		if found, ok := in[at]; ok && found != target {
			target = -1
		}
		in[at] = target
	})
	several := map[place][]int32{} // in the order of the objects' symbols, which is the image's
	each(func(at place, target int32) {
		if in[at] < 0 {
			several[at] = append(several[at], target)
		}
	})
	for i := range t.entries {
		if e := &t.entries[i]; e.target > 0 {
			in[place{e.symbol, t.names[e.symbol].address}] = e.target
		}
	}
	text := t.outputs[t.text.Name]
	for i := range image.symbols.len() {
		if image.symbols.isSection(i) && len(t.kept) > 0 { // an output section's
			continue
		}
		name, address := image.symbols.name(i), image.symbols.address(i)
		target, ok := in[place{name, address}]
		if left := several[place{name, address}]; len(left) > 0 {
			target, several[place{name, address}] = left[0], left[1:]
		}
		if target < 0 || !ok && image.symbols.section(i) == text && name != "" {
			return fmt.Errorf("its symbol %s can't be told from others", name)
		}
		if target > 0 {
			t.values = append(t.values, value{t.symtab.Offset + uint64(i)*symbolSize + 8, address, target})
		}
	}
	return nil
}

// findFill reads what lld fills gaps with, which a linker script says in four bytes. That
// all are filled so is seen where the template makes itself.
func (t *template) findFill() error {
	t.fill = [4]byte(bytes.Repeat([]byte{t.arch.Fill}, 4))
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
		for i := range m.pages {
			m.pages[i].put(b, p, moved)
		}
	}
	text := out[t.text.Offset : t.text.Offset+t.room]
	t.pad(text[end-t.text.Offset : p.end-t.text.Addr])
	clear(text[p.end-t.text.Addr : max(was, p.end)-t.text.Addr])
	for _, f := range t.fields {
		f.put(out[f.at:], f.get(t.base[f.at:])+p.moved[f.target])
	}
	for i := range t.pages {
		t.pages[i].put(out, p, 0)
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
	if t.grown >= 0 { // Elf64_Phdr: p_filesz at 32, p_memsz at 40
		header, size := out[t.programs+56*uint64(t.grown):], p.end-t.segments[t.grown].Vaddr
		binary.LittleEndian.PutUint64(header[32:], size)
		binary.LittleEndian.PutUint64(header[40:], size)
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
		b[i] = t.arch.Fill
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
