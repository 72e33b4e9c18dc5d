package report

import (
	"encoding/binary"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/arch/arm64/arm64asm"
)

// arm64Code is arm64's.
var arm64Code = machineCode{
	counter: "pc",
	trap:    "pc : ",
	longest: arm64Longest,
	dump:    arm64Dump,
	first:   arm64Instruction,
}

const arm64Longest = 4 // bytes of each instruction

var arm64CodeLine = regexp.MustCompile(`^\s*Code: ((?:\(?(?:[0-9a-f]{8}|\?{8})\)? ?)+)`)

// arm64Dump reads words of which the one at the trap is in parentheses
// (dump_kernel_instr, arch/arm64/kernel/traps.c). Question marks are what could not be read.
func arm64Dump(line string) (code []byte, at int) {
	m := arm64CodeLine.FindStringSubmatch(line)
	if m == nil {
		return nil, -1
	}
	code, at = []byte{}, -1
	for _, word := range strings.Fields(m[1]) {
		if strings.HasPrefix(word, "(") {
			at = len(code)
		}
		n, err := strconv.ParseUint(strings.Trim(word, "()"), 16, 32)
		if err != nil {
			return []byte{}, -1
		}
		code = binary.LittleEndian.AppendUint32(code, uint32(n))
	}
	return code, at
}

func arm64Instruction(code []byte, pc uint64) (asm string, n int, to []uint64) {
	if len(code) < arm64Longest {
		return "(cut)", len(code), nil
	}
	word := binary.LittleEndian.Uint32(code)
	in, err := arm64asm.Decode(code[:arm64Longest])
	switch {
	case err != nil && word>>16 == 0: // Arm ARM, C6.2: UDF
		return fmt.Sprintf("udf #%d", word), arm64Longest, nil
	case err != nil:
		return fmt.Sprintf(".inst 0x%08x", word), arm64Longest, nil
	case in.Op == arm64asm.HINT:
		if name, ok := arm64Hints[word>>5&0x7f]; ok {
			return name, arm64Longest, nil
		}
	}
	asm = arm64asm.GNUSyntax(in)
	for _, arg := range in.Args {
		if a, ok := arg.(arm64asm.PCRel); ok {
			at := pc + uint64(int64(a))
			if in.Op == arm64asm.ADRP {
				at = pc&^0xfff + uint64(int64(a))
			}
			to = append(to, at)
			asm = strings.ReplaceAll(asm, a.String(), fmt.Sprintf("%#x", at))
		}
	}
	return asm, arm64Longest, to
}

// arm64Hints are hints by the names that newer assemblers have for them: pointer
// authentication and branch targets (Arm ARM, C6.2, HINT).
var arm64Hints = map[uint32]string{
	7: "xpaclri", 8: "pacia1716", 12: "autia1716", 20: "csdb", 24: "paciaz", 25: "paciasp",
	28: "autiaz", 29: "autiasp", 32: "bti", 34: "bti c", 36: "bti j", 38: "bti jc",
}
