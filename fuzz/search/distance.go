package search

import (
	"context"
	"fmt"

	"unlucky/layout"
	"unlucky/seeds"
)

// acrossError says that a distance decides, between what stands before a place and what
// stands behind it: it ends a search for residues, which hybrids stretch on their way.
type acrossError struct {
	place  int  // the function behind it
	nearer bool // it fails where they are near each other
}

func (e *acrossError) Error() string { return "a distance decides" }

// across tells whether a distance decides: whether the passing layout fails with what is
// behind a function moved away by so much that no distance is as small as in the failing
// one, or the failing layout passes with the function itself and all behind it moved so.
// No residue changes by it. What fails by itself may need the room that its slack takes,
// and no more is asked of it.
func (m *Minimize) across(ctx context.Context, function int, alone Answer) error {
	h := m.hybrids
	if !h.Ordered() || function+1 == h.Len() {
		return nil
	}
	m.asking(1, "does a distance decide")
	questions := []question{m.stretched(false, function+1, h.Wide())}
	if alone != Fails && function > 0 { // the slack of hybrids holds two apart up to the second
		questions = append(questions, m.stretched(true, function, h.Wide()))
	}
	// Few bugs are of this kind: what has passed a few times will pass.
	need, _ := m.judge.need(false)
	answers, err := m.judge.askFor(ctx, false, max(1, need/2+need%2), 1, questions...)
	switch {
	case err != nil:
		return err
	case answers[0] == Fails:
		return &acrossError{function + 1, false}
	case len(questions) == 1 || answers[1] != Passes:
		return nil
	}
	m.judge.doubts++
	answers, err = m.judge.ask(ctx, true, questions[1])
	m.judge.doubts--
	if err == nil && answers[0] == Passes {
		err = &acrossError{function, true}
	}
	return err
}

// stretched is the question of an end with some bytes more before a function.
func (m *Minimize) stretched(failing bool, function int, bytes uint64) question {
	return planned(m.hybrids.Stretched(failing, function, bytes), "")
}

// distance finds the two functions whose distance decides, and its bound: one padding
// is slid towards either end for as long as it does what it did, and then shrunk.
func (m *Minimize) distance(ctx context.Context, at *acrossError) error {
	h, base, want, otherwise := m.hybrids, at.nearer, Fails, Passes
	if at.nearer {
		want, otherwise = Passes, Fails
	}
	ask := func(left, function int, bytes uint64, format string, a ...any) (bool, error) {
		m.asking(left, format, a...)
		answers, err := m.judge.ask(ctx, false, m.stretched(base, function, bytes))
		if err != nil {
			return false, err
		}
		if answers[0] != want && answers[0] != otherwise {
			return false, fmt.Errorf("%w: of a distance, with %d bytes before %s", errUndecided, bytes, h.Section(function).Name)
		}
		return answers[0] == want, nil
	}
	first, none := at.place, -1 // the first place where the padding decides, and the last before it where it does not
	for first-none > 1 {
		place := (first + none) / 2
		if decides, err := ask(first-none-1, place, h.Wide(), "how far towards the start does the padding decide"); err != nil {
			return err
		} else if decides {
			first = place
		} else {
			none = place
		}
	}
	last, none := at.place, h.Len()
	for none-last > 1 {
		place := (last + none) / 2
		if decides, err := ask(none-last-1, place, h.Wide(), "how far towards the end does the padding decide"); err != nil {
			return err
		} else if decides {
			last = place
		} else {
			none = place
		}
	}
	// As far apart as in the other end they are known to do what it does.
	from := max(0, first-1)
	step := max(h.Step(), h.Alignment(last))
	little, enough := uint64(0), h.Apart(!base, from, last)-h.Apart(base, from, last)
	if enough > h.Wide() || first == 0 { // nearer in the other end than in this: a residue has a part in it
		enough = h.Wide()
	}
	enough = layout.AlignUp(enough, step)
	for enough-little > step {
		bytes := little + (enough-little)/2/step*step
		if decides, err := ask(int((enough-little)/step), last, bytes, "how far apart must they be"); err != nil {
			return err
		} else if decides {
			enough = bytes
		} else {
			little = bytes
		}
	}
	fails, passes := enough, little
	if at.nearer {
		fails, passes = little, enough
	}
	alone := m.stretched(base, last, fails)
	answers, err := m.judge.ask(ctx, true, alone, m.stretched(base, last, passes))
	if err != nil {
		return err
	}
	if answers[0] != Fails || answers[1] != Passes {
		return fmt.Errorf("%w: of the bound of a distance", errUndecided)
	}
	c := seeds.Culprit{Alone: m.boots(alone), Bound: &seeds.Bound{Bytes: h.Apart(base, from, last) + fails, Step: step, Nearer: at.nearer}}
	if first == 0 {
		c.Bound.Bytes = h.EndAddress(base, last) + fails
	} else {
		c.Functions = append(c.Functions, m.part(from))
	}
	c.Functions = append(c.Functions, m.part(last))
	if last == h.Len()-1 {
		m.note("%s is the last that can be moved: what follows it, and cannot be moved by itself, may be meant", c.Functions[len(c.Functions)-1].Name)
	}
	failing, passing := alone.plan(0), h.Stretched(base, last, passes)
	m.result.Culprits = append(m.result.Culprits, c)
	if size(failing) <= size(m.best) {
		m.best, m.result.Twin = failing, &passing
	}
	m.Note("culprit: %s", c)
	return nil
}

// part is a function of a culprit.
func (m *Minimize) part(function int) seeds.Function {
	s := m.hybrids.Section(function)
	return seeds.Function{Name: s.FunctionName(), Section: s.Name, Address: m.hybrids.Address(function)}
}
