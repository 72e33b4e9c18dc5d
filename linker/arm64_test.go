package linker

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
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

// runner runs programs of a toolchain in a folder.
func runner(t *testing.T, tools kbuild.Toolchain, dir string) func(argv ...string) {
	return func(argv ...string) {
		t.Helper()
		if _, err := host.Output(t.Context(), dir, host.Environment(tools.PATH()), argv...); err != nil {
			t.Fatal(err)
		}
	}
}

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
	run := runner(t, tools, dir)
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
	run := runner(t, tools, dir)
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

// arm64Delta are functions that look at each other and at data by all kinds of arm64's
// relocations: data within 1 MiB, beyond, and about there.
func arm64Delta() string {
	var s strings.Builder
	const n = 40
	for i := range n {
		fmt.Fprintf(&s, `
	.section .text.m%[1]d, "ax", %%progbits
	.globl m%[1]d
	.balign %[3]d
m%[1]d:
	bl m%[2]d
	adrp x0, near
	add x0, x0, :lo12:near
	adrp x1, border
	add x1, x1, :lo12:border
	adrp x2, far
	add x2, x2, :lo12:far
	adrp x3, m%[2]d
	add x3, x3, :lo12:m%[2]d
	adrp x4, far
	ldr q0, [x4, :lo12:far]
	ldr x5, [x4, :lo12:far]
	adrp x6, m%[2]d
	ldrb w7, [x6, :lo12:m%[2]d]
	ldrh w7, [x6, :lo12:m%[2]d]
	ldr w7, [x6, :lo12:m%[2]d]
	adrp x8, m%[2]d + 4
	add x8, x8, :lo12:m%[2]d + 4
	.space %[4]d
	b m%[2]d
	.section .addresses, "a"
	.quad m%[1]d, m%[2]d - .
	.word m%[1]d - ., m%[1]d
`, i, (i+7)%n, 4<<(i%5), i*52%300*4)
	}
	s.WriteString("\t.section .fixed, \"ax\"\n\t.globl start\nstart:\n\tbl m3\n\tadrp x0, m5\n\tldr w1, [x0, :lo12:m5]\n\tadrp x2, m9\n\tadd x2, x2, :lo12:m9\n")
	s.WriteString("\t.data\n\t.globl near\n\t.balign 32\nnear:\t.quad m1\n\t.section .border, \"aw\"\n\t.globl border\nborder:\t.quad m2\n\t.section .far, \"aw\"\n\t.globl far\n\t.balign 32\nfar:\t.quad m3, m4\n")
	return s.String()
}

// Where border stands, half of the functions reach it by adr.
const arm64DeltaScript = `SECTIONS {
	.text 0x400000 : { *(.text.*) }
	. = ALIGN(0x20000);
	.addresses : { *(.addresses) }
	.data : { *(.data) }
	. = 0x502000;
	.fixed : { *(.fixed) }
	. = 0x503000;
	.border : { *(.border) }
	. = 0x700000;
	.far : { *(.far) }
}
`

// Delta links of arm64 give lld's images, and a fault in what is special there is seen.
func TestDeltaARM64(t *testing.T) {
	tools, err := kbuild.FindToolchain(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := runner(t, tools, dir)
	read := func(name string) []byte {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for name, text := range map[string]string{"a.s": arm64Delta(), "lds": arm64DeltaScript} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run(filepath.Join(tools.Dir, "clang"), "--target=aarch64-linux-gnu", "-c", "-o", "whole.o", "a.s")
	object, err := openObject(filepath.Join(dir, "whole.o"))
	if err != nil {
		t.Fatal(err)
	}
	edited, err := object.copyTo(filepath.Join(dir, "vmlinux.o"))
	if err != nil {
		t.Fatal(err)
	}
	defer edited.Close()
	var sections []layout.Section
	link := func(plan layout.Plan) []byte {
		t.Helper()
		var e edit
		if sections != nil {
			order, err := layout.Order(sections, plan.Order)
			if err != nil {
				t.Fatal(err)
			}
			e.slots = slots(sections, order)
			if e.padding, err = endings(sections, order, plan); err != nil {
				t.Fatal(err)
			}
		}
		if err := edited.edit(e); err != nil {
			t.Fatal(err)
		}
		run(tools.Linker(), "-e", "start", "-T", "lds", "-Map=map", "-o", "vmlinux", "vmlinux.o")
		return read("vmlinux")
	}
	base := link(layout.Plan{})
	file, err := elf.NewFile(bytes.NewReader(base))
	if err != nil {
		t.Fatal(err)
	}
	linkMap := read("map")
	if sections, err = readLayout(bytes.NewReader(linkMap), "vmlinux.o", file, ""); err != nil {
		t.Fatal(err)
	}
	for i, s := range sections {
		sections[i].Index = object.index[s.Name]
	}
	layout.SetGroups(sections)
	o, err := newLinkedObject("vmlinux.o", read("whole.o"))
	if err != nil {
		t.Fatal(err)
	}
	sound, err := newTemplate(linkedImage{raw: base, finished: base, linkMap: linkMap}, arm64DeltaScript, []*linkedObject{o}, sections, nil)
	if err != nil {
		t.Fatal(err)
	}
	plans := randomPlans(sections, 40)[:40]
	var want [][]byte
	relaxed := map[bool]int{}
	for _, plan := range plans {
		image := link(plan)
		relaxed[bytes.Count(image, []byte{0x1f, 0x20, 0x03, 0xd5}) != bytes.Count(base, []byte{0x1f, 0x20, 0x03, 0xd5})]++
		want = append(want, image)
	}
	if relaxed[true] == 0 {
		t.Error("no layout relaxes others than the baseline")
	}
	model := layout.NewModel(sections)
	same := func(m *template) (n int) {
		for i, plan := range plans {
			a, err := model.Arrange(plan)
			if err != nil {
				t.Fatal(err)
			}
			p, err := m.place(a)
			if err != nil {
				t.Fatal(err)
			}
			got := bytes.Clone(m.base)
			if err := m.link(p, got, m.text.Addr+m.text.Size); err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(got, want[i]) {
				n++
			}
		}
		return n
	}
	if n := same(sound); n != len(plans) {
		t.Fatalf("%d of %d images are lld's", n, len(plans))
	}
	drop := func(pages *[]pageField, form pageForm) bool {
		i := slices.IndexFunc(*pages, func(f pageField) bool { return f.form == form && f.target > 0 })
		if i >= 0 {
			*pages = slices.Delete(slices.Clone(*pages), i, i+1)
		}
		return i >= 0
	}
	for form := pageOf; form <= pageAndRest; form++ {
		broken := *sound
		if !drop(&broken.pages, form) || same(&broken) == len(plans) {
			t.Errorf("form %d in what stays: a field that is left out is not seen", form)
		}
		broken = *sound
		broken.moving = slices.Clone(sound.moving)
		n := len(broken.moving) - 1
		for n >= 0 && !drop(&broken.moving[n].pages, form) {
			n--
		}
		if n < 0 || same(&broken) == len(plans) {
			t.Errorf("form %d in what moves: a field that is left out is not seen", form)
		}
	}
	broken := *sound
	broken.moving = slices.Clone(broken.moving)
	dropField(&broken, func(f field) bool { return f.branch })
	if n := same(&broken); n == len(plans) {
		t.Error("a branch that is left out is not seen")
	}
}

// What Cortex-A53's erratum could spoil.
func TestCouldSpoil(t *testing.T) {
	const page, load, store, literal, pair, other, uses = 0x90000000, 0xf9400021, 0xf9000021, 0x58000001, 0xa9400c22, 0xd503201f, 0xf9400003 // x0; x1, [x1]; x1, [x1]; x1; x2, x3, [x1]; nop; x3, [x0]
	for _, test := range []struct {
		code []uint32
		want bool
	}{
		{[]uint32{page, load, uses}, true},
		{[]uint32{page, store, uses}, true},
		{[]uint32{page, literal, uses}, true},
		{[]uint32{page, load, other, uses}, true},
		{[]uint32{page, pair, uses}, false},      // ldp is none of them
		{[]uint32{page, uses &^ 3, uses}, false}, // ldr x0, [x0]: the page is gone
		{[]uint32{page, other, uses}, false},     // no load or store between
		{[]uint32{page, load, load}, false},      // of another register
		{[]uint32{page + 5, load, uses}, false},  // another page
		{[]uint32{page | 1<<31>>1, load}, false}, // cut short
	} {
		var code []byte
		for _, w := range test.code {
			code = binary.LittleEndian.AppendUint32(code, w)
		}
		if got := len(code) >= 12 && couldSpoil(code); got != test.want {
			t.Errorf("%08x: %v", test.code, got)
		}
	}
}
