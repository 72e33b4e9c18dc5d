package linker

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// object is a relocatable ELF file whose input sections can be lengthened.
type object struct {
	path     string
	sections []elf.SectionHeader // all of them, 0 included
	index    map[string]int      // section name as in Padding.Section -> index
	headers  int64               // file offset of the section header table
	fill     byte                // what lld fills padding in text with
}

// openObject reads the section headers of a 64-bit little-endian ET_REL file.
// A file with more than 65,279 sections (a vmlinux.o has 280,000) is read too.
func openObject(path string) (*object, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, badELF(err))
	}
	defer f.Close()
	if f.Type != elf.ET_REL || f.Class != elf.ELFCLASS64 || f.Data != elf.ELFDATA2LSB {
		return nil, fmt.Errorf("%s: not a 64-bit little-endian relocatable object (%v, %v)", path, f.Type, f.Class)
	}
	raw, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	info, err := raw.Stat()
	if err != nil {
		return nil, err
	}
	var head elf.Header64
	if err := readAt(raw, &head, 0); err != nil {
		return nil, fmt.Errorf("%s: %w", path, badELF(err))
	}
	o := &object{path: path, headers: int64(head.Shoff), index: make(map[string]int, len(f.Sections))}
	if f.Machine == elf.EM_X86_64 {
		o.fill = 0xcc // int3: lld/ELF/Arch/X86_64.cpp, trapInstr
	}
	seen := make(map[string]int, len(f.Sections))
	for i, s := range f.Sections {
		o.sections = append(o.sections, s.SectionHeader)
		if s.Type != elf.SHT_NOBITS && (s.Offset > uint64(info.Size()) || s.FileSize > uint64(info.Size())-s.Offset) {
			return nil, fmt.Errorf("%s: truncated: section %s ends at byte %d of %d", path, s.Name, s.Offset+s.FileSize, info.Size())
		}
		seen[s.Name]++
		o.index[sectionName(s.Name, seen[s.Name])] = i
	}
	return o, nil
}

// sectionName tells the nth section of a name from the first.
func sectionName(name string, nth int) string {
	if nth < 2 {
		return name
	}
	return fmt.Sprintf("%s#%d", name, nth)
}

func badELF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("truncated: the file ends before its headers do")
	}
	return err
}

// padded is a copy of an object whose padding can be changed again and again:
// only what is lengthened is written, not the whole object.
type padded struct {
	*object
	file       *os.File
	size       int64 // bytes of the copy without padding
	lengthened []int // sections, by index
}

// copyTo copies the object to path, by cloning it where the file system can.
func (o *object) copyTo(path string) (_ *padded, err error) {
	in, err := os.Open(o.path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	out, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	size, err := io.Copy(out, in) // copy_file_range
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return &padded{object: o, file: out, size: size}, nil
}

func (p *padded) Close() error { return p.file.Close() }

// pad makes the copy the object with bytes of padding appended to the end of
// sections, given by index, and with no other padding. Relocations and symbols
// are relative to the beginning of their section, so nothing else changes:
// each lengthened section moves to the end of the file, and its header
// follows.
func (p *padded) pad(padding map[int]uint64) error {
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
		pad := padding[i]
		if pad == 0 {
			continue
		}
		for align := int64(max(s.Addralign, 1)); (p.size+int64(tail.Len()))%align != 0; {
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

// place sets where in the file a section is, and its size in bytes.
func (p *padded) place(i int, offset, size uint64) error {
	// Elf64_Shdr: sh_offset at 24, sh_size at 32.
	var header [16]byte
	binary.LittleEndian.PutUint64(header[:8], offset)
	binary.LittleEndian.PutUint64(header[8:], size)
	_, err := p.file.WriteAt(header[:], p.headers+int64(i)*elfSectionHeader64+24)
	return err
}

const elfSectionHeader64 = 64 // sizeof(Elf64_Shdr)
