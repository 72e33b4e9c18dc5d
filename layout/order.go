package layout

import (
	"fmt"
	"strings"
)

// SetGroups finds the sections of a layout that can take each other's places:
// those that one input section description of the linker script takes, among
// which lld goes by the order of the object. The link map does not tell where
// a description ends; where the indices fall, one does at the latest. What is
// aligned by the script, or by more than the sections around it, keeps its
// place: another section there would not be aligned in the same way.
func SetGroups(layout []Section) {
	group, last := 0, -1 // the last section that is in a group
	for i := range layout {
		s := &layout[i]
		if !PerFunction(s.Name) && !PerSymbol(s.Name, s.Output) || !Movable(layout, i) || s.ScriptAlign > s.Align {
			continue
		}
		if last != i-1 || layout[last].Output != s.Output || layout[last].Index > s.Index {
			group++
		}
		s.Group, last = group, i
	}
}

// PerFunction tells whether a section's name is one that functions have under
// -ffunction-sections: .text.[!.]*.
func PerFunction(name string) bool { return PerSymbol(name, ".text") }

// PerSymbol tells whether a section's name is one that a function or an object has
// under -ffunction-sections or -fdata-sections, of those that would be in section plain
// without: .data.[!.]* of .data.
func PerSymbol(name, plain string) bool {
	rest, ok := strings.CutPrefix(name, plain+".")
	return ok && rest != "" && rest[0] != '.'
}

// Order returns the sections of a layout, as indices, in the order that a
// plan's Order makes of the baseline's.
func Order(layout []Section, order []string) ([]int, error) { return NewModel(layout).order(order) }

func (m *Model) order(order []string) ([]int, error) {
	out := make([]int, len(m.Sections))
	for i := range out {
		out[i] = i
	}
	if len(order) == 0 {
		return out, nil
	}
	listed := make([]int, len(order))
	seen := make([]bool, len(m.Sections))
	for n, name := range order {
		i, ok := m.ordered[name]
		switch {
		case !ok:
			return nil, fmt.Errorf("order: %s: this kernel has no such section that can take another's place", name)
		case seen[i]:
			return nil, fmt.Errorf("order: %s is in it twice", name)
		}
		listed[n], seen[i] = i, true
	}
	places := make([][]int, 1+m.groups) // of each group, in the order of the output
	for i, s := range seen {
		if s {
			group := m.Sections[i].Group
			places[group] = append(places[group], i)
		}
	}
	for _, i := range listed {
		group := m.Sections[i].Group
		out[places[group][0]] = i
		places[group] = places[group][1:]
	}
	return out, nil
}
