package report

import (
	"bytes"
	"cmp"
	"debug/dwarf"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"unlucky/arch"
	"unlucky/scenarios"
	"unlucky/seeds"
)

// decoder says what the numbers of a crash report mean, by the image that
// printed them: what the kernel's scripts/decode_stacktrace.sh and
// scripts/decodecode do with binutils, and alike on every machine.
type decoder struct {
	symbols []mapSymbol // by address
	named   map[string][]mapSymbol
	text    *elf.File // the image
	code    machineCode
	lines   *dwarf.Data // nil where the image has none
	slid    uint64      // by KASLR: what the console says less what System.map says
	blind   bool        // by how much is not known
}

// machineCode is how the machine code of an architecture, and what its consoles say
// of it, is read.
type machineCode struct {
	counter string // what a console calls the program counter
	trap    string // the beginning of the line that says where the kernel trapped
	behind  string // in the first line of a report whose trap is taken behind its instruction; empty for none
	longest int    // bytes of an instruction
	// dump reads the line of a report that has the code around the trap: its bytes, and
	// at which of them that is, -1 if it says not; nil for another line.
	dump func(line string) (code []byte, at int)
	// first is the first instruction of some code, in the syntax of GNU as, how many
	// bytes it has, and what may be addresses in it.
	first func(code []byte, pc uint64) (asm string, n int, to []uint64)
}

// machineCodes are those that can be read, by the architecture's name.
var machineCodes = map[string]machineCode{arch.X86_64.Name: x86Code, arch.ARM64.Name: arm64Code}

type mapSymbol struct {
	address uint64
	name    string
	size    uint64 // up to the next symbol of another address, as kallsyms has it
}

// newDecoder reads System.map and vmlinux in dir, of a scenario's kernel. console is
// the whole log that the reports are of.
func newDecoder(dir, debug string, kernel scenarios.Kernel, console []string) (*decoder, error) {
	code, ok := machineCodes[kernel.Arch]
	if !ok {
		return nil, fmt.Errorf("the machine code of architecture %q cannot be read", kernel.Arch)
	}
	symbols, err := os.ReadFile(filepath.Join(dir, seeds.MapFile))
	if err != nil {
		return nil, err
	}
	text, err := elf.Open(filepath.Join(dir, seeds.VMLinuxFile))
	if err != nil {
		return nil, err
	}
	d := &decoder{text: text, code: code}
	if text.Section(".debug_line") != nil {
		d.lines, _ = text.DWARF() // a trace without lines is better than none
	} else if f, err := elf.Open(debug); err == nil {
		d.lines, _ = f.DWARF()
		f.Close()
	}
	d.readMap(symbols)
	d.findSlide(kernel.Image, console)
	return d, nil
}

// readMap takes the symbols that are in the image.
func (d *decoder) readMap(systemMap []byte) {
	for line := range bytes.Lines(systemMap) {
		f := strings.Fields(string(line))
		if len(f) != 3 {
			continue
		}
		if address, err := strconv.ParseUint(f[0], 16, 64); err == nil && d.segment(address) != nil {
			d.symbols = append(d.symbols, mapSymbol{address: address, name: f[2]})
		}
	}
	slices.SortStableFunc(d.symbols, func(a, b mapSymbol) int { return cmp.Compare(a.address, b.address) })
	d.named = map[string][]mapSymbol{}
	end := uint64(0)
	for i, s := range slices.Backward(d.symbols) {
		if i+1 < len(d.symbols) && d.symbols[i+1].address != s.address {
			end = d.symbols[i+1].address
		}
		d.symbols[i].size = max(end, s.address) - s.address
		d.named[s.name] = append(d.named[s.name], d.symbols[i])
	}
}

// findSlide finds out what KASLR did, which an image has that is not vmlinux itself.
func (d *decoder) findSlide(image string, console []string) {
	d.blind = image != seeds.VMLinuxFile
	for _, line := range console {
		if m := kernelOffset.FindStringSubmatch(line); m != nil {
			d.slid, _ = strconv.ParseUint(m[1], 16, 64) // "disabled" is 0
			d.blind = false
		} else if strings.HasPrefix(line, "KASLR disabled ") || strings.HasPrefix(line, "Kernel command line: ") && slices.Contains(strings.Fields(line), "nokaslr") {
			d.blind = false
		}
	}
}

func (d *decoder) Close() error { return d.text.Close() }

// kernelOffset is dump_kernel_offset's, arch/*/kernel/setup.c; "KASLR disabled" stands
// in arch/arm64/kernel/kaslr.c.
var kernelOffset = regexp.MustCompile(`^Kernel Offset: (?:0x([0-9a-f]+) |disabled)`)

// at names an address: "canary_reboot+0x2c"; "" if there is nothing. A name that
// begins with a dot is the compiler's, as that of somebody else's string.
func (d *decoder) at(address uint64) string {
	i, found := slices.BinarySearchFunc(d.symbols, address, func(s mapSymbol, a uint64) int { return cmp.Compare(s.address, a) })
	if !found {
		i--
	}
	if i < 0 || d.segment(address) == nil {
		return ""
	}
	for i > 0 && d.symbols[i-1].address == d.symbols[i].address {
		i--
	}
	if s := d.symbols[i]; address != s.address {
		return fmt.Sprintf("%s+%#x", s.name, address-s.address)
	}
	return d.symbols[i].name
}

// find is the address of what a console calls "canary_reboot+0x2c/0x30", by the
// size where several have the name.
func (d *decoder) find(name string, offset, size uint64) (address uint64, ok bool) {
	all := d.named[name]
	if len(all) != 1 {
		all = slices.DeleteFunc(slices.Clone(all), func(s mapSymbol) bool { return s.size != size })
	}
	if len(all) != 1 {
		return 0, false
	}
	return all[0].address + offset, true
}

var (
	// An address that the kernel had no name for, "0xffffffff81000000" (%pS
	// without KALLSYMS) or "[<ffffffff81000000>]", and any number like one.
	bareAddress = regexp.MustCompile(`0x([0-9a-f]{16})\b|\[<([0-9a-f]{16})>\]`)
	anyAddress  = regexp.MustCompile(`\b[0-9a-f]{16}\b`) // without 0x: \b is not behind the x
	frame       = regexp.MustCompile(`([A-Za-z_$][\w$.]*)\+0x([0-9a-f]+)/0x([0-9a-f]+)`)
)

// decode is a report with what its numbers mean: source lines where the image
// has them, names of bare addresses, the code around the trap, and what else
// points into the image.
func (d *decoder) decode(report []string) string {
	var b strings.Builder
	var points []uint64
	var code []byte
	at := -1 // in code
	trap, trapped := uint64(0), false
	for _, line := range report {
		if code == nil {
			code, at = d.code.dump(line)
		}
		isTrap := strings.HasPrefix(strings.TrimSpace(line), d.code.trap)
		if m := frame.FindStringSubmatch(line); m != nil {
			offset, _ := strconv.ParseUint(m[2], 16, 64)
			size, _ := strconv.ParseUint(m[3], 16, 64)
			if a, ok := d.find(m[1], offset, size); ok {
				if isTrap && !trapped {
					trap, trapped = a, true
				} else if !isTrap && offset > 0 {
					a-- // a return address: the call is before it
				}
				line += d.source(a)
			}
		}
		line = bareAddress.ReplaceAllStringFunc(line, func(text string) string {
			m := bareAddress.FindStringSubmatch(text)
			a, _ := strconv.ParseUint(m[1]+m[2], 16, 64)
			if name := d.here(a); name != "" {
				if isTrap && !trapped {
					trap, trapped = a-d.slid, true
				}
				return text + " " + name
			}
			return text
		})
		for _, text := range anyAddress.FindAllString(line, -1) {
			a, _ := strconv.ParseUint(text, 16, 64)
			if name := d.here(a); name != "" && name[0] != '.' && !slices.Contains(points, a) {
				points = append(points, a)
			}
		}
		b.WriteString(line + "\n")
	}
	if code != nil {
		behind := d.code.behind != "" && strings.Contains(report[0], d.code.behind)
		b.WriteString("\n" + d.disassemble(code, at, trap, trapped, behind))
	}
	if len(points) > 0 {
		b.WriteString("\nNumbers in it that are addresses of the image:\n")
		for _, a := range points {
			fmt.Fprintf(&b, "%016x  %s\n", a, d.here(a))
		}
	}
	return b.String()
}

// here is at for an address of the console.
func (d *decoder) here(address uint64) string {
	if d.blind {
		return ""
	}
	return d.at(address - d.slid)
}

// source is " (file:line)" of an address, by DWARF; "" where there is none.
func (d *decoder) source(address uint64) string {
	if d.lines == nil {
		return ""
	}
	unit, err := d.lines.Reader().SeekPC(address)
	if err != nil {
		return ""
	}
	table, err := d.lines.LineReader(unit)
	if err != nil || table == nil {
		return ""
	}
	var e dwarf.LineEntry
	if table.SeekPC(address, &e) != nil || e.File == nil {
		return ""
	}
	build, _ := unit.Val(dwarf.AttrCompDir).(string)
	name := e.File.Name
	for _, dir := range []string{build, filepath.Dir(build)} { // the tree's own folder, or one in it
		name = strings.TrimPrefix(name, dir+"/")
	}
	return fmt.Sprintf(" (%s:%d)", name, e.Line)
}

// segment is the part of the image that is at an address; nil for none. What is
// linked at 0, per-CPU data, is at no address.
func (d *decoder) segment(address uint64) *elf.Prog {
	i := slices.IndexFunc(d.text.Progs, func(p *elf.Prog) bool {
		return p.Type == elf.PT_LOAD && p.Vaddr > 0 && address >= p.Vaddr && address-p.Vaddr < p.Memsz
	})
	if i < 0 {
		return nil
	}
	return d.text.Progs[i]
}

// bytes are n of those of the image at an address; fewer at its end.
func (d *decoder) bytes(address uint64, n int) []byte {
	p := d.segment(address)
	if p == nil {
		return nil
	}
	data := make([]byte, n)
	n, _ = p.ReadAt(data, int64(address-p.Vaddr))
	return data[:n]
}

// insn is one instruction of a Code: line.
type insn struct {
	at   int // in the line
	code []byte
	asm  string // in the syntax of GNU as
	mark string
}

// disassemble lists the bytes that the kernel read where it trapped, at one of them: live patching has made them others than the image's. The bytes begin
// anywhere, and where the first instruction does is told by the image. behind
// tells of a trap that is taken behind its instruction.
func (d *decoder) disassemble(code []byte, at int, trap uint64, known, behind bool) string {
	if at < 0 {
		return ""
	}
	start := trap - uint64(at)
	i := 0
	if known {
		i = d.boundary(start)
	}
	var all []insn
	for i < len(code) {
		in := insn{at: i}
		in.asm, in.code = d.instruction(code[i:], start+uint64(i), known)
		end := i + len(in.code)
		switch {
		case i == at && !behind, end == at && behind:
			in.mark = "<-- trapping instruction"
		case i < at && at < end:
			in.mark = fmt.Sprintf("<-- %s is %d bytes into it: control went astray", d.code.counter, at-i)
			end = at
		}
		all = append(all, in)
		i = end
	}
	var b strings.Builder
	b.WriteString("The code as it was in memory:\n")
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for i := 0; i < len(all); i++ {
		in := all[i]
		same := 1
		for i+same < len(all) && all[i+same].asm == in.asm && in.mark == "" && all[i+same].mark == "" {
			same++
		}
		if same > 2 { // padding
			in.mark = fmt.Sprintf("(%d times)", same)
			i += same - 1
		}
		place := fmt.Sprintf("%+d", in.at-at)
		if known {
			place = d.at(start + uint64(in.at))
		}
		fmt.Fprintf(w, "%s\t% x\t%s\n", place, in.code, in.asm+"  "+in.mark)
	}
	w.Flush()
	if known {
		b.WriteString(d.outside(trap))
	}
	return spaces.ReplaceAllString(b.String(), "")
}

// outside says where an address is, if that is between functions: the kernel then
// names the one before, up to whose successor it counts.
func (d *decoder) outside(address uint64) string {
	symbols, err := d.text.Symbols()
	if err != nil {
		return "" // stripped
	}
	var before elf.Symbol
	for _, s := range symbols {
		if elf.ST_TYPE(s.Info) == elf.STT_FUNC && s.Size > 0 && s.Value <= address && s.Value >= before.Value {
			before = s
		}
	}
	if before.Size == 0 || address <= before.Value+before.Size {
		return ""
	}
	return fmt.Sprintf("%s is behind %s, which has %#x bytes.\n", d.code.counter, before.Name, before.Size)
}

// boundary is how many bytes behind an address the next instruction of the image
// begins.
func (d *decoder) boundary(address uint64) int {
	const longest = 64 << 10 // of the functions that are decoded for it
	i, found := slices.BinarySearchFunc(d.symbols, address, func(s mapSymbol, a uint64) int { return cmp.Compare(s.address, a) })
	if !found {
		i--
	}
	if i < 0 || address-d.symbols[i].address > longest {
		return 0
	}
	pc := d.symbols[i].address
	code := d.bytes(pc, int(address-pc)+d.code.longest)
	for pc < address && len(code) > 0 {
		_, in := d.instruction(code, pc, true)
		code, pc = code[len(in):], pc+uint64(len(in))
	}
	return int(max(pc, address) - address)
}

// instruction is the first one of code, and its bytes.
func (d *decoder) instruction(code []byte, pc uint64, known bool) (asm string, its []byte) {
	asm, n, to := d.code.first(code, pc)
	for _, address := range to {
		// Of code that is at no known place it is not known where jumps lead, either.
		if name := d.at(address); known && name != "" && name[0] != '.' {
			asm += " <" + name + ">"
		}
	}
	return asm, code[:n]
}
