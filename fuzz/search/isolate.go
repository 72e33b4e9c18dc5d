package search

import (
	"context"
	"errors"
	"fmt"
	"math"
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
	// Missed is the chance that a boot of a layout that fails passes, and Boot answers
	// by as many boots: where a crash is not there each time, a search does not wait
	// for any single answer. They may be nil.
	Missed func() float64
	Boot   func(ctx context.Context, passes int, choice layout.Choice) (Answer, error)
	// First are sets of functions to begin with, asked about at the same time:
	// where one fails by itself, a culprit is looked for in the first that
	// does. They change how much is asked, and not what is found.
	First [][]int
	// Next are sets of functions of which each is likely to be a culprit of what is
	// left, the likeliest first. They are asked about one after the other, before First;
	// nil for none.
	Next func(within layout.Choice) [][]int
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
		c, err := s.suspected(ctx, within)
		if err != nil {
			return found, err
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
	if s.Missed != nil && s.Missed() > 0 {
		return s.likely(ctx, functions, before)
	}
	passes, fails := 0, len(functions) // lengths of what passes and of what fails
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
	return functions[fails-1], nil
}

// likely is last where a crash is not there each time: a boot that fails rules out all
// borders behind it, one that passes makes those before it less likely, and the next is
// where it tells the most. It ends with one that is almost sure; should it be wrong, it
// is a later one, which reduce drops.
func (s *Isolation) likely(ctx context.Context, functions []int, before func(n int) layout.Choice) (int, error) {
	const almost = 0.95
	missed := s.Missed()
	// The best share of borders that fail (the capacity of a Z-channel).
	entropy := -missed*math.Log2(missed) - (1-missed)*math.Log2(1-missed)
	share := 1 / ((1 - missed) * (1 + math.Exp2(entropy/(1-missed))))
	weights := slices.Repeat([]float64{1}, len(functions)) // that so many and one are the first that fail
	passed, unknown := make([]int, len(functions)+1), 0
	for {
		sum, best, left := 0.0, 0, 0
		for i, w := range weights {
			if sum += w; w >= weights[best] {
				best = i
			}
			if w > 0 {
				left++
			}
		}
		if weights[best] >= almost*sum {
			return functions[best], nil
		}
		s.Left(left)
		border := 0
		for upTo := 0.0; upTo < share*sum; border++ {
			upTo += weights[border]
		}
		border = min(border, left-1)
		answer, err := s.Boot(ctx, passed[border]+1, before(border))
		switch {
		case err != nil:
			return 0, err
		case answer == Fails:
			clear(weights[border:])
		case answer == Unknown:
			if unknown++; unknown > len(functions) {
				return 0, fmt.Errorf("%w: of the functions %d to %d", errUndecided, functions[0], functions[len(functions)-1])
			}
			passed[border]++
			weights[border-1] *= 1 - 1e-6*float64(unknown) // and so not for ever the same
		default:
			passed[border]++
			for i := range border {
				weights[i] *= missed
			}
		}
	}
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
