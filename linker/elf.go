package linker

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// openELF opens a 64-bit little-endian ELF file. The error, which names the
// file, is that it is none, or not whole: headers or a section end behind the
// end of the file.
func openELF(path string) (*wholeELF, error) {
	raw, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := raw.Stat()
	if err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	f, err := newELF(raw, info.Size())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), raw.Close())
	}
	f.raw = raw
	return f, nil
}

// wholeELF is an ELF file that has been checked.
type wholeELF struct {
	*elf.File
	headers int64 // file offset of the section header table
	raw     *os.File
}

func (f *wholeELF) Close() error { return f.raw.Close() }

// What debug/elf copies of a file must not be many times the file: many names
// may begin in one long text.
const (
	maxName  = 4096 // bytes; the kernel's own limit for symbols is 512
	maxNames = 8    // all names of sections, to the size of the file
)

// newELF reads the headers of an ELF file of size bytes. It takes some times
// the file's size of memory at most, whatever the headers claim.
func newELF(r io.ReaderAt, size int64) (*wholeELF, error) {
	var head elf.Header64
	if err := readAt(r, &head, 0); err != nil {
		return nil, badELF(err)
	}
	class, data, kind := elf.Class(head.Ident[elf.EI_CLASS]), elf.Data(head.Ident[elf.EI_DATA]), elf.Type(head.Type)
	switch {
	case string(head.Ident[:4]) != elf.ELFMAG:
		return nil, fmt.Errorf("no ELF file: it begins % x", head.Ident[:4])
	case class != elf.ELFCLASS64 || data != elf.ELFDATA2LSB:
		return nil, fmt.Errorf("not a 64-bit little-endian ELF file (%v, %v, %v)", kind, class, data)
	case head.Shoff != 0 && head.Shentsize != elfSectionHeader64:
		return nil, fmt.Errorf("section headers of %d bytes, want %d", head.Shentsize, elfSectionHeader64)
	}
	if err := checkHeaders(r, uint64(size), head); err != nil {
		return nil, err
	}
	file, err := elf.NewFile(r)
	if err != nil {
		return nil, badELF(err)
	}
	for _, s := range file.Sections {
		if s.Type != elf.SHT_NOBITS && (s.Offset > uint64(size) || s.FileSize > uint64(size)-s.Offset) {
			return nil, fmt.Errorf("truncated: section %s ends at byte %d of %d", s.Name, s.Offset+s.FileSize, size)
		}
	}
	for i, p := range file.Progs {
		if p.Off > uint64(size) || p.Filesz > uint64(size)-p.Off {
			return nil, fmt.Errorf("truncated: segment %d ends at byte %d of %d", i, p.Off+p.Filesz, size)
		}
	}
	return &wholeELF{File: file, headers: int64(head.Shoff)}, nil
}

// checkHeaders checks that a file has the section headers that it claims, and
// that the names of its sections are bounded.
func checkHeaders(r io.ReaderAt, size uint64, head elf.Header64) error {
	if head.Shoff == 0 {
		return nil
	}
	var first elf.Section64
	if err := readAt(r, &first, int64(head.Shoff)); err != nil {
		return badELF(err)
	}
	n, names := uint64(head.Shnum), uint64(head.Shstrndx)
	if n == 0 {
		n = first.Size
	}
	if names == uint64(elf.SHN_XINDEX) {
		names = uint64(first.Link)
	}
	if n > (size-min(size, head.Shoff))/elfSectionHeader64 {
		return badELF(io.ErrUnexpectedEOF)
	}
	if names == 0 || names >= n {
		return nil // debug/elf says what that means
	}
	headers := make([]byte, n*elfSectionHeader64)
	if _, err := r.ReadAt(headers, int64(head.Shoff)); err != nil {
		return badELF(err)
	}
	// Elf64_Shdr: sh_name at 0, sh_offset at 24, sh_size at 32.
	u32, u64 := binary.LittleEndian.Uint32, binary.LittleEndian.Uint64
	table := headers[names*elfSectionHeader64:]
	offset, length := u64(table[24:]), u64(table[32:])
	if elf.SectionType(u32(table[4:])) == elf.SHT_NOBITS || offset > size || length > size-offset {
		return badELF(io.ErrUnexpectedEOF)
	}
	text := make([]byte, length)
	if _, err := r.ReadAt(text, int64(offset)); err != nil && length > 0 {
		return badELF(err)
	}
	var total uint64
	for i := range n {
		at := min(uint64(u32(headers[i*elfSectionHeader64:])), length)
		name := text[at:min(at+maxName, length)]
		end := bytes.IndexByte(name, 0)
		if end < 0 && len(name) == maxName {
			return fmt.Errorf("the name of section %d has more than %d bytes: %.40q", i, maxName, name)
		}
		if total += uint64(max(end, 0)); total > maxNames*size {
			return fmt.Errorf("the names of its sections have more than %d times the bytes of the file", maxNames)
		}
	}
	return nil
}

// sectionBytes are the contents of a section of a file that newELF has read.
// What is compressed is refused: it may be of any size.
func sectionBytes(s *elf.Section) ([]byte, error) {
	if s.Type == elf.SHT_NOBITS || s.Flags&elf.SHF_COMPRESSED != 0 || strings.HasPrefix(s.Name, ".zdebug") {
		return nil, fmt.Errorf("section %s is compressed or has no contents", s.Name)
	}
	data := make([]byte, s.FileSize)
	if _, err := s.ReadAt(data, 0); err != nil && len(data) > 0 {
		return nil, badELF(err)
	}
	return data, nil
}

func readAt(r io.ReaderAt, v any, offset int64) error {
	return binary.Read(io.NewSectionReader(r, offset, 1<<16), binary.LittleEndian, v)
}

func badELF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("truncated: the file ends before its headers do")
	}
	return err
}

const elfSectionHeader64 = 64 // sizeof(Elf64_Shdr)
