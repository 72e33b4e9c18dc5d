package linker

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"unlucky/layout"
	"unlucky/scenarios"
)

// dataScript places data as the kernel's scripts do: objects, between what has symbols at
// its ends or a place of its own.
const dataScript = `SECTIONS {
	. = 0x100000;
	.text : { *(.text .text.*) }
	. = ALIGN(4096);
	.rodata : {
		__start_rodata = .;
		*(.rodata) *(.rodata.*)
		. = ALIGN(16);
		__start_table = .;
		*(.table)
		__stop_table = .;
	}
	. = ALIGN(4096);
	.data : {
		*(.data..first)
		. = ALIGN(64);
		*(.data .data.[0-9a-zA-Z_]*)
		__start_once = .;
		*(.more.data .data..once)
		__stop_once = .;
	}
	. = ALIGN(4096);
	.bss : {
		__bss_start = .;
		*(.bss..page)
		. = ALIGN(4096);
		*(.bss .bss.[0-9a-zA-Z_]*)
		__bss_stop = .;
	}
}
`

// dataObject has objects of many sizes and alignments.
func dataObject(t *testing.T) string {
	var source strings.Builder
	fmt.Fprintln(&source, "int text(void) { return 0; }")
	fmt.Fprintln(&source, `__attribute__((section(".data..first"))) long first[3] = {1};`)
	fmt.Fprintln(&source, `__attribute__((section(".data..once"))) char once = 1;`)
	fmt.Fprintln(&source, `__attribute__((section(".bss..page"), aligned(4096))) char page[4096];`)
	fmt.Fprintln(&source, `__attribute__((section(".table"))) const long table[] = {1, 2};`)
	for i := range 120 {
		align := 1 << (i * 5 % 7)
		for _, form := range []string{"char b%d[%d] __attribute__((aligned(%d)));", "char d%d[%d] __attribute__((aligned(%d))) = {1};", "const char r%d[%d] __attribute__((aligned(%d))) = {1};"} {
			fmt.Fprintf(&source, form+"\n", i, 1+i*37%90, align)
		}
	}
	return compile(t, source.String(), "-fdata-sections", "--target=x86_64-linux-gnu")
}

// Objects move, and nothing that lies in a table or that the script places: under each
// strategy all of an image is where its plan puts it, and what stands between two
// symbols of the script stays together.
func TestData(t *testing.T) {
	path := dataObject(t)
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte(dataScript), 0o644); err != nil {
		t.Fatal(err)
	}
	o, err := openObject(path)
	if err != nil {
		t.Fatal(err)
	}
	image, sections := linkMoving(t, scenarios.Data, path, "-T", script)
	moving := map[string]int{}
	for i, s := range sections {
		sections[i].Index = o.index[s.Name]
		if s.Moves {
			moving[s.Output]++
			if strings.Contains(s.Name, "..") {
				t.Errorf("%s moves", s.Name)
			}
		}
	}
	layout.SetGroups(sections)
	if want := map[string]int{".rodata": 120, ".data": 120, ".bss": 120}; fmt.Sprint(moving) != fmt.Sprint(want) {
		t.Errorf("%v move, want %v", moving, want)
	}
	f, err := findFunctions(image, sections)
	if err != nil {
		t.Fatal(err)
	}
	p, err := o.copyTo(filepath.Join(t.TempDir(), "x.o"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	orders, where := map[string]bool{}, map[uint64]bool{}
	for _, strategy := range []layout.Strategy{layout.Text, layout.Cover, layout.Shuffle} {
		for _, seed := range []uint32{1, 2, 300, math.MaxUint32} {
			plan := strategy.Plan(seed, sections)
			order, err := layout.Order(sections, plan.Order)
			if err != nil {
				t.Fatal(err)
			}
			padding, err := endings(sections, order, plan)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.edit(edit{slots: slots(sections, order), padding: padding}); err != nil {
				t.Fatal(err)
			}
			image, _ := linkMoving(t, scenarios.Data, p.file.Name(), "-T", script)
			now, err := readSymbolTable(image)
			if err != nil {
				t.Fatal(err)
			}
			at := f.addressesIn(now)
			if _, err := checkPlaces(layout.NewModel(sections), plan, at); err != nil {
				t.Errorf("%s, seed %d: %v", strategy, seed, err)
			}
			if len(plan.Order) > 0 {
				orders[strings.Join(plan.Order, " ")] = true
			}
			i := slices.IndexFunc(sections, func(s layout.Section) bool { return s.Name == ".bss.b50" })
			where[at[i]%4096] = true
			symbols, err := image.Symbols()
			if err != nil {
				t.Fatal(err)
			}
			of := map[string]uint64{}
			for _, s := range symbols {
				of[s.Name] = s.Value
			}
			if of["__start_table"] != of["table"] || of["__stop_table"] != of["table"]+16 || of["__start_once"] != of["once"] || of["__stop_once"] != of["once"]+1 || of["page"] != of["__bss_start"] {
				t.Errorf("%s, seed %d: the tables are not whole", strategy, seed)
			}
		}
	}
	if len(orders) < 4 || len(where) < 8 {
		t.Errorf("%d orders, an object at %d addresses mod 4096", len(orders), len(where))
	}
}

// blocksMap has what the linker script places by hand among functions: pairs of symbols,
// one of them in another, and an address.
const blocksMap = `             VMA              LMA     Size Align Out     In      Symbol
ffffffff81000000          1000000     1000    64 .text
ffffffff81000000          1000000       10    16         vmlinux.o:(.head.text)
ffffffff81000010          1000010       10    16         vmlinux.o:(.text.a)
ffffffff81000020          1000020       10    16         vmlinux.o:(.text..plain)
ffffffff81000030          1000030        0     1         __noinstr_text_start = .
ffffffff81000030          1000030       10    16         vmlinux.o:(.noinstr.text)
ffffffff81000040          1000040        0     1         __cpuidle_text_start = .
ffffffff81000040          1000040       10    16         vmlinux.o:(.cpuidle.text)
ffffffff81000050          1000050        0     1         __cpuidle_text_end = .
ffffffff81000050          1000050        0     1         __noinstr_text_end = .
ffffffff81000050          1000050       10    16         vmlinux.o:(.ref.text)
ffffffff81000060          1000060       10    16         vmlinux.o:(.more.text)
ffffffff81000070          1000070       10     1         . = ALIGN(16)
ffffffff81000070          1000070        0     1         __sched_text_start = .
ffffffff81000070          1000070       10    16         vmlinux.o:(.sched.text)
ffffffff81000080          1000080        0     1         __sched_text_end = .
ffffffff81000080          1000080       80     1         . = __noinstr_text_start + 0xd0
ffffffff81000100          1000100       10    16         vmlinux.o:(.entry.text)
`

// A block moves as a whole, from its first section on, and by itself only under blocks;
// nothing comes between two symbols that belong together but behind the last section.
func TestBlocks(t *testing.T) {
	for which, want := range map[string]string{
		scenarios.Blocks: ".text.a .noinstr.text .ref.text .sched.text",
		"":               ".text.a",
	} {
		sections, err := readLayout(strings.NewReader(blocksMap), "vmlinux.o", someImage, which)
		if err != nil {
			t.Fatal(err)
		}
		for i := range sections {
			sections[i].Index = i + 1
		}
		layout.SetGroups(sections)
		var movable []string
		for i, s := range sections {
			if layout.Movable(sections, i) {
				movable = append(movable, s.Name)
			}
			if s.Group > 0 && s.Name != ".text.a" {
				t.Errorf("%q: %s can take another's place", which, s.Name)
			}
		}
		if got := strings.Join(movable, " "); got != want {
			t.Errorf("%q: %s move, want %s", which, got, want)
		}
	}
}
