package report

import (
	"bytes"
	"slices"

	"golang.org/x/arch/x86/x86asm"
)

// x86Code is x86-64's.
var x86Code = machineCode{
	counter: "RIP",
	trap:    "RIP: 0010:", // __KERNEL_CS
	behind:  "int3: ",
	longest: x86Longest,
	first:   x86Instruction,
}

const x86Longest = 15 // bytes of an instruction: Intel SDM, volume 2, 2.3.11

func x86Instruction(code []byte, pc uint64) (asm string, n int, to []uint64) {
	if endbr := []byte{0xf3, 0x0f, 0x1e, 0xfa}; bytes.HasPrefix(code, endbr) { // which x86asm does not know
		return "endbr64", len(endbr), nil
	}
	in, err := x86asm.Decode(append(slices.Clone(code[:min(len(code), x86Longest)]), make([]byte, x86Longest)...), 64)
	switch {
	case err != nil || in.Op == 0:
		return "(bad)", 1, nil
	case in.Len > len(code):
		return "(cut)", len(code), nil
	}
	next := pc + uint64(in.Len)
	for _, arg := range in.Args {
		switch a := arg.(type) {
		case x86asm.Rel:
			to = append(to, next+uint64(int64(a)))
		case x86asm.Imm:
			to = append(to, uint64(a))
		case x86asm.Mem:
			if a.Base == x86asm.RIP {
				to = append(to, next+uint64(a.Disp))
			}
		}
	}
	return x86asm.GNUSyntax(in, pc, nil), in.Len, to
}
