package linker

import (
	"bufio"
	"context"
	"debug/elf"
	"fmt"
	"go/constant"
	"go/token"
	"go/types"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// Section is one input section as the link of the baseline placed it.
type Section struct {
	Name    string `json:"name"`    // as in Padding.Section; empty where it is not from the object that is padded
	Output  string `json:"output"`  // output section, ".text"
	Segment int    `json:"segment"` // index of the PT_LOAD that the output section is in, -1 for none
	Address uint64 `json:"address"`
	Size    uint64 `json:"size"`  // bytes
	Align   uint64 `json:"align"` // sh_addralign, bytes
	Text    bool   `json:"text"`  // an ordinary .text input section, which may be moved on its own
	// Function is the symbol that a section per function is named after, or
	// else the first in it; empty where it has none. It is Entry bytes
	// behind Address: under kCFI the hash comes first.
	Function  string `json:"function"`
	Entry     uint64 `json:"entry"`
	Functions int    `json:"functions"` // in it, as far as symbols tell: their different addresses
	Index     int    `json:"index"`     // of its header in the object; 0 where it is not from there
	Group     int    `json:"group"`     // sections of a group can take each other's places; 0 for none
	// ScriptAlign is what the linker script aligns the place before the section to,
	// `. = ALIGN(N)`, in bytes; 0 where it does not.
	ScriptAlign uint64 `json:"script-align,omitempty"`
	// Pin tells that another assignment to the location counter stands before the
	// section: the place is at a fixed distance to the section of that number, from
	// 1 on, which has the symbol that the assignment names (SRSO's pair); its own
	// number for an address that names none. 0 is no such assignment.
	Pin int `json:"pin,omitempty"`
}

// page is the alignment by the linker script, in bytes, from which on a section
// counts as placed by hand: there is no residue that it could be moved to.
const page = 4096

// readLayout reads lld's link map of an image: its input sections in output
// order. Lines look like
//
//	VMA LMA Size Align Out     In      Symbol
//	ffffffff81001300 1001300 b8 16         vmlinux.o:(.text.unlikely.run_init_process)
//
// with the output section in the first column after the numbers, the input
// section and the script's assignments eight and the symbol sixteen further on
// (lld/ELF/MapFile.cpp).
func readLayout(linkMap io.Reader, object string, image *elf.File) ([]Section, error) {
	var sections []Section
	var out Section // the output section that the lines belong to
	seen := map[string]int{}
	var last uint64               // address of the last symbol
	var next Section              // what the script says of the place of the next one
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
			out = Section{Output: what, Segment: segment(image, head.Address)}
			next = Section{}
		case depth == 8 && location.MatchString(what):
			next.assign(location.FindStringSubmatch(what)[1], definedIn, len(sections)+1)
		case depth == 8 && strings.HasSuffix(what, ")") && strings.Contains(what, ":("):
			file, name, _ := strings.Cut(strings.TrimSpace(strings.TrimSuffix(what, ")")), ":(")
			if head.Address+head.Size < head.Address || head.Align&(head.Align-1) != 0 {
				return nil, fmt.Errorf("line %d of the link map: no section can be so: %.80q", n, lines.Text())
			}
			s := head
			s.Output, s.Segment = out.Output, out.Segment
			s.ScriptAlign, s.Pin, next = next.ScriptAlign, next.Pin, Section{}
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
			s.name(name, head.Address)
		}
	}
	return sections, lines.Err()
}

// location is an assignment to the location counter, in what it says behind the
// equals sign. One that is not plain, `. += N`, keeps its operator.
var location = regexp.MustCompile(`^ +\. *([-+*/&|<>]*=.*)$`)

// assign takes an assignment to the location counter before the section with
// that number.
func (s *Section) assign(to string, definedIn map[string]int, number int) {
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

// name takes a symbol of the section, unless it has a better one.
func (s *Section) name(symbol string, address uint64) {
	if s.Function == "" || strings.HasSuffix(s.Name, "."+symbol) && !strings.HasSuffix(s.Name, "."+s.Function) {
		s.Function, s.Entry = symbol, address-s.Address
	}
}

// MainText is the output section that most text input sections are in, usually
// .text; empty where there are none.
func MainText(layout []Section) (output string) {
	text := map[string]int{} // functions of each output section
	for _, s := range layout {
		if s.Text {
			if text[s.Output]++; text[s.Output] > text[output] {
				output = s.Output
			}
		}
	}
	return output
}

// Place returns the address of each section of a layout, which is the
// baseline's, once its output section output is as in a plan. Sections of
// other output sections keep theirs.
func Place(layout []Section, output string, plan Plan) ([]uint64, error) {
	order, err := Order(layout, plan.Order)
	if err != nil {
		return nil, err
	}
	before, err := plan.paddingBefore()
	if err != nil {
		return nil, err
	}
	p := NewPlacer(layout)
	for _, i := range order {
		s := layout[i]
		if s.Output != output {
			continue
		}
		if padding := before[s.Name]; !p.Put(i, padding) {
			return nil, fmt.Errorf("padding before %s: it would lie behind the last address, or behind the place that the linker script fixes", s.Name)
		}
		delete(before, s.Name)
	}
	delete(before, "")
	for name := range before {
		return nil, fmt.Errorf("padding before %s: %s has no such input section", name, output)
	}
	return p.Address, nil
}

// Placer places the sections of one output section one after the other, in any
// order that a plan may have, as the linker does.
type Placer struct {
	Address []uint64 // of each section; the baseline's for one that is not placed yet
	layout  []Section
	end     uint64 // of the section placed last; 0 before the first, which stays
}

// NewPlacer is one for a baseline's layout.
func NewPlacer(layout []Section) *Placer {
	p := &Placer{Address: make([]uint64, len(layout)), layout: layout}
	for i, s := range layout {
		p.Address[i] = s.Address
	}
	return p
}

// Next is the address that a section gets without padding before it.
func (p *Placer) Next(i int) uint64 { return p.next(i, 0) }

func (p *Placer) next(i int, padding uint64) uint64 {
	s := p.layout[i]
	switch {
	case s.Pin > 0:
		to := s.Pin - 1
		return s.Address + p.Address[to] - p.layout[to].Address
	case p.end == 0:
		return s.Address
	}
	return AlignUp(p.end+padding, s.Alignment())
}

// Put places the next section, with padding before it in bytes, and tells
// whether it can be there.
func (p *Placer) Put(i int, padding uint64) bool {
	at, size := p.next(i, padding), p.layout[i].Size
	if end := p.end + padding; end < p.end || at+size < at || p.end > 0 && at < end {
		return false
	}
	p.Address[i], p.end = at, at+size
	return true
}

// Alignment is that of a section in a layout: its own, or the linker script's
// where that is larger.
func (s Section) Alignment() uint64 { return max(s.Align, s.ScriptAlign, 1) }

// Movable tells whether a section of a layout moves where it is padded before: it
// is an ordinary one of text, and the linker script does not fix its place.
func Movable(layout []Section, i int) bool {
	return paddable(layout, i) && layout[i].Pin == 0 && layout[i].ScriptAlign < page
}

// paddable tells whether a section can be padded before: one of the object stands
// before it to be lengthened.
func paddable(layout []Section, i int) bool {
	return layout[i].Text && i > 0 && layout[i-1].Output == layout[i].Output && layout[i-1].Name != ""
}

// AlignUp is the lowest multiple of align, a power of two, that is not below n.
func AlignUp(n, align uint64) uint64 { return (n + align - 1) &^ (align - 1) }

// mapLine splits a line of a link map into its numbers and what they are of,
// with the indentation that tells what that is.
func mapLine(line string) (s Section, what string, ok bool) {
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
	return input == ".text" || PerFunction(input)
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

// MisplacedError is an image in which a function is not where the plan puts it:
// a fault of this program, which says nothing of the layout.
type MisplacedError struct {
	Function    string
	At, Planned uint64 // addresses
}

func (e *MisplacedError) Error() string {
	return fmt.Sprintf("%s is at %#x, planned at %#x", e.Function, e.At, e.Planned)
}

// checkPlaces holds the addresses that an image has by its own symbols against
// those of its plan. Where lld itself pads no plan says where, and an image with
// other symbols says nothing: it has nil.
func checkPlaces(layout []Section, plan Plan, addresses []uint64) error {
	if plan.Flag != nil || addresses == nil {
		return nil
	}
	output := MainText(layout)
	planned, err := Place(layout, output, plan)
	for i, s := range layout {
		if at := addresses[i]; err == nil && s.Output == output && at != 0 && at != planned[i] {
			err = &MisplacedError{s.Function, at + s.Entry, planned[i] + s.Entry}
		}
	}
	if err != nil {
		err = hint(err, "this is a fault of unlucky, and no verdict: please report it with these lines, the linker script (arch/x86/kernel/vmlinux.lds) and the seed")
	}
	return err
}

// edit is what a plan changes in the object.
func (p *Kernel) edit(ctx context.Context, plan Plan) (e edit, err error) {
	if len(plan.Paddings) == 0 && len(plan.Order) == 0 {
		return e, nil
	}
	layout, err := p.baseline(ctx)
	if err != nil {
		return e, err
	}
	order, err := Order(layout, plan.Order)
	if err != nil {
		return e, err
	}
	e.slots = slots(layout, order)
	e.padding, err = endings(layout, order, plan)
	return e, err
}

// endings turns paddings, each before a section, into bytes to append to the
// end of the section that stands before it in the output. The padding then
// comes first and the section is aligned behind it, as in lld.
func endings(layout []Section, order []int, plan Plan) (map[int]uint64, error) {
	if _, err := plan.paddingBefore(); err != nil {
		return nil, err
	}
	position := make(map[string]int, len(layout))
	for place, i := range order {
		if name := layout[i].Name; name != "" {
			position[name] = place
		}
	}
	padding := make(map[int]uint64, len(plan.Paddings))
	for _, p := range plan.Paddings {
		place, ok := position[p.Section]
		if !ok {
			return nil, fmt.Errorf("padding before %s: the kernel has no such input section", p.Section)
		}
		if !layout[order[place]].Text {
			return nil, fmt.Errorf("padding before %s: the linker script places that section by hand; it can't be moved on its own", p.Section)
		}
		if !paddable(layout, place) { // places keep what is before them, or a group stands there
			return nil, fmt.Errorf("padding before %s: nothing of the object stands before it in %s to be lengthened", p.Section, layout[place].Output)
		}
		padding[layout[order[place-1]].Index] += p.Bytes
	}
	return padding, nil
}
