package report

import (
	"bytes"
	"debug/elf"
	"encoding/hex"
	"strings"
	"testing"

	"unlucky/arch"
)

// decoderOf is one of an image at 0xffffffff81000000.
func decoderOf(t *testing.T, code string) *decoder {
	text, err := hex.DecodeString(strings.Join(strings.Fields(code), ""))
	if err != nil {
		t.Fatal(err)
	}
	const address = 0xffffffff81000000
	d := &decoder{code: x86Code, text: &elf.File{Progs: []*elf.Prog{
		{ProgHeader: elf.ProgHeader{Type: elf.PT_LOAD, Vaddr: 0, Memsz: 1 << 20, Filesz: 0}, ReaderAt: bytes.NewReader(nil)}, // per-CPU
		{ProgHeader: elf.ProgHeader{Type: elf.PT_LOAD, Vaddr: address, Memsz: 0x1000, Filesz: uint64(len(text))}, ReaderAt: bytes.NewReader(text)},
	}}}
	d.readMap([]byte(`0000000000001000 A cpu_data
ffffffff81000000 T _text
ffffffff81000000 T first
ffffffff81000010 t twice
ffffffff81000020 t second
ffffffff81000100 t twice
ffffffff81000140 r .str.7.llvm.1
ffffffff81000180 D data
no symbol
ffffffffffffffff zz
`))
	return d
}

// 16 bytes of first; twice; second.
const imageText = `f3 0f 1e fa 53 be 03 00 00 00 31 d2 e8 05 00 00
90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90
48 89 df 0f 0b cc cc cc`

func TestDecode(t *testing.T) {
	for _, c := range []struct{ name, reportCommand, want string }{
		{"as it is", `RIP: 0010:first+0xa/0x10
Code: 1e fa 53 be 03 00 00 00 <31> d2 e8 05 00 00 00 90`, `The code as it was in memory:
_text+0x4  53              push %rbx
_text+0x5  be 03 00 00 00  mov $0x3,%esi
_text+0xa  31 d2           xor %edx,%edx  <-- trapping instruction
_text+0xc  e8 05 00 00 00  callq 0xffffffff81000016 <twice+0x6>
twice+0x1  90              nop
`},
		{"in the middle of an instruction", `RIP: 0010:first+0x8/0x10
Code: 1e fa 53 be 03 00 <00> 00 31 d2`, `The code as it was in memory:
_text+0x4  53              push %rbx
_text+0x5  be 03 00 00 00  mov $0x3,%esi  <-- RIP is 3 bytes into it: control went astray
_text+0x8  00 00           add %al,(%rax)  <-- trapping instruction
_text+0xa  31 d2           xor %edx,%edx
`},
		{"an int3 traps behind itself", `Oops: int3: 0000 [#1] SMP
RIP: 0010:second+0x7/0xe0
Code: 0b cc cc <cc> cc cc cc e8 05`, `The code as it was in memory:
second+0x5  cc     int3
second+0x6  cc     int3  <-- trapping instruction
second+0x7  cc     int3  (4 times)
second+0xb  e8 05  (cut)
`},
		{"no symbol", `RIP: 0010:nowhere+0x6/0xe0
Code: 90 <e8> 05 00 00 00 06`, `The code as it was in memory:
-1  90              nop
+0  e8 05 00 00 00  callq .+0x5  <-- trapping instruction
+5  06              (bad)
`},
		{"a bare address", `RIP: 0010:0xffffffff81000023
Code: 48 89 df <0f> 0b`, `RIP: 0010:0xffffffff81000023 second+0x3
Code: 48 89 df <0f> 0b

The code as it was in memory:
second      48 89 df  mov %rbx,%rdi
second+0x3  0f 0b     ud2  <-- trapping instruction
`},
		{"bare frames", ` ? 0xffffffff81000004
 [<ffffffff81000180>] 0xffffffff81001000
RAX: ffffffff81000105 RBX: ffffffff81000150 RCX: 0000000000001000 RDX: ffffffff81000105`,
			` ? 0xffffffff81000004 _text+0x4
 [<ffffffff81000180>] data 0xffffffff81001000
RAX: ffffffff81000105 RBX: ffffffff81000150 RCX: 0000000000001000 RDX: ffffffff81000105

Numbers in it that are addresses of the image:
ffffffff81000180  data
ffffffff81000105  twice+0x5
`},
		{"two of a name, told by size", `RIP: 0010:twice+0x1/0x10
Code: 90 <90> 90`, `twice+0x1  90  nop  <-- trapping instruction
`},
		{"two of a name", `RIP: 0010:twice+0x1/0x11
Code: 90 <90> 90`, `+0  90  nop  <-- trapping instruction
`},
		{"nothing to read", "RIP: 0010:0x0\nCode: Unable to access opcode bytes at 0xffffffffffffffd6.", "\nCode: Unable to access opcode bytes at 0xffffffffffffffd6.\n"},
		{"half a line", "RIP: 0010:first+0x1/0x10\nCode: 90 90 9", "\nCode: 90 90 9\n"},
		{"half a mark", "RIP: 0010:first+0x1/0x10\nCode: 90 <90", "_text+0x1  90  nop"},
		{"user space is none of ours", "RIP: 0033:0x47e1e3\nCode: 90 <90> 90", "-1  90  nop\n"},
		{"numbers of any size", "RIP: 0010:first+0xffffffffffffffffff/0x10\nCode: 90 <90> 90", "90  nop"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := decoderOf(t, imageText).decode(strings.Split(c.reportCommand, "\n"))
			if !strings.Contains(got, c.want) {
				t.Errorf("got\n%s\nwant in it\n%s", got, c.want)
			}
			if !strings.HasPrefix(got, strings.Split(c.reportCommand, "\n")[0]) {
				t.Errorf("it does not begin with the report: %s", got)
			}
		})
	}
}

// The machine code of each architecture can be read.
func TestMachineCodes(t *testing.T) {
	for _, a := range arch.All {
		if machineCodes[a.Name].first == nil {
			t.Errorf("that of %s cannot", a.Name)
		}
	}
}

// Where KASLR has put a bzImage is known from the console, or nothing is said.
func TestDecodeSlide(t *testing.T) {
	for _, c := range []struct{ image, console, want string }{
		{"vmlinux", "", "0xffffffff81000004 _text+0x4\n"},
		{"bzImage", "", "0xffffffff81000004\n"},
		{"bzImage", "Kernel Offset: disabled", "0xffffffff81000004 _text+0x4\n"},
		{"bzImage", "Kernel Offset: 0xffe00 from 0xffffffff81000000 (relocation range: 0xffffffff80000000-0xffffffffbfffffff)", "0xffffffff81000004\n"},
		{"bzImage", "Kernel Offset: 0x4 from 0xffffffff81000000", "0xffffffff81000004 _text\n"},
		{"bzImage", "Kernel command line: console=ttyS0 nokaslr quiet", "0xffffffff81000004 _text+0x4\n"},
		{"bzImage", "Kernel command line: console=ttyS0 nokaslrx", "0xffffffff81000004\n"},
	} {
		d := decoderOf(t, imageText)
		d.findSlide(c.image, strings.Split(c.console, "\n"))
		if got := d.decode([]string{"0xffffffff81000004"}); got != c.want {
			t.Errorf("%s, %q: %q, want %q", c.image, c.console, got, c.want)
		}
	}
}

// The texts for people have lines that a mail takes.
func TestWrap(t *testing.T) {
	words := strings.Repeat("word ", 40)
	long := strings.Repeat("x", 100)
	for _, text := range []string{words, long, "a " + long + " b", ""} {
		for line := range strings.Lines(Wrap("- ", "  ", text)) {
			if len(line) > width+1 && !strings.Contains(line, long) {
				t.Errorf("%d bytes: %s", len(line), line)
			}
		}
	}
	table := "  " + words
	got := tidy("1. " + words + "\n" + table + "\nshort\n")
	if !strings.Contains(got, "\n   word") || !strings.HasSuffix(got, "\n"+table+"\nshort") {
		t.Errorf("%s", got)
	}
	if got := ascii("a\u00fc\u202e\x1b[2J\n"); got != "a?.?[2J\n" && got != "a?..[2J\n" {
		t.Errorf("%q", got)
	}
}

// The consoles of arm64 have their code in words.
func TestDecodeARM64(t *testing.T) {
	decoder := func() *decoder {
		// bti c; paciasp; adrp x0, second's page; bl twice; ldr w8, [x0]; udf #0; b .; a word of data
		d := decoderOf(t, `5f 24 03 d5 3f 23 03 d5 00 00 00 90 01 00 00 94 08 00 40 b9 00 00 00 00 00 00 00 14 9c 43 4e 4d`)
		d.code = arm64Code
		return d
	}
	for _, c := range []struct{ name, report, want string }{
		{"as it is", `Internal error: Oops - Undefined instruction: 0000000002000000 [#1] SMP
pc : twice+0x4/0x10
lr : first+0x10/0x10
x29: ffffffc08000bd30 x28: ffffffff81000024
Code: d503233f 90000000 94000001 b9400008 (00000000) `, `lr : first+0x10/0x10
x29: ffffffc08000bd30 x28: ffffffff81000024
Code: d503233f 90000000 94000001 b9400008 (00000000)

The code as it was in memory:
_text+0x4  3f 23 03 d5  paciasp
_text+0x8  00 00 00 90  adrp x0, 0xffffffff81000000 <_text>
_text+0xc  01 00 00 94  bl 0xffffffff81000010 <twice>
twice      08 00 40 b9  ldr w8, [x0]
twice+0x4  00 00 00 00  udf #0  <-- trapping instruction

Numbers in it that are addresses of the image:
ffffffff81000024  second+0x4
`},
		{"a bare address, and what is no instruction", `pc : 0xffffffff81000018
Code: d503245f (14000000) 4d4e439c`, `pc : 0xffffffff81000018 twice+0x8
Code: d503245f (14000000) 4d4e439c

The code as it was in memory:
twice+0x4  5f 24 03 d5  bti c
twice+0x8  00 00 00 14  b 0xffffffff81000018 <twice+0x8>  <-- trapping instruction
twice+0xc  9c 43 4e 4d  .inst 0x4d4e439c
`},
		{"nothing to read", "pc : 0x0\nlr : first+0x4/0x10\nCode: ???????? ???????? ???????? ???????? (????????) ", "(????????) \n\n"},
	} {
		got := decoder().decode(strings.Split(c.report, "\n"))
		if c.name == "as it is" {
			got = strings.ReplaceAll(got, "(00000000) \n", "(00000000)\n")
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: got\n%s\nwant in it\n%s", c.name, got, c.want)
		}
	}
	d := decoder()
	d.findSlide("Image", []string{"KASLR disabled due to lack of seed"})
	if got := d.decode([]string{"0xffffffff81000004"}); got != "0xffffffff81000004 _text+0x4\n" {
		t.Errorf("without KASLR: %q", got)
	}
}
