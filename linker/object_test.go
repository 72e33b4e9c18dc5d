package linker

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// compile makes an object of C source, with a section per function.
func compile(t testing.TB, source string, flags ...string) string {
	t.Helper()
	tools, err := FindToolchain(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c, o := filepath.Join(dir, "x.c"), filepath.Join(dir, "x.o")
	if err := os.WriteFile(c, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	argv := append([]string{filepath.Join(tools.Dir, "clang"), "-c", "-ffunction-sections", "-o", o, c}, flags...)
	if _, err := output(t.Context(), dir, environment(tools.path()), argv...); err != nil {
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
	before, after := sections(t, path), sections(t, padded)
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

func sections(t testing.TB, path string) [][]byte {
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

// FuzzObject: whatever openObject takes can be padded, and is then the same
// object with one section longer.
func FuzzObject(f *testing.F) {
	for _, flags := range [][]string{{"--target=x86_64-linux-gnu"}, {"--target=aarch64-linux-gnu"}, {"--target=i386-linux-gnu"}} {
		data, err := os.ReadFile(compile(f, "int g; int f(void) { return g; }\n", flags...))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	if corpus := os.Getenv("GO_FUZZ_CORPUS"); corpus != "" {
		files, _ := filepath.Glob(filepath.Join(corpus, "elf/corpus/*"))
		if len(files) == 0 {
			f.Fatalf("GO_FUZZ_CORPUS: no elf/corpus in %s", corpus)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, "a.o")
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		o, err := openObject(path)
		if err != nil {
			return
		}
		i := len(o.sections) / 2
		if i == 0 || o.sections[i].Type == elf.SHT_NOBITS {
			return
		}
		again, err := openObject(writePadded(t, o, map[int]uint64{i: 16}))
		if err != nil {
			t.Fatalf("the padded object is refused: %v", err)
		}
		for j, s := range again.sections {
			want := o.sections[j].Size
			if j == i {
				want += 16
			}
			if s.Size != want {
				t.Errorf("section %d has %d bytes, want %d", j, s.Size, want)
			}
		}
	})
}
