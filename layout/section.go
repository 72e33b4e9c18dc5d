// Package layout is the model of what a linker can do with the functions of a
// kernel: the input sections as the baseline has them, and plans, which order and
// pad them anew. It places a plan by arithmetic alone, and has the strategies that
// make plans of seeds. It knows no files, no ELF and no processes.
package layout

import (
	"fmt"
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
	Moves   bool   `json:"text"`  // plans may move it on its own: an ordinary input section of text, or of what kernel.sections names
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

// FunctionName is what people call the function of a section. Of a section that
// holds many, no single one is named.
func (s Section) FunctionName() string {
	name := s.Function
	if base, suffix, ok := strings.Cut(name, ".llvm."); ok && strings.Trim(suffix, "0123456789") == "" {
		name = base
	}
	switch {
	case name == "":
		return s.Name
	case s.Functions > 1 && !strings.HasSuffix(s.Name, "."+s.Function):
		return fmt.Sprintf("%s (%d functions from %s)", s.Name, s.Functions, name)
	}
	return name
}
