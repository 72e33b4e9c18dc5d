package linker

import (
	"bufio"
	"context"
	"debug/elf"
	"fmt"
	"io"
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
}

// readLayout reads lld's link map of an image: its input sections in output
// order. Lines look like
//
//	VMA LMA Size Align Out     In      Symbol
//	ffffffff81001300 1001300 b8 16         vmlinux.o:(.text.unlikely.run_init_process)
//
// with the output section in the first column after the numbers, the input
// section eight and the symbol sixteen further on (lld/ELF/MapFile.cpp).
func readLayout(linkMap io.Reader, object string, image *elf.File) ([]Section, error) {
	var sections []Section
	var out Section // the output section that the lines belong to
	seen := map[string]int{}
	var last uint64 // address of the last symbol
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
		case depth == 8 && strings.HasSuffix(what, ")") && strings.Contains(what, ":("):
			file, name, _ := strings.Cut(strings.TrimSpace(strings.TrimSuffix(what, ")")), ":(")
			if head.Address+head.Size < head.Address || head.Align&(head.Align-1) != 0 {
				return nil, fmt.Errorf("line %d of the link map: no section can be so: %.80q", n, lines.Text())
			}
			s := head
			s.Output, s.Segment = out.Output, out.Segment
			if file == object {
				seen[name]++
				s.Name = sectionName(name, seen[name])
				s.Text = isText(s.Output, name)
			}
			sections = append(sections, s)
		case depth == 16 && len(sections) > 0 && !strings.Contains(what, " = "):
			s, name := &sections[len(sections)-1], strings.TrimSpace(what)
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

// name takes a symbol of the section, unless it has a better one.
func (s *Section) name(symbol string, address uint64) {
	if s.Function == "" || strings.HasSuffix(s.Name, "."+symbol) && !strings.HasSuffix(s.Name, "."+s.Function) {
		s.Function, s.Entry = symbol, address-s.Address
	}
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
	addresses := make([]uint64, len(layout))
	var end uint64 // of what stands before, as it is now; 0 at the first of the output
	for _, i := range order {
		s := layout[i]
		addresses[i] = s.Address
		if s.Output != output {
			continue
		}
		if end > 0 {
			padded := end + before[s.Name]
			addresses[i] = AlignUp(padded, Alignment(layout, i))
			if padded < end || addresses[i] < padded || addresses[i]+s.Size < addresses[i] {
				return nil, fmt.Errorf("padding before %s: it would lie behind the last address", s.Name)
			}
		}
		delete(before, s.Name)
		end = addresses[i] + s.Size
	}
	delete(before, "")
	for name := range before {
		return nil, fmt.Errorf("padding before %s: %s has no such input section", name, output)
	}
	return addresses, nil
}

// Alignment is that of a section in a layout: its own, or the linker script's
// where the baseline shows that this is larger.
func Alignment(layout []Section, i int) uint64 {
	s := layout[i]
	align := max(s.Align, 1)
	if i == 0 || layout[i-1].Output != s.Output {
		return align
	}
	end := layout[i-1].Address + layout[i-1].Size
	for AlignUp(end, align) != s.Address && align < 1<<21 {
		align *= 2
	}
	return align
}

// Movable tells whether a section of a layout can be padded before: it is an
// ordinary one of text, and one of the object stands before it to be
// lengthened.
func Movable(layout []Section, i int) bool {
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
		if !Movable(layout, place) { // places keep what is before them, or a group stands there
			return nil, fmt.Errorf("padding before %s: nothing of the object stands before it in %s to be lengthened", p.Section, layout[place].Output)
		}
		padding[layout[order[place-1]].Index] += p.Bytes
	}
	return padding, nil
}
