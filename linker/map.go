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
	"strconv"
	"strings"

	"unlucky/layout"
)

// readLayout reads lld's link map of an image: its input sections in output
// order. Lines look like
//
//	VMA LMA Size Align Out     In      Symbol
//	ffffffff81001300 1001300 b8 16         vmlinux.o:(.text.unlikely.run_init_process)
//
// with the output section in the first column after the numbers, the input
// section and the script's assignments eight and the symbol sixteen further on
// (lld/ELF/MapFile.cpp).
func readLayout(linkMap io.Reader, object string, image *elf.File) ([]layout.Section, error) {
	var sections []layout.Section
	var out layout.Section // the output section that the lines belong to
	seen := map[string]int{}
	var last uint64               // address of the last symbol
	var next layout.Section       // what the script says of the place of the next one
	definedIn := map[string]int{} // symbols, by the number of their section
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
		switch depth := len(what) - len(strings.TrimLeft(what, " ")); {
		case depth == 0 && !strings.Contains(what, " = "):
			out = layout.Section{Output: what, Segment: segment(image, head.Address)}
			next = layout.Section{}
		case depth == 8 && location.MatchString(what):
			assign(&next, location.FindStringSubmatch(what)[1], definedIn, len(sections)+1)
		case depth == 8 && strings.HasSuffix(what, ")") && strings.Contains(what, ":("):
			file, name, _ := strings.Cut(strings.TrimSpace(strings.TrimSuffix(what, ")")), ":(")
			if head.Address+head.Size < head.Address || head.Align&(head.Align-1) != 0 {
				return nil, fmt.Errorf("line %d of the link map: no section can be so: %.80q", n, lines.Text())
			}
			s := head
			s.Output, s.Segment = out.Output, out.Segment
			s.ScriptAlign, s.Pin, next = next.ScriptAlign, next.Pin, layout.Section{}
			if file == object {
				seen[name]++
				s.Name = sectionName(name, seen[name])
				s.Text = isText(s.Output, name)
			}
			sections = append(sections, s)
		case depth == 16 && len(sections) > 0 && !strings.Contains(what, " = "):
			s, name := &sections[len(sections)-1], strings.TrimSpace(what)
			definedIn[name] = len(sections)
			if strings.HasPrefix(name, "__cfi_") || strings.HasPrefix(name, "__pfx_") {
				continue // what stands before a function
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
	return sections, lines.Err()
}

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

// isText tells the input sections that a linker script takes by the glob for
// functions from those that it places by hand and that must not be moved on
// their own: .head.text, .noinstr.text, .entry.text, .text..__x86.* . The
// globs are TEXT_MAIN and its neighbours in the kernel's vmlinux.lds.h.
func isText(output, input string) bool {
	if output != ".text" && !strings.HasPrefix(output, ".text.") {
		return false
	}
	return input == ".text" || layout.PerFunction(input)
}

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
