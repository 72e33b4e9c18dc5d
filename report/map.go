package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"unlucky/fuzz/evidence"
	"unlucky/layout"
	"unlucky/seeds"
)

// layoutMap is a picture of the baseline from the first function that can move
// to the last, cut into cells of equally many bytes, from left to right and from
// top to bottom.
type layoutMap struct {
	Output        string
	Bytes         uint64 // of a cell
	Width, Height int    // cells
	Cells         []cell
	Rows          []mapRow // some, with their addresses
	Marks         []mark
}

type cell struct {
	X, Y  int
	Class string
	Title string
}

type mapRow struct {
	Y       int
	Address uint64
}

// High and Low are the halves of its address, of which a narrow page has room for
// the lower one.
func (r mapRow) High() string { return fmt.Sprintf("0x%08x", r.Address>>32) }
func (r mapRow) Low() string  { return fmt.Sprintf("%08x", uint32(r.Address)) }

// mark is a culprit on the map: the cells of its functions.
type mark struct {
	N       int
	Culprit string
	Cells   []point
}

type point struct{ X, Y int }

// levels are the steps of the map's colours, by the chance of luck that a cell
// has at most.
var levels = []struct {
	Chance float64
	Class  string
}{
	{1, "l0"}, {evidence.Sure, "l1"}, {1e-3, "l2"}, {1e-6, "l3"}, {1e-12, "l4"}, {1e-24, "l5"},
}

// newMap colours each cell by the highest score, -log10 of a chance, of a
// section in it. There is a score for each section of the layout.
func newMap(sections []layout.Section, scores []float64, culprits []seeds.Culprit) (*layoutMap, error) {
	var movable []int
	for i := range sections {
		if layout.Movable(sections, i) {
			movable = append(movable, i)
		}
	}
	if movable == nil {
		return nil, nil
	}
	first, last := movable[0], movable[len(movable)-1]
	var text []int // sections
	var begin, end uint64
	outputs := layout.Outputs(sections)
	for i, s := range sections[:last+1] {
		if i < first || s.Size == 0 || !slices.Contains(outputs, s.Output) {
			continue
		}
		if text == nil {
			begin = s.Address
		} else if s.Address < end {
			return nil, fmt.Errorf("the baseline's layout: %s at %#x is not behind the section before it", s.Name, s.Address)
		}
		if end = s.Address + s.Size; end <= s.Address {
			return nil, fmt.Errorf("the baseline's layout: %s ends behind the last address", s.Name)
		}
		text = append(text, i)
	}
	if text == nil {
		return nil, nil
	}
	m := &layoutMap{Output: strings.Join(outputs, ", "), Bytes: layout.Step, Width: mapColumns}
	for (end-begin)/m.Bytes >= maxCells-1 {
		m.Bytes *= 2
	}
	begin &^= m.Bytes - 1
	in := make([][]int, (end-1-begin)/m.Bytes+1) // sections of each cell
	for _, i := range text {
		s := sections[i]
		for c := (s.Address - begin) / m.Bytes; c <= (s.Address+s.Size-1-begin)/m.Bytes; c++ {
			in[c] = append(in[c], i)
		}
	}
	m.Height = (len(in) + m.Width - 1) / m.Width
	step := max(1, m.Height/8)
	for y := 0; y < m.Height; y += step {
		m.Rows = append(m.Rows, mapRow{y, begin + uint64(y*m.Width)*m.Bytes})
	}
	for c, inside := range in {
		at := cell{X: c % m.Width, Y: c / m.Width, Class: "fixed"}
		address := begin + uint64(c)*m.Bytes
		title := []string{fmt.Sprintf("%#x to %#x", address, address+m.Bytes-1)}
		slices.SortStableFunc(inside, func(i, j int) int { return cmp.Compare(scores[j], scores[i]) })
		for n, i := range inside {
			s := sections[i]
			if layout.Movable(sections, i) && at.Class == "fixed" {
				at.Class = levelOf(scores[i])
			}
			if n == maxNames {
				title = append(title, fmt.Sprintf("... and %d more", len(inside)-n))
			}
			if n >= maxNames {
				continue
			}
			line := cmp.Or(s.Function, s.Name, "(no name)")
			if scores[i] > 0 {
				line += fmt.Sprintf(": by luck with a chance of %.1g", math.Pow(10, -scores[i]))
			}
			title = append(title, line)
		}
		at.Title = strings.Join(title, "\n")
		m.Cells = append(m.Cells, at)
	}
	for _, c := range culprits {
		sentence := c.String()
		if slices.ContainsFunc(m.Marks, func(k mark) bool { return k.Culprit == sentence }) {
			continue // of another title
		}
		k := mark{N: len(m.Marks) + 1, Culprit: sentence}
		for _, f := range c.Functions {
			i := slices.IndexFunc(text, func(i int) bool { return sections[i].Name == f.Section && f.Section != "" })
			if i < 0 {
				continue
			}
			at := int((sections[text[i]].Address - begin) / m.Bytes)
			if p := (point{at % m.Width, at / m.Width}); !slices.Contains(k.Cells, p) {
				k.Cells = append(k.Cells, p)
			}
		}
		m.Marks = append(m.Marks, k)
	}
	return m, nil
}

func levelOf(score float64) string {
	class := levels[0].Class
	for _, l := range levels {
		if score >= -math.Log10(l.Chance) {
			class = l.Class
		}
	}
	return class
}

// ViewWidth and ViewHeight are those of the picture, in cells: the addresses
// stand left of them.
func (m *layoutMap) ViewWidth() float64 { return float64(m.Width) + 10.4 }

func (m *layoutMap) ViewHeight() float64 { return float64(m.Height) + .4 }
