package linker

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"unlucky/arch"
	"unlucky/layout"
)

// object is a relocatable ELF file whose input sections can be lengthened.
type object struct {
	path     string
	sections []elf.SectionHeader // all of them, 0 included
	index    map[string]int      // section name as in Padding.Section -> index
	headers  int64               // file offset of the section header table
	arch     *arch.Arch          // nil for one that is not known
	fill     byte                // what lld fills padding in text with
}

// openObject reads the section headers of a 64-bit little-endian ET_REL file.
// A file with more than 65,279 sections (a vmlinux.o has 280,000) is read too.
func openObject(path string) (*object, error) {
	f, err := openELF(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f.Type != elf.ET_REL {
		return nil, fmt.Errorf("%s: not a relocatable object (%v)", path, f.Type)
	}
	o := &object{path: path, headers: f.headers, index: make(map[string]int, len(f.Sections))}
	if o.arch = arch.OfELF(f.Machine); o.arch != nil {
		o.fill = o.arch.Fill
	}
	seen := make(map[string]int, len(f.Sections))
	for i, s := range f.Sections {
		s.Size = s.FileSize // of what is compressed, too
		o.sections = append(o.sections, s.SectionHeader)
		seen[s.Name]++
		o.index[sectionName(s.Name, seen[s.Name])] = i
	}
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return o, nil
}

// check refuses an object in which an edit of one thing would change another:
// sections that overlap, or more than one symbol table.
func (o *object) check() error {
	type extent struct {
		name       string
		start, end uint64
	}
	headers := uint64(o.headers)
	extents := []extent{{"the file header", 0, 64}, {"the section header table", headers, headers + uint64(len(o.sections))*elfSectionHeader64}}
	tables := map[elf.SectionType]string{}
	for i, s := range o.sections {
		if s.Type != elf.SHT_NOBITS && s.Size > 0 && i > 0 {
			extents = append(extents, extent{"section " + s.Name, s.Offset, s.Offset + s.Size})
		}
		if s.Type == elf.SHT_SYMTAB || s.Type == elf.SHT_SYMTAB_SHNDX {
			if first, ok := tables[s.Type]; ok {
				return fmt.Errorf("two sections of type %v: %s and %s", s.Type, first, s.Name)
			}
			tables[s.Type] = s.Name
		}
	}
	slices.SortFunc(extents, func(a, b extent) int { return cmp.Compare(a.start, b.start) })
	for i := 1; i < len(extents); i++ {
		if a, b := extents[i-1], extents[i]; a.end > b.start {
			return fmt.Errorf("%s and %s overlap at byte %d", a.name, b.name, b.start)
		}
	}
	return nil
}

// sectionName tells the nth section of a name from the first.
func sectionName(name string, nth int) string {
	if nth < 2 {
		return name
	}
	return fmt.Sprintf("%s#%d", name, nth)
}

// edit is a change of an object.
type edit struct {
	slots   map[int]int    // section -> the index that it takes; every section that moves is in it
	padding map[int]uint64 // section -> bytes to append to its end
}

// edited is a copy of an object that can be edited again and again: only what
// changes is written, not the whole object.
type edited struct {
	*object
	file       *os.File
	size       int64       // bytes of the copy without padding
	lengthened []int       // sections, by index
	slots      map[int]int // of the copy as it is
}

// copyTo copies the object to path, by cloning it where the file system can.
func (o *object) copyTo(path string) (_ *edited, err error) {
	in, err := os.Open(o.path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	out, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, err
	}
	size, err := io.Copy(out, in) // copy_file_range
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return &edited{object: o, file: out, size: size}, nil
}

func (p *edited) Close() error { return p.file.Close() }

// edit makes the copy the object with one edit and no other. Relocations and
// symbols are relative to the beginning of their section, so padding changes
// nothing else: each lengthened section moves to the end of the file, and its
// header follows. After an error the copy is half edited: it must not be used
// any more.
func (p *edited) edit(e edit) error {
	if err := p.check(e); err != nil {
		return err
	}
	if !maps.Equal(p.slots, e.slots) {
		if err := p.arrange(e.slots); err != nil {
			return err
		}
	}
	for _, i := range p.lengthened {
		if err := p.place(i, p.sections[i].Offset, p.sections[i].Size); err != nil {
			return err
		}
	}
	p.lengthened = p.lengthened[:0]
	if err := p.file.Truncate(p.size); err != nil {
		return err
	}
	var tail bytes.Buffer
	for i, s := range p.sections { // in order, so that equal plans give equal bytes
		pad := e.padding[i]
		if pad == 0 {
			continue
		}
		if s.Type == elf.SHT_NOBITS { // which has no bytes in the file
			p.lengthened = append(p.lengthened, i)
			if err := p.place(i, s.Offset, s.Size+pad); err != nil {
				return err
			}
			continue
		}
		// A page suits whatever is read from the file.
		for align := int64(min(max(s.Addralign, 1), 4096)); (p.size+int64(tail.Len()))%align != 0; {
			tail.WriteByte(0)
		}
		offset := p.size + int64(tail.Len())
		if _, err := io.Copy(&tail, io.NewSectionReader(p.file, int64(s.Offset), int64(s.Size))); err != nil {
			return err
		}
		tail.Write(bytes.Repeat([]byte{p.fill}, int(pad)))
		p.lengthened = append(p.lengthened, i)
		if err := p.place(i, uint64(offset), s.Size+pad); err != nil {
			return err
		}
	}
	_, err := p.file.WriteAt(tail.Bytes(), p.size)
	return err
}

// check refuses edits of what is no plain section of code or data.
func (p *edited) check(e edit) error {
	plain := func(i int) bool {
		return i > 0 && i < len(p.sections) && p.sections[i].Flags&elf.SHF_COMPRESSED == 0 &&
			(p.sections[i].Type == elf.SHT_PROGBITS || p.sections[i].Type == elf.SHT_NOBITS)
	}
	var total uint64
	for i, pad := range e.padding {
		if !plain(i) {
			return fmt.Errorf("section %d of %s can't be lengthened", i, p.path)
		}
		if total += min(pad, layout.MaxPadding+1); total > layout.MaxPadding {
			return fmt.Errorf("padding behind %s: that makes more than %d bytes", p.sections[i].Name, uint64(layout.MaxPadding))
		}
	}
	taken := make(map[int]bool, len(e.slots))
	for i, to := range e.slots {
		_, moves := e.slots[to]
		if !plain(i) || !plain(to) || !moves || taken[to] {
			return fmt.Errorf("section %d of %s can't take the index %d", i, p.path, to)
		}
		taken[to] = true
	}
	return nil
}

// place sets where in the file a section is, and its size in bytes.
func (p *edited) place(i int, offset, size uint64) error {
	// Elf64_Shdr: sh_offset at 24, sh_size at 32.
	var header [16]byte
	binary.LittleEndian.PutUint64(header[:8], offset)
	binary.LittleEndian.PutUint64(header[8:], size)
	_, err := p.file.WriteAt(header[:], p.headers+int64(slot(p.slots, i))*elfSectionHeader64+24)
	return err
}

// slot is the index that a section takes.
func slot(slots map[int]int, i int) int {
	if to, ok := slots[i]; ok {
		return to
	}
	return i
}

// arrange gives sections other indices, without padding: their headers change
// places, and so does each index in symbols, relocations, groups and links.
func (p *edited) arrange(slots map[int]int) error {
	in, err := os.Open(p.path)
	if err != nil {
		return err
	}
	defer in.Close()
	read := func(i int) ([]byte, error) {
		s := p.sections[i]
		data := make([]byte, s.Size)
		_, err := in.ReadAt(data, int64(s.Offset))
		return data, err
	}
	old := make([]byte, len(p.sections)*elfSectionHeader64)
	if _, err := in.ReadAt(old, p.headers); err != nil {
		return err
	}
	headers := bytes.Clone(old)
	u16, u32 := binary.LittleEndian.Uint16, binary.LittleEndian.Uint32
	put16, put32 := binary.LittleEndian.PutUint16, binary.LittleEndian.PutUint32
	var symbols, long []byte // the symbol table; the indices that do not fit into it
	symtab, longAt := 0, 0
	for i, s := range p.sections {
		to := slot(slots, i) * elfSectionHeader64
		copy(headers[to:to+elfSectionHeader64], old[i*elfSectionHeader64:])
		if i == 0 {
			continue // counts that do not fit into the file's header
		}
		// Elf64_Shdr: sh_link at 40, sh_info at 44.
		put32(headers[to+40:], uint32(slot(slots, int(s.Link))))
		if s.Type == elf.SHT_REL || s.Type == elf.SHT_RELA || s.Flags&elf.SHF_INFO_LINK != 0 {
			put32(headers[to+44:], uint32(slot(slots, int(s.Info))))
		}
		switch s.Type {
		case elf.SHT_SYMTAB:
			symtab = i
			symbols, err = read(i)
		case elf.SHT_SYMTAB_SHNDX:
			longAt = i
			long, err = read(i)
		case elf.SHT_GROUP:
			var members []byte
			if members, err = read(i); err != nil {
				return err
			}
			for at := 4; at+4 <= len(members); at += 4 {
				put32(members[at:], uint32(slot(slots, int(u32(members[at:])))))
			}
			_, err = p.file.WriteAt(members, int64(s.Offset))
		}
		if err != nil {
			return err
		}
	}
	for n := 0; (n+1)*symbolSize <= len(symbols); n++ {
		field := symbols[n*symbolSize+6:] // st_shndx
		section := int(u16(field))
		if section == int(elf.SHN_XINDEX) && 4*n+4 <= len(long) {
			section = int(u32(long[4*n:]))
		} else if section >= int(elf.SHN_LORESERVE) {
			continue
		}
		to, ok := slots[section]
		switch {
		case !ok:
		case to < int(elf.SHN_LORESERVE):
			put16(field, uint16(to))
			if long != nil {
				put32(long[4*n:], 0)
			}
		case 4*n+4 > len(long):
			return fmt.Errorf("%s: no SHT_SYMTAB_SHNDX for symbols of section %d", p.path, to)
		default:
			put16(field, uint16(elf.SHN_XINDEX))
			put32(long[4*n:], uint32(to))
		}
	}
	for _, write := range []struct {
		data []byte
		at   int64
	}{{headers, p.headers}, {symbols, int64(p.sections[symtab].Offset)}, {long, int64(p.sections[longAt].Offset)}} {
		if write.data == nil {
			continue
		}
		if _, err := p.file.WriteAt(write.data, write.at); err != nil {
			return err
		}
	}
	p.slots, p.lengthened = slots, p.lengthened[:0]
	return nil
}
