package autopsy

import (
	"encoding/hex"
	"testing"
)

// TestDecode: lengths of instructions that x86asm does not know, as binutils has them.
func TestDecode(t *testing.T) {
	for _, test := range []struct {
		code string
		n    int
		refs uint64
	}{
		{"c5f877", 3, 0},                           // vzeroupper
		{"c5fd6f07", 4, 0},                         // vmovdqa (%rdi),%ymm0
		{"c5fe6f0d78563412", 8, 0x13445680},        // vmovdqu 0x12345678(%rip),%ymm1
		{"c4e37d39c101", 6, 0},                     // vextracti128 $0x1,%ymm0,%xmm1
		{"c4e3fbf0d90e", 6, 0},                     // rorx $0xe,%rcx,%rbx
		{"c5f172f007", 5, 0},                       // vpslld $0x7,%xmm0,%xmm1
		{"c4a17a6f4c2010", 7, 0},                   // vmovdqu 0x10(%rax,%r12,1),%xmm1
		{"62f17d0872c010", 7, 0},                   // vprord $0x10,%xmm0,%xmm0
		{"62f27d287f4d01", 7, 0},                   // vpermt2ps 0x20(%rbp),%ymm0,%ymm1
		{"62f37d48250544332211ff", 11, 0x1232334f}, // vpternlogd $0xff,0x11223344(%rip),%zmm0,%zmm0
		{"67480fb93a", 5, 0},                       // ud1 (%edx),%rdi
		{"0fb9b878563412", 7, 0},                   // ud1 0x12345678(%rax),%edi
		{"4889f8", 3, 0},
		{"c5fe6f0d7856", 1, 0}, // an end
	} {
		code, err := hex.DecodeString(test.code)
		if err != nil {
			t.Fatal(err)
		}
		in := decodeX86(code, 0x1100000)
		if len(in.code) != test.n || in.refs != test.refs {
			t.Errorf("%s: %d bytes, refers to %#x; want %d, %#x: %s", test.code, len(in.code), in.refs, test.n, test.refs, textX86(in, 0))
		}
	}
}
