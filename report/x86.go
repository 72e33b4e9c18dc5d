package report

import (
	"bytes"
	"encoding/hex"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/arch/x86/x86asm"
)

// x86Code is x86-64's.
var x86Code = machineCode{
	counter: "RIP",
	trap:    "RIP: 0010:", // __KERNEL_CS
	behind:  "int3: ",
	longest: x86Longest,
	dump:    x86Dump,
	first:   x86Instruction,
}

const x86Longest = 15 // bytes of an instruction: Intel SDM, volume 2, 2.3.11

var x86CodeLine = regexp.MustCompile(`^\s*Code: ((?:<?[0-9a-f]{2}>? ?)+)`)

// x86Dump reads bytes of which the one at the trap is in angle brackets
// (show_opcodes, arch/x86/kernel/dumpstack.c).
func x86Dump(line string) (code []byte, at int) {
	m := x86CodeLine.FindStringSubmatch(line)
	if m == nil {
		return nil, -1
	}
	head, tail, ok := strings.Cut(m[1], "<")
	code, err := hex.DecodeString(strings.NewReplacer(" ", "", ">", "").Replace(head + tail))
	if !ok || err != nil {
		return []byte{}, -1
	}
	return code, len(strings.Fields(head))
}

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
