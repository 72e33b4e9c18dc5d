package linker

import (
	"debug/elf"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"unlucky/host"
	"unlucky/layout"
)

const someMap = `             VMA              LMA     Size Align Out     In      Symbol
               0                0        0     1 jiffies = jiffies_64
ffffffff81000000          1000000   600000    64 .text
ffffffff81000000          1000000        0     1         _text = .
ffffffff81000000          1000000      52b    16         vmlinux.o:(.head.text)
ffffffff81000000          1000000      123     1                 pvh_start_xen
ffffffff8100052b          100052b        5     1         . = ALIGN(16)
ffffffff81000530          1000530      dcc    16         vmlinux.o:(.text)
ffffffff81001300          1001300       b8    16         vmlinux.o:(.text.f)
ffffffff81001300          1001300       10     1                 __cfi_f
ffffffff81001308          1001308        0     1                 early
ffffffff81001310          1001310       a8     1                 f
ffffffff81001320          1001320       a8     1                 inside
ffffffff810013c0          10013c0       45    16         vmlinux.o:(.text.f)
ffffffff81001410          1001410       20    64         vmlinux.o:(.text..__x86.return_thunk)
ffffffff81001430          1001430        8     1         <internal>:(.text.pad)
ffffffff81a00000          1a00000       10     8 .rodata
ffffffff81a00000          1a00000       10     8         vmlinux.o:(.rodata)
`

// someImage has the segments of someMap.
var someImage = &elf.File{Progs: []*elf.Prog{
	{ProgHeader: elf.ProgHeader{Type: elf.PT_NOTE}},
	{ProgHeader: elf.ProgHeader{Type: elf.PT_LOAD, Vaddr: 0xffffffff81000000, Memsz: 0x600000}},
	{ProgHeader: elf.ProgHeader{Type: elf.PT_LOAD, Vaddr: 0xffffffff81a00000, Memsz: 0x1000}},
}}

func TestReadLayout(t *testing.T) {
	got, err := readLayout(strings.NewReader(someMap), "vmlinux.o", someImage, "")
	if err != nil {
		t.Fatal(err)
	}
	want := []layout.Section{
		{Name: ".head.text", Output: ".text", Segment: 0, Address: 0xffffffff81000000, Size: 0x52b, Align: 16, Moves: false, Function: "pvh_start_xen", Entry: 0, Functions: 1, Index: 0, Group: 0, ScriptAlign: 0, Pin: 0},
		{Name: ".text", Output: ".text", Segment: 0, Address: 0xffffffff81000530, Size: 0xdcc, Align: 16, Moves: true, Function: "", Entry: 0, Functions: 0, Index: 0, Group: 0, ScriptAlign: 16, Pin: 0},
		{Name: ".text.f", Output: ".text", Segment: 0, Address: 0xffffffff81001300, Size: 0xb8, Align: 16, Moves: true, Function: "f", Entry: 16, Functions: 3, Index: 0, Group: 0, ScriptAlign: 0, Pin: 0},
		{Name: ".text.f#2", Output: ".text", Segment: 0, Address: 0xffffffff810013c0, Size: 0x45, Align: 16, Moves: true, Function: "", Entry: 0, Functions: 0, Index: 0, Group: 0, ScriptAlign: 0, Pin: 0},
		{Name: ".text..__x86.return_thunk", Output: ".text", Segment: 0, Address: 0xffffffff81001410, Size: 0x20, Align: 64, Moves: false, Function: "", Entry: 0, Functions: 0, Index: 0, Group: 0, ScriptAlign: 0, Pin: 0},
		{Name: "", Output: ".text", Segment: 0, Address: 0xffffffff81001430, Size: 8, Align: 1, Moves: false, Function: "", Entry: 0, Functions: 0, Index: 0, Group: 0, ScriptAlign: 0, Pin: 0},
		{Name: ".rodata", Output: ".rodata", Segment: 1, Address: 0xffffffff81a00000, Size: 0x10, Align: 8, Moves: false, Function: "", Entry: 0, Functions: 0, Index: 0, Group: 0, ScriptAlign: 0, Pin: 0},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if _, err := readLayout(strings.NewReader("Archive member included\n"), "vmlinux.o", someImage, ""); err == nil {
		t.Error("a link map of GNU ld is taken for one of lld")
	}
}

// scriptMap is the beginning of .text from 6.18 on: SRSO's pair, and functions
// behind what the script aligns.
const scriptMap = `             VMA              LMA     Size Align Out     In      Symbol
ffffffff81000000          1000000   600000    64 .text
ffffffff81000000          1000000        0     1         . = ALIGN((1 << 21))
ffffffff81000000          1000000       22     1         vmlinux.o:(.text..__x86.rethunk_untrain)
ffffffff81000000          1000000       22     1                 srso_alias_untrain_ret
ffffffff81000022          1000022        e     1         . = ALIGN(16)
ffffffff81000030          1000030     1999    16         vmlinux.o:(.entry.text)
ffffffff810019c9          10019c9   10273b     1         . = srso_alias_untrain_ret | (1 << 2) | (1 << 8) | (1 << 14) | (1 << 20)
ffffffff81104104          1104104       10     1         vmlinux.o:(.text..__x86.rethunk_safe)
ffffffff81104114          1104114    fbeec     1         . = ALIGN(((1)<<(21)))
ffffffff81200000          1200000       10    16         vmlinux.o:(.text.unlikely.a)
ffffffff81200010          1200010        8    16         vmlinux.o:(.text.unlikely.b)
ffffffff81200018          1200018      fe8     1         . = ALIGN((1 << 12))
ffffffff81201000          1201000        8     1         vmlinux.o:(.text.hot.c)
ffffffff81201008          1201008        8     1         . = ALIGN(16)
ffffffff81201008          1201008        0     1         __start = .
ffffffff81201010          1201010       10     1         vmlinux.o:(.text.d)
ffffffff81201020          1201020       e0     1         . = . + 0xe0
ffffffff81201100          1201100       10     1         vmlinux.o:(.text.e)
ffffffff81201110          1201110       10     1         . = ALIGN(16 * 16)
ffffffff81201200          1201200       10     1         vmlinux.o:(.text.f)
`

// What the linker script aligns and fixes is read in the link map, however near
// the baseline happens to lie.
func TestReadScript(t *testing.T) {
	sections, err := readLayout(strings.NewReader(scriptMap), "vmlinux.o", someImage, "")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		align   uint64
		pin     int
		movable bool
	}{{1 << 21, 0, false}, {16, 0, false}, {0, 1, false}, {1 << 21, 0, false}, {0, 0, true}, {4096, 0, false}, {16, 0, true}, {0, 8, false}, {0, 9, false}} {
		if s := sections[i]; s.ScriptAlign != want.align || s.Pin != want.pin || layout.Movable(sections, i) != want.movable {
			t.Errorf("%+v, movable %v; want %+v", s, layout.Movable(sections, i), want)
		}
	}
	if _, err := checkPlaces(layout.NewModel(sections), layout.Plan{}, addressesOf(sections)); err != nil {
		t.Error(err)
	}
	plan := func(bytes uint64) layout.Plan {
		return layout.Plan{Paddings: []layout.Padding{{Section: ".text.unlikely.b", Bytes: bytes}}}
	}
	// c has the next page all the same, and d, aligned to 16, stands as before.
	at, err := layout.Place(sections, plan(16))
	if err != nil || at[2] != sections[2].Address || at[4] != sections[4].Address+16 || at[5] != sections[5].Address || at[6] != sections[6].Address {
		t.Errorf("%#x, %v", at, err)
	}
	at, err = layout.Place(sections[:7], plan(4096))
	if err != nil || at[5] != sections[5].Address+4096 || at[6] != sections[6].Address+4096 {
		t.Errorf("%#x, %v", at, err)
	}
	if _, err := layout.Place(sections, layout.Plan{Paddings: []layout.Padding{{Section: ".text.d", Bytes: 256}}}); err == nil || !strings.Contains(err.Error(), "behind the place that the linker script fixes") {
		t.Errorf("a plan that runs into a fixed place: %v", err)
	}
	// SRSO's pair stands behind the functions up to 6.17, and moves together.
	const pair = `VMA
0 0 0 1 .text
ffffffff81000000 1000000 30 16         vmlinux.o:(.text.f)
ffffffff81000030 1000030 30 16         vmlinux.o:(.text.g)
ffffffff81000060 1000060 1fffa0 1         . = ALIGN((1 << 21))
ffffffff81200000 1200000 22 1         vmlinux.o:(.text..__x86.rethunk_untrain)
ffffffff81200000 1200000 22 1                 srso_alias_untrain_ret
ffffffff81200022 1200022 104000 1         . = srso_alias_untrain_ret | (1 << 2)
ffffffff81200024 1200024 10 1         vmlinux.o:(.text..__x86.rethunk_safe)
`
	if sections, err = readLayout(strings.NewReader(pair), "vmlinux.o", someImage, ""); err != nil {
		t.Fatal(err)
	}
	at, err = layout.Place(sections, layout.Plan{Paddings: []layout.Padding{{Section: ".text.g", Bytes: 1 << 21}}})
	if err != nil || at[3]-sections[3].Address != 1<<21 || at[2]-sections[2].Address != 1<<21 {
		t.Errorf("%#x, %v", at, err)
	}
}

func addressesOf(layout []layout.Section) []uint64 {
	at := make([]uint64, len(layout))
	for i, s := range layout {
		at[i] = s.Address
	}
	return at
}

// An image that is not the planned layout is an error that is not the layout's.
func TestCheckPlaces(t *testing.T) {
	sections, err := readLayout(strings.NewReader(someMap), "vmlinux.o", someImage, "")
	if err != nil {
		t.Fatal(err)
	}
	plan := layout.Plan{Paddings: []layout.Padding{{Section: ".text.f", Bytes: 16}}}
	at, err := layout.Place(sections, plan)
	if err != nil {
		t.Fatal(err)
	}
	at[3], at[6] = 0, 1 // not known, of another output section
	if _, err := checkPlaces(layout.NewModel(sections), plan, at); err != nil {
		t.Error(err)
	}
	at[2] += 16
	var misplaced *MisplacedError
	var failed *LinkError
	var hinted *host.HintError
	_, err = checkPlaces(layout.NewModel(sections), plan, at)
	if !errors.As(err, &misplaced) || errors.As(err, &failed) || !errors.As(err, &hinted) || !strings.Contains(hinted.Hint, "please report it") ||
		err.Error() != "f is at 0xffffffff81001330, planned at 0xffffffff81001320" {
		t.Errorf("error %v", err)
	}
	if _, err := checkPlaces(layout.NewModel(sections), layout.Plan{Flag: new(uint32)}, at); err != nil {
		t.Errorf("padded by lld itself: %v", err)
	}
	if _, err := checkPlaces(layout.NewModel(sections), plan, nil); err != nil {
		t.Errorf("other symbols: %v", err)
	}
}

// FuzzLayout: a link map is refused, or gives sections that can be: they end
// below the last address, and their functions are in them. Whatever is then
// planned for them is refused by name or gives addresses that rise.
func FuzzLayout(f *testing.F) {
	f.Add([]byte(someMap), uint16(3), uint64(48))
	f.Add([]byte(scriptMap), uint16(6), uint64(16))
	f.Add([]byte("VMA\nffffffffffffff00 0 ff 16 .text\nffffffffffffff00 0 ff 16         vmlinux.o:(.text.f)\n"+
		"ffffffffffffff80 0 7f 16         vmlinux.o:(.text.g)\n"), uint16(1), uint64(64))
	f.Add([]byte("VMA\n0 0 0 1 .text\nfffffffffffffff0 0 ffffffffffffffff 1         vmlinux.o:(.text)\n"), uint16(0), ^uint64(0))
	f.Add([]byte("VMA\n0 0 0 1 .text\n10 0 10 3         vmlinux.o:(.text)\n"), uint16(0), uint64(16))
	f.Add([]byte("VMA\n0 0 0 1 .text\n10 0 10 1         vmlinux.o:(.text)\n8 0 10 1                 f\n"), uint16(0), uint64(16))
	f.Fuzz(func(t *testing.T, linkMap []byte, at uint16, bytes uint64) {
		sections, err := readLayout(strings.NewReader(string(linkMap)), "vmlinux.o", someImage, "")
		if err != nil {
			return
		}
		for _, s := range sections {
			if s.Address+s.Size < s.Address || s.Align&(s.Align-1) != 0 || s.ScriptAlign&(s.ScriptAlign-1) != 0 || s.Entry > s.Size || s.Segment < -1 || s.Segment > 1 || s.Functions < 0 {
				t.Fatalf("%+v", s)
			}
		}
		for i := range sections {
			sections[i].Index = i + 1
		}
		layout.SetGroups(sections)
		if len(sections) == 0 {
			return
		}
		i := int(at) % len(sections)
		plan := layout.Plan{Paddings: []layout.Padding{{Section: sections[i].Name, Bytes: bytes}}}
		for j := len(sections) - 1; j >= 0; j-- {
			if sections[j].Group > 0 {
				plan.Order = append(plan.Order, sections[j].Name)
			}
		}
		order, err := layout.Order(sections, plan.Order)
		if err != nil {
			t.Fatal(err)
		}
		if sorted := slices.Sorted(slices.Values(order)); sorted[0] != 0 || sorted[len(sorted)-1] != len(sections)-1 || len(slices.Compact(sorted)) != len(sections) {
			t.Fatalf("order %v", order)
		}
		endings(sections, order, plan)
		addresses, err := layout.Place(sections, plan)
		if err != nil {
			if !strings.Contains(err.Error(), "padding before ") {
				t.Fatal(err)
			}
			return
		}
		var end uint64
		for _, i := range order {
			if sections[i].Output != sections[int(at)%len(sections)].Output {
				continue
			}
			if addresses[i] < end || addresses[i]+sections[i].Size < addresses[i] {
				t.Fatalf("%+v is at %#x, what stands before ends at %#x", sections[i], addresses[i], end)
			}
			end = addresses[i] + sections[i].Size
		}
	})
}

// A plan that can't be is refused by the name of the section.
func TestHostilePlan(t *testing.T) {
	sections := []layout.Section{{Name: ".head.text", Output: ".text", Address: 64, Size: 16, Index: 1}}
	for i, name := range []string{".text.a", ".text.b", ".text.c"} {
		sections = append(sections, layout.Section{Name: name, Output: ".text", Moves: true, Index: 2 + i, Address: uint64(80 + 16*i), Size: 16, Align: 16})
	}
	layout.SetGroups(sections)
	pad := func(paddings ...layout.Padding) layout.Plan { return layout.Plan{Paddings: paddings} }
	for _, test := range []struct {
		plan layout.Plan
		want string
	}{
		{pad(layout.Padding{Section: ".text.b", Bytes: 16}), ""},
		{pad(layout.Padding{Section: ".text.b", Bytes: layout.MaxPadding}), ""},
		{pad(layout.Padding{Section: ".text.b", Bytes: layout.MaxPadding + 1}), ".text.b: 1073741825 bytes are too many"},
		{pad(layout.Padding{Section: ".text.a", Bytes: 1 << 63}, layout.Padding{Section: ".text.b", Bytes: 1 << 63}), ".text.a: 9223372036854775808 bytes are too many"},
		{pad(layout.Padding{Section: ".text.a", Bytes: 16}, layout.Padding{Section: ".text.b", Bytes: ^uint64(0)}), ".text.b: 18446744073709551615 bytes are too many"},
		{pad(layout.Padding{Section: ".text.a", Bytes: layout.MaxPadding}, layout.Padding{Section: ".text.b", Bytes: 1}), ".text.b: 1 bytes are too many"},
		{pad(layout.Padding{Section: ".text.a", Bytes: 16}, layout.Padding{Section: ".text.a", Bytes: 16}), ".text.a: it is in the plan twice"},
		{pad(layout.Padding{Section: ".text.no", Bytes: 16}), ".text.no: "},
		{layout.Plan{Order: []string{".text.a", ".text.a"}}, ".text.a is in it twice"},
		{layout.Plan{Order: []string{".text.no"}}, ".text.no: this kernel has no such section"},
	} {
		_, err := layout.Place(sections, test.plan)
		order, err2 := layout.Order(sections, test.plan.Order)
		if err2 == nil {
			_, err2 = endings(sections, order, test.plan)
		}
		for _, err := range []error{err, err2} {
			if (err != nil) != (test.want != "") || !strings.Contains(fmt.Sprint(err), test.want) {
				t.Errorf("%+v: error %v, want %q", test.plan, err, test.want)
			}
		}
	}
	sections[3].Address = ^uint64(31)
	sections[2].Size = sections[3].Address - sections[2].Address
	if _, err := layout.Place(sections, pad(layout.Padding{Section: ".text.c", Bytes: 64})); err == nil || !strings.Contains(err.Error(), "padding before .text.c: ") {
		t.Errorf("behind the last address: error %v", err)
	}
}
