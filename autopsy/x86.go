package autopsy

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"

	"golang.org/x/arch/x86/x86asm"

	"unlucky/arch"
)

// machine is how the machine code of an architecture is read.
type machine struct {
	longest int // bytes of an instruction
	decode  func(code []byte, pc uint64) instruction
	// form is what an instruction does, without addresses and numbers; text is all of it,
	// in the syntax of GNU as. Of most instructions nobody asks for either.
	form func(in instruction) string
	text func(in instruction, pc uint64) string
	// number is the immediate of 32 bits of the first instruction that is no nop.
	number func(code []byte) (uint32, bool)
	// places matches the places of code that a console names: whether it is where the
	// kernel trapped, the function, the offset in it.
	places *regexp.Regexp
}

// machines are those that can be read, by the architecture's name.
var machines = map[string]machine{arch.X86_64.Name: {
	longest: 15, // Intel SDM, volume 2, 2.3.11
	decode:  decodeX86,
	form:    formX86,
	text:    textX86,
	number:  numberX86,
	places:  regexp.MustCompile(`(RIP: 0010:)?\b([A-Za-z_$][\w$.]*)\+0x([0-9a-f]+)/0x`),
}}

// instruction is one of machine code.
type instruction struct {
	code []byte
	flow flow
	to   uint64 // where a direct branch leads
	refs uint64 // what another instruction names relative to itself; 0 for none
	idle bool   // a nop, of any length
	trap bool   // what stands where nobody goes
}

// flow is where an instruction leads.
type flow int

const (
	on     flow = iota // to the next one
	branch             // there, or on: a call returns
	jump               // there
	stop               // elsewhere, or nowhere
	bad                // it is none
)

var endbr = []byte{0xf3, 0x0f, 0x1e}

const int3 = 0xcc

func decodeX86(code []byte, pc uint64) instruction {
	if n, f, _ := plainX86(code); n > 0 {
		return instruction{code: code[:n], flow: f, trap: code[0] == int3}
	}
	if n, head := rareX86(code); n > 0 {
		i := instruction{code: code[:n]}
		if modrm := code[head-1]; modrm&0xc7 == 0x05 && n >= head+4 { // relative to the next instruction
			i.refs = pc + uint64(n) + s32(code[head:])
		}
		return i
	}
	in, err := x86asm.Decode(code[:min(len(code), 15)], 64)
	if err != nil || in.Op == 0 {
		if n := systemX86(code); n > 0 {
			return instruction{code: code[:n]}
		}
		return instruction{code: code[:min(len(code), 1)], flow: bad}
	}
	i := instruction{code: code[:in.Len], idle: in.Op == x86asm.NOP}
	next := pc + uint64(in.Len)
	for _, arg := range in.Args {
		switch a := arg.(type) {
		case x86asm.Rel:
			i.to = next + uint64(int64(a))
			i.flow = branch
			if in.Op == x86asm.JMP {
				i.flow = jump
			}
		case x86asm.Mem:
			if a.Base == x86asm.RIP {
				i.refs = next + uint64(a.Disp)
			}
		}
	}
	switch in.Op {
	case x86asm.JMP, x86asm.LJMP:
		if i.flow != jump {
			i.flow = stop
		}
	case x86asm.RET, x86asm.LRET, x86asm.IRET, x86asm.IRETD, x86asm.IRETQ, x86asm.SYSRET, x86asm.SYSEXIT:
		i.flow = stop
	}
	return i
}

// plainX86 reads what x86asm does not know, or takes for something else; n is 0 for
// anything else.
func plainX86(code []byte) (n int, f flow, name string) {
	switch {
	case len(code) == 0:
	case len(code) >= 4 && bytes.HasPrefix(code, endbr) && code[3] == 0xfa:
		return 4, on, "endbr64"
	case len(code) >= 4 && bytes.HasPrefix(code, endbr) && code[3] == 0xfb:
		return 4, on, "endbr32"
	case code[0] == int3:
		return 1, stop, "int3"
	case code[0] == 0xd6: // UDB
		return 1, stop, "udb"
	}
	return 0, on, ""
}

// instX86 is an instruction once more, or what it is called that x86asm does not read.
func instX86(in instruction) (inst x86asm.Inst, name string) {
	if in.flow == bad {
		return inst, "(bad)"
	}
	if n, _, name := plainX86(in.code); n > 0 {
		return inst, name
	}
	if n, head := rareX86(in.code); n > 0 {
		return inst, fmt.Sprintf("(% x)", in.code[:head])
	}
	inst, err := x86asm.Decode(in.code, 64)
	if err != nil || inst.Op == 0 {
		return inst, fmt.Sprintf("(system % x)", in.code)
	}
	return inst, ""
}

func formX86(in instruction) string {
	inst, name := instX86(in)
	switch {
	case name != "":
		return name
	case in.idle:
		return "nop"
	}
	var form strings.Builder
	form.WriteString(strings.ToLower(inst.Op.String()))
	for _, arg := range inst.Args {
		switch a := arg.(type) {
		case x86asm.Reg:
			form.WriteString(" " + a.String())
		case x86asm.Imm:
			form.WriteString(" $")
		case x86asm.Mem:
			fmt.Fprintf(&form, " %v(%v,%v,%d)", a.Segment, a.Base, a.Index, a.Scale)
		}
	}
	return form.String()
}

func textX86(in instruction, pc uint64) string {
	inst, name := instX86(in)
	if name != "" {
		return name
	}
	return x86asm.GNUSyntax(inst, pc, nil)
}

func numberX86(code []byte) (uint32, bool) {
	for len(code) > 0 {
		in := decodeX86(code, 0)
		n := max(1, len(in.code))
		inst, name := instX86(in)
		if !in.idle && !strings.HasPrefix(name, "endbr") {
			for _, arg := range inst.Args {
				if imm, ok := arg.(x86asm.Imm); ok && n >= 5 && in.flow == on && uint32(imm) == uint32(s32(code[n-4:])) {
					return uint32(imm), true
				}
			}
			return 0, false
		}
		code = code[n:]
	}
	return 0, false
}

// systemX86 is the length of what x86asm does not know of a kernel: instructions
// with two registers or none in the groups of opcode 0f 00, 01, ae and c7 (Intel SDM,
// volume 2, table A-6); 0 for anything else.
func systemX86(code []byte) int {
	n := 0
	for n < len(code) && (code[n] == 0x66 || code[n] == 0xf2 || code[n] == 0xf3) {
		n++
	}
	if n < len(code) && code[n]&0xf0 == 0x40 { // REX
		n++
	}
	if len(code) < n+3 || code[n] != 0x0f || code[n+2] < 0xc0 || n > 4 {
		return 0
	}
	switch code[n+1] {
	case 0x00, 0x01, 0xae, 0xc7:
		return n + 3
	}
	return 0
}

// rareX86 is the length of an instruction that x86asm does not know, or reads as two: one
// with a VEX or EVEX prefix, and UD1, which a kernel warns by (Intel SDM, volume 2, 2.3, 2.7
// and appendix A). head are its bytes up to ModRM, behind which there is a displacement
// or an immediate; n is 0 for anything else.
func rareX86(code []byte) (n, head int) {
	table, op := 0, 0 // of opcodes, and where it is in the code
	switch {
	case len(code) < 3:
		return 0, 0
	case code[0] == 0xc5:
		table, op = 1, 2
	case code[0] == 0xc4:
		table, op = int(code[1]&0x1f), 3
	case code[0] == 0x62:
		table, op = int(code[1]&7), 4
	default:
		for op < 3 && (code[op] == 0x66 || code[op] == 0x67 || code[op]&0xf0 == 0x40) {
			op++
		}
		if len(code) < op+3 || code[op] != 0x0f || code[op+1] != 0xb9 {
			return 0, 0
		}
		op++
	}
	if len(code) > op && code[0] == 0xc5 && code[op] == 0x77 { // VZEROUPPER has no ModRM
		return op + 1, op + 1
	}
	if len(code) < op+2 {
		return 0, 0
	}
	head = op + 2
	n = head
	switch mod, rm := code[op+1]>>6, code[op+1]&7; {
	case mod == 3:
	case rm == 4 && len(code) <= head:
		return 0, 0
	case rm == 4 && mod == 0 && code[head]&7 == 5:
		n += 5
	case rm == 4:
		n += 1 + displacementX86[mod]
	case mod == 0 && rm == 5:
		n += 4
	default:
		n += displacementX86[mod]
	}
	if table == 3 || table == 1 && bytes.IndexByte([]byte{0x70, 0x71, 0x72, 0x73, 0xc2, 0xc4, 0xc5, 0xc6}, code[op]) >= 0 {
		n++ // an immediate
	}
	if len(code) < n {
		return 0, 0
	}
	return n, head
}

// displacementX86 are the bytes of a displacement, by the first bits of ModRM.
var displacementX86 = [4]int{0, 1, 4, 0}
