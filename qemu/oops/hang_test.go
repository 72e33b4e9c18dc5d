package oops

import (
	"strings"
	"testing"
)

func TestHang(t *testing.T) {
	for _, test := range []struct{ line, want string }{
		{"", "hang: no output"},
		{"SMP alternatives: Using kCFI", "hang: no output after SMP alternatives: Using kCFI"},
		{"tsc: Detected 2445.424 MHz processor", "hang: no output after tsc: Detected NUM MHz processor"},
		{"Freeing unused kernel image (text/rodata gap) memory: 1368K", "hang: no output after Freeing unused kernel image (text/rodata gap) memory: NUMK"},
		{"BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable", "hang: no output after BIOS-e820: [mem ADDR-ADDR] usable"},
		{"pid 7 at ffffffff81000000  in x86", "hang: no output after pid NUM at ADDR in x86"},
		{"exitcode=0x0000000b", "hang: no output after exitcode=ADDR"},
		{strings.Repeat("long ", 40), "hang: no output after " + strings.Repeat("long ", 19) + "lon"},
	} {
		if got := Hang(test.line); got != test.want {
			t.Errorf("%q: %q, want %q", test.line, got, test.want)
		}
	}
}
