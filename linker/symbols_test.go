package linker

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"unlucky/host"
	"unlucky/layout"
	"unlucky/linker/kbuild"
)

// kallsymsImage is a linked image with a table of kallsyms whose offsets have a
// form, of the functions named, which are in the order of their names and have
// that many bytes.
func kallsymsImage(t testing.TB, offsets form, size int, functions ...string) []byte {
	t.Helper()
	return linkKallsyms(t, kallsymsObject(t, offsets, size, functions), "--emit-relocs")
}

// linkKallsyms links an object of kallsymsObject's.
func linkKallsyms(t testing.TB, object string, flags ...string) []byte {
	t.Helper()
	tools, err := kbuild.FindToolchain(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image")
	argv := append([]string{tools.Linker(), "-e", "0", "-o", path, object}, flags...)
	if _, err := host.Output(t.Context(), "", host.Environment(tools.PATH()), argv...); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// kallsymsObject is what kallsymsImage links.
func kallsymsObject(t testing.TB, offsets form, size int, functions []string) string {
	t.Helper()
	var source strings.Builder
	source.WriteString(".text\n.globl _stext\n_stext:\n")
	for _, name := range functions {
		fmt.Fprintf(&source, "%s: .skip %d, 0x90\n", name, size)
	}
	fmt.Fprintf(&source, "_etext:\n.section .rodata\n.p2align 3\nkallsyms_num_syms: .long %d\n.p2align 3\n", len(functions))
	if offsets != ownPlace {
		source.WriteString("kallsyms_relative_base: .quad _stext\n")
	}
	source.WriteString("kallsyms_offsets:\n")
	for i, name := range functions {
		switch offsets {
		case up:
			fmt.Fprintf(&source, ".long %s - _stext\n", name)
		case down:
			fmt.Fprintf(&source, ".long _stext - 1 - %s\n", name)
		case ownPlace: // as scripts/kallsyms.c has it
			fmt.Fprintf(&source, ".long _stext + %#x - .\n", i*size)
		}
	}
	source.WriteString("kallsyms_names:\n")
	for _, name := range functions {
		fmt.Fprintf(&source, ".byte %d\n.ascii \"T%s\"\n", len(name)+1, name)
	}
	source.WriteString(".byte 0, 0\nkallsyms_markers: .long 0\nkallsyms_seqs_of_names:\n")
	for i := range functions {
		fmt.Fprintf(&source, ".byte 0, 0, %d\n", i)
	}
	source.WriteString("kallsyms_token_table:\n") // each byte is a token
	for i := range 256 {
		fmt.Fprintf(&source, ".byte %d, 0\n", i)
	}
	source.WriteString(".p2align 1\nkallsyms_token_index:\n")
	for i := range 256 {
		fmt.Fprintf(&source, ".short %d\n", 2*i)
	}
	return compile(t, "__asm__("+asmString(source.String())+");\n", "--target=x86_64-linux-gnu")
}

// The base of a table may stand in a relocation alone, as in arm64's kernels without
// RELR: it is found there.
func TestKallsymsRelocated(t *testing.T) {
	image := linkKallsyms(t, kallsymsObject(t, up, 16, []string{"alpha", "beta"}), "-pie", "-z", "notext")
	f, err := newELF(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	k, err := readKallsyms(f.File)
	if err != nil {
		t.Fatal(err)
	}
	if in, err := bytesAt(f.File, k.table, k.parts["relative_base"]); err != nil || !bytes.Equal(in[:8], make([]byte, 8)) {
		t.Errorf("the base in the image is % x, %v; want zeros", in[:8], err)
	}
	for _, edge := range k.edges {
		if start := k.table.address(edge); k.table.name(edge) == "_stext" && k.base != start || k.base == 0 {
			t.Errorf("base %#x, want _stext, %#x", k.base, start)
		}
	}
}

// FuzzSymbols: the symbols and the table of kallsyms of any file are refused, or
// read in memory that is some times the file's; a table whose symbols have not
// moved is the one that the file has.
func FuzzSymbols(f *testing.F) {
	for _, offsets := range []form{up, down, ownPlace} {
		seed := kallsymsImage(f, offsets, 16, "alpha", "beta.llvm.123", "gamma")
		if image, err := newELF(bytes.NewReader(seed), int64(len(seed))); err != nil {
			f.Fatal(err)
		} else if k, err := readKallsyms(image.File); err != nil || k == nil || len(k.entries) != 3 || k.form != offsets {
			f.Fatalf("the seed's kallsyms: %+v, %v", k, err)
		}
		f.Add(seed)
	}
	for _, data := range append(seedObjects(f), corpus(f)...) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		defer func() {
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 32<<20+100*uint64(len(data)) {
				t.Errorf("%d bytes were allocated for a file of %d", n, len(data))
			}
		}()
		image, err := newELF(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		table, err := readSymbolTable(image.File)
		if err != nil {
			return
		}
		var sections []layout.Section
		for i := range min(table.len(), 100) {
			sections = append(sections, layout.Section{Address: table.address(i), Function: table.name(i)})
		}
		functions, err := findFunctions(image.File, sections)
		if err != nil {
			t.Fatal(err)
		}
		for i, symbol := range functions.symbols {
			if symbol >= 0 && (table.name(symbol) != sections[i].Function || table.address(symbol) != sections[i].Address) {
				t.Fatalf("symbol %d is %d", i, symbol)
			}
		}
		k, err := readKallsyms(image.File)
		if err != nil || k == nil {
			return
		}
		made, err := k.move(table)
		if err != nil {
			t.Fatal(err)
		}
		for part, data := range made {
			is, err := bytesAt(image.File, table, k.parts[part])
			if err != nil || !bytes.HasPrefix(is, data) {
				t.Fatalf("nothing has moved, and kallsyms_%s becomes % x (%v)", part, data, err)
			}
		}
	})
}

// A table that is not what would be made here of the same symbols is of a form
// that is not known, and nothing is made of it.
func TestKallsymsForm(t *testing.T) {
	for _, test := range []struct {
		functions []string
		want      string
	}{
		{[]string{"alpha", "alpha.c", "beta"}, "<nil>"},
		{[]string{"alpha", "beta.llvm.9", "beta.c"}, "<nil>"}, // up to 6.10
		{[]string{"alpha", "beta.d", "beta.c"}, "<nil>"},      // to the first dot
		{[]string{"beta", "alpha"}, "of a form that is not known"},
	} {
		for _, offsets := range []form{up, down, ownPlace} {
			image := kallsymsImage(t, offsets, 16, test.functions...)
			f, err := newELF(bytes.NewReader(image), int64(len(image)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := readKallsyms(f.File); !strings.Contains(fmt.Sprint(err), test.want) {
				t.Errorf("%v, form %d: %v, want %s", test.functions, offsets, err, test.want)
			}
		}
	}
}

// From the table of one image that of another follows, whose functions stand
// elsewhere, in each form.
func TestKallsymsPatch(t *testing.T) {
	for _, offsets := range []form{up, down, ownPlace} {
		read := func(size int) ([]byte, *wholeELF, *kallsyms) {
			image := kallsymsImage(t, offsets, size, "alpha", "beta", "gamma", "zeta")
			f, err := newELF(bytes.NewReader(image), int64(len(image)))
			if err != nil {
				t.Fatal(err)
			}
			k, err := readKallsyms(f.File)
			if err != nil {
				t.Fatal(err)
			}
			return image, f, k
		}
		_, _, baseline := read(16)
		want, f, k := read(48)
		blank := bytes.Clone(want)
		for part, size := range map[string]int{"names": 5, "offsets": 16, "markers": 4, "seqs_of_names": 12} {
			s, at, err := sectionOf(f.File, k.table, k.parts[part])
			if err != nil {
				t.Fatal(err)
			}
			copy(blank[s.Offset+at:], make([]byte, size))
		}
		if s := f.Section(".rela.rodata"); offsets == ownPlace { // addends
			for at := s.Offset; at < s.Offset+s.FileSize; at += relaSize {
				copy(blank[at+16:], make([]byte, 8))
			}
		}
		path := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(path, blank, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := baseline.patch(path); err != nil {
			t.Fatalf("form %d: %v", offsets, err)
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, want) || bytes.Equal(blank, want) {
			t.Errorf("form %d: the table is not the image's own (%v)", offsets, err)
		}
	}
}

// Tables that are made to take long are refused or read in no time and no more
// memory than others.
func TestHostileSymbols(t *testing.T) {
	const n = 40_000
	symbols := make([]byte, n*symbolSize)
	long := "kallsyms_names\x00" + strings.Repeat("x", 1<<20) + "\x00"
	names := symbolTable{raw: symbols, names: long}
	for i := range n {
		symbols[i*symbolSize], symbols[i*symbolSize+1], symbols[i*symbolSize+2] = byte(i), byte(i>>8), 1 // st_name
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range n {
		if got := len(names.name(i)); got > maxName {
			t.Fatalf("a name of %d bytes", got)
		}
	}
	runtime.ReadMemStats(&after)
	if bytes := after.TotalAlloc - before.TotalAlloc; bytes > 1<<20 {
		t.Errorf("%d bytes were allocated for the names of %d symbols", bytes, n)
	}
	// Each symbol of kallsyms is 127 tokens, each token 1 MiB.
	tokens, index := []byte(strings.Repeat("x", 1<<16)), make([]byte, 512)
	if _, err := decodeNames(bytes.Repeat(append([]byte{127}, make([]byte, 127)...), 1000), tokens, index, 1000); err == nil {
		t.Error("names that are many times the image are taken")
	}
	image := kallsymsImage(t, up, 16, "alpha", "beta")
	f, err := newELF(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	k, err := readKallsyms(f.File)
	if err != nil {
		t.Fatal(err)
	}
	// The image of a layout may have fewer sections than the baseline's.
	cut := bytes.Clone(image)
	for i, s := range f.Sections {
		if s.Type == elf.SHT_PROGBITS {
			cut[int(f.headers)+i*elfSectionHeader64+4] = byte(elf.SHT_NOTE)
		}
	}
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, cut, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := k.patch(path); err == nil || !strings.Contains(err.Error(), "in no section with contents") {
		t.Errorf("error %v", err)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, cut) {
		t.Errorf("the image was written to (%v)", err)
	}
}
