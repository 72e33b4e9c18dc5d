package search

import (
	"context"
	"fmt"
	"slices"

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
	// Two that have to touch are apart there, too.
	none := layout.Choice{On: make([]bool, h.Len())}
	questions = append(questions[1:], m.choice(h, none.With(function), nil), m.choice(h, none.With(function-1, function), nil))
	m.judge.doubts++
	answers, err = m.judge.ask(ctx, true, questions...)
	m.judge.doubts--
	if err == nil && !slices.Contains(answers, Fails) && answers[0] == Passes {
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
	h, base, want := m.hybrids, at.nearer, Fails
	if at.nearer {
		want = Passes
	}
	edge := func(n int, stretch func(i int) (function int, bytes uint64), format string) (int, error) {
		return m.edge(ctx, n, want, format, func(i int) question {
			function, bytes := stretch(i)
			return m.stretched(base, function, bytes)
		})
	}
	// The first place where the padding decides, and the last one.
	first, err := edge(at.place+1, func(i int) (int, uint64) { return i, h.Wide() }, "how far towards the start does the padding decide")
	if err != nil {
		return err
	}
	last, err := edge(h.Len()-at.place, func(i int) (int, uint64) { return h.Len() - 1 - i, h.Wide() }, "how far towards the end does the padding decide")
	if err != nil {
		return err
	}
	last = h.Len() - 1 - last
	// As far apart as in the other end they are known to do what it does.
	from := max(0, first-1)
	step := max(h.Step(), h.Alignment(last))
	enough := h.Apart(!base, from, last) - h.Apart(base, from, last)
	if enough > h.Wide() || first == 0 { // nearer in the other end than in this: a residue has a part in it
		enough = h.Wide()
	}
	steps, err := edge(int(max(1, layout.AlignUp(enough, step)/step)), func(i int) (int, uint64) { return last, uint64(i+1) * step }, "how far apart must they be")
	if err != nil {
		return err
	}
	enough = uint64(steps+1) * step
	little := enough - step
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

// edge is the first of n questions from which on all are answered as wanted, as the last
// one is known to be. It weighs single boots where a crash is not there each time.
func (m *Minimize) edge(ctx context.Context, n int, want Answer, text string, at func(i int) question) (int, error) {
	if m.judge.missed() > 0 {
		if i, err := m.likelyEdge(ctx, n, want, text, at); i >= 0 || err != nil {
			return i, err
		}
	}
	low, high := -1, n-1
	for high-low > 1 {
		m.asking(high-low-1, "%s", text)
		i := (low + high) / 2
		answers, err := m.judge.ask(ctx, false, at(i))
		switch {
		case err != nil:
			return 0, err
		case answers[0] == want:
			high = i
		case answers[0] == Unknown:
			return 0, fmt.Errorf("%w: %s", errUndecided, text)
		default:
			low = i
		}
	}
	return high, nil
}

// likelyEdge is edge by single boots; -1 where that takes too long.
func (m *Minimize) likelyEdge(ctx context.Context, n int, want Answer, text string, at func(i int) question) (int, error) {
	const almost = 0.998
	boots, crashes := m.judge.rate()
	c := newChances(n, boots, crashes, false)
	// The hybrid of a border crashes if the one looked for is before it.
	hybrid := func(border int) question {
		if want == Passes {
			return at(n - 1 - border) // from the other end
		}
		return at(border - 1)
	}
	for {
		found, sure := c.best()
		if sure >= almost {
			for b := found + 1; b < n; b++ {
				if c.booted[b] {
					m.judge.alike(hybrid(b).plan(0))
				}
			}
			if want == Passes {
				found = n - 1 - found
			}
			return found, nil
		}
		m.asking(c.first, "%s", text)
		border, _ := c.next()
		if border < 0 {
			return -1, nil
		}
		answer, err := m.nth(ctx, c.boots(border, -1)+1, hybrid(border))
		if err != nil {
			return 0, err
		}
		c.learn(border, -1, answer)
	}
}

// nth answers by the nth boot of a question alone. What has crashed is not booted again, so
// in a journal the passes come first.
func (m *Minimize) nth(ctx context.Context, n int, q question) (Answer, error) {
	if r := m.judge.known(q.plan(0), q.switches); n <= r.Boots-r.Crashes-r.Others {
		return Passes, nil
	}
	answers, err := m.judge.askFor(ctx, false, n, 1, q)
	return answers[0], err
}

// part is a function of a culprit.
func (m *Minimize) part(function int) seeds.Function {
	s := m.hybrids.Section(function)
	return seeds.Function{Name: s.FunctionName(), Section: s.Name, Address: m.hybrids.Address(function)}
}
