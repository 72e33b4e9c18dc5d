package search

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"unlucky/layout"
)

// Answer is what a question has shown.
type Answer int

// The answers.
const (
	Unknown Answer = iota // neither of the two: another crash, or nothing to boot
	Passes
	Fails
)

func (a Answer) String() string { return [...]string{"unknown", "passes", "fails"}[a] }

// Culprit is a smallest set of functions that fail together.
type Culprit struct {
	Functions []int
	Touching  []int // those of them that must touch the one before them
	Unsure    bool  // whether all of it is needed could not be told
}

// Isolation looks for the culprits of a failing layout. It knows nothing of
// kernels: only of questions and their answers, which may be wrong in one
// direction, as a crash may not show in every boot, but what has crashed does
// fail.
type Isolation struct {
	N int // functions
	// Ask answers several questions, if it can at the same time. Sure asks it
	// to take more care before it says that something passes: a search mends
	// a wrong answer on its way, the result does not.
	Ask   func(ctx context.Context, sure bool, choices ...layout.Choice) ([]Answer, error)
	Width int // questions that are worth asking at once
	// Touch tells whether a function touches the one before it in the
	// failing layout.
	Touch func(function int) bool
	// Left is told how many functions are still in question.
	Left func(functions int)
	// Across is told the last function that is needed, and whether it fails by itself:
	// an error ends the search, as something else decides. It may be nil.
	Across func(ctx context.Context, function int, alone Answer) error
	// Rate is how many boots of layouts that fail have crashed: where that is not all, a
	// search weighs single boots. Boot answers by the nth boot of a choice, and Alike is
	// told of choices that fail by what was found, though they may not have crashed. They
	// may be nil.
	Rate  func() (boots, crashes int)
	Boot  func(ctx context.Context, nth int, choice layout.Choice) (Answer, error)
	Alike func(choices ...layout.Choice)
	// First are sets of functions to begin with, asked about at the same time:
	// where one fails by itself, a culprit is looked for in the first that
	// does. They change how much is asked, and not what is found.
	First [][]int
	// Next are sets of functions of which each is likely to be a culprit of what is
	// left, the likeliest first. They are asked about one after the other, before First;
	// nil for none.
	Next func(within layout.Choice) [][]int

	alike []layout.Choice // that fail if the functions found so far are needed
}

// maxCulprit is how many functions a culprit may have: more of them explain
// nothing, and some other property of the layout is likely to decide.
const maxCulprit = 5

// maxCulprits bounds how many culprits are looked for.
const maxCulprits = 8

var (
	errNoCulprit = errors.New("no few functions decide")
	errUndecided = errors.New("the answers on the way are neither pass nor fail")
	errMany      = fmt.Errorf("there are more than %d culprits", maxCulprits)
)

// Culprits finds the culprits one after the other, each with the ones before
// it made harmless, until what is left passes. What was found stands beside
// an error. The whole set of functions is known to fail, and the empty one to
// pass.
func (s *Isolation) Culprits(ctx context.Context) (found []Culprit, err error) {
	within := layout.Choice{On: slices.Repeat([]bool{true}, s.N)}
	for len(found) < maxCulprits {
		s.alike = nil
		c, err := s.suspected(ctx, within)
		if err != nil {
			return found, err
		}
		s.tellAlike()
		if s.flaky() { // few boots have told that the other end passes
			answer, err := s.ask(ctx, true, within.Without(within.Functions()...))
			if err != nil {
				return found, err
			}
			if answer != Passes {
				return found, fmt.Errorf("%w: the passing end fails", errUndecided)
			}
		}
		found = append(found, c)
		if s.First != nil || s.Next != nil { // the same answer in the same order, wherever the search has begun
			slices.SortStableFunc(found, func(a, b Culprit) int {
				return a.Functions[len(a.Functions)-1] - b.Functions[len(b.Functions)-1]
			})
		}
		// Two that touch are harmless apart, others without the last of
		// them, and nothing else is moved.
		if c.Touching != nil {
			within = within.Apart(c.Touching...)
		} else {
			within = within.Without(c.Functions[len(c.Functions)-1])
		}
		switch answer, err := s.ask(ctx, true, within); {
		case err != nil:
			return found, err
		case answer == Unknown:
			return found, errUndecided
		case answer == Passes:
			return found, nil
		}
	}
	return found, errMany
}

// suspected is smallest, begun with the suspects where some of them fail by
// themselves.
func (s *Isolation) suspected(ctx context.Context, within layout.Choice) (Culprit, error) {
	none := within.Without(within.Functions()...)
	if s.Next != nil {
		for _, set := range s.Next(within) {
			harmless := slices.ContainsFunc(set, func(f int) bool {
				return !within.On[f] || within.Open[f] && slices.Contains(set, f-1)
			})
			if harmless {
				continue
			}
			try := none.With(set...)
			answer, err := s.ask(ctx, false, try)
			if err != nil {
				return Culprit{}, err
			}
			if answer != Fails {
				continue
			}
			find := s.smallest
			if len(set) <= 2 {
				find = s.reduce
			}
			if c, err := find(ctx, try); err == nil || !inconclusive(err) {
				return c, err
			}
		}
	}
	var tries []layout.Choice
	for _, first := range s.First {
		try := none
		for _, f := range first {
			if within.On[f] {
				try = try.With(f)
			}
		}
		if n := try.Count(); n > 0 && n < within.Count() {
			tries = append(tries, try)
		}
	}
	if tries != nil {
		answers, err := s.Ask(ctx, false, tries...)
		if err != nil {
			return Culprit{}, err
		}
		if i := slices.Index(answers, Fails); i >= 0 {
			if c, err := s.smallest(ctx, tries[i]); err == nil || !inconclusive(err) {
				return c, err
			}
		}
	}
	return s.smallest(ctx, within)
}

// smallest finds a smallest set within one that fails: the last function that
// is needed, then, with that one held, the last before it, until those held
// fail by themselves. A border that falls into a culprit only cuts off what
// is not held yet.
func (s *Isolation) smallest(ctx context.Context, within layout.Choice) (Culprit, error) {
	held := within.Without(within.Functions()...)
	s.alike = nil
	for {
		f, err := s.last(ctx, held, within)
		if err != nil {
			return Culprit{}, err
		}
		held = held.With(f)
		within.On = slices.Concat(within.On[:f], make([]bool, s.N-f))
		// Most culprits are one function, or two that touch.
		tries := []layout.Choice{held}
		if f > 0 && within.On[f-1] && !within.Open[f] && s.Touch(f) {
			tries = append(tries, held.With(f-1))
		}
		alone := held.Count() == 1
		for n, try := range tries {
			answer, err := s.ask(ctx, false, try)
			if err != nil {
				return Culprit{}, err
			}
			if alone && s.Across != nil && (answer == Fails || n == len(tries)-1) {
				if err := s.Across(ctx, f, answer); err != nil {
					s.tellAlike()
					return Culprit{}, err
				}
			}
			if answer == Fails {
				return s.reduce(ctx, try)
			}
		}
		if held.Count() == maxCulprit {
			return Culprit{}, errNoCulprit
		}
	}
}

// last finds the last function of within that is needed, beside those held,
// for a failure: the first border before which all of within fail. Several
// borders are tried at once; a border that cannot be decided is moved.
func (s *Isolation) last(ctx context.Context, held, within layout.Choice) (int, error) {
	functions := within.Functions()
	before := func(n int) layout.Choice { return held.With(functions[:n]...) }
	if s.flaky() {
		if f, err := s.likely(ctx, functions, held, before); f >= 0 || err != nil {
			return f, err
		}
	}
	passes, fails := 0, len(functions) // lengths of what passes and of what fails
	var crashed []layout.Choice
	for fails-passes > 1 {
		s.Left(fails - passes)
		var borders []int
		for i := range s.Width {
			b := passes + (fails-passes)*(i+1)/(s.Width+1)
			if b > passes && b < fails && !slices.Contains(borders, b) {
				borders = append(borders, b)
			}
		}
		if borders == nil {
			borders = []int{passes + 1}
		}
		undecided := true
		for try := 0; undecided; try++ {
			if try == 8 || borders == nil {
				return 0, fmt.Errorf("%w: of the functions %d to %d", errUndecided, functions[passes], functions[fails-1])
			}
			choices := make([]layout.Choice, len(borders))
			for i, b := range borders {
				choices[i] = before(b)
			}
			answers, err := s.Ask(ctx, false, choices...)
			if err != nil {
				return 0, err
			}
			low, high := passes, fails
			for i, a := range answers {
				if a == Fails {
					fails = min(fails, borders[i])
					crashed = append(crashed, choices[i])
				}
			}
			for i, a := range answers {
				if a == Passes && borders[i] < fails {
					passes = max(passes, borders[i])
				}
			}
			undecided = passes == low && fails == high
			var moved []int
			for _, b := range borders { // 1 further, 2 back, 3 further ...
				if b += (try + 1) * (1 - 2*(try%2)); b > passes && b < fails {
					moved = append(moved, b)
				}
			}
			borders = moved
		}
	}
	s.alike = append(s.alike, crashed...)
	return functions[fails-1], nil
}

func (s *Isolation) tellAlike() {
	if s.Alike != nil {
		s.Alike(s.alike...)
	}
}

// flaky tells whether a crash is not there each time.
func (s *Isolation) flaky() bool {
	if s.Rate == nil {
		return false
	}
	boots, crashes := s.Rate()
	return 0 < crashes && crashes < boots
}

// likely is last where a crash is not there each time: single boots are weighed. It ends
// with a function that crashes beside those held alone, or one that is almost sure: should
// that be wrong, it is a later one, which reduce drops. It is -1 where that takes too long.
func (s *Isolation) likely(ctx context.Context, functions []int, held layout.Choice, before func(n int) layout.Choice) (int, error) {
	const almost = 0.95
	boots, crashes := s.Rate()
	c := newChances(len(functions), boots, crashes, true)
	found, sure := c.best()
	var crashed []layout.Choice
	for sure < almost && crashed == nil {
		s.Left(c.first)
		border, function := c.next()
		if border < 0 && function < 0 {
			return -1, nil
		}
		choice := before(max(0, border))
		if border < 0 {
			choice = held.With(functions[function])
		}
		answer, err := s.Boot(ctx, c.boots(border, function)+1, choice)
		if err != nil {
			return 0, err
		}
		c.learn(border, function, answer)
		if found, sure = c.best(); border < 0 && answer == Fails {
			found, crashed = function, []layout.Choice{choice}
		}
	}
	for b := found + 1; b < len(functions); b++ {
		if c.booted[b] {
			crashed = append(crashed, before(b))
		}
	}
	s.alike = append(s.alike, crashed...)
	return functions[found], nil
}

// reduce drops what is not needed of a set that fails, and tells which
// neighbours of it must touch.
func (s *Isolation) reduce(ctx context.Context, set layout.Choice) (Culprit, error) {
	unsure := false
	if f := set.Functions(); len(f) == 2 && f[0]+1 == f[1] && !set.Open[f[1]] && s.Touch(f[1]) {
		// Held apart, each of two is as it would be without the other.
		answer, err := s.ask(ctx, true, set.Apart(f[1]))
		if err != nil || answer == Passes {
			return Culprit{Functions: f, Touching: f[1:]}, err
		}
	}
	for _, f := range set.Functions() {
		if set.Count() == 1 {
			break
		}
		answer, err := s.ask(ctx, true, set.Without(f))
		if err != nil {
			return Culprit{}, err
		}
		unsure = unsure || answer == Unknown
		if answer == Fails {
			set = set.Without(f)
		}
	}
	c := Culprit{Functions: set.Functions()}
	for _, f := range c.Functions {
		if f == 0 || !set.On[f-1] || set.Open[f] || !s.Touch(f) {
			continue
		}
		answer, err := s.ask(ctx, true, set.Apart(f))
		if err != nil {
			return Culprit{}, err
		}
		unsure = unsure || answer == Unknown
		if answer == Passes {
			c.Touching = append(c.Touching, f)
		}
	}
	c.Unsure = unsure
	return c, nil
}

func (s *Isolation) ask(ctx context.Context, sure bool, c layout.Choice) (Answer, error) {
	answers, err := s.Ask(ctx, sure, c)
	if err != nil {
		return Unknown, err
	}
	return answers[0], nil
}
