package linker

import (
	"debug/elf"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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
	got, err := readLayout(strings.NewReader(someMap), "vmlinux.o", someImage)
	if err != nil {
		t.Fatal(err)
	}
	want := []Section{
		{".head.text", ".text", 0, 0xffffffff81000000, 0x52b, 16, false, "pvh_start_xen", 0, 1, 0, 0},
		{".text", ".text", 0, 0xffffffff81000530, 0xdcc, 16, true, "", 0, 0, 0, 0},
		{".text.f", ".text", 0, 0xffffffff81001300, 0xb8, 16, true, "f", 16, 3, 0, 0},
		{".text.f#2", ".text", 0, 0xffffffff810013c0, 0x45, 16, true, "", 0, 0, 0, 0},
		{".text..__x86.return_thunk", ".text", 0, 0xffffffff81001410, 0x20, 64, false, "", 0, 0, 0, 0},
		{"", ".text", 0, 0xffffffff81001430, 8, 1, false, "", 0, 0, 0, 0},
		{".rodata", ".rodata", 1, 0xffffffff81a00000, 0x10, 8, false, "", 0, 0, 0, 0},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if _, err := readLayout(strings.NewReader("Archive member included\n"), "vmlinux.o", someImage); err == nil {
		t.Error("a link map of GNU ld is taken for one of lld")
	}
}

func TestScriptArgs(t *testing.T) {
	for _, test := range []struct{ name, cmd string }{
		{"6.1", `cmd_vmlinux := sh ../scripts/link-vmlinux.sh "ld.lld" "-m elf_x86_64" "-z max-page-size=0x200000 --build-id=sha1";  true`},
		{"6.12", `savedcmd_vmlinux := ../scripts/link-vmlinux.sh "ld.lld" "-m elf_x86_64" "-z max-page-size=0x200000 --build-id=sha1";  make -f ../arch/x86/Makefile.postlink vmlinux`},
		{"6.17", `savedcmd_vmlinux.unstripped := ../scripts/link-vmlinux.sh "ld.lld" "-m elf_x86_64" "-z max-page-size=0x200000 --build-id=sha1" "vmlinux.unstripped"; true`},
	} {
		m := linkCommand.FindStringSubmatch(test.cmd)
		if m == nil || !strings.HasPrefix(m[1], `"ld.lld" "-m elf_x86_64" "-z max`) {
			t.Errorf("%s: %q", test.name, m)
		}
	}
}

func TestCheckConfig(t *testing.T) {
	config := []byte("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x y\"\nCONFIG_D=16\n")
	if err := checkConfig(config, []string{"A=y", "B=n", "NOT_THERE=n", `C="x y"`, "D=16"}); err != nil {
		t.Error(err)
	}
	err := checkConfig(config, []string{"A=n", "B=y", "D=8"})
	if err == nil || err.Error() != "kconfig did not take A=n (it is y), B=y (it is n), D=8 (it is 16)" {
		t.Error(err)
	}
}

// FuzzLayout: a link map is refused, or gives sections that can be: they end
// below the last address, and their functions are in them. Whatever is then
// planned for them is refused by name or gives addresses that rise.
func FuzzLayout(f *testing.F) {
	f.Add([]byte(someMap), uint16(3), uint64(48))
	f.Add([]byte("VMA\nffffffffffffff00 0 ff 16 .text\nffffffffffffff00 0 ff 16         vmlinux.o:(.text.f)\n"+
		"ffffffffffffff80 0 7f 16         vmlinux.o:(.text.g)\n"), uint16(1), uint64(64))
	f.Add([]byte("VMA\n0 0 0 1 .text\nfffffffffffffff0 0 ffffffffffffffff 1         vmlinux.o:(.text)\n"), uint16(0), ^uint64(0))
	f.Add([]byte("VMA\n0 0 0 1 .text\n10 0 10 3         vmlinux.o:(.text)\n"), uint16(0), uint64(16))
	f.Add([]byte("VMA\n0 0 0 1 .text\n10 0 10 1         vmlinux.o:(.text)\n8 0 10 1                 f\n"), uint16(0), uint64(16))
	f.Fuzz(func(t *testing.T, linkMap []byte, at uint16, bytes uint64) {
		layout, err := readLayout(strings.NewReader(string(linkMap)), "vmlinux.o", someImage)
		if err != nil {
			return
		}
		for _, s := range layout {
			if s.Address+s.Size < s.Address || s.Align&(s.Align-1) != 0 || s.Entry > s.Size || s.Segment < -1 || s.Segment > 1 || s.Functions < 0 {
				t.Fatalf("%+v", s)
			}
		}
		for i := range layout {
			layout[i].Index = i + 1
		}
		setGroups(layout)
		if len(layout) == 0 {
			return
		}
		i := int(at) % len(layout)
		plan := Plan{Paddings: []Padding{{Section: layout[i].Name, Bytes: bytes}}}
		for j := len(layout) - 1; j >= 0; j-- {
			if layout[j].Group > 0 {
				plan.Order = append(plan.Order, layout[j].Name)
			}
		}
		order, err := Order(layout, plan.Order)
		if err != nil {
			t.Fatal(err)
		}
		if sorted := slices.Sorted(slices.Values(order)); sorted[0] != 0 || sorted[len(sorted)-1] != len(layout)-1 || len(slices.Compact(sorted)) != len(layout) {
			t.Fatalf("order %v", order)
		}
		endings(layout, order, plan)
		addresses, err := Place(layout, layout[i].Output, plan)
		if err != nil {
			if !strings.Contains(err.Error(), "padding before ") {
				t.Fatal(err)
			}
			return
		}
		var end uint64
		for _, i := range order {
			if layout[i].Output != layout[int(at)%len(layout)].Output {
				continue
			}
			if addresses[i] < end || addresses[i]+layout[i].Size < addresses[i] {
				t.Fatalf("%+v is at %#x, what stands before ends at %#x", layout[i], addresses[i], end)
			}
			end = addresses[i] + layout[i].Size
		}
	})
}

// A plan that can't be is refused by the name of the section.
func TestHostilePlan(t *testing.T) {
	layout := []Section{{Name: ".head.text", Output: ".text", Address: 64, Size: 16, Index: 1}}
	for i, name := range []string{".text.a", ".text.b", ".text.c"} {
		layout = append(layout, Section{Name: name, Output: ".text", Text: true, Index: 2 + i, Address: uint64(80 + 16*i), Size: 16, Align: 16})
	}
	setGroups(layout)
	pad := func(paddings ...Padding) Plan { return Plan{Paddings: paddings} }
	for _, test := range []struct {
		plan Plan
		want string
	}{
		{pad(Padding{".text.b", 16}), ""},
		{pad(Padding{".text.b", maxPadding}), ""},
		{pad(Padding{".text.b", maxPadding + 1}), ".text.b: 1073741825 bytes are too many"},
		{pad(Padding{".text.a", 1 << 63}, Padding{".text.b", 1 << 63}), ".text.a: 9223372036854775808 bytes are too many"},
		{pad(Padding{".text.a", 16}, Padding{".text.b", ^uint64(0)}), ".text.b: 18446744073709551615 bytes are too many"},
		{pad(Padding{".text.a", maxPadding}, Padding{".text.b", 1}), ".text.b: 1 bytes are too many"},
		{pad(Padding{".text.a", 16}, Padding{".text.a", 16}), ".text.a: it is in the plan twice"},
		{pad(Padding{".text.no", 16}), ".text.no: "},
		{Plan{Order: []string{".text.a", ".text.a"}}, ".text.a is in it twice"},
		{Plan{Order: []string{".text.no"}}, ".text.no: this kernel has no such section"},
	} {
		_, err := Place(layout, ".text", test.plan)
		order, err2 := Order(layout, test.plan.Order)
		if err2 == nil {
			_, err2 = endings(layout, order, test.plan)
		}
		for _, err := range []error{err, err2} {
			if (err != nil) != (test.want != "") || !strings.Contains(fmt.Sprint(err), test.want) {
				t.Errorf("%+v: error %v, want %q", test.plan, err, test.want)
			}
		}
	}
	layout[3].Address = ^uint64(31)
	layout[2].Size = layout[3].Address - layout[2].Address
	if _, err := Place(layout, ".text", pad(Padding{".text.c", 64})); err == nil || !strings.Contains(err.Error(), "padding before .text.c: ") {
		t.Errorf("behind the last address: error %v", err)
	}
}
