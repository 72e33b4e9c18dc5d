package linker

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"unlucky/arch"
	"unlucky/layout"
)

// placement is where a plan puts what a template's layouts move.
type placement struct {
	t       *template
	moved   []uint64 // of a target, by how many bytes
	order   []int32  // moving sections, in the order of their addresses
	padding []uint64 // behind each of these
	set     []bool   // of a target: it is placed
	end     uint64   // of the output section, address
	sizes   map[string]uint64
}

// errTemplate is a plan after which something behind the output section stands elsewhere
// than in the template.
var errTemplate = errors.New("another template is needed")

// place computes the places of what a plan arranges, as lld does. The error is errTemplate, with which comes
// the end of the output section, or why lld has to say what becomes of the plan.
func (t *template) place(a layout.Arrangement) (*placement, error) {
	p := &placement{t: t, moved: make([]uint64, t.count), set: make([]bool, t.count), sizes: map[string]uint64{}}
	p.set[0] = true
	dot, padded := t.text.Addr, uint64(0)
	for i := t.first; i < t.last; i++ {
		e := &t.entries[i]
		if e.symbol != "" {
			var err error
			if dot, err = p.assign(e, dot, true); err != nil {
				return nil, err
			}
			continue
		}
		n := t.mine[t.inputs[a.Order[e.number]]]
		p.put(n, &dot)
		// What is put before the next section is the end of this one, and so before what
		// the script says between them.
		if i, next := t.inputs[e.number], e.number+1; i+1 < t.last && next < len(a.Order) && t.inputs[next] < t.last {
			padding := a.Padding[a.Order[next]]
			p.padding[len(p.padding)-1] = padding
			dot += padding
			padded += padding
		}
	}
	for _, padding := range a.Padding {
		padded -= padding
	}
	if padded != 0 {
		return nil, fmt.Errorf("it pads what is not in %s", t.text.Name)
	}
	if p.end = dot; p.end-t.text.Addr > t.room {
		return p, errTemplate
	}
	p.sizes[t.text.Name] = p.end - t.text.Addr
	if t.arch == arch.ARM64 && p.end-t.text.Addr > branchReach {
		return nil, errors.New("its text is so long that lld may insert veneers")
	}
	for _, run := range t.runs {
		if err := p.putRun(run); err != nil {
			return nil, err
		}
	}
	return p, p.behind()
}

// branchReach is how much text arm64's branches reach across, in bytes, with what code
// stands around it: 128 MiB in all.
const branchReach = 120 << 20

// put places a moving section at the location counter.
func (p *placement) put(n int, dot *uint64) {
	m := &p.t.moving[n]
	*dot = layout.AlignUp(*dot, m.align)
	p.moved[1+n], p.set[1+n] = *dot-m.address, true
	p.order, p.padding = append(p.order, int32(n)), append(p.padding, 0)
	*dot += m.size
}

// putRun places sections in the order of those that they belong to.
func (p *placement) putRun(run []int32) error {
	address := func(n int32) uint64 {
		link := p.t.moving[n].link
		return p.t.entries[link].address + p.moved[1+p.t.mine[link]]
	}
	sorted := slices.Clone(run)
	slices.SortStableFunc(sorted, func(a, b int32) int { return cmp.Compare(address(a), address(b)) })
	first, last := &p.t.moving[run[0]], &p.t.moving[run[len(run)-1]]
	dot := first.address
	for _, n := range sorted {
		p.put(int(n), &dot)
	}
	if dot != last.address+last.size {
		return errors.New("sections in the order of others take another size")
	}
	return nil
}

// behind follows the linker script behind the output section, and what looks at it
// elsewhere.
func (p *placement) behind() error {
	t := p.t
	out, after := t.text.Name, t.text.Addr+t.text.Size // in the template
	shift := p.end - after                             // of the location counter
	for n := range t.entries {
		i := (t.last + n) % len(t.entries)
		if i == t.first {
			break
		}
		e := &t.entries[i]
		if shift != 0 && e.out != out && out != t.text.Name && out != "" {
			o, err := t.output(out)
			if err != nil {
				return err
			}
			p.sizes[out] = o.Size + shift
			if err := t.grows(o); err != nil {
				return err
			}
		}
		out = e.out
		var err error
		switch {
		case i == 0 && shift != 0:
			return errTemplate
		case e.symbol == "":
			if shift != 0 && layout.AlignUp(after+shift, e.align) != e.address {
				return errTemplate
			}
			shift = 0
		case e.watch:
			var dot uint64
			if dot, err = p.assign(e, e.address+shift, e.out != ""); err == nil && e.symbol == "." {
				shift = dot - e.address - e.size
			}
		case shift != 0:
			err = errTemplate
		}
		if err != nil {
			return err
		}
		if after = e.address + e.size; e.begins {
			after = e.address
		}
	}
	if shift != 0 {
		return errTemplate
	}
	for i := range t.asserts {
		if _, err := p.assign(&t.asserts[i], 0, false); err != nil {
			return err
		}
	}
	return nil
}

// assign does what the script says with the location counter at dot, and returns where it
// is then. Within an output section it does not go back.
func (p *placement) assign(e *mapEntry, dot uint64, within bool) (uint64, error) {
	v, err := evaluate(e.to, func(name string) (uint64, error) {
		if name == "." {
			return dot, nil
		}
		s, ok := p.t.names[name]
		if !ok || !p.set[s.target] {
			return 0, fmt.Errorf("the linker script looks at %s before it has a place", name)
		}
		return s.address + p.moved[s.target], nil
	}, func(name string) (uint64, error) {
		if size, ok := p.sizes[name]; ok {
			return size, nil
		}
		o, err := p.t.output(name)
		return o.Size, err
	})
	switch {
	case err != nil:
		return 0, err
	case e.symbol == "." && within && v < dot:
		return 0, errors.New("the location counter moves backward")
	case e.symbol == ".":
		return v, nil
	}
	p.moved[e.target], p.set[e.target] = v-p.t.names[e.symbol].address, true
	return dot, nil
}
