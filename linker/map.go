package linker

import (
	"bufio"
	"debug/elf"
	"fmt"
	"go/constant"
	"go/token"
	"go/types"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"unlucky/layout"
	"unlucky/scenarios"
)

// readLayout reads lld's link map of an image: its input sections in output
// order. Lines look like
//
//	VMA LMA Size Align Out     In      Symbol
//	ffffffff81001300 1001300 b8 16         vmlinux.o:(.text.unlikely.run_init_process)
//
// with the output section in the first column after the numbers, the input
// section and the script's assignments eight and the symbol sixteen further on
// (lld/ELF/MapFile.cpp). which of them may move is what kernel.sections says.
func readLayout(linkMap io.Reader, object string, image *elf.File, which string) ([]layout.Section, error) {
	var sections []layout.Section
	var out layout.Section // the output section that the lines belong to
	seen := map[string]int{}
	var last uint64               // address of the last symbol
	var next layout.Section       // what the script says of the place of the next one
	definedIn := map[string]int{} // symbols, by the number of their section
	ours := true                  // the symbols that follow are of the last section
	between := [][]int{nil}       // sections that may move, with nothing that the script says between them
	var block block               // that sections stand in
	lines := bufio.NewScanner(linkMap)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		if n == 1 {
			if !strings.HasPrefix(strings.TrimSpace(lines.Text()), "VMA") {
				return nil, fmt.Errorf("not a link map of lld: it begins %.40q", lines.Text())
			}
			continue
		}
		head, what, ok := mapLine(lines.Text())
		if !ok {
			continue
		}
		depth := len(what) - len(strings.TrimLeft(what, " "))
		if symbol, _, said := assignment(strings.TrimLeft(what, " ")); depth <= 8 && (depth == 0 || said) {
			between = append(between, nil)
			block.says(symbol)
		}
		switch {
		case depth == 0 && !strings.Contains(what, " = "):
			out = layout.Section{Output: what, Segment: segment(image, head.Address)}
			next = layout.Section{}
		case depth == 8 && location.MatchString(what):
			assign(&next, location.FindStringSubmatch(what)[1], definedIn, len(sections)+1)
		case depth == 8 && strings.HasSuffix(what, ")") && strings.Contains(what, ":("):
			file, name, _ := strings.Cut(strings.TrimSpace(strings.TrimSuffix(what, ")")), ":(")
			if ours = file != internalFile || !slices.Contains(insertedSections, name); !ours {
				continue // another layout has others
			}
			if head.Address+head.Size < head.Address || head.Align&(head.Align-1) != 0 {
				return nil, fmt.Errorf("line %d of the link map: no section can be so: %.80q", n, lines.Text())
			}
			s := head
			s.Output, s.Segment = out.Output, out.Segment
			s.ScriptAlign, s.Pin, next = next.ScriptAlign, next.Pin, layout.Section{}
			if file == object && !strings.HasPrefix(name, ".eh_frame+") { // a part of one, by the map alone
				seen[name]++
				s.Name = sectionName(name, seen[name])
				s.Moves = mayMove(which, s.Output, name) || which == scenarios.Blocks && block.begins && isText(s.Output)
				if s.Moves {
					between[len(between)-1] = append(between[len(between)-1], len(sections))
				}
			}
			sections = append(sections, s)
			block.begins = false
		case depth == 16 && ours && len(sections) > 0 && !strings.Contains(what, " = "):
			s, name := &sections[len(sections)-1], strings.TrimSpace(what)
			definedIn[name] = len(sections)
			if strings.HasPrefix(name, "__cfi_") || strings.HasPrefix(name, "__pfx_") {
				continue // what stands before a function
			}
			if strings.HasPrefix(name, mappingSymbol) {
				continue
			}
			if head.Address < s.Address || head.Address-s.Address > s.Size {
				continue // a name for what is elsewhere
			}
			if s.Functions == 0 || head.Address != last {
				s.Functions++
			}
			last = head.Address
			takeName(s, name, head.Address)
		}
	}
	if which == scenarios.Data {
		keepLargest(sections, between)
	}
	return sections, lines.Err()
}

// block tells where a block begins that the linker script places by hand: at a section
// before which the script says something, outside of what has symbols at both ends. What is
// put before it is the end of the block before.
type block struct {
	open   int  // ends that are to come
	begins bool // with the next section
}

// says takes an assignment to a symbol.
func (b *block) says(symbol string) {
	if strings.HasSuffix(symbol, "_end") || strings.HasPrefix(symbol, "__stop_") {
		b.open = max(b.open-1, 0)
	}
	b.begins = b.begins || b.open == 0
	if strings.HasSuffix(symbol, "_start") || strings.HasPrefix(symbol, "__start_") {
		b.open++
	}
}

// keepLargest has those objects move that stand between the same two statements of the
// linker script as most others of their output section: what else is named like an object,
// or put there by the script, may be a table whose ends have symbols.
func keepLargest(sections []layout.Section, between [][]int) {
	largest := map[string]int{} // by output section, an index of between
	for n, run := range between {
		if len(run) > 0 && len(run) > len(between[largest[sections[run[0]].Output]]) {
			largest[sections[run[0]].Output] = n
		}
	}
	for n, run := range between {
		for _, i := range run {
			sections[i].Moves = largest[sections[i].Output] == n
		}
	}
}

// internalFile is what lld calls the file of sections that it makes itself.
const internalFile = "<internal>"

// location is an assignment to the location counter, in what it says behind the
// equals sign. One that is not plain, `. += N`, keeps its operator.
var location = regexp.MustCompile(`^ +\. *([-+*/&|<>]*=.*)$`)

// assign takes an assignment to the location counter before the section with
// that number.
func assign(s *layout.Section, to string, definedIn map[string]int, number int) {
	if n, ok := alignment(to); ok {
		s.ScriptAlign = max(s.ScriptAlign, n) // one power of two after the other: the larger one holds
		return
	}
	s.Pin = number
	for _, name := range symbolName.FindAllString(to, -1) {
		if in, ok := definedIn[name]; ok {
			s.Pin = in
		}
	}
}

var symbolName = regexp.MustCompile(`[A-Za-z_$][\w.$]*`)

// alignment reads `= ALIGN(N)`, where N is a number or one shifted by another,
// in any number of parentheses, as the kernel's scripts have them.
func alignment(to string) (bytes uint64, ok bool) {
	m := alignCall.FindStringSubmatch(to)
	if m == nil {
		return 0, false
	}
	// Numbers, shifts and parentheses are Go's, too.
	n, err := types.Eval(token.NewFileSet(), nil, token.NoPos, m[1])
	if err != nil || n.Value == nil {
		return 0, false
	}
	bytes, exact := constant.Uint64Val(constant.ToInt(n.Value))
	return bytes, exact && bytes > 0 && bytes&(bytes-1) == 0
}

var alignCall = regexp.MustCompile(`^= *ALIGN *\(((?:\(|\)|<<|\b(?:0x[[:xdigit:]]+|\d+)\b| ){1,99})\)$`)

// takeName takes a symbol of the section, unless it has a better one.
func takeName(s *layout.Section, symbol string, address uint64) {
	if s.Function == "" || strings.HasSuffix(s.Name, "."+symbol) && !strings.HasSuffix(s.Name, "."+s.Function) {
		s.Function, s.Entry = symbol, address-s.Address
	}
}

// mapLine splits a line of a link map into its numbers and what they are of,
// with the indentation that tells what that is.
func mapLine(line string) (s layout.Section, what string, ok bool) {
	rest := line
	var field [4]string
	for i := range field {
		rest = strings.TrimLeft(rest, " ")
		if field[i], rest, ok = strings.Cut(rest, " "); !ok {
			return s, "", false
		}
	}
	var err [3]error
	s.Address, err[0] = strconv.ParseUint(field[0], 16, 64)
	s.Size, err[1] = strconv.ParseUint(field[2], 16, 64)
	s.Align, err[2] = strconv.ParseUint(field[3], 10, 64)
	return s, rest, err == [3]error{}
}

// mayMove tells the input sections that a linker script takes by the glob for
// functions from those that it places by hand and that must not be moved on
// their own: .head.text, .noinstr.text, .entry.text, .text..__x86.* . Of data it
// tells objects from .data..percpu, .data..ro_after_init, .bss..page_aligned and their
// like. The globs are TEXT_MAIN, DATA_MAIN, BSS_MAIN and their neighbours in the
// kernel's vmlinux.lds.h.
func mayMove(which, output, input string) bool {
	if which == scenarios.Data {
		return slices.Contains(dataOutputs, output) && (input == output || layout.PerSymbol(input, output))
	}
	return isText(output) && (input == ".text" || layout.PerFunction(input))
}

// isText tells the output sections that functions are in.
func isText(output string) bool { return output == ".text" || strings.HasPrefix(output, ".text.") }

// dataOutputs are the output sections whose objects can move.
var dataOutputs = []string{".rodata", ".data", ".bss"}

// segment is the index, among the PT_LOADs, of the one that holds an address.
func segment(image *elf.File, address uint64) int {
	n := 0
	for _, p := range image.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		if p.Vaddr <= address && address-p.Vaddr < p.Memsz {
			return n
		}
		n++
	}
	return -1
}
