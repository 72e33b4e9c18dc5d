package oops

import (
	"regexp"
	"strconv"
	"strings"
)

// place is where in the kernel something happened.
type place struct {
	function string // cleaned; "" if the kernel has no name for the address
	module   string // "" in vmlinux
	file     string // where the console was decoded, with its line
	line     int
	start    bool // the function's first byte: as a return address it is behind the end of the function before
}

const (
	symbol  = `[A-Za-z_$][\w$.]*`
	address = `\(?\[?<?[0-9a-f]{6,16}>?\]?\)? +`
	decoded = ` \(?[\w./+-]+\.(?:[chS]|rs):\d+` // by scripts/decode_stacktrace.sh, in brackets, or by syzkaller
)

var (
	// A frame as the architectures print it, their addresses in front of it or not:
	//
	//	foo+0x1/0x2 [module]             most; arm64 adds what it knows it by, (P), (PC)
	//	[<addr>] foo+0x1/0x2             arm64 and x86 before 4.10, mips, riscv, s390, loongarch
	//	[addr] [addr] foo+0x1/0x2 (unreliable)   powerpc
	//	foo from bar+0x1/0x2             arm
	//	[<addr>] (foo) from [<addr>] (bar+0x1/0x2)   arm before 5.19
	//
	// Group 1 is the unwinder's doubt, 2 the function, 3 its offset, 4 all else.
	frameLine = regexp.MustCompile(`^(?:<+[A-Z#]+>+ *)*(?:` + address + `)*(\? +)?\(?(` + symbol + `)(\+0x[0-9a-f]+/0x[0-9a-f]+)?\)?((?: .*)?)$`)
	fromLine  = regexp.MustCompile(`^((?: \[[\w-]+\])?) from (?:` + address + `)?\(?(` + symbol + `)(\+0x[0-9a-f]+/0x[0-9a-f]+)?((?: [^()]*)?)\)?((?: \[[\w-]+\])?)$`)
	frameTail = regexp.MustCompile(`^(?: \[[^\]]*\]|` + decoded + `[^()]*(?:\([^()]*\))?\)?| \([A-Za-z]+\)| [\w-]+)*$`)

	moduleText  = regexp.MustCompile(`\[([\w-]+)[^\]]*\]`)
	decodedText = regexp.MustCompile(`([\w./+-]+\.(?:[chS]|rs)):(\d+)`)
)

// parseFrame reads a frame of a trace: one place, none where the line is none or of
// an inlined function, or two where the line tells the caller, too. Those that are
// doubtful the unwinder does not believe in.
func parseFrame(line string) (places []place, doubtful bool) {
	m := frameLine.FindStringSubmatch(line)
	if m == nil {
		return nil, false
	}
	name, offset, tail := m[2], m[3], m[4]
	inlined := strings.Contains(tail, "[inline]") || strings.Contains(tail, "(inlined")
	if from := fromLine.FindStringSubmatch(tail); from != nil {
		places = []place{placeOf(name, offset, from[1])}
		if !inlined {
			places = append(places, placeOf(from[2], from[3], from[4]+from[5]))
		}
		return places, false
	}
	if inlined || !frameTail.MatchString(tail) || offset == "" && !decodedText.MatchString(tail) {
		return nil, false
	}
	return []place{placeOf(name, offset, tail)}, m[1] != "" || strings.Contains(tail, "(unreliable)")
}

// placeOf is the place of a symbol as the kernel prints it, with what stands
// behind it.
func placeOf(name, offset, tail string) place {
	p := place{function: cleanSymbol(name), start: strings.HasPrefix(offset, "+0x0/")}
	if m := moduleText.FindStringSubmatch(tail); m != nil && m[1] != "inline" {
		p.module = m[1]
	}
	if m := decodedText.FindStringSubmatch(tail); m != nil {
		p.file = m[1]
		p.line, _ = strconv.Atoi(m[2])
	}
	return p
}
