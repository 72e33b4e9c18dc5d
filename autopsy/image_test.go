package autopsy

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// imageFile is the made-up kernel as an ELF file, with more symbols at addresses of
// their own, each of some bytes.
func imageFile(functions int, more map[string][2]uint64) []byte {
	k := kernel(functions, 0xffffffff81000000)
	var sites []byte
	const sitesAt = 0xffffffff81100000
	for n, s := range k.sites {
		sites = binary.LittleEndian.AppendUint32(sites, uint32(s.Address-sitesAt-uint64(4*n)))
	}
	names := []byte{0}
	symbols := make([]elf.Sym64, 1)
	add := func(name string, at, size uint64, section elf.SectionIndex) {
		symbols = append(symbols, elf.Sym64{Name: uint32(len(names)), Info: elf.ST_INFO(elf.STB_GLOBAL, elf.STT_FUNC), Shndx: uint16(section), Value: at, Size: size})
		names = append(append(names, name...), 0)
	}
	for _, f := range k.functions {
		add(f.Name, f.Address, f.Size, 1)
	}
	for name, at := range more {
		add(name, at[0], at[1], 1)
	}
	add("__return_sites", sitesAt, 0, 2)
	add("__return_sites_end", sitesAt+uint64(len(sites)), 0, 2)
	pack := func(v any) []byte {
		var b bytes.Buffer
		binary.Write(&b, binary.LittleEndian, v)
		return b.Bytes()
	}
	sections := []struct {
		name string
		elf.Section64
		data []byte
	}{
		{},
		{".text", elf.Section64{Type: uint32(elf.SHT_PROGBITS), Flags: uint64(elf.SHF_ALLOC | elf.SHF_EXECINSTR), Addr: k.text.address}, k.text.data},
		{".return_sites", elf.Section64{Type: uint32(elf.SHT_PROGBITS), Flags: uint64(elf.SHF_ALLOC), Addr: sitesAt}, sites},
		{".symtab", elf.Section64{Type: uint32(elf.SHT_SYMTAB), Link: 4, Info: 1, Entsize: elf.Sym64Size}, pack(symbols)},
		{".strtab", elf.Section64{Type: uint32(elf.SHT_STRTAB)}, names},
		{".shstrtab", elf.Section64{Type: uint32(elf.SHT_STRTAB)}, []byte("\x00.text\x00.return_sites\x00.symtab\x00.strtab\x00.shstrtab\x00")},
	}
	const header, programs = 64, 56
	var table, data []byte
	for n := range sections {
		s := &sections[n]
		if n > 0 {
			s.Name = uint32(bytes.Index(sections[5].data, []byte(s.name+"\x00")))
			s.Off, s.Size = uint64(header+programs+len(data)), uint64(len(s.data))
		}
		data = append(data, s.data...)
		table = append(table, pack(s.Section64)...)
	}
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Phoff: header, Shoff: uint64(header + programs + len(data)),
		Ehsize: header, Phentsize: programs, Phnum: 1, Shentsize: 64, Shnum: uint16(len(sections)), Shstrndx: 5}
	copy(h.Ident[:], "\x7fELF\x02\x01\x01")
	text := sections[1]
	out := append(pack(h), pack(elf.Prog64{Type: uint32(elf.PT_LOAD), Off: text.Off, Vaddr: text.Addr, Paddr: 0x1000000, Filesz: text.Size, Memsz: text.Size})...)
	return append(append(out, data...), table...)
}

func open(t testing.TB, data []byte) *Image {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	i, err := newImage(f)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// Functions that lie over each other, as only a hostile image has them, are not read
// over and over.
func TestOverlaps(t *testing.T) {
	more := map[string][2]uint64{}
	const functions, base = 2000, 0xffffffff81000000
	for n := range uint64(functions) {
		more[fmt.Sprint("over", n)] = [2]uint64{base + 32*n + 1, 32 * (functions - n)}
	}
	i := open(t, imageFile(functions, more))
	var all uint64
	for _, f := range i.functions {
		all += f.Size
	}
	if most := uint64(len(i.text.data)) * (maxNested + 1); all > most || len(i.sites) != functions || i.physical != 0x1000000 {
		t.Errorf("%d bytes of functions, want at most %d; %d sites, at %#x", all, most, len(i.sites), i.physical)
	}
}

// FuzzImage: an image of any bytes is refused, or read and compared with a memory of
// any bytes in space that is some times its own.
func FuzzImage(f *testing.F) {
	seed := imageFile(10, map[string][2]uint64{"outer": {0xffffffff81000008, 200}})
	f.Add(seed, []byte{0xe9, 1, 2, 0, 0})
	paths, _ := filepath.Glob(filepath.Join(os.Getenv("GO_FUZZ_CORPUS"), "elf", "corpus", "*"))
	for _, path := range paths {
		if data, err := os.ReadFile(path); err == nil {
			f.Add(data, []byte{})
		}
	}
	f.Fuzz(func(t *testing.T, data, memory []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		file, err := elf.NewFile(bytes.NewReader(data))
		if err != nil {
			return
		}
		i, err := newImage(file)
		if err != nil {
			return
		}
		r := &Run{Image: i, memory: bytes.Clone(i.text.data)}
		copy(r.memory, memory)
		for _, d := range Compare(r, nil) {
			if len(d.Memory.Bytes) > 2*maxShown || strings.Contains(d.String(), "\x00") {
				t.Errorf("%+v", d)
			}
		}
		Compare(r, i.OnDisk())
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20+4000*uint64(len(data)) {
			t.Errorf("%d bytes were allocated for a file of %d", n, len(data))
		}
	})
}
