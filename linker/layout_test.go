package linker

import (
	"debug/elf"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadLayout(t *testing.T) {
	const text = `             VMA              LMA     Size Align Out     In      Symbol
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
	image := &elf.File{Progs: []*elf.Prog{
		{ProgHeader: elf.ProgHeader{Type: elf.PT_NOTE}},
		{ProgHeader: elf.ProgHeader{Type: elf.PT_LOAD, Vaddr: 0xffffffff81000000, Memsz: 0x600000}},
		{ProgHeader: elf.ProgHeader{Type: elf.PT_LOAD, Vaddr: 0xffffffff81a00000, Memsz: 0x1000}},
	}}
	got, err := readLayout(strings.NewReader(text), "vmlinux.o", image)
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
	if _, err := readLayout(strings.NewReader("Archive member included\n"), "vmlinux.o", image); err == nil {
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
