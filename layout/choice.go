package layout

import (
	"fmt"
	"slices"
	"strings"
)

// Choice is a question to a failing layout of some functions, numbered in the
// order of .text: does it still fail if only some of them stay where they are?
type Choice struct {
	// On are the functions that stay at their failing residue; the others are
	// at that of the passing layout. Neighbours that are both on touch if
	// they do so in the failing layout; where one of two is on, slack keeps
	// them apart.
	On []bool
	// Open are functions held apart from the one before them all the same.
	Open map[int]bool
}

// String names the functions that are on, in runs: "3-5 9, open 4".
func (c Choice) String() string {
	var runs []string
	for i := 0; i < len(c.On); i++ {
		if !c.On[i] {
			continue
		}
		first := i
		for i+1 < len(c.On) && c.On[i+1] {
			i++
		}
		if runs = append(runs, fmt.Sprint(first)); i > first {
			runs[len(runs)-1] += fmt.Sprint("-", i)
		}
	}
	if runs == nil {
		runs = []string{"none"}
	}
	text := strings.Join(runs, " ")
	for i := range c.On {
		if c.Open[i] && i > 0 && c.On[i] && c.On[i-1] {
			text += fmt.Sprint(", open ", i)
		}
	}
	return text
}

// Count is the number of functions that are on.
func (c Choice) Count() int {
	n := 0
	for _, on := range c.On {
		if on {
			n++
		}
	}
	return n
}

// Functions are the numbers of those that are on.
func (c Choice) Functions() []int {
	var out []int
	for i, on := range c.On {
		if on {
			out = append(out, i)
		}
	}
	return out
}

// With turns functions on, without turns them off.
func (c Choice) With(functions ...int) Choice    { return c.set(true, functions) }
func (c Choice) Without(functions ...int) Choice { return c.set(false, functions) }

func (c Choice) set(on bool, functions []int) Choice {
	c.On = slices.Clone(c.On)
	for _, f := range functions {
		c.On[f] = on
	}
	return c
}

// Has tells whether all that is on in another choice is on in this one, and touches where
// it does there.
func (c Choice) Has(other Choice) bool {
	for f, on := range other.On {
		if on && !c.On[f] {
			return false
		}
	}
	for f, open := range c.Open {
		if open && !other.Open[f] {
			return false
		}
	}
	return true
}

// Apart holds functions apart from the ones before them.
func (c Choice) Apart(functions ...int) Choice {
	open := map[int]bool{}
	for f := range c.Open {
		open[f] = true
	}
	for _, f := range functions {
		open[f] = true
	}
	c.Open = open
	return c
}
