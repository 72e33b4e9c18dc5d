package linker

import (
	"bytes"
	"debug/elf"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"unlucky/host"
	"unlucky/layout"
	"unlucky/linker/kbuild"
)

// arm64Text has, between two functions, one that Cortex-A53's erratum 843419 spoils (as
// in lld/test/ELF/aarch64-cortex-a53-843419-recognize.s), and a call that is too far.
const arm64Text = `
	.section .text.first, "ax", %progbits
	.globl first
first:
	bl far
	ret
	.section .text.spoiled, "ax", %progbits
before:
	.space 4096 - 8
	.globl spoiled
spoiled:
	adrp x0, data
	ldr x1, [x1]
	ldr x0, [x0, :lo12:data]
	ret
	.section .text.last, "ax", %progbits
	.globl last
last:
	ret
	.word 0x4d4e439c
	.section .far, "ax", %progbits
	.globl far
far:
	ret
	.data
	.byte 1
	.balign 32
	.globl data
data:
	.quad last
`

// arm64Script has it there, where SHIFT is 0; 64 bytes further on nothing is spoiled.
const arm64Script = `SECTIONS {
	.text 0x40000f80 : { *(.text.first) . = ALIGN(4096) + SHIFT; *(.text.spoiled) *(.text.last) }
	.data : { *(.data) }
	.bss : { *(.bss) }
	.far 0x50000000 : { *(.far) }
}
`

// What lld inserts is known by its symbols, the same symbols are left in whatever
// number it is, and the sections behind it are where they are placed.
func TestInserted(t *testing.T) {
	tools, err := kbuild.FindToolchain(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	run := func(argv ...string) {
		t.Helper()
		if _, err := host.Output(t.Context(), dir, host.Environment(tools.PATH()), argv...); err != nil {
			t.Fatal(err)
		}
	}
	write("a.s", arm64Text)
	object := filepath.Join(dir, "a.o")
	run(filepath.Join(tools.Dir, "clang"), "--target=aarch64-linux-gnu", "-c", "-o", object, "a.s")

	tables := map[string]symbolTable{} // by the first flags with which an image was linked
	for _, test := range []struct {
		flags string
		shift string
		want  []uint64 // sizes
	}{
		{"", "0", []uint64{16}},
		{"", "64", []uint64{16}},
		{"-pie", "0", []uint64{12}},
		{"--fix-cortex-a53-843419", "64", []uint64{16}},
		{"--fix-cortex-a53-843419", "0", []uint64{16, 8}},
		{"-pie --fix-cortex-a53-843419", "0", []uint64{12, 8}},
		{"-pie --fix-cortex-a53-843419", "64", []uint64{12}},
	} {
		script := write("lds", strings.ReplaceAll(arm64Script, "SHIFT", test.shift))
		image, sections := linkPlain(t, object, append(strings.Fields(test.flags), "-T", script, "-e", "first")...)
		table, err := readSymbolTable(image)
		if err != nil {
			t.Fatal(err)
		}
		var sizes []uint64
		for _, in := range table.inserted {
			sizes = append(sizes, in.Size)
		}
		if !slices.Equal(sizes, test.want) {
			t.Errorf("%q, %s: %+v is inserted, want sizes %d", test.flags, test.shift, table.inserted, test.want)
		}
		if first, ok := tables[test.flags]; ok && !first.same(table) {
			t.Errorf("%q: the symbols of two layouts are not the same", test.flags)
		}
		tables[test.flags] = table
		// The place of the last section hangs on it, and the link map does not have it.
		var own []uint64
		for _, s := range sections {
			own = append(own, s.Address)
		}
		last := slices.IndexFunc(sections, func(s layout.Section) bool { return s.Name == ".text.last" })
		if s := sections[max(last, 0)]; s.Function != "last" || s.Functions != 1 || sections[last-1].Name != ".text.spoiled" {
			t.Errorf("%q: sections %+v", test.flags, sections)
		}
		if _, err := checkPlaces(layout.NewModel(sections), layout.Plan{}, own, table.inserted...); err != nil {
			t.Errorf("%q: %v", test.flags, err)
		}
		if _, err := checkPlaces(layout.NewModel(sections), layout.Plan{}, own); len(test.want) > 1 && err == nil {
			t.Errorf("%q: all is in its place without what is inserted", test.flags)
		}
	}
}

// A flat image is what objcopy makes.
func TestFlat(t *testing.T) {
	tools, err := kbuild.FindToolchain(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(argv ...string) {
		t.Helper()
		if _, err := host.Output(t.Context(), dir, host.Environment(tools.PATH()), argv...); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"a.s": arm64Text + "\n.section .bss, \"aw\", %nobits\n.space 4096\n.section .note.x, \"a\", %note\n.word 1\n",
		"lds": "SECTIONS { .text 0x40000000 : { *(.text.*) *(.far) } .note : { *(.note.*) } . = ALIGN(0x4000); .data : { *(.data) } .bss : { *(.bss) } }\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run(filepath.Join(tools.Dir, "clang"), "--target=aarch64-linux-gnu", "-c", "-o", "a.o", "a.s")
	run(tools.Linker(), "-e", "first", "-T", "lds", "--build-id=sha1", "-o", "vmlinux", "a.o")
	run(filepath.Join(tools.Dir, "llvm-objcopy"), "-O", "binary", "-R", ".note", "-R", ".note.gnu.build-id", "-R", ".comment", "-S", "vmlinux", "Image")
	want, err := os.ReadFile(filepath.Join(dir, "Image"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := flattenFile(filepath.Join(dir, "vmlinux"))
	if err != nil || !bytes.Equal(got, want) || len(got) < 0x4000 {
		t.Errorf("%v, %d bytes; objcopy makes %d", err, len(got), len(want))
	}
	// What no kernel has: sections at both ends of the memory.
	far := &elf.File{Sections: []*elf.Section{
		{SectionHeader: elf.SectionHeader{Name: ".text", Type: elf.SHT_PROGBITS, Flags: elf.SHF_ALLOC, Addr: 0x1000, FileSize: 8}},
		{SectionHeader: elf.SectionHeader{Name: ".data", Type: elf.SHT_PROGBITS, Flags: elf.SHF_ALLOC, Addr: 1 << 60, FileSize: 8}},
	}}
	for _, f := range []*elf.File{far, {}} {
		if image, err := flatten(f); err == nil {
			t.Errorf("a flat image of %d bytes", len(image))
		}
	}
}
