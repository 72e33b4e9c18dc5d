package linker

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"unlucky/host"
	"unlucky/layout"
	"unlucky/linker/kbuild"
)

// compile makes an object of C source, with a section per function.
func compile(t testing.TB, source string, flags ...string) string {
	t.Helper()
	tools, err := kbuild.FindToolchain(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c, o := filepath.Join(dir, "x.c"), filepath.Join(dir, "x.o")
	if err := os.WriteFile(c, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	argv := append([]string{filepath.Join(tools.Dir, "clang"), "-c", "-ffunction-sections", "-o", o, c}, flags...)
	if _, err := host.Output(t.Context(), dir, host.Environment(tools.PATH()), argv...); err != nil {
		t.Fatal(err)
	}
	return o
}

// A lengthened section keeps its bytes, its padding is int3, and everything
// else stays as it was; nothing is left of an earlier padding.
func TestWritePadded(t *testing.T) {
	path := compile(t, "int g; int f(void) { return g; }\nint h(void) { return f(); }\n", "-O1", "--target=x86_64-linux-gnu")
	o, err := openObject(path)
	if err != nil {
		t.Fatal(err)
	}
	f := o.index[".text.f"]
	if f == 0 {
		t.Fatal("no .text.f")
	}
	padded := writePadded(t, o, map[int]uint64{o.index[".text.h"]: 160}, map[int]uint64{f: 48})
	before, after := contentsOf(t, path), contentsOf(t, padded)
	if len(before) != len(after) {
		t.Fatalf("%d sections became %d", len(before), len(after))
	}
	for i := range before {
		want := before[i]
		if i == f {
			want = append(bytes.Clone(want), bytes.Repeat([]byte{0xcc}, 48)...)
		}
		if !bytes.Equal(after[i], want) {
			t.Errorf("section %d: % x, want % x", i, after[i], want)
		}
	}
}

// writePadded copies an object and pads the copy with one after the other.
func writePadded(t testing.TB, o *object, paddings ...map[int]uint64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "padded.o")
	p, err := o.copyTo(path)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, padding := range paddings {
		if err := p.edit(edit{padding: padding}); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func contentsOf(t testing.TB, path string) [][]byte {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out [][]byte
	for _, s := range f.Sections {
		if s.Type == elf.SHT_NOBITS || s.Type == elf.SHT_NULL {
			out = append(out, nil)
			continue
		}
		data := make([]byte, s.FileSize)
		if _, err := s.ReadAt(data, 0); err != nil && len(data) > 0 {
			t.Fatal(err)
		}
		out = append(out, data)
	}
	return out
}

// A kernel of a distribution's size has more sections than e_shnum can count.
func TestManySections(t *testing.T) {
	const functions = 70_000
	path := compileSections(t, functions, 1)
	o, err := openObject(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(o.sections) < functions {
		t.Fatalf("%d sections, want at least %d", len(o.sections), functions)
	}
	last := len(o.sections) - 1
	for ; o.sections[last].Name != ".text.f99996"; last-- { // 69999, its digits backwards
	}
	padded := writePadded(t, o, map[int]uint64{last: 16})
	again, err := openObject(padded)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := again.sections[last].Size, o.sections[last].Size+16; got != want {
		t.Errorf("the section has %d bytes, want %d", got, want)
	}
}

// compileSections makes an object with a section for each of n functions,
// .text.f with the digits of its number backwards.
func compileSections(t testing.TB, n, bytes int) string {
	t.Helper()
	var source strings.Builder
	for i := range n {
		source.WriteString("\t.section .text.f")
		for n := i; ; n /= 10 {
			source.WriteByte(byte('0' + n%10))
			if n < 10 {
				break
			}
		}
		fmt.Fprintf(&source, ", \"ax\"\n\t.skip %d, 0xc3\n", bytes)
	}
	return compile(t, "__asm__("+asmString(source.String())+");\n", "--target=x86_64-linux-gnu")
}

// BenchmarkPad pads as many functions as a seed does, in objects with the text
// of a small kernel and of x86_64_defconfig.
func BenchmarkPad(b *testing.B) {
	for _, functions := range []int{10_808, 56_853} {
		b.Run(fmt.Sprint(functions), func(b *testing.B) {
			o, err := openObject(compileSections(b, functions, 200))
			if err != nil {
				b.Fatal(err)
			}
			p, err := o.copyTo(filepath.Join(b.TempDir(), "padded.o"))
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			padding := map[int]uint64{}
			for i, s := range o.sections {
				if i%16 == 0 && strings.HasPrefix(s.Name, ".text.") {
					padding[i] = 16
				}
			}
			for b.Loop() {
				if err := p.edit(edit{padding: padding}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func asmString(s string) string {
	return `"` + strings.NewReplacer("\n", `\n`, "\t", `\t`, `"`, `\"`).Replace(s) + `"`
}

// corpus are the ELF files of go-fuzz-corpus, as they are and as objects: from
// the folder GO_FUZZ_CORPUS, or from shared/corpus beside the repository.
func corpus(t testing.TB) (files [][]byte) {
	t.Helper()
	dir := os.Getenv("GO_FUZZ_CORPUS")
	if dir == "" {
		dir = "../../shared/corpus/go-fuzz-corpus"
	}
	paths, _ := filepath.Glob(filepath.Join(dir, "elf/corpus/*"))
	if len(paths) == 0 {
		t.Logf("NOT TESTED: the ELF files of go-fuzz-corpus: %s has no elf/corpus, and GO_FUZZ_CORPUS names no other folder", dir)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, data)
		if len(data) > 16 {
			object := bytes.Clone(data)
			object[16] = byte(elf.ET_REL) // e_type
			files = append(files, object)
		}
	}
	return files
}

// seedObjects are objects of clang, with groups, with more relocations than
// code, with compressed sections, and of other machines.
func seedObjects(t testing.TB) (files [][]byte) {
	t.Helper()
	const source = "int g; int f(void) { return g; }\nint h(void) { return f(); }\nint k(int x) { return x ? h() : f(); }\n" +
		"__asm__(\".section .text.c,\\\"axG\\\",@progbits,c,comdat\\n c: .long f - .\\n .section .text.d,\\\"ax\\\"\\n d: .long c - .\\n\");\n"
	for _, flags := range [][]string{{"--target=x86_64-linux-gnu"}, {"--target=x86_64-linux-gnu", "-g", "-gz"}, {"--target=aarch64-linux-gnu"}, {"--target=i386-linux-gnu"}} {
		data, err := os.ReadFile(compile(t, source, flags...))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, data)
	}
	return files
}

// FuzzObject: whatever openObject takes can be padded, and its sections of code
// and data can take each other's indices; what comes out is the same object as debug/elf
// reads it, up to the padding and the indices; and without an edit it is the
// same file again.
func FuzzObject(f *testing.F) {
	for _, data := range append(seedObjects(f), corpus(f)...) {
		f.Add(data, uint64(1))
	}
	f.Fuzz(func(t *testing.T, data []byte, random uint64) {
		dir := t.TempDir()
		path := filepath.Join(dir, "a.o")
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		o, err := openObject(path)
		if err != nil {
			return
		}
		// What to pad, and what to move where.
		r := rand.New(rand.NewPCG(random, 0))
		e := edit{padding: map[int]uint64{}}
		var from []int
		for i, s := range o.sections {
			if i == 0 || s.Type != elf.SHT_PROGBITS && s.Type != elf.SHT_NOBITS || s.Flags&elf.SHF_COMPRESSED != 0 {
				continue
			}
			if r.IntN(2) == 0 {
				e.padding[i] = 16 * uint64(1+r.IntN(4))
			}
			if r.IntN(4) > 0 {
				from = append(from, i)
			}
		}
		for n, to := range r.Perm(len(from)) {
			if e.slots == nil {
				e.slots = map[int]int{}
			}
			e.slots[from[n]] = from[to]
		}
		p, err := o.copyTo(filepath.Join(dir, "b.o"))
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		for _, e := range []edit{{padding: e.padding}, e, {slots: e.slots}} {
			if err := p.edit(e); err != nil {
				t.Fatalf("%+v: %v", e, err)
			}
			sameObject(t, path, p.file.Name(), e, o.fill)
		}
		if err := p.edit(edit{}); err != nil {
			t.Fatal(err)
		}
		if again, err := os.ReadFile(p.file.Name()); err != nil || !bytes.Equal(again, data) {
			t.Errorf("without an edit it is another file (%v)", err)
		}
	})
}

// sameObject checks by debug/elf that the object b is a with an edit.
func sameObject(t *testing.T, a, b string, e edit, fill byte) {
	t.Helper()
	if _, err := openObject(b); err != nil {
		t.Fatalf("the edited object is refused: %v", err)
	}
	old, err1 := elf.Open(a)
	now, err2 := elf.Open(b)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	defer old.Close()
	defer now.Close()
	if len(old.Sections) != len(now.Sections) {
		t.Fatalf("%d sections became %d", len(old.Sections), len(now.Sections))
	}
	raw := func(s *elf.Section) []byte {
		if s.Flags&elf.SHF_COMPRESSED != 0 || s.Type == elf.SHT_NOBITS || s.Type == elf.SHT_NULL {
			return nil
		}
		data := make([]byte, s.FileSize)
		if _, err := s.ReadAt(data, 0); err != nil && len(data) > 0 {
			t.Fatal(err)
		}
		return data
	}
	for i, s := range old.Sections {
		if i == 0 {
			continue
		}
		n := now.Sections[slot(e.slots, i)]
		want := s.SectionHeader
		want.Link = uint32(slot(e.slots, int(s.Link)))
		if s.Type == elf.SHT_REL || s.Type == elf.SHT_RELA || s.Flags&elf.SHF_INFO_LINK != 0 {
			want.Info = uint32(slot(e.slots, int(s.Info)))
		}
		if want.FileSize += e.padding[i]; e.padding[i] > 0 {
			want.Size, want.Offset = want.FileSize, n.Offset
		}
		if n.SectionHeader != want {
			t.Fatalf("section %d is %+v, want %+v", i, n.SectionHeader, want)
		}
		if s.Type == elf.SHT_SYMTAB || s.Type == elf.SHT_SYMTAB_SHNDX {
			continue
		}
		data := raw(s)
		if s.Type == elf.SHT_GROUP {
			for at := 4; at+4 <= len(data); at += 4 {
				binary.LittleEndian.PutUint32(data[at:], uint32(slot(e.slots, int(le32(data[at:])))))
			}
		}
		if s.Type != elf.SHT_NOBITS {
			data = append(data, bytes.Repeat([]byte{fill}, int(e.padding[i]))...)
		}
		if !bytes.Equal(raw(n), data) {
			t.Fatalf("section %d, %s, has other contents", i, s.Name)
		}
	}
	was, err1 := old.Symbols()
	is, err2 := now.Symbols()
	if fmt.Sprint(err1) != fmt.Sprint(err2) || len(was) != len(is) {
		t.Fatalf("%d symbols (%v) became %d (%v)", len(was), err1, len(is), err2)
	}
	for i, s := range was {
		if s.Section < elf.SHN_LORESERVE {
			s.Section = elf.SectionIndex(slot(e.slots, int(s.Section)))
		}
		if is[i] != s {
			t.Fatalf("symbol %d is %+v, want %+v", i, is[i], s)
		}
	}
}

// Headers that claim more than there is are refused at once, and nothing is
// allocated for what they claim.
func TestHostileObject(t *testing.T) {
	good := seedObjects(t)[0]
	u64 := binary.LittleEndian.Uint64
	headers := u64(good[40:]) // e_shoff
	put := func(at uint64, v any) func([]byte) []byte {
		return func(b []byte) []byte {
			var field bytes.Buffer
			binary.Write(&field, binary.LittleEndian, v)
			copy(b[at:], field.Bytes())
			return b
		}
	}
	o, err := newELF(bytes.NewReader(good), int64(len(good)))
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) uint64 {
		for i, s := range o.Sections {
			if s.Name == name {
				return headers + uint64(i)*elfSectionHeader64
			}
		}
		t.Fatal("no section ", name)
		return 0
	}
	many := func(b []byte) []byte { // 2^60 sections, by the size of section 0
		return put(headers+32, uint64(1)<<60)(put(60, uint16(0))(b))
	}
	names := func(b []byte) []byte { // 16,000 names, each the rest of one long text
		const n = 16_000
		text := bytes.Repeat([]byte{'x'}, 1<<20)
		text[len(text)-1] = 0
		b = append(b, text...)
		table := uint64(len(b))
		for i := range uint32(n) {
			header := make([]byte, elfSectionHeader64)
			binary.LittleEndian.PutUint32(header, uint32(len(text))-maxName+i%64+1)
			if i == 1 {
				binary.LittleEndian.PutUint32(header[4:], uint32(elf.SHT_STRTAB))
				binary.LittleEndian.PutUint64(header[24:], table-uint64(len(text)))
				binary.LittleEndian.PutUint64(header[32:], uint64(len(text)))
			}
			b = append(b, header...)
		}
		return put(62, uint16(1))(put(60, uint16(n))(put(40, table)(b)))
	}
	for _, test := range []struct {
		name, want string
		change     func([]byte) []byte
	}{
		{"2^60 sections", "truncated", many},
		{"a section of 2^60 bytes", "truncated: section .text.f ends at", put(at(".text.f")+32, uint64(1)<<60)},
		{"a symbol table of 2^60 bytes", "truncated: section .symtab ends at", put(at(".symtab")+32, uint64(1)<<60)},
		{"names of 2^60 bytes", "truncated", put(at(".strtab")+32, uint64(1)<<60)},
		{"a section at the end of all addresses", "", put(at(".text.f")+24, ^uint64(15))},
		{"headers at the end of all addresses", "", put(40, ^uint64(63))},
		{"names that are many times the file", "the names of its sections have more than", names},
		{"a name without an end", "more than 4096 bytes", func(b []byte) []byte {
			b = names(b)
			table := u64(b[40:])
			return put(table, uint32(0))(b)
		}},
		{"section headers of other size", "section headers of 65", put(58, uint16(65))},
		{"sections that overlap", "overlap", put(at(".text.f")+24, u64(good[at(".text.h")+24:]))},
		{"a section in the headers", "the section header table overlap", put(at(".text.f")+24, headers-1)},
		{"two symbol tables", "two sections of type SHT_SYMTAB", put(at(".comment")+4, uint32(elf.SHT_SYMTAB))},
	} {
		t.Run(test.name, func(t *testing.T) {
			data := test.change(bytes.Clone(good))
			path := filepath.Join(t.TempDir(), "x.o")
			if err := os.WriteFile(path, data, 0o644); err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			begin := time.Now()
			_, err := openObject(path)
			took := time.Since(begin)
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want %q with the file's name", err, test.want)
			}
			if bytes := after.TotalAlloc - before.TotalAlloc; bytes > 64<<20 || took > 5*time.Second {
				t.Errorf("%d bytes were allocated in %v", bytes, took)
			} else {
				t.Logf("%d bytes of %d allocated in %v", bytes, len(data), took)
			}
		})
	}
}

// Edits of what is no plain section, or of more than an image holds, are
// refused.
func TestHostileEdit(t *testing.T) {
	o, err := openObject(compile(t, "int g; int f(void) { return g; }\nint h(void) { return f(); }\n", "--target=x86_64-linux-gnu"))
	if err != nil {
		t.Fatal(err)
	}
	f, h, bss := o.index[".text.f"], o.index[".text.h"], o.index[".bss"]
	for name, e := range map[string]edit{
		"the null section":      {padding: map[int]uint64{0: 16}},
		"no such section":       {padding: map[int]uint64{len(o.sections): 16}},
		"below the first":       {padding: map[int]uint64{-1: 16}},
		"symbols":               {padding: map[int]uint64{o.index[".symtab"]: 16}},
		"too much of nothing":   {padding: map[int]uint64{bss: layout.MaxPadding + 1}},
		"too much":              {padding: map[int]uint64{f: layout.MaxPadding + 1}},
		"too much together":     {padding: map[int]uint64{f: layout.MaxPadding, h: 1}},
		"a sum that wraps":      {padding: map[int]uint64{f: 1 << 63, h: 1 << 63}},
		"the place of symbols":  {slots: map[int]int{f: o.index[".symtab"]}},
		"two in one place":      {slots: map[int]int{f: h, h: h}},
		"one place left empty":  {slots: map[int]int{f: h}},
		"a place that is not":   {slots: map[int]int{f: len(o.sections)}},
		"the place of the null": {slots: map[int]int{f: 0, 0: f}},
	} {
		p, err := o.copyTo(filepath.Join(t.TempDir(), "x.o"))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.edit(e); err == nil {
			t.Errorf("%s: %+v is taken", name, e)
		}
		p.Close()
	}
}
