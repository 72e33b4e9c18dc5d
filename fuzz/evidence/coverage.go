package evidence

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"sync"

	"github.com/RoaringBitmap/roaring/v2"

	"unlucky/layout"
)

// moduli are those whose residues are counted, in bytes: a cache line, what
// branch predictors and the like take of an address, a page.
var moduli = [...]uint64{64, 256, layout.Modulus}

// Coverage counts, over the layouts of one kernel that have booted to a
// verdict, at which residues each function has been and which functions have
// touched. It may be used from several goroutines at once.
//
// A function is an input section that can be moved on its own and has a
// symbol; what else is in the section moves with it. Its residues are as many
// as its alignment allows.
//
// It holds the bits of what was seen, and nothing of each layout.
type Coverage struct {
	layout    []layout.Section // the baseline
	functions []counted        // in the order of the baseline
	fixed     []int            // sections of functions that the linker script places by hand

	mu      sync.Mutex
	seen    []uint64          // a bit a residue
	order   []int             // functions by address, in the layout that was added last
	next    []int             // the function that was last seen to touch each one's end; -1 for none
	touched []*roaring.Bitmap // all that were; nil for none
	totals  Totals
}

// counted is a function whose residues are counted.
type counted struct {
	section int              // index into the layout
	align   uint64           // bytes
	group   int              // functions of one have nothing between them that the linker script places by hand
	bits    [len(moduli)]int // where its residues of each modulus begin in Coverage.seen
}

// steps is what a function moves by modulo a modulus, and to how many residues.
func (f counted) steps(modulus uint64) (step uint64, residues int) {
	step = min(f.align, modulus)
	return step, int(modulus / step)
}

// Totals are a coverage in figures.
type Totals struct {
	Functions  int                   `json:"functions"` // that can move
	Fixed      int                   `json:"fixed"`     // input sections of functions that cannot, left out
	Layouts    int                   `json:"layouts"`   // that have booted to a verdict, the baseline too
	Residues   [len(moduli)]Residues `json:"residues"`
	Neighbours struct {
		Seen     int `json:"seen"`     // pairs (a, b) that have touched: b right behind a, but for its alignment
		Baseline int `json:"baseline"` // pairs that touch in the baseline
	} `json:"neighbours"`
}

// Residues are the (function, residue) pairs of one modulus.
type Residues struct {
	Modulus uint64 `json:"modulus"` // bytes
	Seen    int    `json:"seen"`
	Of      int    `json:"of"`
}

// FunctionCoverage is the coverage of one function.
type FunctionCoverage struct {
	Name     string                `json:"name"`
	Section  string                `json:"section"` // input section
	Address  uint64                `json:"address"` // of the function in the baseline
	Residues [len(moduli)]Residues `json:"residues"`
}

// NewCoverage is the coverage by no layouts of the kernel whose baseline has
// this layout. A kernel whose addresses do not follow from its plans has none:
// that is the error.
func NewCoverage(sections []layout.Section) (*Coverage, error) {
	c := &Coverage{layout: sections}
	outputs := layout.Outputs(sections)
	n, group := 0, 0
	for i, s := range sections {
		if i > 0 && s.Output != sections[i-1].Output {
			group++
		}
		switch movable := layout.Movable(sections, i); {
		case movable && !slices.Contains(outputs, s.Output):
			return nil, fmt.Errorf("%s and %s both have functions that can move", outputs[0], s.Output)
		case !slices.Contains(outputs, s.Output):
		case !movable:
			if s.Function != "" {
				c.fixed = append(c.fixed, i)
			}
			if s.Size > 0 {
				group++
			}
		case s.Function != "":
			f := counted{section: i, align: sections[i].Alignment(), group: group}
			for m, modulus := range moduli {
				_, residues := f.steps(modulus)
				c.totals.Residues[m].Of += residues
				f.bits[m] = n
				n += residues
			}
			c.functions = append(c.functions, f)
		}
	}
	if c.functions == nil {
		return nil, errors.New("this kernel has no function that can be moved")
	}
	c.totals.Functions, c.totals.Fixed = len(c.functions), len(c.fixed)
	for m, modulus := range moduli {
		c.totals.Residues[m].Modulus = modulus
	}
	c.seen = make([]uint64, (n+63)/64)
	c.touched = make([]*roaring.Bitmap, len(c.functions))
	for f := range c.functions {
		c.order, c.next = append(c.order, f), append(c.next, -1)
		if f > 0 && c.touch(f-1, f, sections[c.functions[f-1].section].Address, sections[c.functions[f].section].Address) {
			c.totals.Neighbours.Baseline++
		}
	}
	return c, nil
}

// Totals are the figures as they are now.
func (c *Coverage) Totals() Totals {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.totals
}

// Add counts a layout that has booted to a verdict by the addresses of the
// baseline's sections in it; 0 is one that is not known. Of a layout without
// any nothing is counted.
func (c *Coverage) Add(addresses []uint64) {
	if addresses == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.totals.Layouts++
	at := func(f int) uint64 { return addresses[c.functions[f].section] }
	byAddress := func(f, g int) int { return cmp.Compare(at(f), at(g)) }
	if !slices.IsSortedFunc(c.order, byAddress) { // seldom: most layouts have the order of the last
		slices.SortStableFunc(c.order, byAddress)
	}
	before := -1 // function
	for _, f := range c.order {
		address := at(f)
		if address == 0 {
			continue
		}
		// One that was seen modulo a page was seen modulo all that divides it.
		for m := len(moduli) - 1; m >= 0 && c.see(c.functions[f], m, address); m-- {
		}
		if before >= 0 && c.next[before] != f && c.touch(before, f, at(before), address) {
			c.meet(before, f)
		}
		before = f
	}
}

// see counts a function's residue of one of the moduli, and tells whether it is
// new.
func (c *Coverage) see(f counted, m int, address uint64) bool {
	step, _ := f.steps(moduli[m])
	bit := f.bits[m] + int(address%moduli[m]/step)
	word, mask := &c.seen[bit/64], uint64(1)<<(bit%64)
	if *word&mask != 0 {
		return false
	}
	*word |= mask
	c.totals.Residues[m].Seen++
	return true
}

// touch tells whether nothing but g's alignment is between two functions.
func (c *Coverage) touch(f, g int, addressF, addressG uint64) bool {
	a, b := c.functions[f], c.functions[g]
	return a.group == b.group && addressG == layout.AlignUp(addressF+c.layout[a.section].Size, b.align)
}

// meet counts two functions that touch, once.
func (c *Coverage) meet(f, g int) {
	c.next[f] = g
	if c.touched[f] == nil {
		c.touched[f] = roaring.New()
	}
	if c.touched[f].CheckedAdd(uint32(g)) {
		c.totals.Neighbours.Seen++
	}
}

// Recall adds layouts of this kernel that have booted to a verdict, by their
// plans. Those that lld itself has padded can't be told from their plans: it
// returns how many. each is told how many of the others are done; it may be nil.
func (c *Coverage) Recall(ctx context.Context, tried []Tried, each func(done, total int)) (untold int, err error) {
	var known []Tried
	for _, t := range tried {
		switch {
		case !Booted(t.Kind):
		case !t.placed():
			untold++
		default:
			known = append(known, t)
		}
	}
	return untold, Place(ctx, c.layout, known, func(_ int, addresses []uint64) { c.Add(addresses) }, each)
}

// Functions are those that can move, the least covered first: by the last
// modulus, then by the others, then by name.
func (c *Coverage) Functions() []FunctionCoverage {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]FunctionCoverage, len(c.functions))
	for i, f := range c.functions {
		s := c.layout[f.section]
		out[i] = FunctionCoverage{Name: s.Function, Section: s.Name, Address: s.Address + s.Entry}
		for m, modulus := range moduli {
			_, residues := f.steps(modulus)
			out[i].Residues[m] = Residues{modulus, c.count(f.bits[m], residues), residues}
		}
	}
	slices.SortStableFunc(out, func(a, b FunctionCoverage) int {
		for m := len(moduli) - 1; m >= 0; m-- {
			x, y := a.Residues[m], b.Residues[m]
			if order := cmp.Compare(x.Seen*y.Of, y.Seen*x.Of); order != 0 {
				return order
			}
		}
		return cmp.Compare(a.Name, b.Name)
	})
	return out
}

// count is how many of n bits are set.
func (c *Coverage) count(bit, n int) (set int) {
	for ; n > 0; n-- {
		set += bits.OnesCount64(c.seen[bit/64] & (1 << (bit % 64)))
		bit++
	}
	return set
}

// Fixed are the sections of functions that cannot move, in the order of the
// baseline.
func (c *Coverage) Fixed() []layout.Section {
	var out []layout.Section
	for _, i := range c.fixed {
		out = append(out, c.layout[i])
	}
	return out
}

// Covered is what all layouts of some results have covered; nil where it is not
// counted. progress is told how many have been placed.
func (r *Results) Covered(ctx context.Context, progress func(done, total int)) (*Totals, error) {
	if r.Layout == nil {
		return nil, r.LayoutErr
	}
	c, err := NewCoverage(r.Layout)
	if err != nil {
		return nil, nil // a kernel that has none
	}
	if _, err := c.Recall(ctx, r.All(), progress); err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(r.Dirs, ", "), err)
	}
	totals := c.Totals()
	return &totals, nil
}
