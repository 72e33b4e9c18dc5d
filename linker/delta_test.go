package linker

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"unlucky/host"
	"unlucky/layout"
	"unlucky/linker/kbuild"
	"unlucky/scenarios"
)

// deltaKernel is testdata/tiny with all that a delta link knows of: a linker script behind
// whose text everything stays, and functions with tables of them. It has more code, in its
// script new in place of old, and is linked with flags.
func deltaKernel(t *testing.T, code, old, new string, flags ...string) (*Kernel, *[]string) {
	t.Helper()
	tree := filepath.Join(t.TempDir(), "tiny")
	if err := os.CopyFS(tree, os.DirFS("testdata/tiny")); err != nil {
		t.Fatal(err)
	}
	tools, err := kbuild.FindToolchain(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	sorttable := filepath.Join(t.TempDir(), "sorttable")
	if out, err := exec.Command(filepath.Join(tools.Dir, "clang"), "-O1", "-o", sorttable, "testdata/sorttable.c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lds, err := os.ReadFile("testdata/delta.lds")
	if err != nil || !strings.Contains(string(lds), old) {
		t.Fatal(old, err)
	}
	lds = []byte(strings.Replace(string(lds), old, new, 1))
	appendTo(t, filepath.Join(tree, "head.S"), functionsWithTables(40)+code)
	script := filepath.Join(tree, "scripts/link-vmlinux.sh")
	text, err := os.ReadFile(script)
	if err == nil {
		err = os.WriteFile(script, bytes.Replace(text, []byte("-o ${1}"), []byte(strings.Join(append(flags, "-o ${1}"), " ")), 1), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	appendTo(t, script, "[ -e scripts/sorttable ] || { mkdir -p scripts; cp "+sorttable+" scripts; }\n./scripts/sorttable vmlinux\n")
	if err := os.WriteFile(filepath.Join(tree, "vmlinux.lds"), lds, 0o644); err != nil {
		t.Fatal(err)
	}
	k, err := Prepare(t.Context(), t.TempDir(), scenarios.Kernel{Dir: tree, Arch: "x86_64", Config: "tinyconfig", Image: "vmlinux"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	var notes []string
	k.Note = func(format string, a ...any) { notes = append(notes, fmt.Sprintf(format, a...)) }
	return k, &notes
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, append(data, text...), 0o755)
	}
	if err == nil {
		err = os.Chmod(path, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// functionsWithTables are n functions m0, m1, ... in sections of their own, which look at each other
// by all kinds of relocations, as tables do at them. Of each the last stack frame is
// where the next function may begin.
func functionsWithTables(n int) string {
	var s strings.Builder
	for i := range n {
		next, before := (i+7)%n, (i+n-3)%n
		fmt.Fprintf(&s, `
	.section .text.m%[1]d, "ax"
	.balign %[4]d
	.globl m%[1]d
m%[1]d:	call m%[2]d
1:	leaq m%[3]d+1(%%rip), %%rax
	movq $m%[2]d, %%rcx
	movl $m%[3]d, %%ecx
	movabsq $_etext, %%rdx
	cmpl $lookup_end, by_hand_end(%%rip)
	call m%[1]d
	jmp local%[1]d
	.skip %[5]d, 0x90
local%[1]d:
	ret
2:
	.section .addresses, "a"
	.quad m%[1]d, m%[2]d - ., alias_before, by_hand_begin
	.long m%[1]d, local%[1]d - ., text_size
	.section .data.pointers, "aw"
	.quad local%[1]d, alias_behind
	.section .orc_unwind_ip, "a"
	.long 2b - ., m%[1]d - ., 1b - .
	.section .orc_unwind, "a"
	.byte 0, 0, 0, 0, 0, 0
	.byte 1, %[1]d, 0, 0, 0, 2
	.byte 2, %[1]d, 0, 0, 0, 2
	.section __ex_table, "a"
	.long 1b - ., m%[2]d - ., %[1]d
	.section __mcount_loc, "a"
	.quad m%[2]d, 1b
	.section .traps, "ao", @progbits, .text.m%[1]d
	.long 1b - ., %[1]d
`, i, next, before, 1<<(i%5), i*13%50)
	}
	s.WriteString("\t.section .orc_unwind_ip, \"a\"\n\t.long gdt - ., start - .\n\t.section .orc_unwind, \"a\"\n\t.byte 9, 9, 9, 9, 9, 2, 8, 8, 8, 8, 8, 2\n")
	return s.String()
}

// randomPlans are plans that pad, of every second one in another order.
func randomPlans(sections []layout.Section, n int) (plans []layout.Plan) {
	r := rand.New(rand.NewPCG(1, 2))
	groups := map[int][]string{}
	for _, s := range sections {
		if s.Group > 0 {
			groups[s.Group] = append(groups[s.Group], s.Name)
		}
	}
	for i := range n {
		var p layout.Plan
		for at, s := range sections {
			if s.Output == ".text" && layout.Paddable(sections, at) && r.IntN(20) == 0 {
				p.Paddings = append(p.Paddings, layout.Padding{Section: s.Name, Bytes: uint64(1 + r.IntN(300))})
			}
		}
		if i%2 == 1 {
			for _, g := range groups {
				g = slices.Clone(g)
				r.Shuffle(len(g), func(i, j int) { g[i], g[j] = g[j], g[i] })
				p.Order = append(p.Order, g...)
			}
		}
		plans = append(plans, p)
	}
	// One after which all behind .text stands elsewhere.
	p := plans[0]
	p.Paddings = slices.Clone(p.Paddings)
	p.Paddings[len(p.Paddings)-1].Bytes += 0x8000
	return append(plans, p, plans[1], p)
}

// linkPlans links plans with one worker.
func linkPlans(t *testing.T, k *Kernel, by Way, plans []layout.Plan) (digests []string, ways []Way) {
	t.Helper()
	k.By = by
	w, err := k.NewWorker()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, p := range plans {
		image, err := w.Link(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		digests, ways = append(digests, digestOf(t, image)), append(ways, image.By)
		if err := image.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	return digests, ways
}

// digestOf is that of an image, which is there.
func digestOf(t *testing.T, image Image) string {
	t.Helper()
	digest, err := image.Digest()
	if err != nil {
		t.Error(err)
	}
	return digest
}

// A delta link gives lld's images, byte for byte, in padded layouts and in other orders,
// once each kind has been compared with each template.
func TestDelta(t *testing.T) {
	testDelta(t, "", "", nil)
}

// So it does where an image keeps its relocations, for KASLR.
func TestDeltaEmitRelocs(t *testing.T) {
	testDelta(t, "", "", nil, "--emit-relocs", "--discard-none")
}

// So it does where a segment ends with the text, as on arm64.
func TestDeltaSegment(t *testing.T) {
	testDelta(t, "*(.addresses) } :text", "*(.addresses) } :data", []int{10, 17}) // in another template
}

func testDelta(t *testing.T, old, new string, byLLD []int, flags ...string) {
	t.Helper()
	k, notes := deltaKernel(t, "", old, new, flags...)
	sections, err := k.Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	plans := randomPlans(sections, 20)
	want, _ := linkPlans(t, k, Pass, plans)
	got, ways := linkPlans(t, k, Delta, plans)
	if !slices.Equal(got, want) {
		t.Errorf("images %.12s, by lld %.12s", got, want)
	}
	lld := append(byLLD, 0, 1, 20) // of a kind, or of a template, the first
	for i, way := range ways {
		if by := Delta; slices.Contains(lld, i) != (way != by) {
			t.Errorf("layout %d is linked by %v", i, way)
		}
	}
	if len(*notes) != 1 || !strings.Contains((*notes)[0], "linked by delta") {
		t.Errorf("notes %q", *notes)
	}
}

// What a delta link does wrongly is seen by the comparison, in the first layout of a kind and
// in the one that is due; then lld goes on.
func TestDeltaFaults(t *testing.T) {
	slow(t)
	k, notes := deltaKernel(t, "", "", "", "--emit-relocs")
	sections, err := k.Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	plans := randomPlans(sections, 6)
	want, _ := linkPlans(t, k, Pass, plans)
	linkPlans(t, k, Delta, plans)
	if len(k.delta.templates) != 2 || len(k.delta.templates[0].tables) != 3 || len(*notes) != 1 {
		t.Fatalf("%d templates, notes %q", len(k.delta.templates), *notes)
	}
	sound, proven := *k.delta.templates[0], k.delta.proven
	for _, test := range []struct {
		name  string
		fault func(*template)
	}{
		{"a call", func(m *template) { dropField(m, func(f field) bool { return f.relative && f.target > 0 }) }},
		{"a call of what stays", func(m *template) { dropField(m, func(f field) bool { return f.relative && f.target == 0 }) }},
		{"an address in code", func(m *template) { dropField(m, func(f field) bool { return !f.relative && !f.wide }) }},
		{"a wide address in code", func(m *template) { dropField(m, func(f field) bool { return f.wide }) }},
		{"a field that is relative", func(m *template) {
			m.fields = slices.Clone(m.fields)
			i := slices.IndexFunc(m.fields, func(f field) bool { return f.wide })
			m.fields[i].wide = false
			m.fields[i].at++
		}},
		{"a pointer", func(m *template) {
			i := slices.IndexFunc(m.fields, func(f field) bool { return f.wide && kept(m.base, f) < 0 })
			m.fields = slices.Delete(slices.Clone(m.fields), i, i+1)
		}},
		{"the place of a relocation that is kept", func(m *template) { dropKept(m, 0) }},
		{"its addend", func(m *template) { dropKept(m, 16) }},
		{"a symbol", func(m *template) { m.values = m.values[1:] }},
		{"a symbol of the script", func(m *template) {
			m.values = slices.DeleteFunc(slices.Clone(m.values), func(v value) bool { return v.target == m.names["_etext"].target })
		}},
		{"the fill", func(m *template) { m.fill[3] = 0x90 }},
		{"a byte that stays", func(m *template) {
			m.base = slices.Clone(m.base)
			m.base[len(m.base)-1] ^= 1
		}},
		{"a byte of a function", func(m *template) {
			m.base = slices.Clone(m.base)
			m.base[m.moving[len(m.moving)/2].offset] ^= 1
		}},
		{"an alignment", func(m *template) {
			m.moving = slices.Clone(m.moving)
			i := slices.IndexFunc(m.moving, func(s moving) bool { return s.align == 16 })
			m.moving[i].align = 4
		}},
		{"the order of what belongs to functions", func(m *template) { m.runs = nil }},
		{"the order of stack frames", func(m *template) {
			m.tables = slices.Clone(m.tables)
			m.tables[0].parts = slices.Clone(m.tables[0].parts)
			ends := &m.tables[0].parts[1]
			ends.data = slices.Clone(ends.data)
			first, last := ends.data[:ends.size], ends.data[len(ends.data)-int(ends.size):]
			for i := range first {
				first[i], last[i] = last[i], first[i]
			}
		}},
		{"the end of a function's stack frames", func(m *template) {
			m.tables = slices.Clone(m.tables)
			m.tables[0].parts = m.tables[0].parts[:1]
		}},
		{"exceptions", func(m *template) { m.tables = []sortedTable{m.tables[0], m.tables[2]} }},
		{"where one is mended", func(m *template) {
			m.tables = slices.Clone(m.tables)
			m.tables[1].fields = m.tables[1].fields[:1]
			m.tables[1].targets = everySecond(m.tables[1].targets)
		}},
		{"calls for ftrace", func(m *template) { m.tables = m.tables[:2] }},
		{"the size of a section", func(m *template) {
			m.outputs = maps.Clone(m.outputs)
			delete(m.outputs, ".text")
		}},
		{"an expression of the script", func(m *template) {
			m.entries = slices.Clone(m.entries)
			i := slices.IndexFunc(m.entries, func(e mapEntry) bool { return e.symbol == "by_hand_begin" })
			m.entries[i].to, _ = parseExpression(". + 64 - 64 + (1 * m_begin) - 0x100800")
		}},
		{"an alignment of the script", func(m *template) {
			m.entries = slices.DeleteFunc(slices.Clone(m.entries), func(e mapEntry) bool { return e.symbol == "." && e.align == 1 && e.out == ".text" && e.size == 3 })
		}},
	} {
		for _, due := range []bool{false, true} {
			broken := sound
			test.fault(&broken)
			k.delta.templates, k.delta.off, *notes = []*template{&broken}, false, nil
			k.delta.proven = map[provenDelta]bool{{&broken, padded}: due, {&broken, ordered}: due}
			if k.links.Store(0); due {
				k.links.Store(int64(checkEvery - 2)) // the second is compared
			}
			got, ways := linkPlans(t, k, Delta, plans[:4])
			last := len(*notes) == 2 && strings.Contains((*notes)[0], "gives another image than lld: ")
			if !last || !k.delta.off || ways[3] != Pass || got[3] != want[3] || !due && !slices.Equal(got, want[:4]) {
				t.Errorf("%s, due %v: linked by %v; notes %q", test.name, due, ways, *notes)
			}
		}
	}
	k.delta.templates, k.delta.off, k.delta.proven = []*template{&sound}, false, proven
}

// What a delta link does not understand, where it matters, is said, and lld links.
func TestDeltaNot(t *testing.T) {
	slow(t)
	for _, test := range []struct{ name, code, old, new, want string }{
		{"a relocation", "\t.section .text.got, \"ax\"\n\tmovq m1@GOTPCREL(%rip), %rax\n", "", "", "a relocation R_X86_64_REX_GOTPCRELX is not known"},
		{"an assertion", "", "ASSERT(SIZEOF", "ASSERT(m9 < 16M, \"\") ASSERT(SIZEOF", "an assertion of its linker script on"},
		{"an expression", "", "text_size = _etext - _stext", "text_size = 1 ? _etext - _stext : 0", "what its linker script says of text_size is not understood"},
		{"a function", "", "alias_behind = m5 + 4", "alias_behind = MAX(m5, 4)", "call is not known"},
		{"a byte of the script", "", ". += 3;", "BYTE(0x90) . += 2;", "what its linker script says of BYTE(0x90) is not understood"},
		{"what is behind the text moves", "", "ALIGN(0x8000)", "ALIGN(16)", "too much behind its text moves"},
	} {
		k, notes := deltaKernel(t, test.code, test.old, test.new)
		if _, err := k.Layout(t.Context()); err != nil {
			t.Fatal(err)
		}
		var plans []layout.Plan // each of which is longer
		for i := range maxTemplates + maxMissed + 4 {
			plans = append(plans, layout.Plan{Paddings: []layout.Padding{{Section: ".text.m5", Bytes: uint64(1 + 100*i)}}})
		}
		want, _ := linkPlans(t, k, Pass, plans)
		got, ways := linkPlans(t, k, Delta, plans)
		said := slices.ContainsFunc(*notes, func(note string) bool {
			return strings.Contains(note, "linked by lld, not by delta: ") && strings.Contains(note, test.want)
		})
		if n := len(*notes); n == 0 || !k.delta.off {
			t.Errorf("%s: notes %q, off: %v", test.name, *notes, k.delta.off)
		}
		if !said || !slices.Equal(got, want) || !slices.Contains(ways, Pass) {
			t.Errorf("%s: linked by %v; notes %q; the same images: %v", test.name, ways, *notes, slices.Equal(got, want))
		}
	}
}

// dropField leaves one field of a function out.
func dropField(m *template, which func(field) bool) {
	m.moving = slices.Clone(m.moving)
	for n := len(m.moving) - 1; n >= 0; n-- { // those move for sure
		if i := slices.IndexFunc(m.moving[n].fields, which); i >= 0 {
			m.moving[n].fields = slices.Delete(slices.Clone(m.moving[n].fields), i, i+1)
			return
		}
	}
	panic("there is no such field")
}

// dropKept leaves the last relocation that an image keeps as it is, at a byte of it.
func dropKept(m *template, part int) {
	for i := len(m.fields) - 1; i >= 0; i-- {
		if kept(m.base, m.fields[i]) == part {
			m.fields = slices.Delete(slices.Clone(m.fields), i, i+1)
			return
		}
	}
	panic("no relocation is kept")
}

// kept is what of a relocation that an image keeps a field is, by its place in that; -1 for
// another.
func kept(image []byte, f field) int {
	file, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		panic(err)
	}
	for _, s := range file.Sections {
		if s.Type == elf.SHT_RELA && f.at >= s.Offset && f.at < s.Offset+s.FileSize {
			return int(f.at-s.Offset) % relaSize
		}
	}
	return -1
}

func everySecond(list []int32) (half []int32) {
	for i := 0; i < len(list); i += 2 {
		half = append(half, list[i])
	}
	return half
}

// Assertions as scripts have them; what is not understood is not left out.
func TestAsserts(t *testing.T) {
	entries := readAsserts(`
/* ASSERT(no, "in a comment") */
. = ASSERT((fixed == 0),
           "fixed (at 1) is not 0");
ASSERT(SIZEOF(.got) == 0 || SIZEOF(.got) == 0x18, "GOT")
 ASSERT (. < 16M, "M")
ASSERT(open`)
	var got []string
	for _, e := range entries {
		got = append(got, fmt.Sprint(e.to != nil, e.depend))
	}
	want := []string{"true [fixed]", "true [.got .got]", "false [ASSERT . M M]", "false [ASSERT open]"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// A full disk is told, with what to do; the next link is as if nothing had been.
func TestDeltaFullDisk(t *testing.T) {
	slow(t)
	k, _ := deltaKernel(t, "", "", "")
	disk := smallDisk(t, 8)
	if disk == "" {
		return
	}
	old := host.MemoryDir
	host.MemoryDir = disk
	t.Cleanup(func() { host.MemoryDir = old })
	sections, err := k.Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	plans := randomPlans(sections, 12)
	want, _ := linkPlans(t, k, Pass, plans)
	k.By = Delta
	w, err := k.NewWorker()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	type heldImage struct {
		Image
		digest string
	}
	var held []heldImage
	link := func(n int) error {
		image, err := w.Link(t.Context(), plans[n])
		if err != nil {
			return err
		}
		held = append(held, heldImage{image, want[n]})
		if digest, err := kbuild.FileDigest(image.Path); err != nil || digest != want[n] || n > 1 && image.By != Delta {
			t.Errorf("layout %d by %v is %.12s, want %.12s (%v)", n, image.By, digest, want[n], err)
		}
		return nil
	}
	for n := range 5 { // which nobody removes: each is a file of its own
		if err := link(n); err != nil {
			t.Fatal(err)
		}
	}
	ballast := fill(t, disk, 0)
	var h *host.HintError
	if err := link(5); !errors.Is(err, unix.ENOSPC) || !errors.As(err, &h) {
		t.Errorf("error %v", err)
	}
	if err := held[3].Remove(); err != nil {
		t.Fatal(err)
	}
	if err := link(6); err != nil { // in its place
		t.Error(err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for n := 7; n < 12; n++ {
		if err := link(n); err != nil {
			t.Error(err)
		}
	}
	for i, image := range held {
		if digest, err := kbuild.FileDigest(image.Path); i != 3 && (err != nil || digest != image.digest) {
			t.Errorf("image %d was not left alone: %v", i, err)
		}
	}
}

// Workers share templates, also while they are made and proven.
func TestDeltaWorkers(t *testing.T) {
	slow(t)
	k, notes := deltaKernel(t, "", "", "", "--emit-relocs")
	sections, err := k.Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	plans := randomPlans(sections, 10)
	want, _ := linkPlans(t, k, Pass, plans)
	k.By = Delta
	var group errgroup.Group
	for range 3 {
		group.Go(func() error {
			w, err := k.NewWorker()
			if err != nil {
				return err
			}
			defer w.Close()
			for n, p := range plans {
				image, err := w.Link(t.Context(), p)
				if err != nil {
					return err
				}
				if digest, err := kbuild.FileDigest(image.Path); err != nil || digest != want[n] {
					t.Errorf("layout %d by %v is %.12s, want %.12s (%v)", n, image.By, digest, want[n], err)
				}
				if err := image.Remove(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(k.delta.templates) != 2 || len(*notes) != 1 {
		t.Errorf("%d templates, notes %q", len(k.delta.templates), *notes)
	}
}
